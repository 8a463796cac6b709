"""Every installed instrumentation of OpenTelemetry is applied when its library is imported, before or after us."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imports import on_import
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import databases, gate, instrumentors
from mackerel_otel_server.tracing.libraries import engines, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from importlib.metadata import EntryPoint

_COVERED: Final = frozenset({"django", "flask", "fastapi", "starlette", "falcon", "pyramid"})
"""Their requests get a server span of ours. Those of Tornado's and aiohttp's own servers and of gRPC do not."""

_WITHOUT_SPANS: Final = frozenset({"system_metrics"})
"""They make metrics only, which nothing here sends."""

_registered: set[str] = set()
_applied: set[str] = set()


def register(
    disabled: Callable[[], Container[str]] = tuple, reported_by_others: Callable[[], bool] = lambda: False
) -> None:
    """Apply the installed instrumentations to the libraries that the application has imported or is going to import.

    Imports no library, starts nothing, and may be called before a fork and more than once. The instrumentations of the
    database drivers are left to ``databases``.

    Args:
        disabled: Returns names as in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, ``*`` for all. Asked when a library is
            imported: Gunicorn's ``raw_env`` comes later than this call. (A library that was imported before this call
            cannot wait for that.)
        reported_by_others: Returns whether another worker of this server says what fails.
    """
    engines.register(lambda name: name in databases.traced or name in _applied)
    for entry_point in entry_points(group=instrumentors.GROUP):
        name = entry_point.name
        if entry_point.value in _registered or name in _COVERED | _WITHOUT_SPANS or name in databases.names():
            continue
        _registered.add(entry_point.value)
        try:
            instrumentation = _Instrumentation(entry_point, disabled, reported_by_others)
            for modules in targets.modules_of(entry_point):
                instrumentation.wait_for(modules)
        except Exception as error:
            # Of the metadata, which anybody's installer has written.
            log.debug("%s cannot be applied", entry_point.value, exc_info=True)
            log.warning("%s is not traced: %s: %s", name, type(error).__name__, error)


class _Instrumentation:
    """One installed instrumentation, until its library is imported."""

    def __init__(
        self, entry_point: EntryPoint, disabled: Callable[[], Container[str]], reported_by_others: Callable[[], bool]
    ) -> None:
        self._entry_point = entry_point
        self._disabled = disabled
        self._reported_by_others = reported_by_others
        self._tried = False

    def wait_for(self, modules: frozenset[str]) -> None:
        """Apply it as soon as all the modules are imported."""
        missing = set(modules)
        for module in modules:
            on_import(module, functools.partial(self._imported, module, missing), self._failed)

    def _imported(self, name: str, missing: set[str], _module: Any) -> None:
        """Apply it once nothing is missing."""
        missing.discard(name)
        if not missing and not self._tried and not self._is_disabled() and not _traced_by_others():
            self._tried = True
            self._apply()

    def _failed(self, _name: str, error: Exception) -> None:
        log.debug("%s is not applied: %r", self._entry_point.value, error)

    def _is_disabled(self) -> bool:
        names = self._disabled()
        return self._entry_point.name in names or "*" in names

    def _apply(self) -> None:
        name = self._entry_point.name
        cause = instrumentors.apply(self._entry_point, **_options(name))
        if cause is None:
            _applied.add(name)
            return
        is_reported = gate.refused or self._reported_by_others() or not _api_can_be_used()
        write = log.debug if is_reported else log.warning
        if name == "sqlalchemy":
            write(
                "%s does not instrument %s (%s); its queries are traced without it",
                self._entry_point.value,
                name,
                cause,
            )
            return
        write(
            "%s is not traced: %s does not work (%s); the rest is traced. Install a version that fits, or add %s to "
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
            name,
            self._entry_point.value,
            cause,
            name,
        )


def _traced_by_others() -> bool:
    """Tell whether another tracer provider is set: what is instrumented then is not for us to say."""
    from opentelemetry import trace

    return not gate.active and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _api_can_be_used() -> bool:
    """Tell whether instrumentations can work at all; the check of the settings is going to say why not."""
    try:
        import opentelemetry.propagate  # noqa: F401 - it reads OTEL_PROPAGATORS
    except Exception:
        return False
    return True


def _options(name: str) -> dict[str, Any]:
    if name != "logging":
        return {}
    # Trace ids in each record, which releases before 0.60 always gave. Never the handler that newer ones put at the
    # root logger, for log records that nothing here sends: it would turn the application's basicConfig() into nothing.
    return {"inject_trace_context": True, "enable_log_auto_instrumentation": False, "log_hook": _name_service}


def _name_service(_span: Any, record: Any) -> None:
    """Correct what the instrumentation remembers from before the fork, when there was no resource."""
    from opentelemetry import trace

    if resource := getattr(trace.get_tracer_provider(), "resource", None):
        record.otelServiceName = resource.attributes.get("service.name", "")
