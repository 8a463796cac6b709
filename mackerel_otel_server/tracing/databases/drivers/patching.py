"""How a driver is patched: its classes stay what they are, so ``isinstance`` and C code see nothing unusual."""

from __future__ import annotations

import inspect
import os
import sys
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


# Drivers whose classes are written in C and take no new methods: connect() and cursor() are given subclasses.


def lay_below(factory: Any, driver_class: type, ours: type, default: type | None = None) -> Any:
    """Return what makes objects of a traced class: ``factory`` itself, wherever that is the application's.

    A class of the application's stays the one that it is, so that nothing runs a second time that runs when a class is
    made, such as ``__init_subclass__``. ``ours`` becomes its base in the place of the driver's class, so that its own
    methods run first, and what they call with super() arrives at ours.

    Args:
        factory: What the application has given; it may be a function.
        driver_class: The driver's own class.
        ours: Its traced subclass, which adds no field to an object; otherwise Python refuses it as a new base.
        default: What stands for the driver's class itself, a subclass of ``ours``.
    """
    if factory is driver_class:
        return default or ours
    if isinstance(factory, type) and issubclass(factory, driver_class) and not issubclass(factory, ours):
        try:
            for cls in factory.__mro__:
                if driver_class in cls.__bases__ and cls is not ours:
                    bases = tuple(ours if base is driver_class else base for base in cls.__bases__)
                    # Not by way of a metaclass of the application's.
                    type.__dict__["__bases__"].__set__(cls, bases)
        except Exception:
            # The application's class is written in C, too, or its metaclass has an mro() of its own.
            log.debug("the queries of %s cannot be traced", factory, exc_info=True)
    return factory


def subclass(driver_class: type, methods: Mapping[str, Any], fields: tuple[str, ...] = ()) -> type:
    """Return a subclass under the same name, whose objects take no more attributes than those of the driver's.

    Args:
        driver_class: What to inherit from.
        methods: What the subclass does its own way.
        fields: Further attributes that its objects have, for ourselves.
    """
    names = {name: getattr(driver_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(driver_class.__name__, (driver_class,), {**names, "__slots__": fields, **methods})


def put_in_place(original: Any, replacement: Any, *modules: Any) -> None:
    """Let a function stand in the place of another one in these modules, and where pickle looks for that by its name.

    A process without this package then reads the same pickle, and finds the original.
    """
    name: str = original.__name__
    for module in (*modules, sys.modules.get(original.__module__)):
        if getattr(module, name, None) is original:
            setattr(module, name, replacement)


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
