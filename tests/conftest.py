"""The far end, and the databases that the tests talk to."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from checking import Check, know_versions, make_check
from querying import HARNESS, Database, Result, Run

from mackerel_otel_server.cli.receiver.endpoint import Receiver

if TYPE_CHECKING:
    from servers import Shown


# A shell without job control has what it starts in the background ignore these, and a server inherits that.
for _number, _action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _action)


@pytest.fixture(autouse=True, scope="session")
def _spool_of_wider_fixtures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give what is made for several tests a folder for the journals."""
    os.environ["MACKEREL_OTEL_SPOOL"] = str(tmp_path_factory.mktemp("wider") / "spool")


@pytest.fixture(autouse=True)
def _spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a folder of its own for the journals."""
    monkeypatch.setenv("MACKEREL_OTEL_SPOOL", str(tmp_path / "spool"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """The far end, with Mackerel's manners."""
    with Receiver(api_key="test-key") as receiver:
        yield receiver


@pytest.fixture
def shown(record_property: Callable[[str, object], None]) -> Shown:
    """Return a function that lets the test's result stand in the tables of docs/server-modes.md."""

    def show(row: str, *columns: str, limit: str = "") -> None:
        for column in columns:
            record_property("server mode", f"{row}|{column}|{limit}")

    return show


@pytest.fixture(params=["own", "standard"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let each environment() of the test have MACKEREL_OTEL_PARTS, one after the other."""
    chosen: str = request.param
    monkeypatch.setenv("TEST_PARTS", chosen)
    return chosen


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI=true skips nothing")
    pytest.skip(reason)


def _server(name: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        _missing(f"no {name} answers at {host}:{port} ({error})")


@pytest.fixture(scope="session")
def mysql() -> dict[str, Any]:
    """Return what connects a driver to MySQL or MariaDB."""
    address: dict[str, Any] = {
        "host": os.environ.get("MYSQL_HOST", "127.0.0.1"),
        "port": int(os.environ.get("MYSQL_PORT", "3306")),
        "user": os.environ.get("MYSQL_USER", "root"),
        "password": os.environ.get("MYSQL_PASSWORD", ""),
        "database": os.environ.get("MYSQL_DATABASE", "test"),
    }
    _server("MySQL", address["host"], address["port"])
    return address


@pytest.fixture(scope="session")
def postgresql() -> dict[str, Any]:
    """Return what connects a driver to PostgreSQL."""
    address: dict[str, Any] = {
        "host": os.environ.get("PGHOST", "127.0.0.1"),
        "port": int(os.environ.get("PGPORT", "5432")),
        "user": os.environ.get("PGUSER", "postgres"),
        "password": os.environ.get("PGPASSWORD", ""),
        "dbname": os.environ.get("PGDATABASE", "test"),
    }
    _server("PostgreSQL", address["host"], address["port"])
    return address


@pytest.fixture(scope="session")
def redis_url() -> str:
    """Return the URL of the Redis server."""
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
    parts = urlsplit(url)
    _server("Redis", parts.hostname or "127.0.0.1", parts.port or 6379)
    return url


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    """Return a function that skips the test when a module is not installed."""

    def check(module: str) -> None:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            _missing(f"{module} is not installed")

    return check


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a script in a fresh interpreter and gives its spans and what it reported."""

    def run_script(
        body: str, address: dict[str, Any] | None = None, *, own: bool = False, **environment: str
    ) -> Result:
        script = tmp_path / "script.py"
        script.write_text(HARNESS + body)
        arguments = json.dumps({"unique": uuid.uuid4().hex[:12], "address": address or {}, "own": own})
        result = subprocess.run(
            [sys.executable, script, arguments],
            cwd=tmp_path,
            env={**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": "http,database", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        answer = json.loads(result.stdout.splitlines()[-1])
        return Result(answer["spans"], answer["facts"], result.stderr)

    return run_script


@pytest.fixture
def database(request: pytest.FixtureRequest, need: Callable[[str], None]) -> Database:
    """Return the database of the driver that the test is parametrised with."""
    name: str = request.param
    module, _, variant = name.partition(" ")
    need(module)
    if module == "sqlite3":
        return Database(module, "sqlite", {"database": "file.db"}, "?", "file.db")
    if module.startswith("psycopg") or variant == "postgresql":
        address = request.getfixturevalue("postgresql")
        name, system = address["dbname"], "postgresql"
    else:
        address = request.getfixturevalue("mysql")
        name, system = address["database"], "mysql" if variant != "mariadb" else "mariadb"
    server = address["host"], address["port"]
    if module == "pyodbc":
        driver = {"postgresql": "PostgreSQL Unicode", "mariadb": "MariaDB Unicode"}[variant]
        if driver not in importlib.import_module("pyodbc").drivers():
            _missing(f"unixODBC knows no {driver}")
        keywords = {"driver": driver, "server": server[0], "port": server[1], "database": name}
        keywords |= {"uid": address["user"], "pwd": address["password"]}
        return Database(module, system, keywords, "?", name, server)
    if variant == "pure":
        address = {**address, "use_pure": True}
    return Database(module, system, address, namespace=name, server=server)


@pytest.fixture
def known_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``check`` in this process look up once, for all tests that use this, what is installed."""
    know_versions(monkeypatch)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Return a function that runs ``check --json`` on files in ``tmp_path``, in this process."""
    return make_check(tmp_path, monkeypatch, capsys)


# tox's environment "package" has what builds a release, and runs those tests.
collect_ignore = [] if importlib.util.find_spec("build") else ["documents/test_package.py"]
