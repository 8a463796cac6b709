"""What is known about single instrumentations of OpenTelemetry, beyond what their metadata tell: one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


def _name_service(_span: Any, record: Any) -> None:
    """Correct the service name, which the instrumentation of logging remembers from before the fork.

    There was no resource at that time.
    """
    from opentelemetry import trace

    if resource := getattr(trace.get_tracer_provider(), "resource", None):
        record.otelServiceName = resource.attributes.get("service.name", "")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What differs from the other instrumentations."""

    module: str | None = None
    """The module to wait for, where the metadata tell too little."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For its ``instrument()``."""
    is_applied: bool = True
    """Whether it is applied where it is installed."""
    is_offered: bool = True
    """Whether ``check`` offers it to those who have its library."""
    by_drivers: bool = False
    """Whether the database drivers trace the same queries without it."""
    dialect: str | None = None
    """What SQLAlchemy calls the driver that it traces, for drivers that ``databases`` does not know."""
    needs: str | None = None
    """What OpenTelemetry's list names beside the library."""


_SERVER: Final = Known(is_offered=False)
_COMMAND: Final = Known(is_offered=False)
_MAKES_NO_SPANS: Final = Known(is_offered=False)

INSTRUMENTATIONS: Final = {
    "aiohttp-server": Known(module="aiohttp.web", is_offered=False),  # `import aiohttp` does not import that module
    "asgi": _SERVER,
    "asyncclick": _COMMAND,
    "asyncpg": Known(dialect="asyncpg"),
    "click": _COMMAND,
    "logging": Known(
        # Trace ids in each record, which releases before 0.60 always gave. Never the handler that newer releases put
        # at the root logger, for log records that nothing here sends: with that handler the application's
        # basicConfig() would do nothing.
        options={
            "inject_trace_context": True,
            "enable_log_auto_instrumentation": False,
            "log_hook": _name_service,
        }
    ),
    "pymssql": Known(dialect="pymssql"),
    "sqlalchemy": Known(by_drivers=True, is_offered=False),
    "structlog": _MAKES_NO_SPANS,
    "system_metrics": Known(is_applied=False, is_offered=False),  # it makes metrics only, which nothing here sends
    "tornado": _SERVER,
    "tortoiseorm": Known(needs="pydantic"),
    "urllib": Known(module="urllib.request"),
    "wsgi": _SERVER,
}
"""By entry point. aiosqlite is not here: it calls sqlite3 in a thread of its own, where no request is under way, so
SQLAlchemy's span is the only one."""
_NOTHING: Final = Known()


def about(name: str) -> Known:
    """Return what is known of an instrumentation by its entry point, or by the end of its package's name."""
    return INSTRUMENTATIONS.get(name) or INSTRUMENTATIONS.get(name.replace("-", "_")) or _NOTHING
