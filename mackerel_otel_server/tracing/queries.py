"""One query, one CLIENT span: what a driver's execute() does while a request is traced."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.instrumentation.dbapi import CursorTracer, DatabaseApiIntegration

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate

if TYPE_CHECKING:
    from types import TracebackType

Method = Callable[..., Any]


class Place(NamedTuple):
    """Where a connection leads to, under the names that ``DatabaseApiIntegration`` looks for."""

    system: str
    database: str | None = None
    host: str | None = None
    port: int | None = None


class Driver(NamedTuple):
    """How to learn from a cursor where its queries go, without asking the server."""

    connection_of: Callable[[Any], Any]
    place_of: Callable[[Any], Place]


def traced(method: Method, driver: Driver) -> Method:
    """Make a span of each call of a cursor's ``execute``, ``executemany``, ``executescript`` or ``callproc``.

    No parent, no span: outside of a trace, and in a process that does not trace, the driver's method is called at once.
    """

    @functools.wraps(method)
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not gate.active or not trace.get_current_span().get_span_context().is_valid:
            return method(self, *args, **kwargs)
        return _in_span(method, driver, self, args, kwargs)

    return execute


class _Running:
    """A query on its way. Cleared at its end, because a thread or greenlet started meanwhile has copied the context."""

    __slots__ = ("connection",)

    def __init__(self, connection: Any) -> None:
        self.connection = connection


_running: ContextVar[_Running | None] = ContextVar("mackerel_otel_server_query", default=None)


def _in_span(method: Method, driver: Driver, cursor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the driver once and pass on what it returns or raises, whatever becomes of the span."""
    tracer = None
    text: Any = ""
    try:
        connection = driver.connection_of(cursor)
        outer = _running.get()
        # A driver's executemany() or callproc() calls execute(), and a connection runs one statement at a time.
        if outer is None or outer.connection is not connection:
            text = _text(_query(args, kwargs), cursor)
            if method.__name__ == "callproc":
                text = f"CALL {text}"
            tracer = _tracer(connection, driver)
    except Exception:
        log.debug("a query is not traced", exc_info=True)
    if tracer is None:
        return method(cursor, *args, **kwargs)
    return _Query(functools.partial(method, cursor, *args, **kwargs), connection, text).run(tracer, cursor)


class _Query:
    """One call of the driver, which a tracer makes inside its span."""

    def __init__(self, call: Callable[[], Any], connection: Any, text: str) -> None:
        self._call = call
        self._running = _Running(connection)
        self._text: Any = text
        self._sent = False
        self._answer: Any = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def run(self, tracer: _Tracer, cursor: Any) -> Any:
        try:
            return tracer.traced_execution(cursor, functools.partial(self._send, tracer), self._text)
        except BaseException as error:
            if error is not self._error:
                if not isinstance(error, Exception):
                    raise
                # A sampler's or a span processor's: the application gets what the driver said.
                log.debug("a query's span failed", exc_info=True)
        if not self._sent:
            return self._call()
        try:
            if self._error is not None:
                # Without the frames in between: the library's refers to the error, and the error to the frame, so that
                # cursor and connection would live until the next garbage collection.
                raise self._error.with_traceback(self._traceback)
            return self._answer
        finally:
            self._error = self._traceback = None

    def _send(self, tracer: _Tracer, _text: str) -> Any:
        span = trace.get_current_span()
        if span.is_recording():
            tracer.complete(span, self._text)
        token = _running.set(self._running)
        self._sent = True
        try:
            self._answer = self._call()
        except BaseException as error:
            self._error, self._traceback = error, error.__traceback__ and error.__traceback__.tb_next
            span.set_attribute("error.type", type(error).__qualname__)
            raise
        finally:
            self._running.connection = None
            _running.reset(token)
        return self._answer


# White space, opening parentheses and comments, then the first word. It reads the beginning only: split() would copy
# a text of megabytes.
_OPERATION = re.compile(r"(?:[\s(]|/\*.*?\*/|--[^\n]*\n)*([A-Za-z]\w*)?", re.DOTALL)


class _Tracer(CursorTracer[Any]):
    """The library's tracer, one per place instead of one per cursor, and sure not to raise on any text."""

    def __init__(self, place: Place, provider: trace.TracerProvider) -> None:
        integration = DatabaseApiIntegration(__name__, place.system, tracer_provider=provider)
        integration.get_connection_attributes(place)
        super().__init__(integration)
        # The library names no operation, and before 0.63b0 knows the old conventions only. Mackerel's database list
        # wants db.query.text, so an older one's spans carry both names.
        mode = getattr(integration, "_sem_conv_opt_in_mode_db", None)
        self._names_operation = mode is None or str(mode.value).startswith("database")
        self._adds_all = mode is None
        constant = {
            "db.system.name": place.system,
            "db.namespace": place.database,
            "server.address": place.host,
            "server.port": place.port,
        }
        self._constant: dict[str, str | int] = {name: value for name, value in constant.items() if value}

    def get_operation_name(self, cursor: Any, args: Any) -> str:  # noqa: ARG002
        """Name the span after the first word; the library's own raises on a text that is only white space."""
        return _operation(args[0])

    def complete(self, span: trace.Span, text: str) -> None:
        """Set what the installed version of the library does not set itself."""
        if self._names_operation and (operation := _operation(text)):
            span.set_attribute("db.operation.name", operation)
        if self._adds_all:
            span.set_attributes({**self._constant, "db.query.text": text})


def _operation(text: str) -> str:
    found = _OPERATION.match(text)
    return (found and found.group(1)) or ""


# With the provider: a process that was forked later may have one of its own.
_tracers: WeakKeyDictionary[Any, tuple[trace.TracerProvider, _Tracer]] = WeakKeyDictionary()


def _tracer(connection: Any, driver: Driver) -> _Tracer:
    provider = trace.get_tracer_provider()
    try:
        known = _tracers.get(connection)
        if known is None or known[0] is not provider:
            known = _tracers[connection] = provider, _tracer_of(driver.place_of(connection), provider)
        return known[1]
    except TypeError:  # cannot be referenced weakly, or a subclass with an __eq__ of its own has no hash
        return _tracer_of(driver.place_of(connection), provider)


@functools.lru_cache(maxsize=256)
def _tracer_of(place: Place, provider: trace.TracerProvider) -> _Tracer:
    return _Tracer(place, provider)


def _query(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return args[0]
    return next((kwargs[name] for name in ("query", "operation", "procname") if name in kwargs), "")


def _text(query: Any, cursor: Any) -> str:
    """Return the query as the application wrote it, never with a parameter's value."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes | bytearray):
        return query.decode("utf-8", "replace")
    if hasattr(query, "as_string"):
        return "".join(_composed(query, cursor))
    if hasattr(query, "interpolations"):  # string.templatelib.Template, Python 3.14
        names = [f"{{{interpolation.expression}}}" for interpolation in query.interpolations]
        return "".join(a + b for a, b in zip(query.strings, [*names, ""], strict=True))
    return ""


def _composed(query: Any, cursor: Any) -> Iterator[str]:
    """Render a ``psycopg2.sql`` or ``psycopg.sql`` object, with a placeholder for each literal."""
    kinds = {cls.__name__ for cls in type(query).__mro__}
    if "Composed" in kinds:
        for part in query:
            yield from _composed(part, cursor)
    elif kinds & {"SQL", "Identifier", "Placeholder"}:
        yield str(query.as_string(cursor))
    else:
        yield "%s"
