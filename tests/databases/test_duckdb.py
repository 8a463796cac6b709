"""duckdb: what is traced, and that its queries still see the variables of who asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from querying import Run

DUCKDB = "databases.register()\nimport duckdb\n"


@pytest.fixture(autouse=True)
def _installed(need: Callable[[str], None]) -> None:
    need("duckdb")


@pytest.mark.parametrize("first", [True, False])
def test_each_query_of_a_connection_and_of_the_module_is_one_client_span(run: Run, *, first: bool) -> None:
    result = run(
        (DUCKDB if first else "import duckdb\ndatabases.register()\n")
        + """
with parent() as span, duckdb.connect("dir-is-left-out.duckdb") as connection:
    connection.execute("CREATE TABLE t (a INTEGER, b VARCHAR)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, SECRET), (2, SECRET)])
    cursor = connection.cursor()
    rows = cursor.execute("SELECT a FROM t WHERE b = ? ORDER BY a", [SECRET]).fetchall()
    rows += cursor.duplicate().execute(query="SELECT count(*) FROM t WHERE b = $b", parameters={"b": SECRET}).fetchall()
    duckdb.execute("CREATE TABLE u (a INTEGER)")
    duckdb.executemany("INSERT INTO u VALUES (?)", [(7,)])
    rows += duckdb.execute("SELECT a FROM u").fetchall()
    rows += duckdb.execute("SELECT max(a) FROM t", connection=cursor).fetchall()
report(rows=rows, parent=format(span.get_span_context().span_id, "#018x"))
"""
    )
    assert result.facts["rows"] == [[1], [2], [2], [7], [2]]
    file = "dir-is-left-out.duckdb"
    assert [(span["attributes"].get("db.namespace"), span["attributes"]["db.query.text"]) for span in result.spans] == [
        (file, "CREATE TABLE t (a INTEGER, b VARCHAR)"),
        (file, "INSERT INTO t VALUES (?, ?)"),
        (file, "SELECT a FROM t WHERE b = ? ORDER BY a"),
        (file, "SELECT count(*) FROM t WHERE b = $b"),
        (None, "CREATE TABLE u (a INTEGER)"),
        (None, "INSERT INTO u VALUES (?)"),
        (None, "SELECT a FROM u"),
        (file, "SELECT max(a) FROM t"),
    ]
    assert {span["attributes"]["db.system.name"] for span in result.spans} == {"duckdb"}
    assert {span["parent_id"] for span in result.spans} == {result.facts["parent"]}
    assert [span["name"] for span in result.spans[:3]] == ["CREATE", "INSERT", "SELECT"]
    assert "s3cret-value" not in json.dumps(result.spans)


def test_a_query_still_names_the_variables_of_who_asks_and_only_those(run: Run) -> None:
    result = run(
        DUCKDB
        + """
at_module = duckdb.sql("SELECT 1 AS a")
query = duckdb.sql("SELECT 'a variable of ours must not be seen' AS a")
def ask(text, execute):
    try:
        return execute(text).fetchall()
    except Exception as error:
        return type(error).__name__
def look():
    connection = duckdb.connect()
    local = connection.sql("SELECT 2 AS a")
    answers = []
    for execute in connection.execute, duckdb.execute:
        at_default = duckdb.sql("SELECT 3 AS a")
        answers.append(connection.execute("SELECT a FROM local").fetchall())
        answers.append(duckdb.execute("SELECT a FROM at_default").fetchall())
        answers.append(duckdb.execute("SELECT a FROM at_module").fetchall())
        def closure():
            local
            return connection.execute("SELECT a FROM local").fetchall()
        answers.append(closure())
    answers.append([ask(f"SELECT * FROM {name}", connection.execute) for name in
                    ("local", "args", "kwargs", "frame", "variables", "driver", "method", "span")])
    return json.loads(json.dumps(answers))
exec(compile("untouched = look()", "x", "exec"))
on_or_off.active = False
untraced = look()
on_or_off.active = True
with parent():
    traced = look()
    module_level = duckdb.execute("SELECT a FROM at_module").fetchall()
report(untraced=untraced, traced=traced, module_level=module_level)
"""
    )
    without = run(
        "import duckdb\nreal = databases.register\n"
        """
at_module = duckdb.sql("SELECT 1 AS a")
def look():
    connection = duckdb.connect()
    local = connection.sql("SELECT 2 AS a")
    return [connection.execute("SELECT a FROM local").fetchall(), duckdb.execute("SELECT a FROM at_module").fetchall()]
report(rows=look())
"""
    )
    assert without.facts["rows"] == [[[2]], [[1]]]
    assert result.facts["traced"] == result.facts["untraced"]
    assert result.facts["traced"][:4] == [[[2]], [[3]], [[1]], [[2]]]
    assert result.facts["traced"][-1] == ["CatalogException"] * 8
    assert result.facts["module_level"] == [[1]]


def test_errors_relations_and_types_are_as_without_us(run: Run) -> None:
    result = run(
        DUCKDB
        + """
outcomes = []
for on_or_off.active in False, True:
    with parent(), closing(duckdb.connect()) as connection:
        facts = [connection.execute("SELECT 1") is connection, isinstance(connection, duckdb.DuckDBPyConnection)]
        facts.append(connection.fetchall())
        for call in (lambda: connection.execute("SELEKT ?", [SECRET]), lambda: connection.execute(),
                     lambda: connection.execute("SELECT ?"), lambda: connection.execute(7)):
            try:
                call()
            except Exception as error:
                facts.append([type(error).__module__, type(error).__name__, str(error).splitlines()[0]])
        facts.append(connection.sql("SELECT 5 AS a").fetchall())
        facts.append(connection.execute("SELECT 6 AS a").fetchnumpy()["a"].tolist() if "numpy" in sys.modules else None)
    outcomes.append(json.loads(json.dumps(facts)))
report(outcomes=outcomes)
"""
    )
    without, with_us = result.facts["outcomes"]
    assert without == with_us
    failed = [span for span in result.spans if span["events"]]
    assert failed[0]["attributes"]["error.type"] == ".".join(without[3][:2])
    assert failed[0]["attributes"]["error.type"].endswith(".ParserException")
    assert failed[0]["events"][0]["attributes"]["exception.type"] == failed[0]["attributes"]["error.type"]
    assert "s3cret-value" not in json.dumps(result.spans)
    assert "SELECT 5 AS a" not in result.texts  # a relation
