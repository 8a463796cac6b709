"""SQLAlchemy's own instrumentation beside a traced driver: one query, one span, which is the driver's."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.process.on_import import on_import
from mackerel_otel_server.tracing import databases, on_or_off
from mackerel_otel_server.tracing.databases import drivers
from mackerel_otel_server.tracing.libraries.known import INSTRUMENTATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

applied: set[str] = set()
"""The instrumentations that were applied to their libraries."""


def register() -> None:
    """Keep SQLAlchemy's instrumentation, whoever applies it, from repeating what a driver's spans say."""
    on_import("opentelemetry.instrumentation.sqlalchemy.engine", _patch, "a query has two spans, the driver's too")


@functools.cache
def _name_of(dialect: str) -> str | None:
    """Return the entry point of a driver by what SQLAlchemy calls it; None for a driver that nothing here traces."""
    ours = [driver.name for driver in drivers.DRIVERS if dialect in driver.dialects]
    others = [name for name, known in INSTRUMENTATIONS.items() if known.dialect == dialect]
    return next(iter(ours + others), None)


def _repeats(engine: Any) -> bool:
    name = _name_of(getattr(engine.dialect, "driver", ""))
    return on_or_off.active and (name in databases.traced or name in applied)


def _patch(module: Any) -> None:
    """Leave out the spans of a query, and of taking a connection from the pool, where the driver is traced.

    The names are private. SQLAlchemy's own events come too late: the instrumentation has made its span by then.
    """
    tracer = module.EngineTracer
    before, connect = tracer._before_cur_exec, module._wrap_connect  # noqa: SLF001 - the reason is above

    @imitates(before)
    def before_cursor_execute(self: Any, conn: Any, cursor: Any, statement: Any, params: Any, *rest: Any) -> Any:
        # The commenter changes the statement, and writes its span's id into it.
        if not getattr(self, "enable_commenter", False) and _repeats(conn.engine):
            return statement, params
        return before(self, conn, cursor, statement, params, *rest)

    @imitates(connect)
    def wrap_connect(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        theirs: Callable[..., Any] = connect(*args, **kwargs)

        def wrapper(func: Callable[..., Any], engine: Any, args: Any, kwargs: Any) -> Any:
            return func(*args, **kwargs) if _repeats(engine) else theirs(func, engine, args, kwargs)

        return wrapper

    tracer._before_cur_exec = before_cursor_execute  # noqa: SLF001
    module._wrap_connect = wrap_connect  # noqa: SLF001
