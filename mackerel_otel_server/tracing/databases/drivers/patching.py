"""How a driver is patched: its classes stay what they are, so ``isinstance`` and C code see nothing unusual."""

from __future__ import annotations

import inspect
import os
import types
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.databases.queries import traced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mackerel_otel_server.tracing.databases.connections import Driver

connection_of = attrgetter("connection")
METHODS = ("execute", "executemany", "callproc")
REMEMBERED = "_mackerel_otel_remembered"
"""What a connection was opened with, in the connection itself."""


# Drivers whose cursors are Python classes: the methods are replaced in place, which reaches every way to import them
# and every object that exists already.


def patch_methods(cursor_class: type, driver: Driver) -> None:
    """Trace the methods that this class defines itself."""
    for name in (*METHODS, "stream"):
        method = vars(cursor_class).get(name)
        if inspect.isfunction(method):
            setattr(cursor_class, name, traced(method, driver))


# Drivers whose classes are written in C: connect() and cursor() are given subclasses. Ours is the last base but the
# driver's own, so that the application's class runs first and its super() calls arrive at ours.


def lay_below(factory: Any, driver_class: type, ours: type) -> Any:
    """Return ``factory`` as a subclass of ``ours``; a function, or what is no such class at all, as it is."""
    if factory is driver_class:
        return ours
    if not isinstance(factory, type) or not issubclass(factory, driver_class) or issubclass(factory, ours):
        return factory
    made = vars(factory).get("_mackerel_otel_traced")
    if made is None:
        names = {name: getattr(factory, name) for name in ("__module__", "__qualname__", "__doc__")}
        try:
            made = types.new_class(factory.__name__, (factory, ours), exec_body=lambda ns: ns.update(names))
            # Kept in the class itself: in a table of ours it would never be freed.
            factory._mackerel_otel_traced = made  # type: ignore[attr-defined]  # noqa: SLF001
        except Exception:
            log.debug("%s cannot have a traced subclass", factory, exc_info=True)
            return factory
    return made


def subclass(driver_class: type, methods: Mapping[str, Any]) -> type:
    """Return a subclass under the same name, with these methods."""
    names = {name: getattr(driver_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(driver_class.__name__, (driver_class,), {**names, **methods})


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, replace: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with one of them replaced; ``replace`` gets Ellipsis for one that was not given."""
    if len(args) > position:
        return (*args[:position], replace(args[position]), *args[position + 1 :]), kwargs
    return args, {**kwargs, name: replace(kwargs.get(name, ...))}


def as_str(value: Any) -> str | None:
    """Return a name as text; drivers keep some as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def file_name(database: Any) -> str:
    """Return the name of a database that is a file, without the path to it."""
    try:
        path = os.fsdecode(database)
        if path.startswith("file:"):  # a name for the operator, so not worth asking whether `uri` was set
            url = urlsplit(path)
            path = ":memory:" if parse_qs(url.query).get("mode") == ["memory"] else unquote(url.path)
    except (TypeError, ValueError):
        return ""
    return os.path.basename(path)  # noqa: PTH119 - a Path would need a valid path
