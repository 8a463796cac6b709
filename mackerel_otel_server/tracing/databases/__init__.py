"""DB-API drivers: each query inside a request becomes a CLIENT span, whichever was imported first, the driver or us."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.imports import on_import
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate, instrumentors, oldest
from mackerel_otel_server.tracing.databases import floors

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
    "pyodbc": "pyodbc",
    "duckdb": "duckdb",
}

_SQLALCHEMY = "opentelemetry.instrumentation.sqlalchemy"

_registered: set[str] = set()

traced: set[str] = set()
"""The drivers, by entry point, that were imported and not disabled."""


def names() -> Container[str]:
    """Return the entry points of the drivers' own instrumentations, which are applied here."""
    return _MODULES


def register(
    disabled: Callable[[], Container[str]] = tuple, semantic_conventions: Callable[[], str] = lambda: "new"
) -> None:
    """Trace every DB-API driver that the application has imported or is going to import.

    Imports no driver, starts nothing, and may be called before a fork and more than once. No span is made before
    ``gate.active`` is set.

    Args:
        disabled: Returns names as in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, ``*`` for all. Asked when a driver is
            imported: Gunicorn's ``raw_env`` comes later than this call.
        semantic_conventions: Returns which attributes the spans have, ``new``, ``old`` or ``both``. Asked at the same
            time.
    """
    for name, module in _MODULES.items():
        if name not in _registered:
            _registered.add(name)
            on_import(module, functools.partial(_trace, name, disabled, semantic_conventions), _warn)
    if _SQLALCHEMY not in _registered:
        _registered.add(_SQLALCHEMY)
        on_import(_SQLALCHEMY, _step_aside_for_sqlalchemy, _warn)


def _trace(
    name: str, disabled: Callable[[], Container[str]], semantic_conventions: Callable[[], str], module: Any
) -> None:
    """Trace one driver that has just been imported."""
    names = disabled()
    if name in names or "*" in names:
        return
    traced.add(name)
    for distribution, oldest_release in floors.of_driver(name).items():
        oldest.warn_if_older(distribution, oldest_release)
    if _apply_own_instrumentation(name, module):
        return
    # Here, not above: only a driver needs them.
    from mackerel_otel_server.tracing.databases import connections, drivers

    connections.use_conventions(semantic_conventions())
    for part, patch in drivers.PATCHES[name].items():
        on_import(part, patch, _warn)


def _warn(name: str, error: Exception) -> None:
    if not gate.refused:
        log.warning("the queries of %s are not traced: %s: %s", name, type(error).__name__, error)


def _apply_own_instrumentation(name: str, module: Any) -> bool:
    """Apply the instrumentation that was installed for this driver on purpose; False when there is none that works."""
    if module.__name__ != _MODULES[name]:
        return False  # PyMySQL under the name MySQLdb: instrumented, or not, as PyMySQL
    for entry_point in entry_points(group=instrumentors.GROUP, name=name):
        cause = instrumentors.apply(entry_point)
        if cause is None:
            return True
        write = log.debug if gate.refused else log.warning
        write(
            "%s does not instrument %s (%s); its queries are traced without it",
            entry_point.value,
            module.__name__,
            cause,
        )
    return False


def _step_aside_for_sqlalchemy(_module: Any) -> None:
    """Leave the queries of SQLAlchemy to its own instrumentation, once that is there.

    It makes its span before the driver is called and does not make it current; ``do_execute`` comes in between.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from mackerel_otel_server.tracing.databases import queries

    def do_execute(*arguments: Any) -> None:
        if (span := getattr(arguments[-1], "_otel_span", None)) is not None:
            queries.leave_to(span)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(Engine, name, do_execute)
