"""psycopg2 and psycopg 3."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.tracing.databases.connections import KEPT, Driver, Place
from mackerel_otel_server.tracing.databases.drivers.patching import (
    METHODS,
    connection_of,
    lay_below,
    patch_methods,
    put_in_place,
    replaced,
    subclass,
)
from mackerel_otel_server.tracing.databases.queries import QueryOf, given_query, traced, traced_manager


def _place(connection: Any) -> Place:
    info = connection.info
    return Place("postgresql", info.dbname, info.host, info.port)


_DRIVER = Driver("postgresql", connection_of, _place)


def psycopg(module: Any) -> None:
    """Patch the cursors of psycopg 3, those for asyncio included; connections execute by way of a cursor."""
    roots = module.Cursor, module.AsyncCursor
    for cursor_class in [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, roots)]:
        patch_methods(cursor_class, _DRIVER)
        if copy := vars(cursor_class).get("copy"):
            asynchronous = issubclass(cursor_class, module.AsyncCursor)
            cursor_class.copy = traced_manager(copy, _DRIVER, asynchronous=asynchronous)  # type: ignore[attr-defined]


def psycopg2(module: Any) -> None:
    """Make psycopg2.connect() open connections of a traced class."""
    connection_class, cursor_class = module.extensions.connection, module.extensions.cursor
    methods = {name: traced(getattr(cursor_class, name), _DRIVER, _written) for name in METHODS}
    methods |= {name: traced(getattr(cursor_class, name), _DRIVER, query_of) for name, query_of in _COPIES.items()}
    traced_cursor = subclass(cursor_class, methods)

    @imitates(connection_class.cursor)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        def below(factory: Any) -> Any:
            if factory is None or factory is ...:
                factory = cursor_class if self.cursor_factory is None else self.cursor_factory
            return lay_below(factory, cursor_class, traced_cursor)

        args, kwargs = replaced(args, kwargs, 1, "cursor_factory", below)
        return connection_class.cursor(self, *args, **kwargs)

    traced_connection = subclass(connection_class, {"cursor": cursor})
    usual_connection = subclass(traced_connection, {}, (KEPT,))

    # What connect() looks up at each call, so that an earlier `from psycopg2 import connect` meets it too.
    name = "_connect" if hasattr(module, "_connect") else "connect"
    original = getattr(module, name)

    @imitates(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        def below(factory: Any) -> Any:
            factory = connection_class if factory is None or factory is ... else factory
            return lay_below(factory, connection_class, traced_connection, usual_connection)

        args, kwargs = replaced(args, kwargs, 1, "connection_factory", below)
        return original(*args, **kwargs)

    put_in_place(original, connect, module)


def psycopg2_extras(module: Any) -> None:
    """Make one span of ``execute_values()`` and of ``execute_batch()``, which put the values into what they execute."""
    for name in _EXTRAS:
        setattr(module, name, _of_cursor(getattr(module, name)))


_EXTRAS = ("execute_values", "execute_batch")


def _of_cursor(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace a function whose first parameter ``cur`` may be given by name."""
    method = traced(function, _DRIVER)

    @imitates(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args:
            return method(*args, **kwargs)
        if "cur" in kwargs:
            return method(kwargs.pop("cur"), **kwargs)
        return function(**kwargs)

    return call


def _written(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the query; for one that ``execute_values()`` has put values into, the query that it was given.

    Who has imported that function before us calls the original. Of an error there the values are not known.
    """
    query = given_query(args, kwargs)
    if isinstance(query, bytes):
        frame: FrameType | None = sys._getframe()  # noqa: SLF001 - its documented use
        for _ in range(_NEAR):
            if frame is not None and (frame := frame.f_back) is not None and frame.f_code.co_name in _EXTRAS:
                return frame.f_locals.get("sql", "")
    return query


_NEAR = 8
"""Frames between it and us: methods of an application's own cursors."""


def _copied(direction: str) -> QueryOf:
    def query_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return f"COPY {args[1] if len(args) > 1 else kwargs.get('table')} {direction}"

    return query_of


_COPIES: dict[str, QueryOf] = {
    "copy_expert": given_query,
    "copy_from": _copied("FROM STDIN"),
    "copy_to": _copied("TO STDOUT"),
}
