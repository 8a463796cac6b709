"""duckdb: ``execute()`` and ``executemany()`` of a connection and of the module.

Two things cannot be traced. A relation (``sql()``, ``query()``, ``table()`` …) is no query yet: the library runs it
each time that it is read. And ``from duckdb import execute`` before us keeps the original, which is written in C.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from mackerel_otel_server.process.looks_like_original import CallableProxy, imitates
from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import file_name, put_in_place, traced_method

_METHODS: Final = ("execute", "executemany")
_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The name of each connection's database; connections take no attribute."""


def _patch(module: Any) -> None:
    """Patch the class of the connections in place, and the functions of the module."""
    connection_class = module.DuckDBPyConnection
    for name in _METHODS:
        setattr(connection_class, name, traced_method(_as_from(getattr(connection_class, name)), DRIVER))
        function = getattr(module, name)
        put_in_place(function, _OfModule(function), module)
    for name in ("cursor", "duplicate"):
        setattr(connection_class, name, _named_alike(getattr(connection_class, name)))
    put_in_place(module.connect, _Connect(module.connect), module)


def _place_of(connection: Any) -> Place:
    return Place(None if connection is None else _names.get(connection))


def _as_from(function: Callable[..., Any], *, of_module: bool = False) -> Callable[..., Any]:
    """Call a function of the library so that it sees the variables of who called the traced function.

    A query may name them as tables (https://duckdb.org/docs/stable/clients/python/data_ingestion), and the library
    looks at the innermost Python frame only. So ours has the same variables.

    Args:
        function: What to call.
        of_module: It takes no connection before the query, as a method does.
    """
    ours = 3 if of_module else 2  # frames: this one, that of traced_method() and that of _OfModule

    @imitates(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(function, *(args if of_module else (self, *args)), **kwargs)
        try:
            frame = sys._getframe(ours)  # noqa: SLF001 - its documented use
        except ValueError:
            # C code has called the function in a thread that runs no Python, so the caller has no frame.
            return run()
        variables = {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)
        variables[_CALL] = run
        try:
            return eval(_CODE, frame.f_globals, variables)  # noqa: S307 - the way to a frame with given variables
        finally:
            del frame, variables

    return call


_CALL = "_mackerel_otel_call"
_CODE = compile(f"{_CALL}()", "<mackerel_otel_server>", "eval")


class _OfModule(CallableProxy):
    """The traced function of the module: its connection is given by name, or is the default one in memory."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._self_method = traced_method(_as_from(function, of_module=True), DRIVER)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_method(kwargs.get("connection"), *args, **kwargs)


class _Connect(CallableProxy):
    """``duckdb.connect``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        connection = self.__wrapped__(*args, **kwargs)
        _names[connection] = file_name(args[0] if args else kwargs.get("database", ":memory:"))
        return connection


def _named_alike(method: Callable[..., Any]) -> Callable[..., Any]:
    @imitates(method)
    def duplicate(self: Any, *args: Any, **kwargs: Any) -> Any:
        connection = method(self, *args, **kwargs)
        if name := _names.get(self):
            _names[connection] = name
        return connection

    return duplicate


DRIVER: Final = Driver(
    name="duckdb",
    module="duckdb",
    system="duckdb",
    # Older releases look for tables among the variables of all Python functions that wait for the query, and take ours
    # for tables.
    distributions={"duckdb": "1.1.0"},
    patches={"duckdb": _patch},
    place_of=_place_of,
    # Queries are methods of the connection itself.
    connection_of=lambda connection: connection,
    takes_wrapped_connections=False,
    dialects=("duckdb_engine",),
)
