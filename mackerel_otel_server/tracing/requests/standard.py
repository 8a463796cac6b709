"""OpenTelemetry's middlewares make the server spans, for MACKEREL_OTEL_PARTS=standard.

``wsgi`` and ``asgi`` still find the applications and call begin and serve of this module instead of their own. Hooks of
the frameworks find no request of ours, so spans have what the middlewares know, and no more.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from contextvars import ContextVar
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as AsgiMiddleware
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WsgiMiddleware

from mackerel_otel_server.settings.http_options import GIVEN_WAY
from mackerel_otel_server.tracing.requests import asgi, excluded, log_ids, nesting, other_server_spans, request, wsgi
from mackerel_otel_server.tracing.requests.request import KEY, NO_TOKEN, complain

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span

_wsgi: Any = None
_asgi: Any = None


class _Begun:
    """A request that a middleware has begun, or is about to begin.

    Attributes:
        application: The callable that serves it.
        is_entered: Whether the middleware has called the application.
        span: The middleware's span; None until the middleware calls the application.
        coroutine: The coroutine that serves it, if one does.
    """

    __slots__ = ("application", "coroutine", "is_entered", "span")

    def __init__(self, application: Any) -> None:
        self.application = application
        self.coroutine: Any = None
        self.is_entered = False
        self.span: Span | None = None

    def give_way(self, _span: Span) -> None:
        """Let another instrumentation's span stand for this request, and for those to come."""
        assert self.span is not None  # noqa: S101 - _find() has looked
        self.span.set_attribute(GIVEN_WAY, True)
        self.span = None
        nesting.step_aside(self.application)


_under_way: ContextVar[_Begun | None] = ContextVar("mackerel_otel_server_standard", default=None)


def prepare() -> None:
    """Make the middlewares, after the fork and after the tracer provider is set, and let them make the server spans."""
    global _wsgi, _asgi
    _wsgi = WsgiMiddleware(_call_wsgi)
    # Spans are billed, and one for each message of the server and the application tells little.
    _asgi = AsgiMiddleware(_call_asgi, exclude_spans=["receive", "send"])
    wsgi.use(_begin_wsgi, _serve_wsgi)
    asgi.use(_begin_asgi, _serve_asgi)
    other_server_spans.look_for(_find)


def _begin_wsgi(application: Any, environ: dict[str, Any]) -> Any:
    """Decide whether a request has a server span; see ``wsgi.begin_own``. Never raises."""

    def is_excluded() -> bool:
        pattern = excluded.patterns["wsgi"]
        if pattern is None:
            return False
        host = environ.get("HTTP_HOST") or f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT') or ''}"
        return excluded.matches(pattern, environ.get("wsgi.url_scheme", "http"), host, wsgi.path_of(environ))

    return _begin(application, environ, "asgi.scope", is_excluded, wsgi.begin_own)


def _begin_asgi(application: Any, scope: dict[str, Any]) -> Any:
    """Decide whether a request has a server span; see ``asgi.begin_own``. Never raises."""

    def is_excluded() -> bool:
        pattern = excluded.patterns["asgi"]
        if pattern is None:
            return False
        name, port = asgi.pair_of(scope.get("server"))
        host = dict(scope.get("headers") or ()).get(b"host", b"").decode("latin-1") or f"{name}:{port or ''}"
        return excluded.matches(pattern, scope.get("scheme") or "http", host, asgi.path_of(scope))

    return _begin(application, scope, "wsgi_environ", is_excluded, asgi.begin_own)


def _begin(
    application: Any,
    carrier: dict[str, Any],
    outer: str,
    is_excluded: Callable[[], bool],
    begin_own: Callable[..., Any],
) -> Any:
    try:
        if nesting.is_aside(application):
            return None
        if (get_current() or outer in carrier) and nesting.find_outer(carrier, carrier.get(outer), application):
            return None
        if is_excluded():
            # A request of ours that makes no span. The middlewares know no such request for WSGI.
            return begin_own(application, carrier)
    except Exception:
        complain()
        return None
    carrier[KEY] = NO_TOKEN
    return _Begun(application)


def _serve_wsgi(begun: Any, application: Any, environ: dict[str, Any], start_response: Any) -> Any:
    if not isinstance(begun, _Begun):
        return wsgi.serve_own(begun, application, environ, start_response)
    token = _under_way.set(begun)
    request.last_begin = time_ns()
    body: Any = None
    try:
        body = _wsgi(environ, start_response)
    except Exception:
        if begun.is_entered:
            raise
        complain()
    else:
        return body
    finally:
        _under_way.reset(token)
        _note_end_of(body)
    # An error of the middleware itself, about a header perhaps, is none of the application's.
    return application(environ, start_response)


def _serve_asgi(begun: Any, application: Any, scope: dict[str, Any], receive: Any, send: Any) -> Any:
    if not isinstance(begun, _Begun):
        return asgi.serve_own(begun, application, scope, receive, send)
    return _await_asgi(begun, scope, receive, send)


def _note_end_of(body: Any) -> None:
    """Note when a request ends: when the server forgets the middleware's body, or now if there is none."""
    if body is not None:
        with suppress(TypeError):  # it is a generator; another object may take no weak reference
            weakref.finalize(body, _note_end).atexit = False
            return
    _note_end()


def _note_end() -> None:
    request.last_end = time_ns()


async def _await_asgi(begun: _Begun, scope: dict[str, Any], receive: Any, send: Any) -> Any:
    # The context is the task's own. It is not reset, because a coroutine may be closed in another context.
    _under_way.set(begun)
    try:
        return await _asgi(scope, receive, send)
    except Exception:
        if begun.is_entered:
            raise
        complain()
    return await begun.application(scope, receive, send)


def _call_wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    """Call the application of the request under way: one middleware serves all applications of this process."""
    return _entered(environ).application(environ, start_response)


async def _call_asgi(scope: dict[str, Any], receive: Any, send: Any) -> Any:
    return await _entered(scope).application(scope, receive, send)


def _entered(carrier: dict[str, Any]) -> _Begun:
    begun = _under_way.get()
    assert begun is not None  # noqa: S101 - the middleware is called by this module only
    begun.is_entered = True
    begun.span = trace.get_current_span()
    log_ids.show(begun.span, carrier)
    return begun


def _find(_carrier: dict[str, Any]) -> _Begun | None:
    """Return the request that a further instrumentation of the application is about to make a span of."""
    begun = _under_way.get()
    return begun if begun is not None and begun.span is not None and begun.span.is_recording() else None
