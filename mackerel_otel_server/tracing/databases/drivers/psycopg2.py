"""psycopg2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing.databases.connections import KEPT
from mackerel_otel_server.tracing.databases.driver import Driver
from mackerel_otel_server.tracing.databases.drivers.psycopg import place_of
from mackerel_otel_server.tracing.databases.patching import (
    METHODS,
    lay_below,
    put_in_place,
    replaced,
    subclass,
    traced_method,
)
from mackerel_otel_server.tracing.databases.statements import QueryOf, given_query


def _patch(module: Any) -> None:
    """Make psycopg2.connect() open connections of a traced class."""
    connection_class, cursor_class = module.extensions.connection, module.extensions.cursor
    methods = {name: traced_method(getattr(cursor_class, name), DRIVER, find) for name, find in _QUERIES.items()}
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

    # connect() looks up _connect() at each call, so an earlier `from psycopg2 import connect` meets ours, too.
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


def _patch_extras(module: Any) -> None:
    """Make one span of ``execute_values()`` and of ``execute_batch()``, which put the values into what they execute."""
    for name in _EXTRAS:
        setattr(module, name, _of_cursor(getattr(module, name)))


_EXTRAS: Final = ("execute_values", "execute_batch")


def _of_cursor(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace a function whose first parameter ``cur`` may be given by name."""
    method = traced_method(function, DRIVER)

    @imitates(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args:
            return method(*args, **kwargs)
        if "cur" in kwargs:
            return method(kwargs.pop("cur"), **kwargs)
        return function(**kwargs)

    return call


def _written(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the query as the application wrote it, also where ``execute_values()`` has put values into it.

    An application that imported that function before it was patched calls the original one, whose ``sql`` is found in
    its frame. The values of such a query are not known, so an error may show them.
    """
    query = given_query(args, kwargs)
    if isinstance(query, bytes):
        frame: FrameType | None = sys._getframe()  # noqa: SLF001 - its documented use
        for _ in range(_NEAR):
            if frame is not None and (frame := frame.f_back) is not None and frame.f_code.co_name in _EXTRAS:
                return frame.f_locals.get("sql", "")
    return query


_NEAR: Final = 8
"""The most frames between ``execute_values()`` and ours: methods of an application's own cursors."""


def _copied(direction: str) -> QueryOf:
    def query_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return f"COPY {args[1] if len(args) > 1 else kwargs.get('table')} {direction}"

    return query_of


_QUERIES: Final[dict[str, QueryOf]] = {
    **dict.fromkeys(METHODS, _written),
    "copy_expert": given_query,
    "copy_from": _copied("FROM STDIN"),
    "copy_to": _copied("TO STDOUT"),
}
"""Each method of a cursor that is traced, and what finds the query in its arguments."""

DRIVER: Final = Driver(
    name="psycopg2",
    module="psycopg2",
    system="postgresql",
    distributions={"psycopg2": "2.9.2", "psycopg2-binary": "2.9.2"},
    patches={"psycopg2": _patch, "psycopg2.extras": _patch_extras},
    place_of=place_of,
    # register_type() and its like, which Django calls, refuse any other object.
    takes_wrapped_connections=False,
    dialects=("psycopg2",),
)
