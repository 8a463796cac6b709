"""duckdb: ``execute()`` and ``executemany()`` of a connection and of the module.

What cannot be traced: a relation (``sql()``, ``query()``, ``table()`` …) is no query yet; it runs, in the library, each
time that it is read. And who has done ``from duckdb import execute`` before us holds a function that is written in C.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from mackerel_otel_server.imitation import CallableProxy, imitates
from mackerel_otel_server.tracing.databases.connections import Driver, Place
from mackerel_otel_server.tracing.databases.drivers.patching import file_name, put_in_place
from mackerel_otel_server.tracing.databases.queries import traced

_METHODS = ("execute", "executemany")
_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Connections take no attribute."""


def duckdb(module: Any) -> None:
    """Patch the class of the connections in place, and the functions of the module."""
    connection_class = module.DuckDBPyConnection
    for name in _METHODS:
        setattr(connection_class, name, traced(_as_from(getattr(connection_class, name)), _DRIVER))
        function = getattr(module, name)
        put_in_place(function, _OfModule(function), module)
    for name in ("cursor", "duplicate"):
        setattr(connection_class, name, _named_alike(getattr(connection_class, name)))
    put_in_place(module.connect, _Connect(module.connect), module)


def _place(connection: Any) -> Place:
    return Place("duckdb", None if connection is None else _names.get(connection))


_DRIVER = Driver("duckdb", lambda connection: connection, _place)


def _as_from(function: Callable[..., Any], *, of_module: bool = False) -> Callable[..., Any]:
    """Call a function of the library so that it sees the variables of who called the traced function.

    A query may name them as tables (https://duckdb.org/docs/stable/clients/python/data_ingestion), and the library
    looks at the innermost Python frame only. So ours has the same variables.

    Args:
        function: What to call.
        of_module: It takes no connection before the query, as a method does.
    """
    ours = 3 if of_module else 2  # frames: this one, that of traced() and that of _OfModule

    @imitates(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            frame = sys._getframe(ours)  # noqa: SLF001 - its documented use
        except ValueError:
            # Called by C, in a thread that runs no Python.
            return function(*(args if of_module else (self, *args)), **kwargs)
        variables = {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)
        variables[_CALL] = functools.partial(function, *(args if of_module else (self, *args)), **kwargs)
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
        self._self_method = traced(_as_from(function, of_module=True), _DRIVER)

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
