"""``db.namespace`` is the database at the time of the query, also after the application has changed it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from mackerel_otel_server.tracing.databases.current_database import named_by_use

if TYPE_CHECKING:
    from querying import Run

# After every change, the server is asked for its current database. The span of that query says which database we take
# for the current one.
ASK = """
asked = []
def ask(move, connection):
    cursor = connection.cursor()
    cursor.execute("SELECT DATABASE()")
    asked.append([move, cursor.fetchone()[0]])
    cursor.close()
def tried(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:  # a release that is too old for it
        print(error)
def failing(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("no error")
"""

CHANGES = {
    "pymysql": """
move("select_db", lambda: connection.select_db(OTHER))
move("select_db=", lambda: connection.select_db(db=ADDRESS["database"]))
move("use", lambda: execute("USE " + OTHER))
move("failing use", lambda: failing(execute, "USE no_such_database"))
move("Use by bytes", lambda: connection.cursor().execute(b"Use `%s`" % ADDRESS["database"].encode()))
move("query", lambda: connection.query("/* tenant */ use " + OTHER + " ;"))
move("reconnect", lambda: (connection.close(), connection.connect()))
move("failing select_db", lambda: failing(connection.select_db, "no_such_database"))
""",
    "MySQLdb": """
move("select_db", lambda: connection.select_db(OTHER))
move("use", lambda: execute("USE " + ADDRESS["database"]))
move("failing use", lambda: failing(execute, "USE no_such_database"))
move("Use by bytes", lambda: connection.cursor().execute(b"Use `%s`" % OTHER.encode()))
move("query", lambda: connection.query(b"\\nuse " + ADDRESS["database"].encode()))
move("change_user", lambda: connection.change_user(ADDRESS["user"], ADDRESS["password"], OTHER))
move("change_user without", lambda: connection.change_user(ADDRESS["user"], ADDRESS["password"]))
move("select_db", lambda: connection.select_db(OTHER))
move("failing select_db", lambda: failing(connection.select_db, "no_such_database"))
""",
    "mysql.connector": """
move("cmd_init_db", lambda: connection.cmd_init_db(OTHER))
move("database", lambda: setattr(connection, "database", ADDRESS["database"]))
move("use", lambda: execute("USE " + OTHER))
move("failing use", lambda: failing(execute, "USE no_such_database"))
move("cmd_query", lambda: connection.cmd_query("use " + ADDRESS["database"]))
move("database", lambda: setattr(connection, "database", OTHER))
move("reconnect", lambda: connection.reconnect())
move("cmd_init_db", lambda: connection.cmd_init_db(OTHER))
move("reset_session", lambda: tried(connection.reset_session))
change = {name: ADDRESS[key] for name, key in (("username", "user"), ("password", "password"))}
move("cmd_change_user", lambda: connection.cmd_change_user(**change, database=OTHER))
move("cmd_change_user by place", lambda: connection.cmd_change_user(*change.values(), ADDRESS["database"]))
move("failing cmd_init_db", lambda: failing(connection.cmd_init_db, "no_such_database"))
move("config", lambda: (connection.config(database=OTHER), connection.reconnect()))
""",
}
CHANGES["mysql.connector pure"] = CHANGES["mysql.connector"]


@pytest.fixture
def other(run: Run, mysql: dict[str, Any]) -> Iterator[str]:
    """Return the name of a second database."""
    pymysql = pytest.importorskip("pymysql")
    name = "mackerel_otel_tenant"
    connection = pymysql.connect(**mysql)
    connection.cursor().execute(f"CREATE DATABASE IF NOT EXISTS {name}")
    yield name
    connection.close()


@pytest.mark.parametrize("database", list(CHANGES), indirect=True)
@pytest.mark.parametrize("traced", [True, False])
def test_the_namespace_is_the_database_at_the_time_of_the_query(
    run: Run, database: Any, other: str, *, traced: bool
) -> None:
    result = run(
        ASK
        + f"""
databases.register()
import {database.module} as driver
OTHER = {other!r}
TRACED = {traced}  # also a change outside of a request is known in the next one
def move(name, change):
    on_or_off.active = TRACED
    change()
    on_or_off.active = True
    ask(name, connection)
def execute(query):
    cursor = connection.cursor()
    try:
        cursor.execute(query)
    finally:
        cursor.close()
with parent(), closing(driver.connect(**ADDRESS)) as connection:
    ask("opened", connection)
{"".join("    " + line + chr(10) for line in CHANGES[request_name(database)].strip().splitlines())}
report(asked=asked)
""",
        database.address,
    )
    spans = [span for span in result.spans if span["attributes"].get("db.query.text") == "SELECT DATABASE()"]
    said = [span["attributes"].get("db.namespace") for span in spans]
    assert [[move, name] for (move, _), name in zip(result.facts["asked"], said, strict=True)] == result.facts["asked"]
    assert len(set(said)) > 1


def request_name(database: Any) -> str:
    """Return the key of CHANGES."""
    return "mysql.connector pure" if database.address.get("use_pure") else str(database.module)


def test_connector_for_asyncio_names_the_database_at_the_time_of_the_query(
    run: Run, mysql: dict[str, Any], other: str
) -> None:
    pytest.importorskip("mysql.connector.aio")
    result = run(
        f"""
databases.register()
import asyncio
import mysql.connector.aio
OTHER = {other!r}
asked = []
async def main():
    connection = await mysql.connector.aio.connect(**ADDRESS, ssl_disabled=True)
    async def ask(name):
        async with await connection.cursor() as cursor:
            await cursor.execute("SELECT DATABASE()")
            asked.append([name, (await cursor.fetchone())[0]])
    await ask("opened")
    await connection.cmd_init_db(OTHER)
    await ask("cmd_init_db")
    await connection.set_database(ADDRESS["database"])
    await ask("set_database")
    async with await connection.cursor() as cursor:
        await cursor.execute("USE " + OTHER)
    await ask("use")
    await connection.cmd_change_user(ADDRESS["user"], ADDRESS["password"], ADDRESS["database"])
    await ask("cmd_change_user")
    await connection.cmd_init_db(OTHER)
    await connection.cmd_change_user(ADDRESS["user"], ADDRESS["password"], OTHER)
    await ask("cmd_change_user to another")
    await connection.reconnect()
    await ask("reconnect")
    await connection.close()
with parent():
    asyncio.run(main())
report(asked=asked)
""",
        mysql,
    )
    spans = [span for span in result.spans if span["attributes"].get("db.query.text") == "SELECT DATABASE()"]
    said = [span["attributes"].get("db.namespace") for span in spans]
    assert [[move, name] for (move, _), name in zip(result.facts["asked"], said, strict=True)] == result.facts["asked"]
    assert set(said) == {mysql["database"], other}


@pytest.mark.parametrize("database", ["pyodbc mariadb"], indirect=True)
def test_odbc_names_the_database_at_the_time_of_the_query(run: Run, database: Any, other: str) -> None:
    result = run(
        ASK
        + f"""
databases.register()
import pyodbc
OTHER = {other!r}
with parent(), closing(pyodbc.connect(**ADDRESS, autocommit=True)) as connection:
    ask("opened", connection)
    connection.execute("USE " + OTHER)
    ask("use", connection)
    failing(connection.execute, "USE no_such_database")
    ask("failing use", connection)
    tried(connection.set_attr, 109, ADDRESS["database"])
    ask("set_attr", connection)
    connection.cursor().execute("USE `" + OTHER + "`")
    ask("use by a cursor", connection)
report(asked=asked)
""",
        database.address,
    )
    spans = [span for span in result.spans if span["attributes"].get("db.query.text") == "SELECT DATABASE()"]
    said = [span["attributes"].get("db.namespace") for span in spans]
    assert [[move, name] for (move, _), name in zip(result.facts["asked"], said, strict=True)] == result.facts["asked"]
    assert set(said) == {database.namespace, other}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("USE shop", "shop"),
        ("use shop;", "shop"),
        ("USE shop; SELECT 1", "shop"),
        ("  \n/* tenant */ Use\t`my``shop`", "my`shop"),
        ("-- tenant\nUSE shop", "shop"),
        ("# tenant\nUSE shop", "shop"),
        ("USE [my shop]", "my shop"),
        ('USE "my shop"', "my shop"),
        (b"USE shop", "shop"),
        (bytearray(b"use shop"), "shop"),
        ("USER", None),
        ("USE", None),
        ("UPDATE t SET a = 1", None),
        ("SELECT 'USE shop'", None),
        ("", None),
        (b"", None),
        (None, None),
        (7, None),
        ("/*" + "x" * 5_000_000, None),
    ],
)
def test_a_statement_use_is_understood(query: Any, name: str | None) -> None:
    assert named_by_use(query) == name


@pytest.mark.parametrize(
    "text", ["/* a */\n" * 60 + "SELECT 1", "/*/*" * 200, "-- a\n" * 200 + "u", "/**/" * 250 + " us"]
)
def test_comments_before_a_statement_cost_no_time(text: str) -> None:
    began = time.monotonic()
    assert named_by_use(text) is None
    assert time.monotonic() - began < 1
