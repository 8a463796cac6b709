"""One request under way and its server span, for WSGI and ASGI alike."""

from __future__ import annotations

import os
import random
import weakref
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.threads import thread_ident
from mackerel_otel_server.settings.http_options import EXCLUDED, HttpOptions
from mackerel_otel_server.tracing import exceptions, on_or_off
from mackerel_otel_server.tracing.requests import excluded, http_attributes, log_ids, propagation
from mackerel_otel_server.tracing.requests.propagation import ROOT

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from typing_extensions import Self

KEY: Final = "mackerel_otel_server.request"
"""Where a WSGI environ or an ASGI scope holds the token of its request. A request that has a token gets no second span.

The token is text, so that a middleware may copy, pickle or print the environ. A copy belongs to the same request.
"""
REST: Final = "/{path}"
"""The end of a route if nobody knows the template of the path below a mount. Starlette uses the same words."""
NO_TOKEN: Final = ""
"""The token if no request of ours is under way, for example because another instrumentation makes the span."""
AFTER_RESPONSE: Final = "after response"
"""The name of the span of an exception that comes after its request's span has ended."""

options = HttpOptions()
# A constant, because CPython 3.10 and 3.11 take much longer to find the member of an enum.
_SERVER: Final = SpanKind.SERVER
_EXCLUDED_ROOT: Final = context.set_value(EXCLUDED, True, ROOT)
_tracer: trace.Tracer = trace.get_tracer(__name__)
last_end = -1
"""Nanoseconds since the epoch, when a request has ended. It stays -1 until somebody who wants to know sets it to 0."""
last_begin = 0
"""Nanoseconds since the epoch, when a request has begun whose span OpenTelemetry's middleware makes, so that it is no
Request; 0 where there was none."""
_complained = False

open_requests: Final[dict[str, weakref.ref[Request]]] = {}
"""The requests under way, by token. The references are weak, because the request of a response that the server forgets
must end by being forgotten."""
# A child process leaves its parent's requests to the parent. uWSGI runs no handlers at a fork, but its master serves no
# requests.
os.register_at_fork(after_in_child=open_requests.clear)


def prepare(chosen: HttpOptions, version: str) -> None:
    """Make what all requests of this process share. Call this after the tracer provider is set."""
    global options, _tracer
    propagation.prepare(chosen.propagators)
    options = chosen
    excluded.prepare(chosen)
    schema_url = http_attributes.SCHEMA_URL if chosen.new_names else None
    _tracer = trace.get_tracer("mackerel_otel_server", version, schema_url=schema_url)


class Request:
    """A request under way. Its methods never raise.

    The code that makes a request must also end it, even if the server destroys the response without closing it. The
    request has no __del__() for that, because a traceback may keep the request alive much longer than the response.

    Attributes:
        token: The text that stands for the request in an environ or scope.
        carrier: The environ or scope.
        context: The context in which the application runs. The server span is the current span there.
        span: The server span; None after its end, or if another instrumentation makes it.
        route: The template that the framework has found; None until then.
        status: The status code of the response; 0 until it is known.
        is_sending: Whether the response is on its way, so that the server can no longer send an error page of its own.
        end_time: When the response was complete, in nanoseconds since the epoch; None if the span ends with end().
        application: The innermost application that is known to serve the request.
        prefix: Where the application is mounted. Its routes begin with that.
        has_given_way: Whether another instrumentation makes the span.
        has_trailers: Whether trailers follow the body.
        complete_body: The object that a framework has made of a complete body, and that looks like a stream.
        is_mounted: Whether ``route`` is the route of a mount.
        is_dropped: Whether the span never ends, because another instrumentation makes the spans of this application.
        thread: The ident of the thread in which the request began.
        coroutine: The coroutine that serves the request, if one does.
    """

    # Defaults of the class, because most requests never change them.
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
        carrier[KEY] = self.token = log_ids.show(span, carrier)
        self.application = application
        self._method = method
        self.prefix = prefix
        self.span = span
        self.context: Context = trace.set_span_in_context(span, parent)
        self.thread = thread_ident()
        open_requests[self.token] = weakref.ref(self)

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
            method: The span's name begins with it.
            prefix: Where the application is mounted.
            attributes: The attributes that are known when the request begins; the span keeps the dict.
            parent: The return value of propagation.extract().
            carrier: The environ or scope that is to hold the token.
        """
        parent = ROOT if parent is None else parent
        span = _tracer.start_span(method, parent, _SERVER, attributes)
        return cls(application, method, prefix, span, parent, carrier)

    @classmethod
    def begin_excluded(cls, application: Any, parent: Context | None, carrier: dict[str, Any]) -> Self:
        """Begin a request that makes no span, so that the code that it runs makes none either; see begin()."""
        trace_id = 0 if parent is None else trace.get_current_span(parent).get_span_context().trace_id
        trace_id = trace_id or random.getrandbits(128) or 1
        span_id = random.getrandbits(64) or 1
        unsampled = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(0)))
        parent = _EXCLUDED_ROOT if parent is None else context.set_value(EXCLUDED, True, parent)
        return cls(application, "", "", unsampled, parent, carrier)

    def record(self, error: BaseException) -> None:
        """Note an exception that nobody handled on purpose. The same exception is noted once."""
        span = self.span
        if self._recorded == id(error) or (span is None and not self._has_ended):
            return
        # Keep its id, not the exception, whose traceback refers to this request.
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
        """Note an exception that leaves the application. The server answers with its error page, if it still can."""
        self.record(error)
        self._was_killed = False
        if not self.is_sending:
            self.status = http_attributes.SERVER_ERROR

    def killed(self, kind: str, message: str, stacktrace: str | None) -> None:
        """End the span, because the server is about to end the process.

        Args:
            kind: The type of the exception event.
            message: Who kills it, and at which limit.
            stacktrace: Where the request is; None where the span can take no event.
        """
        span = self.span
        if span is None:
            return
        self.status = http_attributes.SERVER_ERROR
        self.error_type = kind
        try:
            if stacktrace is not None and span.is_recording():
                event = {
                    "exception.type": kind,
                    "exception.message": message,
                    "exception.stacktrace": f"Traceback (most recent call last):\n{stacktrace}{kind}: {message}\n",
                }
                span.add_event(exceptions.EVENT, exceptions.cut(event))
        except Exception:
            log.debug("an exception is not recorded", exc_info=True)
        self.end()
        # If the request raises after this, the kill is the reason, and the exception needs no span of its own.
        self._has_ended, self._was_killed = False, True

    def note_takeover(self) -> None:
        """Note that an application has answered over the connection itself and not by WSGI, as flask-sock does.

        The client has asked for another protocol, and 101 is the only answer that begins one: RFC 9110, 15.2.2.
        """
        if not self.status and "HTTP_UPGRADE" in self.carrier:
            self.status = http_attributes.SWITCHING_PROTOCOLS

    def add_header_attributes(self, kind: str, headers: Any) -> None:
        """Add captured headers; ``headers`` yields pairs of str."""
        try:
            wanted = options.request_headers if kind == "request" else options.response_headers
            if self.span is not None and self.span.is_recording():
                self.span.set_attributes(http_attributes.header_attributes(options, kind, wanted, headers))
        except Exception:
            log.debug("headers are not captured", exc_info=True)

    def note_route(self, route: str, carrier: Any) -> None:
        """Note the template that a framework has matched.

        Args:
            route: The template.
            carrier: The environ or scope that the framework has matched. If it is a copy of the one that was matched
                before, it belongs to a request that the application makes of itself.
        """
        if self._routed_in is None or self._routed_in is carrier or self.is_mounted:
            self._routed_in, self.route, self.is_mounted = carrier, route, False

    def note_mount(self, route: str, carrier: Any) -> None:
        """Note the template of a mount. The application that is mounted there may have a more exact route."""
        self.note_route(route, carrier)
        self.is_mounted = True

    def enter(self, carrier: dict[str, Any], application: Any) -> None:
        """Note that a bridge between WSGI and ASGI passes the request on to another application."""
        if self.has_route():
            # The application makes a request of itself.
            carrier[KEY] = NO_TOKEN
            return
        if self.is_mounted and self.route is not None:
            self.prefix += self.route.removesuffix(REST)
            self.route = REST
        self.carrier, self.application = carrier, application

    def has_route(self) -> bool:
        """Tell whether a framework has found a route that is not only a mount."""
        return self.route is not None and not self.is_mounted

    def give_way(self, span: Span) -> None:
        """Let another instrumentation's span stand for this request. Our span never ends, so it is never sent."""
        self.span = None
        self.has_given_way = True
        self.context = trace.set_span_in_context(span, ROOT)

    def end(self) -> None:
        """End the span, the first time this is called."""
        global last_end
        span, self.span = self.span, None
        open_requests.pop(self.token, None)
        if last_end >= 0:
            last_end = time_ns()
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
                self._complete(span)
            span.end(self.end_time)
        except Exception:
            log.debug("a server span did not end", exc_info=True)
        self._has_ended = True

    def _complete(self, span: Span) -> None:
        status, error_type = self.status, self.error_type
        if status:
            http_attributes.set_status_attributes(options, span, status)
        if self.route is not None:
            route = self.prefix + self.route
            span.set_attribute("http.route", route)
            span.update_name(f"{self._method} {route}")
        if error_type is not None and options.new_names:
            span.set_attribute("error.type", error_type)
        if error_type is not None or status >= http_attributes.SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))


def record_late(error: BaseException, ended: Context) -> None:
    """Make a span of an exception that comes after the response: a child of the request's span, which has ended."""
    parent: Any = trace.get_current_span(ended)
    if not (on_or_off.active and isinstance(error, Exception) and parent.get_span_context().trace_flags.sampled):
        return
    attributes = {"error.type": exceptions.type_name(error)} if options.new_names else {}
    span = _tracer.start_span(
        AFTER_RESPONSE, ended, attributes=attributes, start_time=getattr(parent, "end_time", None)
    )
    span.add_event(exceptions.EVENT, exceptions.event_attributes(error))
    span.set_status(Status(StatusCode.ERROR))
    span.end()


def complain() -> None:
    """Log the exception because of which a request is not traced: the first time as a warning, then at debug level."""
    global _complained
    write, _complained = (log.debug if _complained else log.warning), True
    write("a request is not traced", exc_info=True)


def of(carrier: Any) -> Request | None:
    """Return the request under way whose environ or scope this is, or a copy of it."""
    # The same as find() does, without one more call for each request.
    reference = open_requests.get(carrier.get(KEY))
    return None if reference is None else reference()


def find(token: Any) -> Request | None:
    """Return the request under way that a token stands for."""
    reference = open_requests.get(token)
    return None if reference is None else reference()


def under_way() -> list[Request]:
    """Return the requests whose spans are open."""
    found = (reference() for reference in list(open_requests.values()))
    return [request for request in found if request is not None and request.span is not None]
