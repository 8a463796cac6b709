"""One request under way and its server span, whichever interface it came by."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mackerel_otel_server.http_options import EXCLUDED, HttpOptions
from mackerel_otel_server.log import log
from mackerel_otel_server.native import is_free, thread_ident
from mackerel_otel_server.tracing import exceptions, gate, http, inflight, propagation, routes, wrapping
from mackerel_otel_server.tracing.propagation import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from typing_extensions import Self

KEY: Final = "mackerel_otel_server.request"
"""Where a WSGI environ or an ASGI scope holds the token of its request: whoever finds one there makes no second span.

It is text, so that a middleware may copy, pickle or print what holds it; a copy belongs to the same request.
"""
REST: Final = "/{path}"
"""What a route ends with where nobody has a template for what follows a mount; Starlette's own name for it."""
NO_TOKEN: Final = ""
"""The token where no request of ours is under way, because another instrumentation makes the span, say."""
AFTER_RESPONSE: Final = "after response"
"""The name of a span of what fails after its request's span has ended."""
TRACE_ID: Final = "otel_trace_id"
"""Where a WSGI environ holds the trace id in hexadecimal digits, for access logs; SPAN_ID likewise."""
SPAN_ID: Final = "otel_span_id"

options = HttpOptions()
_tracer: trace.Tracer = trace.get_tracer(__name__)
_on_trace_id: Callable[[str], None] | None = None
_aside: dict[int, Any] = {}
"""Applications, by id, whose server spans another instrumentation makes."""
_complained = False


def prepare(chosen: HttpOptions, version: str) -> None:
    """Make what all requests of this process share; after the tracer provider is set.

    Args:
        chosen: What the operator chose.
        version: This package's.
    """
    global options, _tracer
    propagation.prepare(chosen.propagators)
    options = chosen
    schema_url = http.SCHEMA_URL if chosen.new_names else None
    _tracer = trace.get_tracer("mackerel_otel_server", version, schema_url=schema_url)


def announce_trace_id(callback: Callable[[str], None]) -> None:
    """Tell a server's own log the trace id of each request, when the request begins.

    Args:
        callback: Takes 32 hexadecimal digits. What it raises ends nothing.
    """
    global _on_trace_id
    _on_trace_id = callback


class Request:
    """A request under way. Its methods never raise.

    Whoever makes a request sees to its end, also where the server just forgets what it was given. A request cannot do
    that in a __del__() of its own, because a traceback that it left behind may hold it.

    Attributes:
        token: What stands for it in an environ or scope.
        carrier: The environ or scope.
        context: In which the application runs: the server span is the current span there.
        span: The server span, None when it has ended or another instrumentation makes it.
        route: The template that the framework found, once it is known.
        status: Of the response, 0 before it has one.
        is_sending: Whether the server can no longer answer with its own page: the response is on its way.
        end_time: Nanoseconds since the epoch, when the response was complete; None if the span is to end with end().
        application: The innermost of those that are known to serve the request.
        prefix: Where the server has mounted the application: what its routes begin with.
        has_given_way: Whether another instrumentation makes the span.
        has_trailers: Whether something follows the body.
        complete_body: What a framework has made of a complete body, so that it looks like a stream.
        is_mounted: Whether ``route`` is that of a mount.
        is_dropped: Whether the span never ends, because another instrumentation makes the spans of this application.
        thread: The ident of the thread that it began in.
        coroutine: What serves it, where that is one.
    """

    # In the class, what most requests never change.
    span: Span | None = None
    _recorded = 0
    route: str | None = None
    status = 0
    is_sending = False
    is_dropped = False
    end_time: int | None = None
    error_type: str | None = None
    has_given_way = False
    has_trailers = False
    complete_body: Any = None
    is_mounted = False
    coroutine: Any = None
    _was_killed = False
    _has_ended = False
    _routed_in: Any = None

    def __init__(  # noqa: PLR0913, PLR0917 - what there is to know of a request
        self, application: Any, method: str, prefix: str, span: Span, parent: Context, carrier: dict[str, Any]
    ) -> None:
        self.carrier = carrier
        show_ids(span, carrier)
        carrier[KEY] = self.token = carrier[SPAN_ID]
        self.application = application
        self._method = method
        self.prefix = prefix
        self.span = span
        self.context: Context = trace.set_span_in_context(span, parent)
        self.thread = thread_ident()
        inflight.add(self)

    @classmethod
    def begin(  # noqa: PLR0913, PLR0917 - what there is to know of a request
        cls,
        application: Any,
        method: str,
        prefix: str,
        attributes: dict[str, Any],
        parent: Context | None,
        carrier: dict[str, Any],
    ) -> Self:
        """Start a server span.

        Args:
            application: The callable that serves the request.
            method: What the span's name begins with.
            prefix: Where the server has mounted the application: what its routes begin with.
            attributes: Those that are known; the span keeps the dict.
            parent: As extract() returned it.
            carrier: The environ or scope that is to hold the request.
        """
        parent = ROOT if parent is None else parent
        span = _tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        return cls(application, method, prefix, span, parent, carrier)

    @classmethod
    def begin_excluded(cls, application: Any, parent: Context | None, carrier: dict[str, Any]) -> Self:
        """Begin a request that is not to be seen, nor what happens in it; see begin()."""
        parent = ROOT if parent is None else parent
        remote = trace.get_current_span(parent).get_span_context()
        trace_id = remote.trace_id if remote.is_valid else random.getrandbits(128) or 1
        span_id = random.getrandbits(64) or 1
        unsampled = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(0)))
        return cls(application, "", "", unsampled, context.set_value(EXCLUDED, True, parent), carrier)

    def record(self, error: BaseException) -> None:
        """Note an exception that nobody handled on purpose, once however often it is reported."""
        span = self.span
        if self._recorded == id(error) or (span is None and not self._has_ended):
            return
        # The number, not the exception: its traceback leads back here.
        recorded, self._recorded = self._recorded, id(error)
        if recorded and type(error) is SystemError and id(error.__cause__) == recorded:
            # uWSGI's start_response takes the exception, which is recorded already. CPython then raises a SystemError
            # whose cause that exception is.
            return
        try:
            if span is None:
                record_late(error, self.context)
                return
            self.error_type = exceptions.type_name(error)
            if span.is_recording():
                span.add_event(exceptions.EVENT, exceptions.event_attributes(error))
        except Exception:
            log.debug("an exception is not recorded", exc_info=True)

    def failed(self, error: BaseException) -> None:
        """Note an exception that leaves the application: the server answers with its own page, if it still can."""
        self.record(error)
        self._was_killed = False
        if not self.is_sending:
            self.status = http.SERVER_ERROR

    def killed(self, kind: str, message: str, stacktrace: str) -> None:
        """End the span, because the server is about to end the process.

        Args:
            kind: The type of the exception event.
            message: Who kills it, and at which limit.
            stacktrace: Where the request is.
        """
        span = self.span
        if span is None:
            return
        self.status = http.SERVER_ERROR
        self.error_type = kind
        try:
            if span.is_recording() and is_free(span):
                event = {
                    "exception.type": kind,
                    "exception.message": message,
                    "exception.stacktrace": f"Traceback (most recent call last):\n{stacktrace}{kind}: {message}\n",
                }
                span.add_event(exceptions.EVENT, exceptions.cut(event))
        except Exception:
            log.debug("an exception is not recorded", exc_info=True)
        self.end()
        # What the request still raises comes from the kill, and needs no span of its own.
        self._has_ended, self._was_killed = False, True

    def note_takeover(self) -> None:
        """Note that an application has answered over the connection itself, past WSGI, to a client that asked for it.

        As flask-sock does. The only answer that begins another protocol is 101: RFC 9110, 15.2.2.
        """
        if not self.status and "HTTP_UPGRADE" in self.carrier:
            self.status = http.SWITCHING_PROTOCOLS

    def add_header_attributes(self, kind: str, headers: Any) -> None:
        """Add captured headers; ``headers`` yields pairs of str."""
        try:
            wanted = options.request_headers if kind == "request" else options.response_headers
            if self.span is not None and self.span.is_recording():
                self.span.set_attributes(http.header_attributes(options, kind, wanted, headers))
        except Exception:
            log.debug("headers are not captured", exc_info=True)

    def note_route(self, route: str, carrier: Any) -> None:
        """Note the template that a framework has matched.

        Args:
            route: The template.
            carrier: The environ or scope that it was matched with. A copy of the one that the request was matched
                with belongs to a request that the application makes of itself.
        """
        if self._routed_in is None or self._routed_in is carrier or self.is_mounted:
            self._routed_in, self.route, self.is_mounted = carrier, route, False

    def note_mount(self, route: str, carrier: Any) -> None:
        """Note the template of a mount: the application below it may have a route that tells more."""
        self.note_route(route, carrier)
        self.is_mounted = True

    def enter(self, carrier: dict[str, Any], application: Any) -> None:
        """Note that the request goes on in an application of the other interface, for which a bridge is mounted."""
        if self.has_route():
            # The application makes a request of itself.
            carrier[KEY] = NO_TOKEN
            return
        if self.is_mounted and self.route is not None:
            self.prefix += self.route.removesuffix(REST)
            self.route = REST
        self.carrier, self.application = carrier, application

    def has_route(self) -> bool:
        """Tell whether a framework has matched the request, and not only to a mount."""
        return self._route_now() is not None and not self.is_mounted

    def _route_now(self) -> str | None:
        found = routes.of_environ(self.carrier, self.route) if routes.BOTTLE in self.carrier else None
        return found or self.route

    def add_prefix(self, prefix: str) -> None:
        """Say that the routes to come are those of an application mounted at ``prefix``."""
        self.prefix += prefix

    def give_way(self, span: Span) -> None:
        """Let another instrumentation's span stand for this request; ours never ends, so it is never sent."""
        self.span = None
        self.has_given_way = True
        self.context = trace.set_span_in_context(span, ROOT)

    def end(self) -> None:
        """End the span, the first time this is called."""
        span, self.span = self.span, None
        inflight.discard(self)
        if span is None or self.is_dropped:
            if self._was_killed:
                self._was_killed = False
                log.warning(
                    "a request that was reported as killed has ended after all: %s %s",
                    self._method,
                    self.prefix + (self.route or ""),
                )
            return
        try:
            if span.is_recording():
                self._complete(span, self._route_now())
            span.end(self.end_time)
        except Exception:
            log.debug("a server span did not end", exc_info=True)
        self._has_ended = True

    def _complete(self, span: Span, route: str | None) -> None:
        status, error_type = self.status, self.error_type
        if status:
            http.set_status_attributes(options, span, status)
        if route:
            route = self.prefix + route
            span.set_attribute("http.route", route)
            span.update_name(f"{self._method} {route}")
        if error_type is not None and options.new_names:
            span.set_attribute("error.type", error_type)
        if error_type is not None or status >= http.SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))


def record_late(error: BaseException, ended: Context) -> None:
    """Make a span of its own of what fails after the response, below the request's.

    Args:
        error: What was raised.
        ended: The context of the request, whose span has ended.
    """
    parent: Any = trace.get_current_span(ended)
    if not (gate.active and isinstance(error, Exception) and parent.get_span_context().trace_flags.sampled):
        return
    attributes = {"error.type": exceptions.type_name(error)} if options.new_names else {}
    span = _tracer.start_span(
        AFTER_RESPONSE, ended, attributes=attributes, start_time=getattr(parent, "end_time", None)
    )
    span.add_event(exceptions.EVENT, exceptions.event_attributes(error))
    span.set_status(Status(StatusCode.ERROR))
    span.end()


def complain() -> None:
    """Log the exception that keeps a request from being traced, aloud for the first time only."""
    global _complained
    write, _complained = (log.debug if _complained else log.warning), True
    write("a request is not traced", exc_info=True)


def show_ids(span: Span, carrier: dict[str, Any]) -> None:
    """Put a span's ids where access logs find them."""
    ids = span.get_span_context()
    # Of the ways to write numbers, the quickest.
    carrier[TRACE_ID] = trace_id = ids.trace_id.to_bytes(16, "big").hex()
    carrier[SPAN_ID] = ids.span_id.to_bytes(8, "big").hex()
    if _on_trace_id is not None:
        try:
            _on_trace_id(trace_id)
        except Exception:
            log.debug("the server's log does not take the trace id", exc_info=True)


def has_outer_span() -> bool:
    """Tell whether a server span is current: a middleware of the user's own makes them.

    A span that has ended is a leak of an earlier request in this thread, and one of another kind no server span.
    """
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return False
    if isinstance(span, NonRecordingSpan):
        return True
    return span.is_recording() and getattr(span, "kind", SpanKind.SERVER) is SpanKind.SERVER


def find_outer(carrier: dict[str, Any], outer_carrier: Any, application: Any) -> bool:
    """Look for the request that this one is part of, though its environ or scope does not tell.

    Args:
        carrier: The environ or scope; gets the token of the outer request.
        outer_carrier: What a bridge between WSGI and ASGI has made ``carrier`` of, where that is known.
        application: The callable that serves the request.

    Returns:
        Whether no server span is to be begun.
    """
    if has_outer_span():
        outer = of_current_span()
        if outer is not None and ("wsgi.version" in outer.carrier) == ("wsgi.version" in carrier):
            # No bridge: the application makes a request of itself, by a client for tests, say.
            outer = None
    elif isinstance(outer_carrier, dict) and KEY in outer_carrier:
        outer = of(outer_carrier)
    else:
        return False
    carrier[KEY] = NO_TOKEN if outer is None else outer.token
    if outer is not None and outer.span is not None:
        show_ids(outer.span, carrier)
        outer.enter(carrier, application)
    return True


def step_aside(application: Any) -> None:
    """Leave an application's requests to another instrumentation, which has just taken one over."""
    _aside[wrapping.identity(application)] = application


def is_aside(application: Any) -> bool:
    """Tell whether another instrumentation makes an application's server spans."""
    return bool(_aside) and wrapping.identity(application) in _aside


def of(carrier: Any) -> Request | None:
    """Return the request under way whose environ or scope this is, or a copy of it."""
    return inflight.find(carrier.get(KEY))


def of_current_span() -> Request | None:
    """Return the request under way whose server span is the current one."""
    return inflight.find(trace.get_current_span().get_span_context().span_id.to_bytes(8, "big").hex())


def note_nested(carrier: dict[str, Any], application: Any) -> None:
    """Note that a request has come to an application within the one that its span began with. Never raises."""
    begun = of(carrier)
    if begun is None or begun.span is None:
        return
    if begun.carrier is not carrier:
        if begun.has_route():
            # A request that the application makes of itself, as batch endpoints do: its route is not that of ours.
            carrier[KEY] = NO_TOKEN
            return
        begun.carrier = carrier
    begun.application = application
    if is_aside(application):
        begun.is_dropped = True
