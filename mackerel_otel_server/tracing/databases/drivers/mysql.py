"""mysqlclient, PyMySQL and MySQL Connector/Python."""

from __future__ import annotations

import inspect
from typing import Any

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.tracing.databases.connections import Driver, Place
from mackerel_otel_server.tracing.databases.drivers.current_database import follow, of_argument, of_query
from mackerel_otel_server.tracing.databases.drivers.patching import REMEMBERED, as_str, connection_of, patch_methods


def mysqlclient_connections(module: Any) -> None:
    """Make mysqlclient's connections remember what they were opened with, and which database they have changed to."""
    if _is_pymysql(module):
        return
    follow(module.Connection, "select_db", of_argument(0, "db"))
    follow(module.Connection, "change_user", of_argument(2, "db"))
    follow(module.Connection, "query", of_query)
    original = module.Connection.__init__
    names = ("host", "user", "password", "database", "port", "unix_socket")  # their order in the C class

    @imitates(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        vars(self)[REMEMBERED] = {
            "database": given.get("database") or given.get("db"),
            "socket": given.get("unix_socket"),
        }

    module.Connection.__init__ = init


def _mysqlclient_place(connection: Any) -> Place:
    given = vars(connection).get(REMEMBERED, {})
    # Opened before we came: releases from 2.2.5 on keep the name themselves.
    database = as_str(given.get("database") or getattr(connection, "database", None))
    # "db.example.com via TCP/IP" or "Localhost via UNIX socket": right also when a my.cnf names the host.
    host, _, way = connection.get_host_info().partition(" via ")
    if way.startswith("TCP"):
        return Place("mysql", database, host, connection.port)
    return Place("mysql", database, as_str(given.get("socket")) or "localhost")


def mysqlclient_cursors(module: Any) -> None:
    """Patch mysqlclient's cursors."""
    if hasattr(module, "BaseCursor"):  # else it is PyMySQL's
        patch_methods(module.BaseCursor, Driver("mysql", connection_of, _mysqlclient_place))


def _is_pymysql(module: Any) -> bool:
    """Tell PyMySQL's modules, which go by the name MySQLdb after ``pymysql.install_as_MySQLdb()``."""
    return hasattr(module, "MySQLResult")


def pymysql_connections(module: Any) -> None:
    """Make PyMySQL's connections remember which database they have changed to."""
    if _is_pymysql(module):
        follow(module.Connection, "select_db", of_argument(0, "db"))
        follow(module.Connection, "query", of_query)
        follow(module.Connection, "connect", None)


def pymysql_cursors(module: Any) -> None:
    """Patch ``pymysql.cursors``, and the second copy that ``import MySQLdb.cursors`` makes of it.

    The copy appears after ``pymysql.install_as_MySQLdb()``: the parent's path leads to PyMySQL's files.
    """
    if not hasattr(module, "BaseCursor"):  # else it is mysqlclient's
        patch_methods(module.Cursor, Driver("mysql", connection_of, _pymysql_place))


def _pymysql_place(connection: Any) -> Place:
    if connection.unix_socket:
        return Place("mysql", as_str(connection.db), as_str(connection.unix_socket))
    return Place("mysql", as_str(connection.db), as_str(connection.host), connection.port)


def mysql_connector_propagation(module: Any) -> None:
    """Keep the connector from sending the current span to the server, unless the application sets that attribute.

    It does so wherever a span is recorded, which is our doing, and warns where the server is a MariaDB or an old MySQL.
    https://dev.mysql.com/doc/connector-python/en/connector-python-opentelemetry.html
    """
    original = module.MySQLConnectionAbstract.__init__

    @imitates(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # Older releases have none.
        if hasattr(self, "otel_context_propagation"):
            self.otel_context_propagation = False

    module.MySQLConnectionAbstract.__init__ = init


def mysql_connector_cursors(module: Any) -> None:
    """Patch one of the modules with cursors of MySQL Connector/Python: pure Python, C extension or asyncio."""
    for cursor_class in [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]:
        patch_methods(cursor_class, Driver("mysql", _mysql_connector_connection, _mysql_connector_place))


def mysql_connector_connections(module: Any) -> None:
    """Make the connections of one of these modules remember which database they have changed to."""
    for connection_class in [
        c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__
    ]:
        follow(connection_class, "cmd_init_db", of_argument(0, "database"))
        asynchronous = inspect.iscoroutinefunction(getattr(connection_class, "cmd_change_user", None))
        follow(connection_class, "cmd_change_user", _async_change_user if asynchronous else _CHANGE_USER)
        follow(connection_class, "cmd_query", of_query)
        follow(connection_class, "database", of_argument(0, "value"))
        follow(connection_class, "connect", None)


_CHANGE_USER = of_argument(2, "database")


def _async_change_user(connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the database that the connection was opened with, which that method goes back to, whatever it is given."""
    return as_str(getattr(connection, "_database", None)) or _CHANGE_USER(connection, args, kwargs)


def _mysql_connector_connection(cursor: Any) -> Any:
    # A cursor has no public way to its connection. Both names are other ones in the releases of 2022.
    connection = getattr(cursor, "_connection", None)
    if connection is None:
        connection = cursor._cnx  # noqa: SLF001
    itself = getattr(connection, "get_self", None)
    return connection._get_self() if itself is None else itself()  # noqa: SLF001


def _mysql_connector_place(connection: Any) -> Place:
    # The property `database` asks the server.
    database = getattr(connection, "_database", None)
    if connection.unix_socket:
        return Place("mysql", as_str(database), as_str(connection.unix_socket))
    return Place("mysql", as_str(database), as_str(connection.server_host), connection.server_port)
