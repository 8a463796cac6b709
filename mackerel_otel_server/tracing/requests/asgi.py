"""One request or WebSocket session of an ASGI application -> one server span, from the call to the end of the response.

https://asgi.readthedocs.io/en/latest/specs/www.html

The span of a request ends before the last part of the response is passed on. The client does not wait for what the
application does after that, such as Starlette's background tasks; an exception there gets a span of its own. A response
of 500 and above is the exception to this: frameworks send their error page first and raise the exception then. The span
of such a request stays open until the application returns, but gets the same end time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time_ns
from types import MethodType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from opentelemetry.context import attach, detach, get_current

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import excluded, http_attributes, nesting, propagation, request, wrapping
from mackerel_otel_server.tracing.requests.propagation import BoundedGetter
from mackerel_otel_server.tracing.requests.proxies import stand_in_callable
from mackerel_otel_server.tracing.requests.request import Request
from mackerel_otel_server.tracing.requests.stacks import serves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator

    Headers = list[tuple[bytes, bytes]]

_ARGUMENTS: Final = ("scope", "receive", "send")
_SCHEMES: Final = {"http": "http", "websocket": "ws"}
"""The types of scopes that make a span, and the scheme if the scope has none. A ``lifespan`` scope makes no span."""
_FORBIDDEN: Final = 403

_departures: tuple[type[BaseException], ...] = ()


def trace_asgi(application: Any) -> Any:
    """Make every request and every WebSocket session of an ASGI callable a server span; see wrapping.wrap()."""
    return wrapping.wrap(application, call)


def trace_callable(application: Any) -> Any:
    """Return a proxy that makes every request a server span, for a server's own reference to the application."""
    return wrapping.wrap_callable(application, call)


def trace_class(cls: type) -> None:
    """Make every request to an instance of a framework's class a server span; see wrapping.trace_class()."""
    wrapping.trace_class(cls, call)


def add_departure(cls: type[BaseException]) -> None:
    """Say that exceptions of this class mean that the client has left, and are no errors of the application."""
    global _departures
    _departures = (*_departures, cls)


def call(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an ASGI callable inside a server span, unless its request has one already or this process does not trace."""
    # Daphne calls applications by keywords.
    given = (*args, *(kwargs[name] for name in _ARGUMENTS[len(args) :] if name in kwargs)) if kwargs else args
    if (
        len(given) != len(_ARGUMENTS)
        or len(args) + len(kwargs) != len(_ARGUMENTS)
        or not isinstance(scope := given[0], dict)
        or scope.get("type") not in _SCHEMES
        or not on_or_off.open_for_request()
    ):
        return application(*args, **kwargs)
    if request.KEY in scope:
        nesting.note_nested(scope, application)
        return application(*given)
    begun = _begin(application, scope)
    if begun is None:
        outer = request.of(scope)
        return application(*given) if outer is None else _inside(outer, application, *given)
    begun.coroutine = coroutine = _serve(begun, application, *given)
    return coroutine


def use(begin: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Let other functions make the server spans, from now on.

    Args:
        begin: Gets the application and the scope; returns None for a request without a span.
        serve: Gets what ``begin`` has returned, the application, the scope, ``receive`` and ``send``; returns an
            awaitable.
    """
    global _begin, _serve
    _begin, _serve = begin, serve


def begin_own(application: Any, scope: dict[str, Any]) -> AsgiRequest | None:
    """Start the span of a request; return None if the request is to have no span of ours. Never raises."""
    try:
        if nesting.is_aside(application):
            return None
        # Most requests begin with an empty context.
        if (get_current() or "wsgi_environ" in scope) and nesting.find_outer(
            scope, scope.get("wsgi_environ"), application
        ):
            return None
        get = scope.get
        # The specification allows any iterable. One that can be read only once is left to the application.
        options = request.options
        headers = get("headers")
        if not isinstance(headers, (list, tuple)):
            headers = ()
        # If a header came twice, this has the last one. extract() reads all of them.
        by_name = dict(headers)
        parent = propagation.extract(headers, GETTER, has_headers=b"traceparent" in by_name or b"baggage" in by_name)
        scheme = get("scheme") or _SCHEMES[scope["type"]]
        name, port = pair_of(get("server"))
        # On a Unix socket, uvicorn has None for the port, and Gunicorn a character of the path.
        is_unix = not isinstance(port, int)
        host = by_name.get(b"host", b"").decode("latin-1") or ("" if is_unix else f"{name}:{port}")
        path = path_of(scope)
        pattern = excluded.patterns["asgi"]
        if pattern is not None and excluded.matches(pattern, scheme, host, path):
            return AsgiRequest.begin_excluded(application, parent, scope)
        method, attributes = http_attributes.request_attributes(
            options,
            # A WebSocket's handshake is a GET, and its scope has no method.
            method=get("method", "GET"),
            scheme=scheme,
            path=path,
            query=http_attributes.quoted(get("query_string", b"").decode("latin-1")),
            host=host,
            is_unix=is_unix,
            client=pair_of(get("client"))[0],
            version=get("http_version", ""),
            user_agent=by_name.get(b"user-agent", b"").decode("latin-1"),
        )
        begun = AsgiRequest.begin(application, method, get("root_path", "").rstrip("/"), attributes, parent, scope)
        if options.request_headers is not None:
            begun.add_header_attributes("request", _text(headers))
    except Exception:
        request.complain()
        return None
    return begun


@serves
async def _inside(begun: Request, application: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Serve a request that a WSGI application has passed on to an event loop, which does not know its context."""
    token = attach(begun.context)
    is_same_context = True
    try:
        return await application(*args)
    except BaseException as error:
        # Where it is GeneratorExit, the coroutine is thrown away, perhaps by another task or thread.
        is_same_context = not isinstance(error, GeneratorExit)
        _note_error(begun, error)
        raise
    finally:
        if is_same_context:
            detach(token)


@serves
async def serve_own(
    begun: Request,
    application: Callable[..., Awaitable[Any]],
    scope: dict[str, Any],
    receive: Any,
    send: Callable[[Any], Awaitable[None]],
) -> Any:
    """Await the application in the context of its request, and note what it sends."""
    connection_error: OSError | None = None
    is_http = scope["type"] == "http"

    async def send_and_note(*args: Any, **named: Any) -> None:
        nonlocal connection_error
        (message,) = named.values() if named else args[-1:]
        if is_http and begun.is_sending and begun.span is not None and _is_last(begun, message):
            _end_of_response(begun)
        try:
            await send(message)
        except OSError as error:
            # The client has left.
            connection_error = error
            raise
        # This comes after send(), because the server may refuse the message.
        if not begun.is_sending and begun.span is not None:
            (_note_http if is_http else _note_websocket)(begun, message)

    ours: Any = _in_place_of(send, send_and_note)
    token = attach(begun.context)
    is_same_context = True
    try:
        result = await application(scope, receive, ours)
    except BaseException as error:
        # Where it is GeneratorExit, the coroutine is thrown away, perhaps by another task or thread.
        is_same_context = not isinstance(error, GeneratorExit)
        if error is not connection_error:
            _note_error(begun, error)
        raise
    finally:
        connection_error = None  # because its traceback refers to this frame
        if is_same_context:
            detach(token)
        begun.end()
    if begun.has_given_way:
        nesting.step_aside(begun.application)
    return result


_begin: Callable[..., Any] = begin_own
_serve: Callable[..., Any] = serve_own


_looks: dict[Any, dict[str, Any]] = {}
"""What each ``send`` of a server's class looks like to ``inspect``."""


def _in_place_of(theirs: Any, ours: Any) -> Any:
    """Make ``ours`` look like ``theirs``, because applications find the server's objects through it."""
    try:
        if type(theirs) is not MethodType:
            return stand_in_callable(theirs, ours)
        original: Any = theirs.__func__
        look = _looks.get(original)
        if look is None:
            look = vars(imitates(original)(lambda *_: None)).copy()
            if "<locals>" not in original.__qualname__:
                # A function that is defined within another one may be a new one for each request, so it is not kept.
                _looks[original] = look
        vars(ours).update(look)
        ours.__name__, ours.__qualname__, ours.__module__ = (
            original.__name__,
            original.__qualname__,
            original.__module__,
        )
    except Exception:
        log.debug("nothing can look like %s", type(theirs), exc_info=True)
        return ours
    return MethodType(ours, theirs.__self__)


class AsgiRequest(Request):
    """A request that a coroutine serves."""

    def __del__(self) -> None:
        """End the span after all."""
        # This happens when the server has never awaited the coroutine.
        if self.span is not None:
            self.end()


def _note_http(begun: Request, message: Any) -> None:
    """Note what a message that the server took says about the response. Never raises."""
    try:
        if message["type"] == "http.response.start":
            begun.is_sending = True
            begun.has_trailers = bool(message.get("trailers"))
            _note_response(begun, message)
    except Exception:
        log.debug("a response cannot be understood", exc_info=True)


def _is_last(begun: Request, message: Any) -> bool:
    """Tell whether a message is the last of a response that has started. Never raises."""
    try:
        kind = message["type"]
        if kind in ("http.response.body", "http.response.zerocopysend"):
            return not message.get("more_body") and not begun.has_trailers
        return kind == "http.response.pathsend" or (
            kind == "http.response.trailers" and not message.get("more_trailers")
        )
    except Exception:
        log.debug("a response cannot be understood", exc_info=True)
        return False


def _note_websocket(begun: Request, message: Any) -> None:
    """Note how the handshake ended. Never raises.

    https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """
    try:
        kind = message["type"]
        if kind == "websocket.accept":
            _note_response(begun, {**message, "status": http_attributes.SWITCHING_PROTOCOLS})
        elif kind == "websocket.close":
            begun.status = _FORBIDDEN
        elif kind == "websocket.http.response.start":
            _note_response(begun, message)
        else:
            return
        begun.is_sending = True
    except Exception:
        log.debug("a response cannot be understood", exc_info=True)


def _note_response(begun: Request, message: Any) -> None:
    begun.status = int(message["status"])
    if request.options.response_headers is not None:
        begun.add_header_attributes("response", _text(message.get("headers", ())))


def _end_of_response(begun: Request) -> None:
    if begun.status < http_attributes.SERVER_ERROR:
        begun.end()
    elif begun.end_time is None:
        begun.end_time = time_ns()


def _note_error(begun: Request, error: BaseException) -> None:
    """Note an exception that leaves the application, unless the client has left or the server wants to stop."""
    import asyncio  # not for a server of WSGI

    if isinstance(error, _departures):
        if begun.status >= http_attributes.SERVER_ERROR:
            # The framework has sent an error page to a client that had left.
            begun.status = 0
    elif isinstance(error, asyncio.CancelledError):
        # If the task itself is not cancelled, the application has awaited something that was. The server answers 500.
        task = asyncio.current_task()
        if task is not None and hasattr(task, "cancelling") and not task.cancelling():  # since Python 3.11
            begun.failed(error)
    elif not isinstance(error, GeneratorExit):
        begun.failed(error)


def pair_of(address: Any) -> Any:
    """Return host and port of an address of the scope."""
    return address if isinstance(address, (list, tuple)) and len(address) > 1 else ("", None)


def path_of(scope: dict[str, Any]) -> str:
    """Return the path as the client sent it; if the server does not tell, encode the decoded one again."""
    raw: bytes | None = scope.get("raw_path")
    if raw:
        return http_attributes.quoted(http_attributes.path_of(raw.decode("latin-1")))
    return quote(scope["path"][: http_attributes.LONGEST_TEXT], errors="replace") or "/"


def _text(headers: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        yield bytes(name).decode("latin-1"), bytes(value).decode("latin-1")


class _Getter(BoundedGetter["Headers"]):
    """Reads the headers of a scope, whose names are in lower case."""

    def find(self, carrier: Headers, name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        values = [value.decode("latin-1") for given, value in carrier if given == wanted]
        # Lines of the same name are one list: RFC 9110, 5.3.
        return ",".join(values) if values else None

    def names(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


GETTER: Final = _Getter()
