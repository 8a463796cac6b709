"""psycopg2 and psycopg 3: what only they have."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable

import pytest
from querying import REGISTER, Database, Run

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


FUNCTIONS = """
with closing(psycopg2.connect(**ADDRESS)) as connection, connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE t (id INTEGER, name TEXT UNIQUE)")
    rows = [(n, f"{SECRET} {n}") for n in range(7)]
    with parent():
        values(cursor, "INSERT INTO t VALUES %s", rows, page_size=3)
        returned = values(cur=cursor, sql=b"INSERT INTO t VALUES %s RETURNING id", argslist=[(7, None)], fetch=True)
        template = "(%(id)s, %(name)s)"
        values(cursor, psycopg2.sql.SQL("INSERT INTO {} VALUES %s").format(psycopg2.sql.Identifier("t")),
               [{"id": 8, "name": SECRET}], template)
        batch(cursor, "UPDATE t SET name = %s WHERE id = %s", [(SECRET + "!", n) for n in range(2)][:1])
        connection.commit()
        try:
            values(cursor, "INSERT INTO t VALUES %s", [(9, SECRET)])
        except psycopg2.errors.UniqueViolation as error:
            message = str(error)
            connection.rollback()
        try:
            values()
        except TypeError as error:
            missing = str(error)
report(returned=returned, message=message, missing=missing)
"""


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
@pytest.mark.parametrize("order", ["before", "after"])
def test_psycopg2_execute_values_and_execute_batch_are_one_query_without_its_values(
    run: Run, database: Database, order: str
) -> None:
    first = "values, batch = psycopg2.extras.execute_values, psycopg2.extras.execute_batch\n"
    late = "import psycopg2, psycopg2.extras, psycopg2.sql\n" + first + REGISTER
    result = run(
        (PSYCOPG2 + first if order == "before" else late) + FUNCTIONS,
        database.address,
    )
    assert result.facts["returned"] == [[7]]
    assert "s3cret-value" in result.facts["message"]
    assert "s3cret-value" not in json.dumps(result.spans if order == "before" else result.texts)
    assert result.facts["missing"].startswith("execute_values() missing 3 required positional arguments")
    insert = "INSERT INTO t VALUES %s"
    texts = [
        insert,
        insert + " RETURNING id",
        'INSERT INTO "t" VALUES %s',
        "UPDATE t SET name = %s WHERE id = %s",
        insert,
    ]
    if order == "after":  # whoever holds the functions from before us sees one span for each page
        texts = [insert, insert, *texts]
    assert result.texts == texts
    (event,) = result.spans[-1]["events"]
    assert event["attributes"]["exception.type"] == "psycopg2.errors.UniqueViolation"


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_psycopg2_copies_are_one_span_each(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG2
        + """
import io
with parent(), closing(psycopg2.connect(**ADDRESS)) as connection, connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE t (id INTEGER, name TEXT)")
    cursor.copy_from(io.StringIO("3,c\\n"), "t", sep=",", columns=("id", "name"))
    cursor.copy_from(file=io.StringIO("4\\td\\n"), table="t")
    cursor.copy_expert(sql="COPY t FROM STDIN", file=io.StringIO("5\\te\\n"))
    out = io.StringIO()
    cursor.copy_to(out, "t")
    try:
        cursor.copy_expert("COPY nothing FROM STDIN", io.StringIO(SECRET))
    except psycopg2.errors.UndefinedTable:
        pass
report(out=out.getvalue())
""",
        database.address,
    )
    assert result.facts["out"] == "3\tc\n4\td\n5\te\n"
    assert result.texts[1:] == ["COPY t FROM STDIN"] * 3 + ["COPY t TO STDOUT", "COPY nothing FROM STDIN"]
    assert {span["name"] for span in result.spans[1:]} == {"COPY"}
    assert result.spans[-1]["status"]["status_code"] == "ERROR"


PSYCOPG = """
databases.register()
import asyncio, inspect
import psycopg
from psycopg import sql
"""


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_psycopg_streams_are_one_span_from_the_first_row_to_the_last(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG
        + """
current = []
with parent() as span, closing(psycopg.connect(**ADDRESS)) as connection, connection.cursor() as cursor:
    stream = cursor.stream("SELECT generate_series(1, %s)", (3,))
    generator = inspect.isgenerator(stream)
    rows = []
    for row in stream:
        rows.append(row[0])
        current.append(trace.get_current_span() is span)
        with trace.get_tracer("test").start_as_current_span("between"):
            pass
    abandoned = cursor.stream(query="SELECT generate_series(1, 1000)")
    rows.append(next(abandoned)[0])
    abandoned.close()
    never = cursor.stream("SELECT 'never read'")
    never.close()
    try:
        list(cursor.stream("SELEKT %s", (SECRET,)))
    except psycopg.errors.SyntaxError:
        connection.rollback()
    rows.append(cursor.execute("SELECT 7").fetchone()[0])
    on_or_off.active = False
    rows += [row[0] for row in cursor.stream("SELECT 8")]
report(rows=rows, generator=generator, current=current)
""",
        database.address,
    )
    assert result.facts == {"rows": [1, 2, 3, 1, 7, 8], "generator": True, "current": [True] * 3}
    spans = [span for span in result.spans if span["name"] != "between"]
    assert [span["attributes"]["db.query.text"] for span in spans] == [
        "SELECT generate_series(1, %s)",
        "SELECT generate_series(1, 1000)",
        "SELEKT %s",
        "SELECT 7",
    ]
    assert [span["status"]["status_code"] for span in spans] == ["UNSET", "UNSET", "ERROR", "UNSET"]
    between = [span for span in result.spans if span["name"] == "between"]
    assert {span["parent_id"] for span in between} == {spans[0]["parent_id"]}
    assert spans[0]["start_time"] < between[0]["start_time"]
    assert spans[0]["end_time"] > between[-1]["end_time"]


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_psycopg_copies_are_one_span_each(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG
        + """
with parent(), closing(psycopg.connect(**ADDRESS)) as connection, connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE t (id INTEGER, name TEXT)")
    with cursor.copy("COPY t (id, name) FROM STDIN") as copy:
        copy.write_row((1, SECRET))
        copy.write_row((2, SECRET))
    count = cursor.rowcount
    with cursor.copy(statement=sql.SQL("COPY {} TO STDOUT").format(sql.Identifier("t"))) as copy:
        rows = [row[0] for row in copy.rows()]
    try:
        with cursor.copy("COPY t FROM STDIN"):
            raise KeyError
    except KeyError:
        connection.rollback()
report(rows=rows, count=count)
""",
        database.address,
    )
    assert result.facts == {"rows": ["1", "2"], "count": 2}
    assert result.texts[1:] == ["COPY t (id, name) FROM STDIN", 'COPY "t" TO STDOUT', "COPY t FROM STDIN"]
    assert [span["status"]["status_code"] for span in result.spans[1:]] == ["UNSET", "UNSET", "ERROR"]
    assert "s3cret-value" not in json.dumps(result.spans)


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_psycopg_for_asyncio_is_traced_like_the_other(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG
        + """
facts = {}
async def main():
    assert inspect.iscoroutinefunction(psycopg.AsyncCursor.execute)
    with parent():
        async with await psycopg.AsyncConnection.connect(**ADDRESS) as connection, connection.cursor() as cursor:
            facts["returned"] = await cursor.execute("CREATE TEMPORARY TABLE t (id INTEGER, name TEXT)") is cursor
            await cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(1, SECRET), (2, SECRET)])
            facts["rows"] = [row[0] async for row in await connection.execute("SELECT id FROM t ORDER BY id")]
            stream = cursor.stream("SELECT generate_series(1, %s)", (3,))
            facts["generator"] = inspect.isasyncgen(stream)
            facts["stream"] = [row[0] async for row in stream]
            async for row in cursor.stream("SELECT generate_series(1, 1000)"):
                break
            async with cursor.copy("COPY t FROM STDIN") as copy:
                await copy.write_row((3, SECRET))
            async with cursor.copy("COPY t TO STDOUT") as copy:
                facts["copied"] = len([row async for row in copy.rows()])
        async with await psycopg.AsyncConnection.connect(**ADDRESS) as connection:
            try:
                await connection.execute("SELECT %s::int", (SECRET,))
            except psycopg.errors.InvalidTextRepresentation as error:
                facts["error"] = str(error)
                await connection.rollback()
            for make in (lambda: connection.cursor("named"), lambda: psycopg.AsyncClientCursor(connection),
                         lambda: psycopg.AsyncRawCursor(connection)):
                async with make() as cursor:
                    await cursor.execute("SELECT 7")
                    facts.setdefault("kinds", []).append([type(cursor).__name__, await cursor.fetchone()])
asyncio.run(main())
report(**facts)
""",
        database.address,
    )
    assert "s3cret-value" in result.facts.pop("error")
    assert result.facts == {
        "returned": True,
        "rows": [1, 2],
        "generator": True,
        "stream": [1, 2, 3],
        "copied": 3,
        "kinds": [["AsyncServerCursor", [7]], ["AsyncClientCursor", [7]], ["AsyncRawCursor", [7]]],
    }
    assert sorted(result.texts) == sorted(
        [
            "CREATE TEMPORARY TABLE t (id INTEGER, name TEXT)",
            "INSERT INTO t VALUES (%s, %s)",
            "SELECT id FROM t ORDER BY id",
            "SELECT generate_series(1, %s)",
            "SELECT generate_series(1, 1000)",
            "COPY t FROM STDIN",
            "COPY t TO STDOUT",
            "SELECT %s::int",
            "SELECT 7",
            "SELECT 7",
            "SELECT 7",
        ]
    )
    for span in result.spans:
        assert database.place.items() <= span["attributes"].items()
        assert span["parent_id"] == result.spans[0]["parent_id"]
    (failed,) = [span for span in result.spans if span["events"]]
    assert failed["attributes"]["error.type"] == "psycopg.errors.InvalidTextRepresentation"
    assert "s3cret-value" not in json.dumps(result.spans)


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_psycopg_tasks_do_not_take_each_other_s_queries_for_their_own(run: Run, database: Database) -> None:
    result = run(
        PSYCOPG
        + """
async def main():
    connection = await psycopg.AsyncConnection.connect(**ADDRESS)
    with parent():
        # The tasks share a connection, whose lock lets them in one after the other.
        await asyncio.gather(*(connection.execute(f"SELECT pg_sleep(0.05), {n}") for n in range(4)))
    with parent() as span:
        task = asyncio.create_task(connection.execute("SELECT pg_sleep(30)"))
        while not connection.lock.locked():
            await asyncio.sleep(0.01)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        left = trace.get_current_span() is span
        await connection.rollback()
        await connection.execute("SELECT 5")
    await connection.close()
    return left
report(left=asyncio.run(main()))
""",
        database.address,
    )
    assert sorted(result.texts[:4]) == [f"SELECT pg_sleep(0.05), {n}" for n in range(4)]
    assert result.texts[4:] == ["SELECT pg_sleep(30)", "SELECT 5"]
    assert result.spans[4]["attributes"]["error.type"] == "asyncio.exceptions.CancelledError"
    assert result.facts["left"] is True
    assert "Failed to detach" not in result.log


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_psycopg_s_pools_are_traced(run: Run, need: Callable[[str], None], database: Database) -> None:
    need("psycopg_pool")
    result = run(
        PSYCOPG
        + """
from psycopg_pool import AsyncConnectionPool, ConnectionPool
facts = {}
with ConnectionPool(kwargs=ADDRESS, min_size=1, max_size=1, check=ConnectionPool.check_connection) as pool, parent():
    for number in range(2):
        with pool.connection() as connection:
            facts["sync"] = connection.execute("SELECT %s", (number,)).fetchone()
async def main():
    async with AsyncConnectionPool(kwargs=ADDRESS, min_size=1, max_size=1, open=False) as pool:
        with parent():
            async with pool.connection() as connection:
                facts["async"] = await (await connection.execute("SELECT %s", (2,))).fetchone()
asyncio.run(main())
report(**facts)
""",
        database.address,
    )
    assert result.facts == {"sync": [1], "async": [2]}
    assert [text for text in result.texts if text] == ["SELECT %s"] * 3
