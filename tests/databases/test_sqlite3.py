"""sqlite3: what only it has, and what is shown with it for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from querying import SQLITE3, Run


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
on_or_off.active = False
untraced = look()
on_or_off.active = True
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


def test_a_warning_during_a_query_comes_once_and_as_an_error_its_traceback_shows_the_application_s_line(
    run: Run,
) -> None:
    # The warning itself names a line of ours: C code, and an adapter with stacklevel=2, name the innermost Python
    # function, which is ours, between the application and sqlite3. To change that would cost each query too much.
    result = run(
        """
import sqlite3, traceback
class Value:
    pass
def adapt(value):
    warnings.warn("deprecated", DeprecationWarning, stacklevel=2)
    return 7
sqlite3.register_adapter(Value, adapt)
def look():
    with closing(sqlite3.connect(":memory:")) as connection, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = connection.execute("SELECT ?", (Value(),)).fetchall()
        warnings.simplefilter("error")
        try:
            connection.execute("SELECT ?", (Value(),))  # the line to find
        except DeprecationWarning as error:
            lines = [frame.line for frame in traceback.extract_tb(error.__traceback__)]
        return [rows, [[type(w.message).__name__, str(w.message)] for w in caught], lines[0]]
before = look()
databases.register()
with parent():
    report(before=before, after=look())
"""
    )
    assert result.facts["after"] == result.facts["before"]
    assert result.facts["after"][1] == [["DeprecationWarning", "deprecated"]]
    assert "# the line to find" in result.facts["after"][2]


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


def test_a_query_that_another_query_calls_on_the_same_connection_has_its_own_span(run: Run) -> None:
    result = run(
        SQLITE3
        + """
with parent(), closing(sqlite3.connect("a.db")) as connection:
    connection.create_function("ask", 0, lambda: connection.execute("SELECT 7").fetchone()[0])
    rows = connection.execute("SELECT ask()").fetchall()
report(rows=rows)
"""
    )
    assert result.facts["rows"] == [[7]]
    assert result.texts == ["SELECT 7", "SELECT ask()"]
    inner, outer = result.spans
    assert inner["parent_id"] == outer["context"]["span_id"]


def test_threads_and_greenlets_that_a_query_starts_make_spans_of_their_own(
    run: Run, need: Callable[[str], None]
) -> None:
    need("gevent")
    result = run(
        SQLITE3
        + """
import contextvars, threading
import gevent
def query(number):
    with closing(sqlite3.connect("b.db")) as other:
        other.execute(f"SELECT {number}").fetchall()
        connection.execute(f"SELECT {number + 10}").fetchall()
def start():
    kept.append(gevent.spawn(contextvars.copy_context().run, query, 1))
    kept.append(threading.Thread(target=contextvars.copy_context().run, args=(query, 2)))
    return 0
kept = []
with parent() as span, closing(sqlite3.connect("a.db", check_same_thread=False)) as connection:
    connection.create_function("start", 0, start)
    connection.execute("SELECT start()").fetchall()
    left = trace.get_current_span() is span
    kept[0].join()
    kept[1].start()
    kept[1].join()
report(left=left)
"""
    )
    assert result.facts["left"] is True
    assert result.texts == ["SELECT start()", "SELECT 1", "SELECT 11", "SELECT 2", "SELECT 12"]


def test_greenlets_of_pymysql_under_gevent_do_not_take_each_other_s_queries_for_their_own(
    run: Run, need: Callable[[str], None], mysql: dict[str, Any]
) -> None:
    need("gevent")
    need("pymysql")
    result = run(
        """
from gevent import monkey
monkey.patch_all()
import contextvars
import gevent
databases.register()
import pymysql
def work(number):
    with closing(pymysql.connect(**ADDRESS)) as connection, connection.cursor() as cursor:
        cursor.executemany("SELECT SLEEP(0.02), %s", [(number,), (number,)])
        cursor.execute("SELECT %s", (number,))
with parent() as span:
    greenlets = [gevent.spawn(contextvars.copy_context().run, work, number) for number in range(5)]
    gevent.joinall(greenlets, raise_error=True)
report(left=trace.get_current_span() is trace.INVALID_SPAN)
""",
        mysql,
    )
    assert result.facts["left"] is True
    assert sorted(result.texts) == ["SELECT %s"] * 5 + ["SELECT SLEEP(0.02), %s"] * 5
    assert len({span["parent_id"] for span in result.spans}) == 1
