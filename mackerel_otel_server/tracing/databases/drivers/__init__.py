"""Which module of which driver is patched, and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mackerel_otel_server.tracing.databases.drivers import duckdb, mysql, odbc, postgresql, sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

# Name as in databases._MODULES -> module that is patched once it is imported -> how.
PATCHES: dict[str, dict[str, Callable[[Any], None]]] = {
    "mysqlclient": {"MySQLdb.connections": mysql.mysqlclient_connections, "MySQLdb.cursors": mysql.mysqlclient_cursors},
    "pymysql": {
        "pymysql.connections": mysql.pymysql_connections,
        "pymysql.cursors": mysql.pymysql_cursors,
        "MySQLdb.connections": mysql.pymysql_connections,
        "MySQLdb.cursors": mysql.pymysql_cursors,
    },
    "mysql": {
        "mysql.connector.abstracts": mysql.mysql_connector_propagation,
        "mysql.connector.aio.abstracts": mysql.mysql_connector_propagation,
        "mysql.connector.connection": mysql.mysql_connector_connections,
        "mysql.connector.connection_cext": mysql.mysql_connector_connections,
        "mysql.connector.aio.connection": mysql.mysql_connector_connections,
        "mysql.connector.cursor": mysql.mysql_connector_cursors,
        "mysql.connector.cursor_cext": mysql.mysql_connector_cursors,
        "mysql.connector.aio.cursor": mysql.mysql_connector_cursors,
    },
    "psycopg": {"psycopg": postgresql.psycopg},
    "psycopg2": {"psycopg2": postgresql.psycopg2, "psycopg2.extras": postgresql.psycopg2_extras},
    "sqlite3": {"sqlite3": sqlite.sqlite3},
    "pyodbc": {"pyodbc": odbc.pyodbc},
    "duckdb": {"duckdb": duckdb.duckdb},
}
