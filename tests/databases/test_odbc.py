"""pyodbc: what only it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from querying import Database, Run

PYODBC = "databases.register()\nimport pyodbc\n"
every_odbc = pytest.mark.parametrize("database", ["pyodbc postgresql", "pyodbc mariadb"], indirect=True)


@every_odbc
def test_pyodbc_works_as_without_us(run: Run, database: Database) -> None:
    result = run(
        PYODBC
        + """
outcomes = []
for on_or_off.active in False, True:
    facts = []
    with parent(), closing(pyodbc.connect(**ADDRESS, autocommit=True)) as connection:
        facts.append([isinstance(connection, pyodbc.Connection), connection.autocommit, connection.timeout])
        connection.autocommit = False
        connection.setencoding("utf-8")
        connection.add_output_converter(pyodbc.SQL_VARBINARY, None)
        facts.append([connection.autocommit, connection.getinfo(pyodbc.SQL_DBMS_NAME)])
        with connection.cursor() as cursor:
            facts.append([isinstance(cursor, pyodbc.Cursor), cursor.connection is connection])
            facts.append(cursor.execute("SELECT ? AS a", 1) is cursor)
            facts.append([list(row) for row in cursor])
            facts.append([tuple(row) for row in cursor.execute("SELECT ?, ?", 1, 2)])
            facts.append(cursor.execute("SELECT ?, ?", (1, 2)).fetchval())
            facts.append(cursor.execute("SELECT 5 AS five").fetchone().five)
            facts.append(next(cursor.execute("SELECT 6"))[0])
            facts.append(cursor.tables(table="nothing") is cursor)
            facts.append([column[0] for column in cursor.execute("SELECT 1 AS b").description])
            cursor.arraysize = 3
            facts.append(cursor.arraysize)
        facts.append(connection.execute("SELECT ?", 7).fetchall()[0][0])
        with connection:
            connection.execute("SELECT 8")
        for call in (lambda: cursor.execute(), lambda: cursor.execute("SELECT ?", 1, 2), lambda: pyodbc.connect(7)):
            try:
                call()
            except Exception as error:
                facts.append(repr(error))
        try:
            connection.execute("SELEKT ?", SECRET)
        except pyodbc.ProgrammingError as error:
            facts.append(error.args)
    outcomes.append(json.loads(json.dumps(facts, default=repr)))
report(outcomes=outcomes)
""",
        database.address,
    )
    without, with_us = result.facts["outcomes"]
    assert without == with_us
    assert [without[0], without[2], without[3]] == [[True, True, 0], [True, True], True]
    texts = ["SELECT ? AS a", "SELECT ?, ?", "SELECT ?, ?", "SELECT 5 AS five", "SELECT 6", "SELECT 1 AS b"]
    texts += ["SELECT ?", "SELECT 8"]
    assert result.texts[: len(texts)] == texts
    assert result.texts[-1] == "SELEKT ?"
    assert result.spans[-1]["attributes"]["error.type"] == "pyodbc.ProgrammingError"
    assert all(database.place.items() <= span["attributes"].items() for span in result.spans)


@every_odbc
def test_pyodbc_s_connection_strings_are_understood(run: Run, database: Database) -> None:
    result = run(
        PYODBC
        + """
string = "Driver={{{driver}}};SERVER={server};Port={port};DATABASE={database};UID={uid};pwd={pwd}".format(**ADDRESS)
with parent(), closing(pyodbc.connect(string, autocommit=True)) as connection:
    connection.execute("SELECT 1")
report()
""",
        database.address,
    )
    (span,) = result.spans
    assert database.place.items() <= span["attributes"].items()


@every_odbc
def test_a_cursor_of_pyodbc_keeps_its_connection_alive(run: Run, database: Database) -> None:
    result = run(
        PYODBC
        + """
import gc
with parent():
    cursor = pyodbc.connect(**ADDRESS).cursor()
    gc.collect()
    row = cursor.execute("SELECT 1").fetchone()[0]
report(row=row)
""",
        database.address,
    )
    assert result.facts == {"row": 1}
    assert result.texts == ["SELECT 1"]
