"""The far end, and the databases that the tests talk to."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from mackerel_otel_server.cli.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """The far end, with Mackerel's manners."""
    with Receiver(api_key="test-key") as receiver:
        yield receiver


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
