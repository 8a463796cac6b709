"""PyMySQL, also under the name MySQLdb, which the application gives to it with ``pymysql.install_as_MySQLdb()``."""

from __future__ import annotations

from typing import Any, Final

from mackerel_otel_server.tracing.databases.current_database import follow, of_argument, of_query
from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import as_str, patch_methods


def is_pymysql(connections: Any) -> bool:
    """Tell whether a module ``MySQLdb.connections`` is PyMySQL's, and not mysqlclient's."""
    return hasattr(connections, "MySQLResult")


def _patch_connections(module: Any) -> None:
    """Make connections remember which database they have changed to."""
    if is_pymysql(module):
        follow(module.Connection, "select_db", of_argument(0, "db"))
        follow(module.Connection, "query", of_query)
        follow(module.Connection, "connect", None)


def _patch_cursors(module: Any) -> None:
    """Patch ``pymysql.cursors``, and the second copy of it that ``import MySQLdb.cursors`` makes.

    After ``pymysql.install_as_MySQLdb()`` the path of the package MySQLdb leads to PyMySQL's files.
    """
    # mysqlclient's module of this name has that class.
    if not hasattr(module, "BaseCursor"):
        patch_methods(module.Cursor, DRIVER)


def _place_of(connection: Any) -> Place:
    if connection.unix_socket:
        return Place(as_str(connection.db), as_str(connection.unix_socket))
    return Place(as_str(connection.db), as_str(connection.host), connection.port)


DRIVER: Final = Driver(
    name="pymysql",
    module="pymysql",
    system="mysql",
    distributions={"PyMySQL": "1.0.2"},
    patches={
        "pymysql.connections": _patch_connections,
        "pymysql.cursors": _patch_cursors,
        "MySQLdb.connections": _patch_connections,
        "MySQLdb.cursors": _patch_cursors,
    },
    place_of=_place_of,
    dialects=("pymysql",),
)
