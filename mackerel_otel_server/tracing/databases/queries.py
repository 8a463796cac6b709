"""One query, one CLIENT span: what a driver's execute() does while a request is traced.

Attributes, names and errors are those of https://opentelemetry.io/docs/specs/semconv/database/database-spans/.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar, Token
from typing import Any

from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, StatusCode, TraceFlags, Tracer

from mackerel_otel_server import __version__
from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import exceptions, gate
from mackerel_otel_server.tracing.databases.connections import Driver, attributes_of
from mackerel_otel_server.tracing.databases.failures import describe
from mackerel_otel_server.tracing.databases.statements import operation_of, text_of

Method = Callable[..., Any]
Given = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a cursor's method."""
QueryOf = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Finds the query among them."""

_SAMPLED = TraceFlags.SAMPLED

_QUERY_NAMES = ("query", "operation", "sql", "statement", "procname")


def given_query(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the query among the arguments of a cursor's method."""
    if args:
        return args[0]
    return next((kwargs[name] for name in _QUERY_NAMES if name in kwargs), "")


def traced(method: Method, driver: Driver, query_of: QueryOf = given_query) -> Method:
    """Make a span of each call of a cursor's method: a function, a coroutine function or a generator of either kind.

    No parent, no span: outside of a sampled trace, and in a process that does not trace, the driver's method is called
    at once.

    Args:
        method: Its first argument is the cursor.
        driver: Whose method it is.
        query_of: Finds the query in the method's other arguments.
    """
    if method.__name__ == "callproc":
        query_of = _called
    if inspect.isasyncgenfunction(method):
        return _traced_async_generator(method, driver, query_of)
    if inspect.isgeneratorfunction(method):
        return _traced_generator(method, driver, query_of)
    if inspect.iscoroutinefunction(method):
        return _traced_coroutine(method, driver, query_of)

    @imitates(method)
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        parent = _parent()
        query = None if parent is None else _begin(parent, driver, self, query_of, (args, kwargs))
        if query is None:
            return method(self, *args, **kwargs)
        try:
            query.run()
            return method(self, *args, **kwargs)
        except BaseException as error:
            query.failed(error)
            raise
        finally:
            query.end()

    return execute


def traced_manager(method: Method, driver: Driver, *, asynchronous: bool) -> Method:
    """Make a span of each use of a context manager that a cursor's method returns, from entering to leaving it."""
    if asynchronous:

        @imitates(method)
        @asynccontextmanager
        async def async_manager(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with _lasting(driver, self, given_query, (args, kwargs)):
                async with method(self, *args, **kwargs) as entered:
                    yield entered

        return async_manager

    @imitates(method)
    @contextmanager
    def manager(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with _lasting(driver, self, given_query, (args, kwargs)), method(self, *args, **kwargs) as entered:
            yield entered

    return manager


def _traced_coroutine(method: Method, driver: Driver, query_of: QueryOf) -> Method:
    @imitates(method)
    async def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        parent = _parent()
        query = None if parent is None else _begin(parent, driver, self, query_of, (args, kwargs))
        if query is None:
            return await method(self, *args, **kwargs)
        try:
            query.run(current=False)
            return await method(self, *args, **kwargs)
        except BaseException as error:
            query.failed(error)
            raise
        finally:
            query.end()

    return execute


def _traced_generator(method: Method, driver: Driver, query_of: QueryOf) -> Method:
    @imitates(method)
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with _lasting(driver, self, query_of, (args, kwargs)):
            yield from method(self, *args, **kwargs)

    return stream


def _traced_async_generator(method: Method, driver: Driver, query_of: QueryOf) -> Method:
    @imitates(method)
    async def stream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with _lasting(driver, self, query_of, (args, kwargs)):
            async with aclosing(method(self, *args, **kwargs)) as rows:
                async for row in rows:
                    yield row

    return stream


@contextmanager
def _lasting(driver: Driver, cursor: Any, query_of: QueryOf, given: Given) -> Iterator[None]:
    """Keep a span open while the application works with what the database sends, without making it current there."""
    parent = _parent()
    query = None if parent is None else _begin(parent, driver, cursor, query_of, given)
    try:
        yield
    except GeneratorExit:
        raise  # the application has seen enough
    except BaseException as error:
        if query is not None:
            query.failed(error)
        raise
    finally:
        if query is not None:
            query.end()


def _called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"CALL {given_query(args, kwargs)}"


def _parent() -> Span | None:
    """Return the span that a query belongs to; None outside of a sampled trace, and in a process that does not trace.

    A span that has ended is no parent: the context of a request outlives it in tasks and threads that it has started
    and that go on for ever. A span that does not record is the parent in another process, which may be open.
    """
    if not gate.active:
        return None
    span = trace.get_current_span()
    if not span.get_span_context().trace_flags & _SAMPLED:
        return None
    if span.is_recording() or isinstance(span, NonRecordingSpan):
        return span
    # A task or thread that was started during a query has its span in the context; the request may be open.
    query = _running.get()
    if isinstance(query, _Query) and query.span is span and query.parent.is_recording():
        return query.parent
    return None


class _Query:
    """One call of the driver, with its span. Never raises."""

    __slots__ = ("_given", "_mark", "_token", "key", "parent", "span")

    def __init__(self, span: Span, parent: Span, key: Any, given: Given) -> None:
        self.span = span
        self.parent = parent
        self.key = key
        self._given = given
        self._mark: Token[_Query | _Covered | None] | None = None
        self._token: Token[context.Context] | None = None

    def covers(self, key: Any) -> bool:
        return self.key is key

    def run(self, *, current: bool = True) -> None:
        """Take over: what the driver calls meanwhile for its own purposes makes no span.

        Args:
            current: Make the span current. Not in a coroutine, which may be closed in another context than its own.
        """
        self._mark = _running.set(self)
        if current:
            self._token = context.attach(trace.set_span_in_context(self.span))

    def failed(self, error: BaseException) -> None:
        try:
            args, kwargs = self._given
            event = describe(error, (args[1:], kwargs))
            self.span.set_attribute("error.type", event["exception.type"])
            self.span.set_status(StatusCode.ERROR, f"{type(error).__qualname__}: {event['exception.message']}")
            self.span.add_event(exceptions.EVENT, event)
        except Exception:
            log.debug("an error of a query is not recorded", exc_info=True)

    def end(self) -> None:
        # A thread or greenlet that was started during this query has a copy of the context, where this query still
        # stands for the one under way. From now on this query covers no other, and holds no values.
        self.key = self._given = _NOTHING
        try:
            if self._token is not None:
                context.detach(self._token)
            if self._mark is not None:
                _running.reset(self._mark)
        except ValueError:  # closed in another context, whose own value stays
            pass
        try:
            self.span.end()
        except Exception:
            log.debug("a query's span did not end", exc_info=True)


class _Covered:
    """A statement that SQLAlchemy's own instrumentation has made a span of, which ends with the statement."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def covers(self, key: Any) -> bool:  # noqa: ARG002
        return self._span.is_recording()


_NOTHING: Any = object()
_running: ContextVar[_Query | _Covered | None] = ContextVar("mackerel_otel_server_query", default=None)


def leave_to(span: Span) -> None:
    """Make no span of a query in this context while the given one, which stands for it, is open."""
    _running.set(_Covered(span))


def _begin(parent: Span, driver: Driver, cursor: Any, query_of: QueryOf, given: Given) -> _Query | None:
    """Start the span of a query; None where another one stands for it, or where that fails."""
    try:
        connection = driver.connection_of(cursor)
        key = cursor if driver.calls_back else connection
        running = _running.get()
        if running is not None and running.covers(key):
            return None
        if getattr(parent, "kind", None) is SpanKind.CLIENT and _is_others_query(parent):
            return None
        if not is_instrumentation_enabled():  # within suppress_instrumentation()
            return None
        text = text_of(query_of(*given), cursor)
        operation = operation_of(text)
        span = _get_tracer().start_span(
            operation or driver.system,
            # The tracer finds the current span itself. In a task or thread that was started during a query, that is the
            # ended span of that query; _parent() has found the parent of that query then.
            trace.set_span_in_context(parent) if isinstance(running, _Query) and running.parent is parent else None,
            SpanKind.CLIENT,
            attributes_of(connection, driver, text, operation),
        )
        return _Query(span, parent, key, given)
    except Exception:
        log.debug("a query is not traced", exc_info=True)
        return None


def _is_others_query(span: Any) -> bool:
    """Tell whether a span is that of another instrumentation of the same driver, and not of a query that called us."""
    attributes = getattr(span, "attributes", None) or {}
    scope = getattr(span, "instrumentation_scope", None)
    return ("db.system.name" in attributes or "db.system" in attributes) and getattr(scope, "name", "") != __name__


@functools.cache
def _get_tracer() -> Tracer:
    """Return the tracer: a process has one provider, set before its first query is traced, and inherited by a fork."""
    return trace.get_tracer(__name__, __version__)
