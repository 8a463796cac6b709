"""Scripts that query databases, each in an interpreter of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

HARNESS = """
import functools, json, logging, os, sys, warnings
from contextlib import closing, contextmanager
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mackerel_otel_server.settings.environment import semantic_conventions
from mackerel_otel_server.tracing import databases, on_or_off

logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
ARGS = json.loads(sys.argv[1])
TABLE = "t_" + ARGS["unique"]
ADDRESS = ARGS["address"]
SECRET = "s3cret-value"
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
on_or_off.active = True
find = databases.entry_points
if not ARGS["own"]:  # a driver's own instrumentation that happens to be installed goes first: those tests ask for it
    databases.entry_points = lambda **kwargs: [e for e in find(**kwargs) if "opentelemetry." not in e.value]

databases.register = functools.partial(
    databases.register, semantic_conventions=functools.partial(semantic_conventions, "database")
)

def parent():
    return trace.get_tracer("test").start_as_current_span("parent")

def report(**facts):
    spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans() if span.name != "parent"]
    print(json.dumps({"spans": spans, "facts": facts}, default=repr))
"""

REGISTER = "databases.register()\n"
SQLITE3 = "databases.register()\nimport sqlite3\nimport sqlite3.dbapi2\n"


class Result(NamedTuple):
    spans: list[dict[str, Any]]
    facts: dict[str, Any]
    log: str

    @property
    def texts(self) -> list[str]:
        return [span["attributes"].get("db.query.text", "") for span in self.spans]


Run = Callable[..., Result]


class Database(NamedTuple):
    """One driver and the way to its database."""

    module: str
    system: str
    address: dict[str, Any]
    placeholder: str = "%s"
    namespace: str = "test"
    server: tuple[str, int] | None = None

    @property
    def place(self) -> dict[str, Any]:
        """What the spans of this database say about where it is."""
        where: dict[str, Any] = {"db.system.name": self.system, "db.namespace": self.namespace}
        if self.server:
            where |= {"server.address": self.server[0], "server.port": self.server[1]}
        return where


DRIVERS = [
    "MySQLdb",
    "pymysql",
    "mysql.connector",
    "mysql.connector pure",
    "psycopg2",
    "psycopg",
    "pyodbc postgresql",
    "pyodbc mariadb",
    "sqlite3",
]


ORDERS = {
    "before the driver": "databases.register()\nimport {0} as driver\nfrom {0} import connect\n",
    "after the driver": "import {0} as driver\ndatabases.register()\nfrom {0} import connect\n",
    "after `from driver import connect`": "import {0} as driver\nfrom {0} import connect\ndatabases.register()\n",
}
IMPORT = ORDERS["before the driver"]

every_driver = pytest.mark.parametrize("database", DRIVERS, indirect=True)
