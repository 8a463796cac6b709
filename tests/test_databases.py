"""Queries become spans: each driver for real, each case in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HARNESS = """
import functools, json, logging, os, sys, warnings
from contextlib import closing, contextmanager
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mackerel_otel_server.settings import semantic_conventions
from mackerel_otel_server.tracing import databases, gate

logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
ARGS = json.loads(sys.argv[1])
TABLE = "t_" + ARGS["unique"]
ADDRESS = ARGS["address"]
SECRET = "s3cret-value"
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
gate.active = True
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


class Result(NamedTuple):
    spans: list[dict[str, Any]]
    facts: dict[str, Any]
    log: str

    @property
    def texts(self) -> list[str]:
        return [span["attributes"].get("db.query.text", "") for span in self.spans]


Run = Callable[..., Result]


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


class Database(NamedTuple):
    """One driver and the way to its database."""

    module: str
    system: str
    address: dict[str, Any]
    placeholder: str = "%s"
    namespace: str = "test"


DRIVERS = ["MySQLdb", "pymysql", "mysql.connector", "mysql.connector pure", "psycopg2", "psycopg", "sqlite3"]


@pytest.fixture
def database(request: pytest.FixtureRequest, need: Callable[[str], None]) -> Database:
    """Return the database of the driver that the test is parametrised with."""
    name: str = request.param
    module, _, variant = name.partition(" ")
    need(module)
    if module == "sqlite3":
        return Database(module, "sqlite", {"database": "file.db"}, "?", "file.db")
    if module.startswith("psycopg"):
        address = request.getfixturevalue("postgresql")
        return Database(module, "postgresql", address, namespace=address["dbname"])
    address = request.getfixturevalue("mysql")
    more = {"use_pure": True} if variant == "pure" else {}
    return Database(module, "mysql", {**address, **more}, namespace=address["database"])


ORDERS = {
    "before the driver": "databases.register()\nimport {0} as driver\nfrom {0} import connect\n",
    "after the driver": "import {0} as driver\ndatabases.register()\nfrom {0} import connect\n",
    "after `from driver import connect`": "import {0} as driver\nfrom {0} import connect\ndatabases.register()\n",
}
IMPORT = ORDERS["before the driver"]

every_driver = pytest.mark.parametrize("database", DRIVERS, indirect=True)


# sqlite3.connect is C and opens a C class: who holds it from before us cannot be reached.
@pytest.mark.parametrize(
    ("database", "order"),
    [(d, o) for d in DRIVERS for o in ORDERS if d != "sqlite3" or "import connect" not in o],
    indirect=["database"],
)
def test_each_query_is_one_client_span_whichever_was_imported_first(run: Run, database: Database, order: str) -> None:
    mark = database.placeholder
    result = run(
        ORDERS[order].format(database.module)
        + f"""
with parent() as span, closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute(f"CREATE TABLE {{TABLE}} (id INTEGER, name VARCHAR(50))")
    try:
        cursor.executemany(f"INSERT INTO {{TABLE}} VALUES ({mark}, {mark})", [(1, SECRET), (2, SECRET)])
        cursor.executemany(f"UPDATE {{TABLE}} SET name = {mark} WHERE id = {mark}", [(SECRET, 1), (SECRET, 2)])
        cursor.execute(f"SELECT id FROM {{TABLE}} WHERE name = {mark} ORDER BY id", (SECRET,))
        rows = [row[0] for row in cursor.fetchall()]
    finally:
        cursor.execute(f"DROP TABLE {{TABLE}}")
    connection.commit()
report(rows=rows, parent=format(span.get_span_context().span_id, "#018x"), table=TABLE)
""",
        database.address,
    )
    table = result.facts["table"]
    assert result.facts["rows"] == [1, 2]
    assert [text.replace(table, "t") for text in result.texts] == [
        "CREATE TABLE t (id INTEGER, name VARCHAR(50))",
        f"INSERT INTO t VALUES ({mark}, {mark})",
        f"UPDATE t SET name = {mark} WHERE id = {mark}",
        f"SELECT id FROM t WHERE name = {mark} ORDER BY id",
        "DROP TABLE t",
    ]
    where: dict[str, Any] = {"db.system.name": database.system, "db.namespace": database.namespace}
    if "host" in database.address:
        where |= {"server.address": database.address["host"], "server.port": database.address["port"]}
    for span, operation in zip(result.spans, ["CREATE", "INSERT", "UPDATE", "SELECT", "DROP"], strict=True):
        attributes = span["attributes"]
        text = attributes.pop("db.query.text")
        assert attributes == {**where, "db.operation.name": operation}
        assert text.startswith(operation)
        assert span["name"] == operation
        assert span["kind"] == "SpanKind.CLIENT"
        assert span["parent_id"] == result.facts["parent"]
    assert "s3cret-value" not in json.dumps(result.spans)


@every_driver
def test_without_a_parent_or_in_a_process_that_does_not_trace_there_is_no_span(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
with closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    rows = [tuple(row) for row in cursor.fetchall()]
    gate.active = False
    with parent():
        cursor.execute("SELECT 2")
        rows += [tuple(row) for row in cursor.fetchall()]
report(rows=rows)
""",
        database.address,
    )
    assert result.facts["rows"] == [[1], [2]]
    assert result.spans == []


@every_driver
def test_an_error_of_the_driver_reaches_the_application_and_is_on_the_span(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
with parent(), closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    for gate.active in False, True:
        try:
            cursor.execute("SELEKT 1")
        except driver.Error as error:
            types = [types[0] if gate.active else type(error).__qualname__, type(error).__qualname__]
        connection.rollback()
report(types=types)
""",
        database.address,
    )
    (span,) = result.spans
    untraced, traced = result.facts["types"]
    assert untraced == traced == span["attributes"]["error.type"]
    assert span["status"]["status_code"] == "ERROR"
    (event,) = span["events"]
    assert event["name"] == "exception"
    assert event["attributes"]["exception.type"].endswith(traced)


@every_driver
@pytest.mark.parametrize("query", ["''", "'  \\n '", "b''", "None", "'/* never ends'", "'select\\x00 1'", "7"])
def test_a_query_that_is_none_behaves_as_without_us(run: Run, database: Database, query: str) -> None:
    result = run(
        IMPORT.format(database.module)
        + f"""
outcomes = []
for gate.active in False, True:
    with parent(), closing(connect(**ADDRESS)) as connection:
        cursor = connection.cursor()
        try:
            cursor.execute({query})
            outcomes.append("no error")
        except Exception as error:
            outcomes.append(repr(error))
report(outcomes=outcomes)
""",
        database.address,
    )
    without, with_us = result.facts["outcomes"]
    assert without == with_us
    assert len(result.spans) == 1


@pytest.mark.parametrize(
    ("database", "keyword"),
    [
        ("MySQLdb", "query"),
        ("pymysql", "query"),
        ("mysql.connector", "operation"),
        ("mysql.connector pure", "operation"),
        ("psycopg2", "query"),
        ("psycopg", "query"),
    ],
    indirect=["database"],
)
def test_a_query_given_by_keyword_is_recognised(run: Run, database: Database, keyword: str) -> None:
    result = run(
        IMPORT.format(database.module)
        + f"""
with parent(), closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute({keyword}="SELECT 1")
    rows = cursor.fetchall()
report(rows=rows)
""",
        database.address,
    )
    assert result.texts == ["SELECT 1"]
    assert result.facts["rows"] == [[1]]


@pytest.mark.parametrize(
    "database", ["MySQLdb", "pymysql", "mysql.connector", "mysql.connector pure", "psycopg2"], indirect=True
)
def test_callproc_is_one_span(run: Run, database: Database) -> None:
    create, drop = (
        ("CREATE FUNCTION {0}(a TEXT) RETURNS TEXT LANGUAGE sql AS 'SELECT a'", "DROP FUNCTION {0}(TEXT)")
        if database.system == "postgresql"
        else ("CREATE PROCEDURE {0}(IN a VARCHAR(20)) SELECT a", "DROP PROCEDURE {0}")
    )
    result = run(
        IMPORT.format(database.module)
        + f"""
with closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute({create!r}.format(TABLE))
    connection.commit()
    try:
        with parent():
            cursor.callproc(TABLE, [SECRET])
        results = cursor if not hasattr(cursor, "stored_results") else next(iter(cursor.stored_results()))
        rows = results.fetchall()
        while getattr(cursor, "nextset", None) and {database.system == "mysql"} and cursor.nextset():
            pass
    finally:
        cursor.close()
        cursor = connection.cursor()
        cursor.execute({drop!r}.format(TABLE))
        connection.commit()
report(rows=rows, name=TABLE)
""",
        database.address,
    )
    assert result.facts["rows"] == [["s3cret-value"]]
    assert result.texts == [f"CALL {result.facts['name']}"]
    assert "s3cret-value" not in json.dumps(result.spans)


CURSORS = [
    ("MySQLdb", "driver.cursors.DictCursor", "connection.cursor(driver.cursors.DictCursor)"),
    ("MySQLdb", "driver.cursors.SSCursor", "connection.cursor(driver.cursors.SSCursor)"),
    ("pymysql", "driver.cursors.DictCursor", "connection.cursor(driver.cursors.DictCursor)"),
    ("pymysql", "driver.cursors.SSDictCursor", "connection.cursor(driver.cursors.SSDictCursor)"),
    *[
        (name, "driver.abstracts.MySQLCursorAbstract", f"connection.cursor({option}=True)")
        for name in ("mysql.connector", "mysql.connector pure")
        for option in ("dictionary", "buffered", "raw", "prepared")
    ],
    (
        "mysql.connector",
        "driver.abstracts.MySQLCursorAbstract",
        "connection.cursor(prepared=True, dictionary=True)",
    ),
    ("psycopg2", "driver.extensions.cursor", "connection.cursor()"),
    ("psycopg2", "driver.extras.DictCursor", "connection.cursor(cursor_factory=driver.extras.DictCursor)"),
    ("psycopg2", "driver.extras.RealDictCursor", "connection.cursor(None, driver.extras.RealDictCursor)"),
    ("psycopg2", "driver.extras.NamedTupleCursor", "connection.cursor(cursor_factory=driver.extras.NamedTupleCursor)"),
    ("psycopg2", "driver.extras.DictCursor", "connection.cursor('named', cursor_factory=driver.extras.DictCursor)"),
    ("psycopg2", "driver.extensions.cursor", "connection.cursor('named', scrollable=True, withhold=True)"),
    ("psycopg", "driver.Cursor", "connection.cursor(row_factory=driver.rows.dict_row)"),
    ("psycopg", "driver.ServerCursor", "connection.cursor('named')"),
    ("psycopg", "driver.ClientCursor", "driver.ClientCursor(connection)"),
]


@pytest.mark.parametrize(("database", "cursor_class", "make"), CURSORS, indirect=["database"])
def test_every_kind_of_cursor_makes_one_span_a_query_and_stays_what_it_is(
    run: Run, database: Database, cursor_class: str, make: str
) -> None:
    extras = f"import {database.module}.extras\n" if database.module == "psycopg2" else ""
    extras += f"import {database.module}.cursors\n" if database.module in ("MySQLdb", "pymysql") else ""
    result = run(
        IMPORT.format(database.module)
        + extras
        + f"""
outcomes = []
for gate.active in False, True:
    with parent(), closing(connect(**ADDRESS)) as connection:
        cursor = {make}
        cursor.execute("SELECT 1 AS one")
        row = cursor.fetchone()
        kind = [isinstance(cursor, {cursor_class}), type(cursor).__name__]
        outcomes.append([*kind, repr(row), repr(cursor.description)])
        cursor.close()
report(outcomes=outcomes)
""",
        database.address,
    )
    without, with_us = result.facts["outcomes"]
    assert without == with_us
    assert with_us[0]
    assert result.texts == ["SELECT 1 AS one"]


@every_driver
def test_a_traced_method_keeps_its_name_and_documentation(run: Run, database: Database) -> None:
    result = run(
        f"""
import inspect
import {database.module} as driver
def look():
    with closing(driver.connect(**ADDRESS)) as connection:
        methods = [connection.cursor, *(getattr(connection.cursor(), name) for name in ("execute", "executemany"))]
        signatures = []
        for method in [driver.connect, *methods]:
            try:
                signatures.append(str(inspect.signature(method)))
            except ValueError:
                signatures.append(None)
        return [[m.__name__ for m in methods], [m.__doc__ for m in methods], signatures]
before = look()
databases.register()
report(same=look() == before, before=before, after=look())
""",
        database.address,
    )
    assert result.facts["same"], result.facts


PSYCOPG2 = """
databases.register()
import uuid
import psycopg2, psycopg2.extensions, psycopg2.extras, psycopg2.sql
"""


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_psycopg2_registers_types_for_a_connection_and_a_cursor(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG2
        + """
with parent(), closing(psycopg2.connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    upper = psycopg2.extensions.new_type((25,), "UPPER", lambda value, cursor: value and value.upper())
    psycopg2.extensions.register_type(upper, connection)
    cursor.execute("SELECT 'a'::text")
    rows = list(cursor.fetchone())
    psycopg2.extensions.register_type(psycopg2.extensions.UNICODE, cursor)
    psycopg2.extras.register_uuid(conn_or_curs=connection)
    psycopg2.extras.register_json(connection, loads=lambda text: ["loaded", text])
    psycopg2.extras.register_default_jsonb(cursor)
    values = (uuid.UUID(int=7), psycopg2.extras.Json(1), psycopg2.extras.Json([2]))
    cursor.execute("SELECT %s, %s::json, %s::jsonb", values)
    rows += cursor.fetchone()
    cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    before = len(exporter.get_finished_spans())
    psycopg2.extras.register_hstore(connection)
    cursor.execute("SELECT 'a=>1'::hstore")
    rows += cursor.fetchone()
    connection.rollback()
report(rows=rows)
""",
        database.address,
    )
    assert result.facts["rows"] == ["A", repr(uuid.UUID(int=7)), ["loaded", "1"], [2], {"a": "1"}]


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_psycopg2_connections_work_as_without_us(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG2
        + """
import io
facts = {}
with parent(), closing(psycopg2.connect(**ADDRESS)) as connection:
    facts["connection"] = isinstance(connection, psycopg2.extensions.connection)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE t (id INTEGER, name TEXT)")
        psycopg2.extras.execute_values(cursor, "INSERT INTO t VALUES %s", [(1, SECRET), (2, SECRET)])
        cursor.copy_from(io.StringIO("3\\tc\\n"), "t")
        cursor.copy_expert("COPY t FROM STDIN", io.StringIO("4\\td\\n"))
        name = psycopg2.sql.Identifier("name")
        query = psycopg2.sql.SQL("SELECT id, {} FROM t WHERE {} <> {} AND id > %s ORDER BY id")
        cursor.execute(query.format(name, name, psycopg2.sql.Literal(SECRET)), (1,))
        facts["iterated"] = list(cursor)
        cursor.execute(b"SELECT 1")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (5)")
            raise KeyError
    except KeyError:
        pass
    with connection.cursor("named") as cursor:
        cursor.itersize = 2
        cursor.execute("SELECT id FROM t ORDER BY id")
        facts["named"] = [row[0] for row in cursor]
    facts["quoted"] = psycopg2.extensions.quote_ident("a b", connection)
report(**facts)
""",
        database.address,
    )
    assert result.facts == {
        "connection": True,
        "iterated": [[3, "c"], [4, "d"]],
        "named": [1, 2, 3, 4],
        "quoted": '"a b"',
    }
    assert result.texts == [
        "CREATE TEMPORARY TABLE t (id INTEGER, name TEXT)",
        "INSERT INTO t VALUES %s",
        "COPY t FROM STDIN",
        "COPY t FROM STDIN",
        'SELECT id, "name" FROM t WHERE "name" <> %s AND id > %s ORDER BY id',
        "SELECT 1",
        "INSERT INTO t VALUES (5)",
        "SELECT id FROM t ORDER BY id",
    ]


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_psycopg2_factories_of_the_application_are_honoured(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG2
        + """
extras, extensions = psycopg2.extras, psycopg2.extensions
class Slotted(extensions.connection):
    __slots__ = ("mine",)
class Doubled(extensions.cursor):
    def execute(self, query, vars=None):
        return super().execute(query + " ", vars)
    def twice(self):
        self.execute("SELECT 3")
        self.execute("SELECT 4")
facts = {}
def look(name, connection, **kwargs):
    with closing(connection), connection.cursor(**kwargs) as cursor:
        cursor.execute(f"SELECT 1 AS {name}")
        facts[name] = [type(cursor.fetchone()).__name__, type(connection).__name__, type(cursor).__name__]
        return connection, cursor
with parent():
    connect = psycopg2.connect
    look("real_dict", connect(**ADDRESS, connection_factory=extras.RealDictConnection))
    look("named_tuple", connect(psycopg2.extensions.make_dsn(**ADDRESS), extras.NamedTupleConnection))
    look("slotted", connect(**ADDRESS, connection_factory=Slotted))
    look("cursor_factory", connect(**ADDRESS, cursor_factory=extras.DictCursor))
    look("own", connect(**ADDRESS), cursor_factory=Doubled)
    connection = connect(**ADDRESS)
    connection.cursor_factory = Doubled
    connection, cursor = look("attribute", connection)
    facts["same"] = connect(**ADDRESS).cursor(cursor_factory=Doubled).__class__ is type(cursor)
    facts["instance"] = isinstance(cursor, Doubled)
    connection = connect(**ADDRESS)
    connection.cursor(cursor_factory=Doubled).twice()
    cursor = connection.cursor(cursor_factory=lambda *args, **kwargs: extensions.cursor(*args, **kwargs))
    facts["function"] = type(cursor) is extensions.cursor
    connection = connect(**ADDRESS, connection_factory=lambda dsn, **_: extensions.connection(dsn))
    facts["function connection"] = type(connection) is extensions.connection
    try:
        connection.cursor(cursor_factory=7)
    except TypeError as error:
        facts["wrong"] = str(error)
report(**facts)
""",
        database.address,
    )
    assert result.facts == {
        "real_dict": ["RealDictRow", "RealDictConnection", "RealDictCursor"],
        "named_tuple": ["Record", "NamedTupleConnection", "NamedTupleCursor"],
        "slotted": ["tuple", "Slotted", "cursor"],
        "cursor_factory": ["DictRow", "connection", "DictCursor"],
        "own": ["tuple", "connection", "Doubled"],
        "attribute": ["tuple", "connection", "Doubled"],
        "same": True,
        "instance": True,
        "function": True,
        "function connection": True,
        "wrong": "'int' object is not callable",
    }
    assert result.texts == [
        "SELECT 1 AS real_dict",
        "SELECT 1 AS named_tuple",
        "SELECT 1 AS slotted",
        "SELECT 1 AS cursor_factory",
        "SELECT 1 AS own ",
        "SELECT 1 AS attribute ",
        "SELECT 3 ",
        "SELECT 4 ",
    ]


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_psycopg2_still_calls_its_module_global_connect_and_is_traced_when_it_no_longer_does(
    run: Run, database: Database
) -> None:
    result = run(
        """
import psycopg2
hidden = psycopg2.__dict__.pop("_connect", None)
def connect(dsn=None, connection_factory=None, cursor_factory=None, **kwargs):
    return hidden(psycopg2.extensions.make_dsn(dsn, **kwargs), connection_factory=connection_factory)
psycopg2.connect = connect
databases.register()
with parent(), closing(psycopg2.connect(**ADDRESS)) as connection:
    connection.cursor().execute("SELECT 1")
report(hidden=hidden is not None)
""",
        database.address,
    )
    assert result.facts["hidden"], "psycopg2._connect is gone: an earlier `from psycopg2 import connect` is not traced"
    assert result.texts == ["SELECT 1"]


SQLITE3 = "databases.register()\nimport sqlite3\nimport sqlite3.dbapi2\n"


def test_sqlite3_shortcuts_of_the_connection_are_traced_once(run: Run) -> None:
    result = run(
        SQLITE3
        + """
with parent(), closing(sqlite3.connect("dir-is-left-out.db")) as connection, connection:
    connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
    connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    connection.executescript("DELETE FROM t WHERE a = 2; SELECT 1")
    cursor = connection.execute("SELECT a FROM t WHERE a < ?", (7,))
    rows = cursor.fetchall() + cursor.execute("SELECT 8").fetchall()
report(rows=rows)
"""
    )
    assert result.facts["rows"] == [[1], [8]]
    assert result.texts == [
        "CREATE TABLE IF NOT EXISTS t (a)",
        "INSERT INTO t VALUES (?)",
        "DELETE FROM t WHERE a = 2; SELECT 1",
        "SELECT a FROM t WHERE a < ?",
        "SELECT 8",
    ]


def test_sqlite3_works_as_without_us(run: Run) -> None:
    result = run(
        """
import sqlite3, sqlite3.dbapi2, warnings
warnings.simplefilter("ignore", DeprecationWarning)
class Connection(sqlite3.Connection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.made = 0
    def cursor(self, factory=None):
        self.made += 1
        return super().cursor(factory or Cursor)
class Cursor(sqlite3.Cursor):
    def execute(self, query, parameters=()):
        return super().execute(query.replace("%s", "?"), parameters)
class Slotted(sqlite3.Connection):
    __slots__ = ("mine",)
class Unhashable(sqlite3.Connection):
    def __eq__(self, other):
        return NotImplemented
class Holder:
    connect = sqlite3.connect
def failure(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return repr(error)
def look():
    Holder.connect = sqlite3.connect
    facts = []
    with closing(sqlite3.connect(":memory:")) as connection, closing(sqlite3.connect(database=":memory:")) as other:
        connection.row_factory = sqlite3.Row
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
        facts.append([dict(row) for row in connection.execute("SELECT a FROM t")])
        facts.append([dict(row) for row in connection.cursor().execute("SELECT a FROM t")])
        connection.commit()
        connection.backup(other)
        facts.append(other.execute("SELECT a FROM t").fetchall())
        facts.append(list(connection.iterdump()))
        facts.append([isinstance(connection, sqlite3.Connection), isinstance(connection.cursor(), sqlite3.Cursor)])
        facts.append([type(connection).__name__, type(connection.cursor()).__name__, type(connection).__module__])
        facts.append([failure(connection.cursor, None), failure(connection.cursor, lambda connection: 7)])
        facts.append([failure(connection.execute, *arguments) for arguments in [(), ("SELECT ?", (1, 2)), (7,)]])
        facts.append(type(connection.cursor(lambda connection: Cursor(connection))).__name__)
    for arguments in [(5.0, 0, "", True, Connection), (5.0, 0, "", True, Slotted), (5.0, 0, "", True, Unhashable)]:
        with closing(sqlite3.connect(":memory:", *arguments)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT 1")
            made = getattr(connection, "made", None)
            row = connection.execute("SELECT 2").fetchone()
            kind = [type(connection).__name__, isinstance(connection, arguments[-1]), type(cursor).__name__]
            facts.append([*kind, made, row])
    with closing(Holder().connect(":memory:", factory=Connection)) as connection:
        cursor = connection.cursor(Cursor)
        facts.append([cursor.execute("SELECT %s", (3,)).fetchall(), type(cursor).__name__, isinstance(cursor, Cursor)])
    plain = lambda *args, **kwargs: sqlite3.Connection(":memory:")
    with closing(sqlite3.dbapi2.connect("file:x?mode=memory", uri=True, factory=plain)) as connection:
        facts.append(type(connection) is sqlite3.Connection)
    facts.append([failure(sqlite3.connect), failure(sqlite3.connect, 7.5)])
    facts.append(failure(sqlite3.connect, ":memory:", factory=None))
    return json.loads(json.dumps(facts))
before = look()
databases.register()
gate.active = False
untraced = look()
gate.active = True
with parent():
    traced = look()
report(before=before, untraced=untraced, traced=traced)
"""
    )
    assert result.facts["untraced"] == result.facts["before"]
    assert result.facts["traced"] == result.facts["before"]
    assert result.texts.count("SELECT ?") == 2  # one that fails, one by way of the application's own cursor
    assert {span["attributes"]["db.namespace"] for span in result.spans if span["name"] == "INSERT"} == {":memory:"}


@pytest.mark.parametrize(
    ("database", "namespace"),
    [
        ("':memory:'", ":memory:"),
        ("os.path.abspath('a.db')", "a.db"),
        ("pathlib.Path('a.db')", "a.db"),
        ("b'a.db'", "a.db"),
        ("'file:a%20b.db?mode=rwc'", "a b.db"),
        ("'file:shared?mode=memory&cache=shared'", ":memory:"),
    ],
)
def test_sqlite3_is_named_by_its_file_without_the_path(run: Run, database: str, namespace: str) -> None:
    result = run(
        SQLITE3
        + f"""
import pathlib
with parent(), closing(sqlite3.connect({database}, uri=str({database}).startswith("file:"))) as connection:
    connection.execute("SELECT 1")
report()
"""
    )
    assert [span["attributes"]["db.namespace"] for span in result.spans] == [namespace]


def test_a_query_that_another_query_calls_on_a_second_connection_has_its_own_span(run: Run) -> None:
    result = run(
        SQLITE3
        + """
with parent(), closing(sqlite3.connect("a.db")) as outer, closing(sqlite3.connect("b.db")) as inner:
    outer.create_function("ask", 0, lambda: inner.execute("SELECT 7").fetchone()[0])
    rows = outer.execute("SELECT ask()").fetchall() + outer.execute("SELECT 8").fetchall()
report(rows=rows)
"""
    )
    assert result.facts["rows"] == [[7], [8]]
    assert result.texts == ["SELECT 7", "SELECT ask()", "SELECT 8"]


def test_a_thread_that_inherits_the_context_of_a_query_makes_spans_of_its_own(run: Run) -> None:
    result = run(
        SQLITE3
        + """
import contextvars, threading
with parent(), closing(sqlite3.connect("a.db", check_same_thread=False)) as connection:
    kept = []
    connection.create_function("start", 0, lambda: kept.append(contextvars.copy_context()))
    connection.execute("SELECT start()").fetchall()
    thread = threading.Thread(target=kept[0].run, args=(connection.execute, "SELECT 2"))
    thread.start()
    thread.join()
report()
"""
    )
    assert result.texts == ["SELECT start()", "SELECT 2"]


def test_a_failing_span_processor_leaves_the_query_alone(run: Run) -> None:
    result = run(
        SQLITE3
        + """
from opentelemetry.sdk.trace import SpanProcessor
class Failing(SpanProcessor):
    def on_start(self, span, parent_context=None):
        if failing == "on_start":
            raise RuntimeError
    def on_end(self, span):
        if failing == "on_end":
            raise RuntimeError
provider.add_span_processor(Failing())
failing = None
rows, errors = [], []
with parent(), closing(sqlite3.connect("a.db")) as connection:
    connection.execute("CREATE TABLE t (a)")
    for failing in "on_start", "on_end":
        connection.execute("INSERT INTO t VALUES (1)")
        try:
            connection.execute("SELECT nothing")
        except Exception as error:
            errors.append(type(error).__name__)
        rows += connection.execute("SELECT count(*) FROM t").fetchone()
    failing = None
report(rows=rows, errors=errors)
"""
    )
    assert result.facts == {"rows": [1, 2], "errors": ["OperationalError", "OperationalError"]}


def test_a_query_that_failed_keeps_nothing_alive(run: Run) -> None:
    result = run(
        SQLITE3
        + """
import gc, weakref
gc.disable()
def fail():
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT nothing")
    except sqlite3.OperationalError:
        pass
    return weakref.ref(cursor)
with parent(), closing(sqlite3.connect(":memory:")) as connection:
    alive = fail()() is not None
report(alive=alive)
"""
    )
    assert result.facts["alive"] is False
    assert result.texts == ["SELECT nothing"]


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
names = ("MySQLdb", "pymysql", "mysql", "psycopg2", "psycopg", "sqlite3")
drivers = [m for m in sys.modules if m.partition(".")[0] in names]
names = ("opentelemetry.instrumentation.dbapi", "mackerel_otel_server.tracing.drivers")
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
    # A release whose parts have other names.
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


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_psycopg_queries_are_shown_without_the_values_of_literals(run: Run, database: Database) -> None:
    result = run(
        """
databases.register()
import psycopg
from psycopg import sql
with parent(), closing(psycopg.connect(**ADDRESS)) as connection:
    query = sql.SQL("SELECT {} AS {}, {}").format(sql.Literal(SECRET), sql.Identifier("a b"), sql.Placeholder())
    rows = [connection.execute(query, (1,)).fetchone(), connection.execute(b"SELECT 2").fetchone()]
    with connection.transaction():
        connection.execute("SELECT 3")
report(rows=rows)
""",
        database.address,
    )
    assert result.facts["rows"] == [["s3cret-value", 1], [2]]
    assert result.texts == ['SELECT %s AS "a b", %s', "SELECT 2", "SELECT 3"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="template strings come with Python 3.14")
@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_a_template_string_shows_its_expressions_not_their_values(run: Run, database: Database) -> None:
    result = run(
        """
databases.register()
import psycopg
with parent(), closing(psycopg.connect(**ADDRESS)) as connection:
    connection.execute(t"SELECT {SECRET}, {len(SECRET)} AS n")
report()
""",
        database.address,
    )
    assert result.texts == ["SELECT {SECRET}, {len(SECRET)} AS n"]


@pytest.mark.parametrize("database", ["MySQLdb", "psycopg2", "psycopg", "sqlite3"], indirect=True)
def test_django_s_models_make_one_span_a_query(run: Run, need: Callable[[str], None], database: Database) -> None:
    need("django")
    engine = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite3"}[database.system]
    block = "sys.modules['psycopg'] = None\n" if database.module == "psycopg2" else ""
    result = run(
        block
        + REGISTER
        + f"""
import django
from django.conf import settings
names = {{"dbname": "NAME", "database": "NAME", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}}
database = {{names[key]: value for key, value in ADDRESS.items()}}
database["ENGINE"] = "django.db.backends.{engine}"
settings.configure(DATABASES={{"default": database}}, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
django.setup()
from django.db import connection, models
class Thing(models.Model):
    name = models.TextField()
    class Meta:
        app_label = "things"
        db_table = TABLE
with connection.schema_editor() as editor:
    editor.create_model(Thing)
try:
    Thing.objects.create(name="connected")
    with parent():
        Thing.objects.create(name=SECRET)
        found = Thing.objects.get(name=SECRET).name
        many = Thing.objects.filter(name__startswith="s3").count()
finally:
    with connection.schema_editor() as editor:
        editor.delete_model(Thing)
connection.close()
report(found=found, many=many, database=[connection.vendor, connection.Database.__name__])
""",
        database.address,
    )
    assert result.facts["found"] == "s3cret-value"
    assert result.facts["many"] == 1
    assert [span["name"] for span in result.spans] == ["INSERT", "SELECT", "SELECT"]
    assert "s3cret-value" not in json.dumps(result.spans)
    assert {span["attributes"]["db.system.name"] for span in result.spans} == {database.system}
