"""Which drivers are traced, by whom, and under which conventions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from querying import REGISTER, SQLITE3, Database, Run

from mackerel_otel_server.tracing.databases import oldest_releases
from mackerel_otel_server.tracing.databases.drivers import DRIVERS


def test_without_the_opt_in_the_old_conventions_are_used(run: Run) -> None:
    script = SQLITE3 + "with parent():\n    sqlite3.connect('a.db').execute('SELECT 1')\nreport()\n"
    (old,) = run(script, OTEL_SEMCONV_STABILITY_OPT_IN="").spans
    (both,) = run(script, OTEL_SEMCONV_STABILITY_OPT_IN="database/dup").spans
    assert {"db.system": "sqlite", "db.name": "a.db", "db.statement": "SELECT 1"}.items() <= old["attributes"].items()
    assert {"db.statement": "SELECT 1", "db.query.text": "SELECT 1"}.items() <= both["attributes"].items()


def test_registering_imports_no_driver_and_starts_nothing(run: Run) -> None:
    result = run(
        """
import threading
before = set(sys.modules)
databases.register()
new = set(sys.modules) - before
from mackerel_otel_server.tracing.databases.drivers import DRIVERS
names = {driver.module.partition(".")[0] for driver in DRIVERS}
drivers = [m for m in sys.modules if m.partition(".")[0] in names]
ours = "mackerel_otel_server.tracing.databases."
names = ("opentelemetry.instrumentation", ours + "methods", ours + "queries")
lazy = [m for m in sys.modules if m.startswith(names)]
report(new=sorted(new), drivers=drivers, lazy=lazy, threads=threading.active_count())
"""
    )
    assert result.facts == {"new": [], "drivers": [], "lazy": [], "threads": 1}


def test_registering_twice_makes_one_span(run: Run) -> None:
    result = run(
        REGISTER
        + SQLITE3
        + REGISTER
        + """
with parent(), closing(sqlite3.connect(":memory:")) as connection:
    connection.execute("SELECT 1")
report()
"""
    )
    assert result.texts == ["SELECT 1"]


@pytest.mark.parametrize(("disabled", "spans"), [("('sqlite3',)", 0), ("{'*'}", 0), ("('psycopg2',)", 1)])
def test_a_disabled_driver_is_left_alone(run: Run, disabled: str, spans: int) -> None:
    result = run(
        f"""
databases.register(disabled=lambda: {disabled})
import sqlite3
with parent(), closing(sqlite3.connect(":memory:")) as connection:
    connection.execute("SELECT 1")
report()
"""
    )
    assert len(result.spans) == spans


def test_a_driver_that_cannot_be_patched_is_imported_all_the_same_with_one_warning(run: Run, tmp_path: Path) -> None:
    # The parts of this release have other names than those that are patched.
    package = tmp_path / "elsewhere" / "MySQLdb"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "connections.py").touch()
    (package / "cursors.py").touch()
    (package.parent / "psycopg2.py").touch()
    result = run(
        REGISTER + "import psycopg2, MySQLdb.connections\nreport()\n",
        PYTHONPATH=os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]),
    )
    warnings = [line for line in result.log.splitlines() if "mackerel_otel_server WARNING" in line]
    assert len(warnings) == 2, result.log
    assert "psycopg2" in warnings[0]
    assert "MySQLdb.connections" in warnings[1]
    assert all("AttributeError" in line for line in warnings)


def test_a_driver_that_is_older_than_the_oldest_tested_release_gets_one_warning(run: Run, tmp_path: Path) -> None:
    package = tmp_path / "old" / "pymysql"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for distribution, version in ("PyMySQL", "0.9.3"), ("psycopg2_binary", "2.9.2"):
        information = package.parent / f"{distribution}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (package.parent / "psycopg2.py").touch()
    result = run(
        REGISTER + "import pymysql\ntry:\n    import psycopg2\nfinally:\n    report()\n",
        PYTHONPATH=os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]),
    )
    (line,) = [line for line in result.log.splitlines() if "older than" in line]
    assert "PyMySQL 0.9.3 is older than 1.0.2" in line
    assert "pip install 'PyMySQL>=1.0.2'" in line


@pytest.mark.parametrize("document", ["frameworks-and-databases.md", "frameworks-and-databases.ja.md"])
def test_the_documents_name_the_oldest_release_of_each_driver(document: str) -> None:
    text = " ".join(Path(__file__).parents[2].joinpath("docs", document).read_text().split())
    for distribution, oldest in oldest_releases().items():
        assert f"{distribution.removesuffix('-binary')} {oldest}" in text


def test_every_driver_has_an_oldest_release() -> None:
    assert {driver.name for driver in DRIVERS if not any(driver.distributions.values())} == {"sqlite3"}


OWN = """
from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
import sqlite3

class Own(BaseInstrumentor):
    def instrumentation_dependencies(self):
        return ({dependency!r},) if {dependency!r} else ()
    def _instrument(self, **kwargs):
        {fails}
        connect = sqlite3.connect
        def traced(*args, **kwargs):
            with trace.get_tracer("own").start_as_current_span("own"):
                return connect(*args, **kwargs)
        sqlite3.connect = traced
    def _uninstrument(self, **kwargs):
        pass
"""


@pytest.mark.parametrize(
    "case",
    [
        ("", "pass", ["own"], None),
        ("no-such-distribution >= 7", "pass", ["SELECT"], "refused"),
        ("", "raise RuntimeError('broken')", ["SELECT"], "RuntimeError: broken"),
        ("", "import no_such_module", ["SELECT"], "ModuleNotFoundError"),
    ],
    ids=["works", "refuses", "raises", "imports what is not there"],
)
def test_the_driver_s_own_instrumentation_goes_first_and_ours_stands_in_when_it_fails(
    run: Run, tmp_path: Path, case: tuple[str, str, list[str], str | None]
) -> None:
    dependency, fails, expected, warning = case
    site = tmp_path / "site"
    information = site / "own_instrumentation-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: own-instrumentation\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[opentelemetry_instrumentor]\nsqlite3 = own_instrumentation:Own\n")
    (site / "own_instrumentation.py").write_text(OWN.format(dependency=dependency, fails=fails))
    result = run(
        SQLITE3
        + """
with parent(), closing(sqlite3.connect(":memory:")) as connection:
    connection.execute("SELECT 1")
report()
""",
        PYTHONPATH=os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
    )
    assert [span["name"] for span in result.spans] == expected
    warnings = [line for line in result.log.splitlines() if "mackerel_otel_server WARNING" in line]
    if warning is None:
        assert warnings == []
    else:
        (line,) = warnings
        assert "own_instrumentation:Own" in line
        assert "sqlite3" in line
        assert warning in line


@pytest.mark.parametrize("already", [False, True])
def test_the_real_instrumentation_of_psycopg2_makes_the_only_span(
    run: Run, postgresql: dict[str, Any], *, already: bool
) -> None:
    pytest.importorskip("opentelemetry.instrumentation.psycopg2")
    pytest.importorskip("psycopg2")
    theirs = "from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor\n"
    result = run(
        (theirs + "Psycopg2Instrumentor().instrument()\n" if already else "")
        + REGISTER
        + """
import psycopg2
with parent(), closing(psycopg2.connect(**ADDRESS)) as connection:
    connection.cursor().execute("SELECT 1")
report(scopes=[span.instrumentation_scope.name for span in exporter.get_finished_spans() if span.name != "parent"])
""",
        postgresql,
        own=True,
    )
    assert result.facts["scopes"] == ["opentelemetry.instrumentation.psycopg2"]
    assert "already instrumented" not in result.log


@pytest.mark.parametrize("database", ["pymysql"], indirect=True)
@pytest.mark.parametrize("first", [True, False])
def test_pymysql_under_the_name_of_mysqldb_is_traced(run: Run, database: Database, *, first: bool) -> None:
    result = run(
        (REGISTER if first else "")
        + "import pymysql\npymysql.install_as_MySQLdb()\n"
        + ("" if first else REGISTER)
        + """
import MySQLdb
with parent(), closing(MySQLdb.connect(**ADDRESS)) as connection:
    connection.cursor().execute("SELECT 1")
import MySQLdb.cursors  # a second copy of pymysql.cursors
with parent(), closing(MySQLdb.connect(**ADDRESS)) as connection:
    connection.cursor(MySQLdb.cursors.DictCursor).execute("SELECT 2")
report(copy=MySQLdb.cursors.__name__)
""",
        database.address,
    )
    assert result.facts["copy"] == "MySQLdb.cursors"
    assert result.texts == ["SELECT 1", "SELECT 2"]
    assert "WARNING" not in result.log


@pytest.mark.parametrize("database", ["psycopg2", "pymysql", "sqlite3"], indirect=True)
@pytest.mark.parametrize("first", [True, False])
def test_a_driver_that_the_application_traces_with_a_line_of_its_own_makes_one_span(
    run: Run, database: Database, *, first: bool
) -> None:
    theirs = f"""
import {database.module} as driver
from opentelemetry.instrumentation.dbapi import trace_integration
trace_integration(driver, "connect", {database.system!r})
"""
    result = run(
        (REGISTER + theirs if first else theirs + REGISTER)
        + f"""
with parent(), closing(driver.connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT {database.placeholder}", (1,))
    rows = [tuple(row) for row in cursor.fetchall()]
report(rows=rows, scopes=[span.instrumentation_scope.name for span in exporter.get_finished_spans()][:-1])
""",
        database.address,
    )
    assert result.facts == {"rows": [[1]], "scopes": ["opentelemetry.instrumentation.dbapi"]}


def test_any_other_driver_is_traced_by_one_line(
    run: Run, need: Callable[[str], None], postgresql: dict[str, Any]
) -> None:
    need("pg8000")
    result = run(
        REGISTER
        + """
import pg8000.dbapi
from opentelemetry.instrumentation.dbapi import trace_integration

trace_integration(pg8000.dbapi, "connect", "postgresql")

with parent() as span, closing(pg8000.dbapi.connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT %s::text", (SECRET,))
    rows = [list(row) for row in cursor.fetchall()]
report(rows=rows, parent=format(span.get_span_context().span_id, "#018x"))
""",
        {
            "host": postgresql["host"],
            "port": postgresql["port"],
            "user": postgresql["user"],
            "password": postgresql["password"],
            "database": postgresql["dbname"],
        },
    )
    (span,) = result.spans
    assert result.facts == {"rows": [["s3cret-value"]], "parent": span["parent_id"]}
    attributes = span["attributes"]
    assert span["kind"] == "SpanKind.CLIENT"
    if "db.query.text" in attributes:
        assert attributes["db.system.name"] == "postgresql"
    # Mackerel reads the old name as well, which is all that releases before 0.63b0 know.
    assert attributes.get("db.query.text", attributes.get("db.statement")) == "SELECT %s::text"
    assert "s3cret-value" not in json.dumps(result.spans)
