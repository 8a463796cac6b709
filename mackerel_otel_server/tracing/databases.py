"""DB-API drivers: each query inside a request becomes a CLIENT span, whichever was imported first, the driver or us."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate

if TYPE_CHECKING:
    from collections.abc import Callable, Container

# The name of the driver's own OpenTelemetry instrumentation (entry point) -> the module that the application imports.
_MODULES = {
    "mysqlclient": "MySQLdb",
    "pymysql": "pymysql",
    "mysql": "mysql.connector",
    "psycopg2": "psycopg2",
    "psycopg": "psycopg",
    "sqlite3": "sqlite3",
}

_registered: set[str] = set()


def register(disabled: Callable[[], Container[str]] = tuple) -> None:
    """Trace every DB-API driver that the application has imported or is going to import.

    Imports no driver, starts nothing, and may be called before a fork and more than once. No span is made before
    ``gate.active`` is set.

    Args:
        disabled: Returns names as in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, ``*`` for all. Asked when a driver is
            imported: Gunicorn's ``raw_env`` comes later than this call.
    """
    for name, module in _MODULES.items():
        if name not in _registered:
            _registered.add(name)
            register_post_import_hook(functools.partial(_trace, name, disabled), module)


def _trace(name: str, disabled: Callable[[], Container[str]], module: Any) -> None:
    """Trace one driver that has just been imported. Never raises: the import is the application's."""
    try:
        names = disabled()
        if name in names or "*" in names:
            return
        if _apply_own_instrumentation(name, module):
            return
        # Here, not above: it brings opentelemetry.instrumentation.dbapi along, which only a driver needs.
        from mackerel_otel_server.tracing import drivers

        for part, patch in drivers.PATCHES[name].items():
            register_post_import_hook(functools.partial(_patch, patch), part)
    except Exception as error:
        _warn(module, error)


def _patch(patch: Callable[[Any], None], module: Any) -> None:
    """Patch one module of a driver. Never raises, as above."""
    try:
        patch(module)
    except Exception as error:
        _warn(module, error)


def _warn(module: Any, error: Exception) -> None:
    if not gate.refused:
        log.warning("the queries of %s are not traced: %s: %s", module.__name__, type(error).__name__, error)
    log.debug("%s could not be patched", module.__name__, exc_info=True)


def _apply_own_instrumentation(name: str, module: Any) -> bool:
    """Apply the instrumentation that was installed for this driver on purpose; False when there is none that works."""
    if module.__name__ != _MODULES[name]:
        return False  # PyMySQL under the name MySQLdb: instrumented, or not, as PyMySQL
    for entry_point in entry_points(group="opentelemetry_instrumentor", name=name):
        try:
            instrumentor = entry_point.load()()
            if not instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.instrument()
            if instrumentor.is_instrumented_by_opentelemetry:
                return True
            cause = "it refused, see its own message"  # a conflict of versions is logged, not raised
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            log.debug("%s failed", entry_point.value, exc_info=True)
        log.warning(
            "%s does not instrument %s (%s); its queries are traced without it",
            entry_point.value,
            module.__name__,
            cause,
        )
    return False
