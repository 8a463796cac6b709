"""Ways to patch a driver. Its classes stay what they are, so ``isinstance`` and C code see nothing unusual."""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing.databases.statements import QueryOf, given_query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mackerel_otel_server.tracing.databases.driver import Driver

METHODS = ("execute", "executemany", "callproc")
REMEMBERED = "_mackerel_otel_remembered"
"""The attribute in which a connection remembers what it was opened with."""


def traced_method(method: Callable[..., Any], driver: Driver, query_of: QueryOf = given_query) -> Callable[..., Any]:
    """Make a span of each call of a cursor's method; see ``methods.traced_method``."""
    # The import stands here because a process that imports no driver needs neither this module nor the parts of
    # OpenTelemetry that it imports.
    from mackerel_otel_server.tracing.databases import methods

    return methods.traced_method(method, driver, query_of)


# For drivers whose cursors are Python classes. The methods are replaced in place, whichever way the classes were
# imported, and also for objects that exist already.


def patch_methods(cursor_class: type, driver: Driver) -> None:
    """Trace the methods that this class defines itself."""
    for name in (*METHODS, "stream"):
        method = vars(cursor_class).get(name)
        if inspect.isfunction(method):
            setattr(cursor_class, name, traced_method(method, driver))


# For drivers whose classes are written in C, and take no new methods. connect() and cursor() are given subclasses.


def lay_below(factory: Any, driver_class: type, ours: type, default: type | None = None) -> Any:
    """Return what makes objects of a traced class; a class or a function of the application's is returned itself.

    A class of the application's gets ``ours`` as a base in the place of the driver's class. The application's methods
    still run first, and their calls of super() arrive at ours. The class is not made anew, because that would run
    ``__init_subclass__`` and the like a second time.

    Args:
        factory: What the application has given, a class or a function.
        driver_class: The driver's own class.
        ours: Our traced subclass of the driver's class. It must add no field to an object: Python refuses a new base
            that does.
        default: What to return for the driver's own class, a subclass of ``ours``; without it, ``ours``.
    """
    if factory is driver_class:
        return default or ours
    if isinstance(factory, type) and issubclass(factory, driver_class) and not issubclass(factory, ours):
        try:
            for cls in factory.__mro__:
                if driver_class in cls.__bases__ and cls is not ours:
                    bases = tuple(ours if base is driver_class else base for base in cls.__bases__)
                    # Around the metaclass, which may be the application's.
                    type.__dict__["__bases__"].__set__(cls, bases)
        except Exception:
            # The application's class is written in C as well, or its metaclass has an mro() of its own.
            log.debug("the queries of %s cannot be traced", factory, exc_info=True)
    return factory


def subclass(driver_class: type, methods: Mapping[str, Any], fields: tuple[str, ...] = ()) -> type:
    """Return a subclass under the same name. Its objects take no more attributes than those of the driver's class.

    Args:
        driver_class: What to inherit from.
        methods: The methods that the subclass has instead of the inherited ones.
        fields: Attributes for this package, which the subclass adds.
    """
    names = {name: getattr(driver_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(driver_class.__name__, (driver_class,), {**names, "__slots__": fields, **methods})


def put_in_place(original: Any, replacement: Any, *modules: Any) -> None:
    """Replace a function in these modules, and in the module where pickle looks for the function by its name.

    So a pickle has the function's usual name, and a process without this package finds the original under that name.
    """
    name: str = original.__name__
    for module in (*modules, sys.modules.get(original.__module__)):
        if getattr(module, name, None) is original:
            setattr(module, name, replacement)


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, replace: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with one of them replaced; ``replace`` gets Ellipsis where that argument was not given."""
    if len(args) > position:
        return (*args[:position], replace(args[position]), *args[position + 1 :]), kwargs
    return args, {**kwargs, name: replace(kwargs.get(name, ...))}


def as_str(value: Any) -> str | None:
    """Return a name as text; drivers keep some names as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def file_name(database: Any) -> str:
    """Return the name of a database that is a file, without the path to it."""
    try:
        path = os.fsdecode(database)
        # Whether the application has set `uri` does not matter for a name that only people read.
        if path.startswith("file:"):
            url = urlsplit(path)
            path = ":memory:" if parse_qs(url.query).get("mode") == ["memory"] else unquote(url.path)
    except (TypeError, ValueError):
        return ""
    return os.path.basename(path)  # noqa: PTH119 - a Path would need a valid path
