"""The web frameworks: their applications are traced wherever they are served, without a line in the application.

Each module of this folder describes one framework in its constant ``FRAMEWORK``; nothing else lists the frameworks.
They change classes only, and in place, so the object that views and ``wsgi.py`` import stays the framework's own.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.process.on_import import on_import
from mackerel_otel_server.tracing.older_than_tested import warn_if_older
from mackerel_otel_server.tracing.requests import excluded
from mackerel_otel_server.tracing.requests.wsgi import trace_served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from mackerel_otel_server.tracing.framework import Framework

_NOT_TRACED: Final = "it is not traced"


@functools.cache
def known() -> tuple[Framework, ...]:
    """Return what the modules of this folder describe, by their names."""
    return tuple(
        importlib.import_module(f"{__name__}.{module.name}").FRAMEWORK for module in pkgutil.iter_modules(__path__)
    )


def instrumentations() -> frozenset[str]:
    """Return the entry points of OpenTelemetry's own instrumentations of the frameworks."""
    return frozenset(framework.instrumentation for framework in known() if framework.instrumentation)


def oldest() -> dict[str, str]:
    """Return the oldest release that is tested of each framework, by distribution."""
    return {framework.distribution: framework.oldest for framework in known()}


def register() -> None:
    """Trace the frameworks as soon as the application imports them, or now where it has."""
    for framework in known():
        for module, hook, lost in _hooks(framework):
            on_import(module, hook, lost)
        on_import(framework.package, functools.partial(_compare, framework), "its release is not known")
        for interface, hooks in (("wsgi", framework.wsgi), ("asgi", framework.asgi)):
            if hooks and framework.instrumentation:
                excluded.obey(interface, framework.instrumentation.upper())


def _hooks(framework: Framework) -> Iterator[tuple[str, Callable[[Any], None], str]]:
    """Return modules, what changes them, and what is lost where that fails."""
    for hooks, lost in (
        (framework.routes, "its spans may lack their route"),
        (framework.exceptions, "its spans may lack their exceptions, or have wrong ones"),
        (framework.responses, "its spans may end late"),
        # Last, so that what traces a request is around everything else.
        (framework.wsgi, _NOT_TRACED),
        (framework.asgi, _NOT_TRACED),
    ):
        for module, hook in hooks.items():
            yield module, hook, lost


def _compare(framework: Framework, _module: ModuleType) -> None:
    warn_if_older(framework.distribution, framework.oldest)


def are_imported() -> bool:
    """Tell whether one of the frameworks is in use."""
    return any(module in sys.modules for framework in known() for module, _, _ in _hooks(framework))


@functools.cache  # once for each callable
def register_callable(module_name: str, name: str) -> None:
    """Trace a callable of a module when the module is imported.

    For a server that imports the application itself and offers no hook between that and its first request.

    Args:
        module_name: The module.
        name: The callable; ``make_application()`` for what a function returns.
    """
    attribute = name.removesuffix("()")
    trace = trace_served if attribute == name else _trace_factory

    def replace(module: ModuleType) -> None:
        value = vars(module).get(attribute)
        if callable(value) and (traced := trace(value)) is not value:
            setattr(module, attribute, traced)

    on_import(module_name, replace, _NOT_TRACED)


def _trace_factory(factory: Callable[..., Any]) -> Callable[..., Any]:
    @imitates(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        return trace_served(factory(*args, **kwargs))

    return make
