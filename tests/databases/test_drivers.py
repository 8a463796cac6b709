"""Queries become spans: what holds for each driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from querying import DRIVERS, IMPORT, ORDERS, Database, Run, every_driver


# sqlite3.connect and pyodbc.connect are written in C: whoever imported them by name before us keeps the originals.
@pytest.mark.parametrize(
    ("database", "order"),
    [(d, o) for d in DRIVERS for o in ORDERS if d[:6] not in ("sqlite", "pyodbc") or "import connect" not in o],
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
    for span, operation in zip(result.spans, ["CREATE", "INSERT", "UPDATE", "SELECT", "DROP"], strict=True):
        attributes = span["attributes"]
        text = attributes.pop("db.query.text")
        assert attributes == {**database.place, "db.operation.name": operation}
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
    on_or_off.active = False
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
    for on_or_off.active in False, True:
        try:
            cursor.execute("SELEKT 1")
        except driver.Error as error:
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            types = [types[0] if on_or_off.active else name, name]
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
    assert event["attributes"]["exception.type"] == traced
    assert sorted(event["attributes"]) == ["exception.message", "exception.stacktrace", "exception.type"]


@pytest.mark.parametrize("database", ["sqlite3", "pymysql", "psycopg2"], indirect=True)
def test_an_error_whose_str_fails_leaves_the_span_with_status_type_and_event(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")
class Value:
    def __conform__(self, protocol):
        raise Speechless
    def __str__(self):
        raise Speechless
with parent(), closing(connect(**ADDRESS)) as connection:
    if driver.__name__ == "psycopg2":
        from psycopg2.extensions import register_adapter
        register_adapter(Value, str)
    for on_or_off.active in False, True:
        try:
            connection.cursor().execute("SELECT {placeholder}", (Value(),))
        except Exception as error:
            types = [types[0] if on_or_off.active else type(error).__name__, type(error).__name__]
report(types=types)
""".replace("{placeholder}", database.placeholder),
        database.address,
    )
    (span,) = result.spans
    assert result.facts["types"] == ["Speechless", "Speechless"]
    assert span["attributes"]["error.type"] == "__main__.Speechless"
    assert span["status"] == {"status_code": "ERROR", "description": "Speechless: ?"}
    (event,) = span["events"]
    assert event["attributes"]["exception.type"] == "__main__.Speechless"
    assert event["attributes"]["exception.message"] == "?"
    assert "raise Speechless" in event["attributes"]["exception.stacktrace"]


@every_driver
@pytest.mark.parametrize("query", ["''", "'  \\n '", "b''", "None", "'/* never ends'", "'select\\x00 1'", "7"])
def test_a_query_that_is_none_behaves_as_without_us(run: Run, database: Database, query: str) -> None:
    result = run(
        IMPORT.format(database.module)
        + f"""
outcomes = []
for on_or_off.active in False, True:
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


# Since psycopg 3.1.
CLIENT_CURSOR = ("psycopg", "driver.ClientCursor", "driver.ClientCursor(connection)")
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
    *([CLIENT_CURSOR] if hasattr(psycopg, "ClientCursor") else []),
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
for on_or_off.active in False, True:
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


@every_driver
@pytest.mark.parametrize("many", [False, True])
def test_an_error_does_not_show_the_values_of_parameters(run: Run, database: Database, *, many: bool) -> None:
    mark = database.placeholder
    call = "executemany" if many else "execute"
    result = run(
        IMPORT.format(database.module)
        + f"""
row = (1, SECRET, SECRET * 20)
with parent(), closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute(f"CREATE TABLE {{TABLE}} (id INTEGER, a VARCHAR(50) UNIQUE, b VARCHAR(500) CHECK (b <> 'b'))")
    connection.commit()
    try:
        insert = f"INSERT INTO {{TABLE}} VALUES ({mark}, {mark}, {mark})"
        cursor.execute(insert, row)
        connection.commit()
        errors = []
        for values in row, (2, "other", "b"):
            try:
                cursor.{call}(insert, {"[values]" if many else "values"})
            except driver.Error as error:
                errors.append(str(error))
            connection.rollback()
    finally:
        cursor.execute(f"DROP TABLE {{TABLE}}")
        connection.commit()
report(errors=errors)
""",
        database.address,
    )
    assert len(result.facts["errors"]) == 2
    failed = [span for span in result.spans if span["events"]]
    assert [span["name"] for span in failed] == ["INSERT", "INSERT"]
    for span, error in zip(failed, result.facts["errors"], strict=True):
        (event,) = span["events"]
        assert event["attributes"]["exception.message"].split("?")[0][:20] == error.split("s3cret")[0][:20]
        assert "Traceback (most recent call last)" in event["attributes"]["exception.stacktrace"]
        assert event["attributes"]["exception.message"] in span["status"]["description"]
    assert "s3cret" not in json.dumps(result.spans)
    assert "s3cret" in "".join(result.facts["errors"]) or database.system == "sqlite"


@every_driver
def test_a_query_of_megabytes_is_cut_and_not_copied(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
import tracemalloc
with parent(), closing(connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    peaks = []
    query = "SELECT 1 /*" + "x" * 5_000_000 + "*/"
    cursor.execute("SELECT 1 /*" + "y" * 5_000_000 + "*/")
    cursor.fetchall()
    for on_or_off.active in False, True:
        tracemalloc.start()
        cursor.execute(query)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        cursor.fetchall()
report(peaks=peaks)
""",
        database.address,
    )
    without, with_us = result.facts["peaks"]
    assert with_us - without < 500_000
    assert [len(text) for text in result.texts] == [16_387, 16_387]


@every_driver
@pytest.mark.parametrize(("flags", "spans"), [(0, 0), (1, 1)])
def test_a_remote_parent_decides_by_its_sampled_flag(run: Run, database: Database, flags: int, spans: int) -> None:
    result = run(
        IMPORT.format(database.module)
        + f"""
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
remote = NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags({flags})))
with trace.use_span(remote), closing(connect(**ADDRESS)) as connection:
    connection.cursor().execute("SELECT 1")
report()
""",
        database.address,
        OTEL_TRACES_SAMPLER="always_on",  # which would not look at the flag
    )
    assert [span["parent_id"] for span in result.spans] == ["0x0000000000000008"] * spans


@pytest.mark.parametrize("database", ["pymysql"], indirect=True)
def test_what_copied_the_context_of_a_query_makes_spans_of_its_own(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
import contextvars
from pymysql.constants import FIELD_TYPE
kept = []
def convert(value):
    kept.append(contextvars.copy_context())
    return int(value)
converters = {**driver.converters.conversions, FIELD_TYPE.LONG: convert, FIELD_TYPE.LONGLONG: convert}
with parent(), closing(connect(**ADDRESS, conv=converters)) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    kept[0].run(cursor.execute, "SELECT 2")
report(copies=len(kept))
""",
        database.address,
    )
    assert result.facts["copies"] == 2
    assert result.texts == ["SELECT 1", "SELECT 2"]


@every_driver
def test_within_suppress_instrumentation_there_is_no_span(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
from opentelemetry.instrumentation.utils import suppress_instrumentation
with parent(), closing(connect(**ADDRESS)) as connection:
    with suppress_instrumentation():
        connection.cursor().execute("SELECT 1")
report()
""",
        database.address,
    )
    assert result.spans == []


@every_driver
def test_a_forked_process_makes_spans_of_its_own(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
def query(number):
    with parent(), closing(connect(**ADDRESS)) as connection:
        connection.cursor().execute(f"SELECT {number}")
    return [span.attributes.get("db.query.text") for span in exporter.get_finished_spans()]
query(1)
reader, writer = os.pipe()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    child = os.fork()
if child == 0:
    exporter.clear()
    os.write(writer, json.dumps(query(2)).encode())
    os._exit(0)
os.waitpid(child, 0)
report(child=json.loads(os.read(reader, 1000)), parent=query(3))
""",
        database.address,
    )
    assert result.facts["child"] == ["SELECT 2", None]
    assert result.facts["parent"] == ["SELECT 1", None, "SELECT 3", None]


@every_driver
def test_threads_have_spans_of_their_own(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
import threading
def work(number):
    with parent(), closing(connect(**ADDRESS)) as connection:
        for _ in range(20):
            cursor = connection.cursor()
            cursor.execute(f"SELECT {number}")
            cursor.fetchall()
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
parents = {(span.attributes["db.query.text"], span.parent.span_id)
           for span in exporter.get_finished_spans() if span.name != "parent"}
report(parents=len(parents))
""",
        database.address,
    )
    assert len(result.spans) == 80
    assert result.facts["parents"] == 4


@every_driver
def test_a_query_on_a_closed_connection_fails_as_without_us(run: Run, database: Database) -> None:
    result = run(
        IMPORT.format(database.module)
        + """
errors = []
for on_or_off.active in False, True:
    connection = connect(**ADDRESS)
    cursor = connection.cursor()
    connection.close()
    with parent():
        try:
            cursor.execute("SELECT 1")
        except Exception as error:
            errors.append(repr(error))
report(errors=errors)
""",
        database.address,
    )
    without, with_us = result.facts["errors"]
    assert without == with_us


@pytest.mark.parametrize("database", ["mysql.connector"], indirect=True)
def test_mysql_connector_for_asyncio_is_traced_like_the_other(run: Run, database: Database) -> None:
    pytest.importorskip("mysql.connector.aio")  # since 8.3
    result = run(
        """
databases.register()
import asyncio
import mysql.connector.aio
async def main():
    with parent():
        connection = await mysql.connector.aio.connect(**ADDRESS, ssl_disabled=True)
        async with await connection.cursor() as cursor:
            await cursor.execute("SELECT %s", (SECRET,))
            rows = await cursor.fetchall()
            try:
                await cursor.execute("SELECT nothing")
            except mysql.connector.Error as error:
                rows.append([type(error).__name__])
        async with await connection.cursor(dictionary=True) as cursor:
            await cursor.executemany("SELECT %s AS a", [(1,), (2,)])
        await connection.close()
    return rows
report(rows=asyncio.run(main()))
""",
        database.address,
    )
    assert result.facts["rows"] == [["s3cret-value"], ["ProgrammingError"]]
    assert result.texts == ["SELECT %s", "SELECT nothing", "SELECT %s AS a"]
    assert all(database.place.items() <= span["attributes"].items() for span in result.spans)
    assert result.spans[1]["attributes"]["error.type"] == "mysql.connector.errors.ProgrammingError"
    assert "s3cret-value" not in json.dumps(result.spans)


def test_mysql_connector_sends_no_span_to_a_server_that_takes_none(
    run: Run, mysql: dict[str, Any], need: Callable[[str], None]
) -> None:
    need("mysql.connector")
    result = run(
        """
import warnings
warnings.simplefilter("error")
databases.register()
with parent():
    import mysql.connector
    with closing(mysql.connector.connect(**ADDRESS)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1 AS one")
        report(answer=cursor.fetchone()[0])
""",
        mysql,
    )
    assert (result.facts["answer"], result.texts[-1]) == (1, "SELECT 1 AS one")
