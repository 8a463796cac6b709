"""One request or WebSocket session of an ASGI application -> one server span, from the call to the end of the response.

https://asgi.readthedocs.io/en/latest/specs/www.html

The span of a request ends before the last part of the response is passed on: what the application does after that,
such as Starlette's background tasks, is none of the client's waiting, and what fails there is a span of its own. Only a
response of 500 and above keeps the span open until the application returns, because frameworks send their error page
first and let the server see the exception then; the end is the same.
"""

from __future__ import annotations

from time import time_ns
from types import MethodType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from opentelemetry.context import attach, detach, get_current

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate, http, propagation, request, wrapping
from mackerel_otel_server.tracing.propagation import BoundedGetter
from mackerel_otel_server.tracing.request import Request
from mackerel_otel_server.tracing.standing_in import stand_in_callable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    Headers = list[tuple[bytes, bytes]]

_ARGUMENTS: Final = ("scope", "receive", "send")
_SCHEMES: Final = {"http": "http", "websocket": "ws"}
"""The types of scopes that make a span, and what a missing ``scheme`` means; ``lifespan`` makes none."""
_FORBIDDEN: Final = 403

_departures: tuple[type[BaseException], ...] = ()


def trace_asgi(application: Any) -> Any:
    """Make every request and every WebSocket session of an ASGI callable a server span.

    Args:
        application: The ASGI callable.

    Returns:
        The callable to give to the server: a framework's object itself, or a proxy.
    """
    return wrapping.wrap(application, call)


def trace_callable(application: Any) -> Any:
    """Return a proxy that makes every request a server span, for a server's own reference to the application."""
    return wrapping.wrap_callable(application, call)


def trace_class(cls: type) -> None:
    """Make every request to an instance of a framework's class a server span."""
    if not wrapping.wrap_class(cls, call):
        log.warning("%s is not traced: its __call__ is not a Python function", cls.__qualname__)


def add_departure(cls: type[BaseException]) -> None:
    """Take exceptions of a class for what they say, that the client has left, not for errors of the application."""
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
        or not gate.open_for_request()
    ):
        return application(*args, **kwargs)
    if request.KEY in scope:
        request.note_nested(scope, application)
        return application(*given)
    begun = _begin(application, scope)
    if begun is None:
        outer = request.of(scope)
        return application(*given) if outer is None else _inside(outer, application, *given)
    begun.coroutine = coroutine = _serve(begun, application, *given)
    return coroutine


def _begin(application: Any, scope: dict[str, Any]) -> _AsgiRequest | None:
    """Start the span of a request; None where it is to have none of ours. Never raises."""
    try:
        if request.is_aside(application):
            return None
        # Nothing is current at all, as with most requests.
        if (get_current() or "wsgi_environ" in scope) and request.find_outer(
            scope, scope.get("wsgi_environ"), application
        ):
            return None
        get = scope.get
        # The specification allows any iterables, but what can be read only once belongs to the application.
        options = request.options
        headers = get("headers")
        if not isinstance(headers, (list, tuple)):
            headers = ()
        # Of a header that came twice, the last; extract() reads them all.
        by_name = dict(headers)
        parent = propagation.extract(headers, GETTER, has_headers=b"traceparent" in by_name or b"baggage" in by_name)
        scheme = get("scheme") or _SCHEMES[scope["type"]]
        name, port = _pair(get("server"))
        # uvicorn has None there for the port, Gunicorn a character of the path.
        is_unix = not isinstance(port, int)
        host = by_name.get(b"host", b"").decode("latin-1") or ("" if is_unix else f"{name}:{port}")
        path = _path(scope)
        if options.excluded_urls and http.is_excluded(options.excluded_urls.get("asgi"), scheme, host, path):
            return _AsgiRequest.begin_excluded(application, parent, scope)
        method, attributes = http.request_attributes(
            options,
            # A WebSocket's handshake is a GET, and its scope has no method.
            method=get("method", "GET"),
            scheme=scheme,
            path=path,
            query=http.quoted(get("query_string", b"").decode("latin-1")),
            host=host,
            is_unix=is_unix,
            client=_pair(get("client"))[0],
            version=get("http_version", ""),
            user_agent=by_name.get(b"user-agent", b"").decode("latin-1"),
        )
        begun = _AsgiRequest.begin(application, method, get("root_path", "").rstrip("/"), attributes, parent, scope)
        if options.request_headers is not None:
            begun.add_header_attributes("request", _text(headers))
    except Exception:
        request.complain()
        return None
    return begun


async def _inside(begun: Request, application: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Serve a request that a WSGI application has passed on, in an event loop that knows nothing of its context."""
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


async def _serve(
    begun: Request,
    application: Callable[..., Awaitable[Any]],
    scope: dict[str, Any],
    receive: Any,
    send: Callable[[Any], Awaitable[None]],
) -> Any:
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
        # Afterwards: the server may refuse the message.
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
        connection_error = None  # its traceback leads back here
        if is_same_context:
            detach(token)
        begun.end()
    if begun.has_given_way:
        request.step_aside(begun.application)
    return result


_looks: dict[Any, dict[str, Any]] = {}
"""What each ``send`` of a server's class looks like to ``inspect``."""


def _in_place_of(theirs: Any, ours: Any) -> Any:
    """Return ``ours`` in a form that looks like ``theirs``, by which applications reach for the server's objects."""
    try:
        if type(theirs) is not MethodType:
            return stand_in_callable(theirs, ours)
        original: Any = theirs.__func__
        look = _looks.get(original)
        if look is None:
            look = vars(imitates(original)(lambda *_: None)).copy()
            if "<locals>" not in original.__qualname__:
                # There may be one of the others for each request.
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


class _AsgiRequest(Request):
    """A request that a coroutine serves."""

    def __del__(self) -> None:
        """End the span after all."""
        # The server has never awaited the coroutine.
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
            _note_response(begun, {**message, "status": http.SWITCHING_PROTOCOLS})
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
    if begun.status < http.SERVER_ERROR:
        begun.end()
    elif begun.end_time is None:
        begun.end_time = time_ns()


def _note_error(begun: Request, error: BaseException) -> None:
    """Note what leaves the application, unless it says that the client has left, or the server wants to stop."""
    import asyncio  # not for a server of WSGI

    if isinstance(error, _departures):
        if begun.status >= http.SERVER_ERROR:
            # The framework's error page, which nobody was there to read.
            begun.status = 0
    elif isinstance(error, asyncio.CancelledError):
        # Not when the application awaited something that was cancelled: the server answers 500 then.
        task = asyncio.current_task()
        if task is not None and hasattr(task, "cancelling") and not task.cancelling():  # since Python 3.11
            begun.failed(error)
    elif not isinstance(error, GeneratorExit):
        begun.failed(error)


def _pair(address: Any) -> Any:
    return address if isinstance(address, (list, tuple)) and len(address) > 1 else ("", None)


def _path(scope: dict[str, Any]) -> str:
    """Return the path as the client sent it, where the server tells; else rebuilt."""
    raw: bytes | None = scope.get("raw_path")
    if raw:
        return http.quoted(http.path_of(raw.decode("latin-1")))
    return quote(scope["path"][: http.LONGEST_TEXT], errors="replace") or "/"


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
