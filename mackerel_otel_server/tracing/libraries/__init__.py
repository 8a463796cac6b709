"""Every installed instrumentation of OpenTelemetry is applied when its library is imported, before or after us."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.on_import import on_import
from mackerel_otel_server.tracing import databases, frameworks, instrumentors, on_or_off
from mackerel_otel_server.tracing.libraries import known, sqlalchemy, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from importlib.metadata import EntryPoint

_registered: set[str] = set()


def register(disabled: Callable[[], Container[str]] = tuple) -> None:
    """Apply the installed instrumentations to the libraries that the application has imported or is going to import.

    Imports no library, starts nothing, and may be called before a fork and more than once. The instrumentations of the
    database drivers are left to ``databases``.

    Args:
        disabled: Returns names as in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, ``*`` for all. Asked when a library is
            imported, because Gunicorn sets the variables of ``raw_env`` later than this call. For a library that is
            imported already, they are asked at once.
    """
    sqlalchemy.register()
    # The frameworks' requests have a server span of ours. Those of Tornado's and aiohttp's servers and of gRPC do not.
    elsewhere = frameworks.instrumentations() | databases.names()
    for entry_point in entry_points(group=instrumentors.GROUP):
        name = entry_point.name
        if entry_point.value in _registered or name in elsewhere or not known.about(name).is_applied:
            continue
        _registered.add(entry_point.value)
        try:
            instrumentation = _Instrumentation(entry_point, disabled)
            for modules in targets.modules_of(entry_point):
                instrumentation.wait_for(modules)
        except Exception as error:
            # The metadata may be broken: any installer may have written them.
            log.debug("%s cannot be applied", entry_point.value, exc_info=True)
            instrumentors.warn(entry_point, f"{type(error).__name__}: {error}", "it is not traced")


class _Instrumentation:
    """One installed instrumentation, until its library is imported."""

    def __init__(self, entry_point: EntryPoint, disabled: Callable[[], Container[str]]) -> None:
        self._entry_point = entry_point
        self._disabled = disabled
        self._tried = False

    def wait_for(self, modules: frozenset[str]) -> None:
        """Apply it as soon as all the modules are imported."""
        missing = set(modules)
        for module in modules:
            on_import(module, functools.partial(self._imported, module, missing), "it is not traced")

    def _imported(self, module: str, missing: set[str], _module: Any) -> None:
        """Apply it once nothing is missing."""
        missing.discard(module)
        if missing or self._tried:
            return
        name, disabled = self._entry_point.name, self._disabled()
        if name in disabled or "*" in disabled or _traced_by_others():
            return
        self._tried = True
        its = known.about(name)
        follows = f"it is not traced; install what fits, or add {name} to OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
        if its.by_drivers:
            follows = "its queries are traced without it"
        if instrumentors.apply(self._entry_point, follows, **its.options):
            sqlalchemy.applied.add(name)


def _traced_by_others() -> bool:
    """Tell whether another tracer provider is set. Whoever has set it decides what is instrumented."""
    from opentelemetry import trace

    return not on_or_off.active and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
