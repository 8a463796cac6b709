"""sqlite3 of the standard library.

``from sqlite3 import connect`` before us keeps the original, which is written in C: those connections are not traced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.looks_like_original import CallableProxy, imitates
from mackerel_otel_server.tracing.databases.connections import KEPT
from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import (
    METHODS,
    REMEMBERED,
    file_name,
    lay_below,
    put_in_place,
    replaced,
    subclass,
    traced_method,
)


def _patch(module: Any) -> None:
    """Make sqlite3.connect() open connections of a traced class."""
    connection_class, cursor_class = module.Connection, module.Cursor
    methods = (*METHODS[:2], "executescript")
    traced = {name: traced_method(getattr(cursor_class, name), DRIVER) for name in methods}
    traced_cursor = subclass(cursor_class, traced)

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

    # In Python 3.10, execute() and its siblings call the cursor() of the subclass; later, they call the driver's own.
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
                    # Around the class's own __setattr__(), which may be the application's.
                    name = file_name(args[0] if args else kwargs.get("database"))
                    object.__setattr__(connection, REMEMBERED, name)
                except Exception:
                    # A class of the application's with __slots__: the spans lack the database's name.
                    log.debug("%s takes no attribute", type(connection))
            return connection

    # Django and SQLAlchemy call sqlite3.dbapi2.connect().
    put_in_place(module.connect, Connect(module.connect), module, module.dbapi2)


def _place_of(connection: Any) -> Place:
    return Place(getattr(connection, REMEMBERED, None))


DRIVER: Final = Driver(
    name="sqlite3",
    module="sqlite3",
    system="sqlite",
    distributions={},
    patches={"sqlite3": _patch},
    place_of=_place_of,
    # Functions and collations of the application run inside a query.
    calls_back=True,
    # aiosqlite, another dialect, calls sqlite3 in a thread of its own, where no request is under way.
    dialects=("pysqlite",),
)
