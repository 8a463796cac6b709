"""DB-API drivers: each query inside a request becomes a CLIENT span, also where the driver was imported before us.

``drivers`` says what is patched, ``methods`` what a patched ``execute()`` does, ``queries`` when it makes a span.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.on_import import on_import
from mackerel_otel_server.tracing import instrumentors, older_than_tested, on_or_off
from mackerel_otel_server.tracing.databases import connections, drivers

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.databases.driver import Driver

_NOT_TRACED = "its queries are not traced"

_registered: set[str] = set()

traced: set[str] = set()
"""The names of the drivers that were imported and not disabled."""


def names() -> frozenset[str]:
    """Return the entry points of the drivers' own instrumentations, which are applied here."""
    return frozenset(driver.name for driver in drivers.DRIVERS)


def oldest_releases() -> dict[str, str]:
    """Return the oldest release that is tested of each driver, by distribution."""
    found = (driver.distributions.items() for driver in drivers.DRIVERS)
    return {distribution: release for items in found for distribution, release in items if release}


def register(
    disabled: Callable[[], Container[str]] = tuple,
    semantic_conventions: Callable[[], str] = lambda: "new",
    uses_standard_parts: Callable[[], bool] = lambda: False,
) -> None:
    """Trace every DB-API driver that the application has imported or is going to import.

    Imports no driver, starts nothing, and may be called before a fork and more than once. No span is made before
    ``on_or_off.active`` is set.

    Args:
        disabled: Returns names as in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, ``*`` for all. It is called when a
            driver is imported, since Gunicorn sets the variables of ``raw_env`` later than this call.
        semantic_conventions: Returns which attributes the spans have, ``new``, ``old`` or ``both``. It is called at the
            same time.
        uses_standard_parts: Returns whether OpenTelemetry's own parts make the spans. It is called at the same time.
    """
    options = _Options(disabled, semantic_conventions, uses_standard_parts)
    for driver in drivers.DRIVERS:
        if driver.name not in _registered:
            _registered.add(driver.name)
            on_import(driver.module, functools.partial(_trace, driver, options), _NOT_TRACED)
    on_import("opentelemetry.instrumentation.sqlalchemy", _step_aside_for_sqlalchemy, "a query may have two spans")


class _Options(NamedTuple):
    """What register() was given."""

    disabled: Callable[[], Container[str]]
    semantic_conventions: Callable[[], str]
    uses_standard_parts: Callable[[], bool]


def _trace(driver: Driver, options: _Options, module: Any) -> None:
    """Trace one driver that has just been imported."""
    names = options.disabled()
    if driver.name in names or "*" in names:
        return
    traced.add(driver.name)
    for distribution, release in driver.distributions.items():
        if release:
            older_than_tested.warn_if_older(distribution, release)
    if _apply_own_instrumentation(driver, module):
        return
    if options.uses_standard_parts():
        if not driver.takes_wrapped_connections:
            # SQLAlchemy's own instrumentation may make these spans instead.
            traced.discard(driver.name)
        _quiet_where_refused(functools.partial(_trace_by_dbapi, driver))(module)
        return
    connections.use_conventions(options.semantic_conventions())
    for part, patch in driver.patches.items():
        on_import(part, _quiet_where_refused(patch), _NOT_TRACED)


def _trace_by_dbapi(driver: Driver, module: Any) -> None:
    # What it imports need not be installed.
    from mackerel_otel_server.tracing.databases import standard

    standard.trace(driver, module)


@functools.cache
def _quiet_where_refused(patch: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a hook that fails quietly where the settings were refused: the log says what is wrong with them.

    A propagator that is not installed, for one, makes the patch fail, too.
    """

    def run(module: Any) -> None:
        try:
            patch(module)
        except Exception:
            if not on_or_off.refused:
                raise
            log.debug("the queries of %s are not traced", module.__name__, exc_info=True)

    return run


def _apply_own_instrumentation(driver: Driver, module: Any) -> bool:
    """Apply the instrumentation that was installed for this driver on purpose; False when there is none that works."""
    # PyMySQL may be imported under the name MySQLdb. It is traced or instrumented as PyMySQL, not as mysqlclient.
    if module.__name__ != driver.module:
        return False
    own = entry_points(group=instrumentors.GROUP, name=driver.name)
    return any(instrumentors.apply(entry_point, "its queries are traced without it") for entry_point in own)


def _step_aside_for_sqlalchemy(_module: Any) -> None:
    """Leave the queries of SQLAlchemy to its own instrumentation, once that is imported.

    That instrumentation makes a span before the driver is called, and does not make the span current. SQLAlchemy's
    event ``do_execute`` comes in between.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from mackerel_otel_server.tracing.databases import queries

    def do_execute(*arguments: Any) -> None:
        if (span := getattr(arguments[-1], "_otel_span", None)) is not None:
            queries.leave_to(span)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(Engine, name, do_execute)
