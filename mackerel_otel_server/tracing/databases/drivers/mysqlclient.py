"""mysqlclient, which is imported as MySQLdb."""

from __future__ import annotations

from typing import Any, Final

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing.databases.current_database import follow, of_argument, of_query
from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.drivers.pymysql import is_pymysql
from mackerel_otel_server.tracing.databases.patching import REMEMBERED, as_str, patch_methods


def _patch_connections(module: Any) -> None:
    """Make connections remember what they were opened with, and which database they have changed to."""
    if is_pymysql(module):
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


def _patch_cursors(module: Any) -> None:
    # PyMySQL's module of this name has no such class.
    if hasattr(module, "BaseCursor"):
        patch_methods(module.BaseCursor, DRIVER)


def _place_of(connection: Any) -> Place:
    given = vars(connection).get(REMEMBERED, {})
    # A connection that was opened before it was patched remembers nothing; since 2.2.5 mysqlclient keeps the name.
    database = as_str(given.get("database") or getattr(connection, "database", None))
    # "db.example.com via TCP/IP" or "Localhost via UNIX socket". This is right also when a my.cnf names the host.
    host, _, way = connection.get_host_info().partition(" via ")
    if way.startswith("TCP"):
        return Place(database, host, connection.port)
    return Place(database, as_str(given.get("socket")) or "localhost")


DRIVER: Final = Driver(
    name="mysqlclient",
    module="MySQLdb",
    system="mysql",
    distributions={"mysqlclient": "1.4.6"},
    patches={"MySQLdb.connections": _patch_connections, "MySQLdb.cursors": _patch_cursors},
    place_of=_place_of,
    dialects=("mysqldb",),
)
