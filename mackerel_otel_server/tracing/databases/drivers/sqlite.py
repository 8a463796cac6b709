"""sqlite3 of the standard library. Who holds its ``connect`` from before us cannot be reached: it is written in C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mackerel_otel_server.imitation import CallableProxy, imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.databases.connections import KEPT, Driver, Place
from mackerel_otel_server.tracing.databases.drivers.patching import (
    METHODS,
    REMEMBERED,
    connection_of,
    file_name,
    lay_below,
    put_in_place,
    replaced,
    subclass,
)
from mackerel_otel_server.tracing.databases.queries import traced


def sqlite3(module: Any) -> None:
    """Make sqlite3.connect() open connections of a traced class."""
    connection_class, cursor_class = module.Connection, module.Cursor
    driver = Driver("sqlite", connection_of, _sqlite3_place, calls_back=True)
    methods = (*METHODS[:2], "executescript")
    traced_cursor = subclass(cursor_class, {name: traced(getattr(cursor_class, name), driver) for name in methods})

    @imitates(connection_class.cursor)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        def below(factory: Any) -> Any:
            return lay_below(cursor_class if factory is ... else factory, cursor_class, traced_cursor)

        args, kwargs = replaced(args, kwargs, 0, "factory", below)
        return connection_class.cursor(self, *args, **kwargs)

    def shortcut(name: str) -> Callable[..., Any]:
        @imitates(getattr(connection_class, name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(connection_class.cursor(self, traced_cursor), name)(*args, **kwargs)

        return method

    # Python 3.10 calls the cursor() of the subclass in execute() and its siblings, later ones that of the driver.
    shortcuts = {} if sys.version_info < (3, 11) else {name: shortcut(name) for name in methods}
    traced_connection = subclass(connection_class, {"cursor": cursor, **shortcuts})
    usual_connection = subclass(traced_connection, {}, (KEPT, REMEMBERED))

    class Connect(CallableProxy):
        """``sqlite3.connect``, which unlike a Python function is no method when it is the attribute of a class."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            def below(factory: Any) -> Any:
                factory = connection_class if factory is ... else factory
                return lay_below(factory, connection_class, traced_connection, usual_connection)

            args, kwargs = replaced(args, kwargs, 5, "factory", below)
            connection = self.__wrapped__(*args, **kwargs)
            if isinstance(connection, traced_connection):
                try:
                    # Not by way of a __setattr__() of the application's.
                    name = file_name(args[0] if args else kwargs.get("database"))
                    object.__setattr__(connection, REMEMBERED, name)
                except Exception:
                    # A class of the application's with __slots__: its spans lack the name.
                    log.debug("%s takes no attribute", type(connection))
            return connection

    # Django and SQLAlchemy call sqlite3.dbapi2.connect().
    put_in_place(module.connect, Connect(module.connect), module, module.dbapi2)


def _sqlite3_place(connection: Any) -> Place:
    return Place("sqlite", getattr(connection, REMEMBERED, None))
