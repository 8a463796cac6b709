"""Apply one installed instrumentation of OpenTelemetry (an entry point), unless the application does that itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "opentelemetry_instrumentor"

_loaded: set[str] = set()
"""Modules of instrumentations that were imported here; others are in the application's hands."""


def apply(entry_point: EntryPoint, **options: Any) -> str | None:
    """Apply an instrumentation whose library has been imported.

    An instrumentation that the application's own code has imported is left to that code. Where that code comes later,
    what it gives to ``instrument()`` replaces what was applied here.

    Args:
        entry_point: Of the group ``opentelemetry_instrumentor``.
        options: For the instrumentor's ``instrument()``.

    Returns:
        Why it does not work, or None. Never raises.
    """
    # Also while that import is under way: it is what imports the library, and has no instrumentor to offer yet.
    if entry_point.module in sys.modules and entry_point.module not in _loaded:
        log.debug("%s is left to the application, which imported it", entry_point.value)
        return None
    _loaded.add(entry_point.module)
    try:
        instrumentor = entry_point.load()()
        from opentelemetry.instrumentation import instrumentor as library  # which keeps its types from mypy

        if not isinstance(instrumentor, library.BaseInstrumentor):  # type: ignore[attr-defined, unused-ignore]
            instrumentor.instrument(**options)
        elif not instrumentor.is_instrumented_by_opentelemetry:
            if conflict := _conflict(instrumentor):
                return conflict
            instrumentor.instrument(**options)
            if not instrumentor.is_instrumented_by_opentelemetry:
                return "it refused, see its own message"
            _give_way(instrumentor)
    except Exception as error:
        log.debug("%s failed", entry_point.value, exc_info=True)
        return f"{type(error).__name__}: {error}"
    return None


def _conflict(instrumentor: Any) -> str | None:
    """Return what is wrong with the library's version; instrument() would log that, in every worker, and do nothing."""
    from opentelemetry.instrumentation.dependencies import get_dependency_conflicts

    conflict = get_dependency_conflicts(instrumentor.instrumentation_dependencies())
    return f"it refused: {conflict}" if conflict else None


def _give_way(instrumentor: Any) -> None:
    """Let a later ``instrument()`` of the application's own code have its way; it would be refused as the second.

    An instrumentor's class has one instance, so an attribute of that instance is what such code calls.
    """

    def instrument(*args: Any, **kwargs: Any) -> Any:
        vars(instrumentor).pop("instrument", None)
        try:
            if instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()
        except Exception:
            log.debug("%s cannot be applied anew", type(instrumentor).__qualname__, exc_info=True)
        return instrumentor.instrument(*args, **kwargs)

    instrumentor.instrument = instrument
