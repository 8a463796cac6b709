"""Adding a driver is one new file: a driver that nobody has, described in a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checking import KEY, clean
from querying import REGISTER, Run

import mackerel_otel_server

DESCRIPTION = '''
"""teapot, a driver of the tests."""

from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import patch_methods

def _patch(module):
    patch_methods(module.Cursor, DRIVER)

def _place_of(connection):
    return Place(connection.name, "teapots.example.com", 4180)

DRIVER = Driver(
    name="teapot",
    module="teapot",
    system="teapot_db",
    distributions={"teapot-client": "4.1.8"},
    patches={"teapot": _patch},
    place_of=_place_of,
)
'''
TEAPOT = """
class Cursor:
    def __init__(self, connection):
        self.connection = connection
    def execute(self, query, parameters=()):
        pass

class Connection:
    def __init__(self, name):
        self.name = name
    def cursor(self):
        return Cursor(self)
    def close(self):
        pass

connect = Connection
"""
BREW = """
import teapot
with parent(), closing(teapot.connect("kitchen")) as connection:
    connection.cursor().execute("BREW %s", (SECRET,))
report()
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder with this package and the new file, and with the driver that the file describes."""
    folder = tmp_path / "site"
    package = folder / "mackerel_otel_server"
    shutil.copytree(Path(mackerel_otel_server.__file__).parent, package)
    (package / "tracing" / "databases" / "drivers" / "teapot.py").write_text(DESCRIPTION)
    (folder / "teapot.py").write_text(TEAPOT)
    return folder


def path_with(site: Path) -> str:
    return os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])


def install(site: Path, version: str) -> None:
    information = site / f"teapot_client-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: teapot-client\nVersion: {version}\n")


def checked(folder: Path, site: Path, **env: str) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "mackerel_otel_server", "check", "--json"],
        cwd=folder,
        env={**clean(os.environ), "MACKEREL_APIKEY": KEY, "OTEL_SERVICE_NAME": "shop", "PYTHONPATH": str(site), **env},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def row(answer: dict[str, Any]) -> list[str]:
    (found,) = [[one["version"], one["traced_by"]] for one in answer["versions"] if one["name"] == "teapot-client"]
    return found


@pytest.mark.parametrize("first", [True, False])
def test_its_queries_are_traced_as_those_of_its_database_system(run: Run, site: Path, *, first: bool) -> None:
    result = run(REGISTER + BREW if first else "import teapot\n" + REGISTER + BREW, PYTHONPATH=path_with(site))
    (span,) = result.spans
    assert (span["name"], span["kind"]) == ("BREW", "SpanKind.CLIENT")
    assert span["attributes"] == {
        "db.system.name": "teapot_db",
        "db.namespace": "kitchen",
        "server.address": "teapots.example.com",
        "server.port": 4180,
        "db.query.text": "BREW %s",
        "db.operation.name": "BREW",
    }


@pytest.mark.parametrize("disabled", ["teapot", "*"])
def test_its_name_switches_it_off(run: Run, site: Path, disabled: str) -> None:
    register = (
        "from mackerel_otel_server.settings import environment\n"
        "databases.register(environment.disabled_instrumentations)\n"
    )
    env = {"PYTHONPATH": path_with(site)}
    assert run(register + BREW, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled, **env).spans == []
    assert len(run(register + BREW, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="teapots", **env).spans) == 1


def test_check_lists_it_with_who_traces_it(tmp_path: Path, site: Path) -> None:
    install(site, "4.2")
    answer = checked(tmp_path, site)
    assert row(answer) == ["4.2", "mackerel-otel-server"]
    assert not [finding for finding in answer["findings"] if "teapot" in finding["seen"]]
    off = checked(tmp_path, site, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="teapot")
    assert row(off) == ["4.2", "nobody (OTEL_PYTHON_DISABLED_INSTRUMENTATIONS)"]


def test_a_release_that_is_older_than_the_oldest_tested_one_gets_a_warning_in_the_log_and_in_check(
    run: Run, tmp_path: Path, site: Path
) -> None:
    install(site, "4.1.7")
    log = run(REGISTER + BREW, PYTHONPATH=path_with(site)).log
    (line,) = [line for line in log.splitlines() if "older than" in line]
    assert "teapot-client 4.1.7 is older than 4.1.8" in line
    (finding,) = [one for one in checked(tmp_path, site)["findings"] if "teapot" in one["seen"]]
    assert (finding["level"], finding["cure"]) == ("WARN", "pip install 'teapot-client>=4.1.8'")
    assert finding["seen"].startswith("teapot-client 4.1.7 is older than 4.1.8")
