"""MySQL Connector/Python: pure Python, C extension and asyncio."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing.databases.current_database import follow, of_argument, of_query
from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import as_str, patch_methods

if TYPE_CHECKING:
    from collections.abc import Iterator


def _stop_propagation(module: Any) -> None:
    """Keep the connector from sending the current span to the server, unless the application sets that attribute.

    The connector sends it wherever a span is recorded, thus because of this package, and warns where the server is a
    MariaDB or an old MySQL.
    https://dev.mysql.com/doc/connector-python/en/connector-python-opentelemetry.html
    """
    original = module.MySQLConnectionAbstract.__init__

    @imitates(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # Older releases have no such attribute.
        if hasattr(self, "otel_context_propagation"):
            self.otel_context_propagation = False

    module.MySQLConnectionAbstract.__init__ = init


def _patch_connections(module: Any) -> None:
    """Make connections remember which database they have changed to."""
    for cls in _classes(module):
        follow(cls, "cmd_init_db", of_argument(0, "database"))
        asynchronous = inspect.iscoroutinefunction(getattr(cls, "cmd_change_user", None))
        follow(cls, "cmd_change_user", _async_change_user if asynchronous else _CHANGE_USER)
        follow(cls, "cmd_query", of_query)
        follow(cls, "database", of_argument(0, "value"))
        follow(cls, "connect", None)


_CHANGE_USER: Final = of_argument(2, "database")


def _async_change_user(connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the database that the connection was opened with; the method of asyncio goes back to it in any case."""
    return as_str(getattr(connection, "_database", None)) or _CHANGE_USER(connection, args, kwargs)


def _patch_cursors(module: Any) -> None:
    for cls in _classes(module):
        patch_methods(cls, DRIVER)


def _classes(module: Any) -> Iterator[type]:
    """Yield the classes that a module defines itself."""
    return (cls for cls in list(vars(module).values()) if inspect.isclass(cls) and cls.__module__ == module.__name__)


def _connection_of(cursor: Any) -> Any:
    # A cursor has no public way to its connection, and the releases of 2022 have other names for both ways.
    connection = getattr(cursor, "_connection", None)
    if connection is None:
        connection = cursor._cnx  # noqa: SLF001 - the reason is above
    itself = getattr(connection, "get_self", None)
    return connection._get_self() if itself is None else itself()  # noqa: SLF001 - the reason is above


def _place_of(connection: Any) -> Place:
    # The property `database` asks the server.
    database = as_str(getattr(connection, "_database", None))
    if connection.unix_socket:
        return Place(database, as_str(connection.unix_socket))
    return Place(database, as_str(connection.server_host), connection.server_port)


DRIVER: Final = Driver(
    name="mysql",
    module="mysql.connector",
    system="mysql",
    # The first release for Python 3.10. The other distribution is the driver's former name.
    distributions={"mysql-connector-python": "8.0.28", "mysql-connector": None},
    patches={
        "mysql.connector.abstracts": _stop_propagation,
        "mysql.connector.aio.abstracts": _stop_propagation,
        "mysql.connector.connection": _patch_connections,
        "mysql.connector.connection_cext": _patch_connections,
        "mysql.connector.aio.connection": _patch_connections,
        "mysql.connector.cursor": _patch_cursors,
        "mysql.connector.cursor_cext": _patch_cursors,
        "mysql.connector.aio.cursor": _patch_cursors,
    },
    place_of=_place_of,
    connection_of=_connection_of,
    dialects=("mysqlconnector",),
)
