"""Queries with OpenTelemetry's own parts (MACKEREL_OTEL_PARTS=standard): what holds for each driver."""

from __future__ import annotations

import json

import pytest
from querying import DRIVERS, Database, Result, Run

REGISTER = "databases.register(uses_standard_parts=lambda: True)\n"
ORDERS = {
    "before the driver": REGISTER + "import {0} as driver\n",
    "after the driver": "import {0} as driver\n" + REGISTER,
}
QUERIES = """
with parent() as span, closing(driver.connect(**ADDRESS)) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT {mark}", (SECRET,))
    rows = [row[0] for row in cursor.fetchall()]
    try:
        cursor.execute("SELEKT 1")
    except driver.Error as error:
        name = type(error).__name__
    connection.rollback()
report(rows=rows, error=name, parent=format(span.get_span_context().span_id, "#018x"))
"""


def _texts(result: Result) -> list[str]:
    """Return the texts of the queries; before 0.63b0 OpenTelemetry's instrumentation knows the old name only."""
    return [span["attributes"].get("db.query.text") or span["attributes"]["db.statement"] for span in result.spans]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("database", DRIVERS, indirect=True)
def test_each_query_is_one_client_span_of_opentelemetrys_dbapi(run: Run, database: Database, order: str) -> None:
    # Of psycopg2, whose functions refuse a wrapped connection, only psycopg2's own instrumentation can trace queries.
    own = database.module == "psycopg2"
    result = run(
        ORDERS[order].format(database.module) + QUERIES.replace("{mark}", database.placeholder),
        database.address,
        own=own,
    )
    assert result.facts["rows"] == ["s3cret-value"]
    right, wrong = result.spans
    assert {span["parent_id"] for span in result.spans} == {result.facts["parent"]}
    assert {span["kind"] for span in result.spans} == {"SpanKind.CLIENT"}
    assert _texts(result) == [f"SELECT {database.placeholder}", "SELEKT 1"]
    assert right["status"]["status_code"] == "UNSET"
    assert wrong["status"]["status_code"] == "ERROR"
    assert result.facts["error"] in wrong["events"][0]["attributes"]["exception.type"]
    assert "s3cret-value" not in json.dumps(result.spans)


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_a_driver_that_refuses_wrapped_connections_works_untraced_and_the_log_says_so(
    run: Run, database: Database
) -> None:
    result = run(
        REGISTER
        + """
import psycopg2
from psycopg2.extras import register_default_json
with parent(), closing(psycopg2.connect(**ADDRESS)) as connection:
    register_default_json(connection)
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    rows = cursor.fetchall()
report(rows=rows)
""",
        database.address,
    )
    assert result.facts["rows"] == [[1]]
    assert result.spans == []
    assert "MACKEREL_OTEL_PARTS=standard: the queries of psycopg2 are not traced" in result.log


@pytest.mark.parametrize("database", ["mysql.connector", "mysql.connector pure"], indirect=True)
def test_pools_of_mysql_connector_work(run: Run, database: Database) -> None:
    result = run(
        REGISTER
        + """
import mysql.connector
from mysql.connector.pooling import MySQLConnectionPool
with parent():
    by_name = mysql.connector.connect(pool_name="a", pool_size=2, **ADDRESS)
    by_class = MySQLConnectionPool(pool_name="b", pool_size=1, **ADDRESS).get_connection()
    rows = []
    for number, connection in enumerate((by_name, by_class)):
        cursor = connection.cursor()
        cursor.execute("SELECT " + str(number))
        rows += cursor.fetchall()
        cursor.close()
        connection.close()
report(rows=rows)
""",
        database.address,
    )
    assert result.facts["rows"] == [[0], [1]]
    assert _texts(result) == ["SELECT 0"]


def test_what_django_calls_is_traced_as_well(run: Run) -> None:
    result = run(
        REGISTER
        + """
import sqlite3.dbapi2
with parent(), closing(sqlite3.dbapi2.connect(":memory:")) as connection:
    connection.cursor().execute("SELECT 1")
report()
"""
    )
    assert _texts(result) == ["SELECT 1"]
