"""One query, one CLIENT span: whose child the span is, when there is none, and what it says at its end.

Attributes, names and errors are those of https://opentelemetry.io/docs/specs/semconv/database/database-spans/.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, StatusCode, TraceFlags, Tracer

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing import exceptions, on_or_off
from mackerel_otel_server.tracing.databases.connections import attributes_of
from mackerel_otel_server.tracing.databases.failures import describe
from mackerel_otel_server.tracing.databases.statements import QueryOf, operation_of, text_of
from mackerel_otel_server.version import __version__

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.databases.driver import Driver

_SCOPE: Final = "mackerel_otel_server.databases"

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a cursor's method."""

# Constants, because CPython 3.10 and 3.11 take much longer to find the member of an enum.
_CLIENT: Final = SpanKind.CLIENT
_SAMPLED: Final = TraceFlags.SAMPLED
_NOTHING: Any = object()
_under_way: ContextVar[Query | Span | None] = ContextVar("mackerel_otel_server_query", default=None)
"""What the next query in this context may be a part of: a query, or the span of a statement of SQLAlchemy's."""


def parent_of_query() -> Span | None:
    """Return the span that a query belongs to; None outside of a sampled trace, and in a process that does not trace.

    A span that has ended is no parent: tasks and threads that a request has started keep its context, and may go on for
    ever. A span that does not record is the parent in another process, and may be open.
    """
    if not on_or_off.active:
        return None
    span = trace.get_current_span()
    if not span.get_span_context().trace_flags & _SAMPLED:
        return None
    if span.is_recording() or isinstance(span, NonRecordingSpan):
        return span
    # A task or thread that was started during a query keeps the query's span, which has ended. The request may be open.
    query = _under_way.get()
    if isinstance(query, Query) and query.span is span and query.parent.is_recording():
        return query.parent
    return None


def begin(parent: Span, driver: Driver, cursor: Any, query_of: QueryOf, given: Given) -> Query | None:
    """Start the span of a query; None where another span stands for the query, or where that fails. Never raises."""
    try:
        connection = driver.connection_of(cursor)
        key = cursor if driver.calls_back else connection
        under_way = _under_way.get()
        if isinstance(under_way, Query):
            if under_way.key is key:
                return None
        elif under_way is not None and under_way.is_recording():
            return None
        if getattr(parent, "kind", None) is _CLIENT and _is_others_query(parent):
            return None
        # False within OpenTelemetry's suppress_instrumentation().
        if not is_instrumentation_enabled():
            return None
        text = text_of(query_of(*given), cursor)
        operation = operation_of(text)
        span = _get_tracer().start_span(
            operation or driver.system,
            # Usually the tracer finds the parent itself, which is the current span. In a task or thread that was
            # started during a query, the current span is that query's, and has ended.
            trace.set_span_in_context(parent) if isinstance(under_way, Query) and under_way.parent is parent else None,
            _CLIENT,
            attributes_of(connection, driver, text, operation),
        )
        return Query(span, parent, key, given)
    except Exception:
        log.debug("a query is not traced", exc_info=True)
        return None


class Query:
    """One call of the driver, with its span. Never raises.

    While a query is under way, the further queries of its key, the connection or the cursor, are a part of it.
    """

    __slots__ = ("_given", "_mark", "_token", "key", "parent", "span")

    def __init__(self, span: Span, parent: Span, key: Any, given: Given) -> None:
        self.span = span
        self.parent = parent
        self.key = key
        self._given = given
        self._mark: Token[Query | Span | None] | None = None
        self._token: Token[context.Context] | None = None

    def run(self, *, current: bool = True) -> None:
        """Let the queries that the driver makes meanwhile for its own purposes make no spans.

        Args:
            current: Make the span current. Not in a coroutine, which may be closed in another context than its own.
        """
        self._mark = _under_way.set(self)
        if current:
            self._token = context.attach(trace.set_span_in_context(self.span))

    def failed(self, error: BaseException) -> None:
        """Note in the span what the driver raised."""
        try:
            args, kwargs = self._given
            event = describe(error, (args[1:], kwargs))
            self.span.set_attribute("error.type", event["exception.type"])
            self.span.set_status(StatusCode.ERROR, f"{type(error).__qualname__}: {event['exception.message']}")
            self.span.add_event(exceptions.EVENT, event)
        except Exception:
            log.debug("an error of a query is not recorded", exc_info=True)

    def end(self) -> None:
        """End the span, and be no longer under way."""
        # A thread or greenlet that was started during this query has a copy of the context, where this query still
        # stands for the one under way. From now on this query covers no other, and holds no values.
        self.key = self._given = _NOTHING
        try:
            if self._token is not None:
                context.detach(self._token)
            if self._mark is not None:
                _under_way.reset(self._mark)
        except ValueError:  # closed in another context, whose own value stays
            pass
        try:
            self.span.end()
        except Exception:
            log.debug("a query's span did not end", exc_info=True)


def leave_to(span: Span) -> None:
    """Make no span of a query in this context while the given span is open, which stands for the query."""
    _under_way.set(span)


def _is_others_query(span: Any) -> bool:
    """Tell whether a span is that of another instrumentation of the same driver, and not of a query that called us."""
    attributes = getattr(span, "attributes", None) or {}
    scope = getattr(span, "instrumentation_scope", None)
    return ("db.system.name" in attributes or "db.system" in attributes) and getattr(scope, "name", "") != _SCOPE


@functools.cache
def _get_tracer() -> Tracer:
    """Return the tracer. A process has one provider, which is set before its first query and inherited by a fork."""
    return trace.get_tracer(_SCOPE, __version__)
