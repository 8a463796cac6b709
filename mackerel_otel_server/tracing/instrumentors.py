"""Apply one installed instrumentation of OpenTelemetry (an entry point), unless the application does that itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing import warn_once

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "opentelemetry_instrumentor"

_loaded: set[str] = set()
"""Modules of instrumentations that were imported here. The application applies those that it imports itself."""


def apply(entry_point: EntryPoint, follows: str, **options: Any) -> bool:
    """Apply an instrumentation whose library has been imported.

    An instrumentation that the application's own code has imported is left to that code. Where that code comes later,
    what it gives to ``instrument()`` replaces what was applied here.

    Args:
        entry_point: Of the group ``opentelemetry_instrumentor``.
        follows: What follows where it does not work, for the warning.
        options: For the instrumentor's ``instrument()``.

    Returns:
        Whether the library is in the hands of the instrumentation. Never raises.
    """
    cause = _apply(entry_point, options)
    if cause is not None:
        warn(entry_point, cause, follows)
    return cause is None


def warn(entry_point: EntryPoint, cause: str, follows: str) -> None:
    """Say that an instrumentation does not work."""
    write = warn_once.warn if _api_can_be_used() else log.debug
    write("%s does not instrument %s (%s): %s", entry_point.value, entry_point.name, cause, follows)


def _api_can_be_used() -> bool:
    """Tell whether instrumentations can work at all; where not, the check of the settings is going to say why."""
    try:
        import opentelemetry.propagate  # noqa: F401 - it reads OTEL_PROPAGATORS
    except Exception:
        return False
    return True


def _apply(entry_point: EntryPoint, options: dict[str, Any]) -> str | None:
    """Return why it does not work, or None."""
    # Also while the application's import of the instrumentation is under way. That import imports the library, too, and
    # has no instrumentor to offer yet.
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
            from opentelemetry.instrumentation.dependencies import get_dependency_conflicts

            # Otherwise instrument() would log in every worker what is wrong with the library's version.
            if conflict := get_dependency_conflicts(instrumentor.instrumentation_dependencies()):
                return f"it refused: {conflict}"
            instrumentor.instrument(**options)
            if not instrumentor.is_instrumented_by_opentelemetry:
                return "it refused, see its own message"
            _give_way(instrumentor)
    except Exception as error:
        log.debug("%s failed", entry_point.value, exc_info=True)
        return f"{type(error).__name__}: {error}"
    return None


def _give_way(instrumentor: Any) -> None:
    """Let the application's own code call ``instrument()`` later, with its own options.

    An instrumentor refuses a second call, so the first one is undone before. An instrumentor's class has one instance,
    so the application's code calls the attribute that is set here.
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
