"""OpenTelemetry's instrumentation for PEP 249 makes the spans of queries, for MACKEREL_OTEL_PARTS=standard.

It puts an object of its own around each connection that the driver's ``connect()`` returns. Queries that come by
another way make no span.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.dbapi import trace_integration

from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.databases.driver import Driver


def trace(driver: Driver, module: Any) -> None:
    """Trace a driver that has just been imported, if its connections may be wrapped in an object."""
    if not driver.takes_wrapped_connections:
        log.info("MACKEREL_OTEL_PARTS=standard: the queries of %s are not traced", driver.name)
        return
    # Django calls sqlite3.dbapi2.connect. The parts of other drivers call each other, and take no wrapped connection.
    modules: list[Any] = [module]
    if driver.module == "sqlite3":
        modules.append(sys.modules["sqlite3.dbapi2"])
    for each in modules:
        trace_integration(each, "connect", driver.system)
