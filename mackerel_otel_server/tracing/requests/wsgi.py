"""One request to a WSGI callable -> one server span, from the call to the end of the response's body.

Application and server get the objects that they would give to each other without this package, or objects that look
like these (see ``wsgi_body`` and ``proxies``). https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from opentelemetry.context import attach, detach, get_current

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import (
    excluded,
    http_attributes,
    nesting,
    propagation,
    request,
    wrapping,
    wsgi_body,
)
from mackerel_otel_server.tracing.requests.client_left import client_has_left
from mackerel_otel_server.tracing.requests.propagation import BoundedGetter
from mackerel_otel_server.tracing.requests.proxies import stand_in_callable
from mackerel_otel_server.tracing.requests.request import Request
from mackerel_otel_server.tracing.requests.stacks import serves

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARGUMENTS: Final = 2
_STATUS_DIGITS: Final = 3
_NO_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - nothing listens there

_served: dict[int, Any] = {}
"""The applications, by id, that the server itself calls, so that their SCRIPT_NAME comes from the server."""
find_mounts: Callable[[], Iterable[str]] = tuple
"""Finds where a server has mounted its applications, such as ``/shop``. Each request with a SCRIPT_NAME calls it."""
find_connection: Callable[[], int] | None = None
"""Finds the file descriptor of the connection of the request under way, where the environ has no socket."""


def trace_wsgi(application: Any) -> Any:
    """Make every request to a WSGI callable a server span; see wrapping.wrap()."""
    return wrapping.wrap(application, call)


def trace_served(application: Any) -> Any:
    """Trace the application that a server has loaded; see trace_wsgi()."""
    note_served(application)
    return trace_wsgi(application)


def trace_callable(application: Any) -> Any:
    """Return a proxy that makes every request a server span, for a server's own reference to the application."""
    note_served(application)
    return wrapping.wrap_callable(application, call)


def note_served(application: Any) -> None:
    """Remember that the server itself calls this application, with no middleware in between."""
    application = wrapping.unwrapped(application)
    _served[wrapping.identity(application)] = application


def trace_class(cls: type) -> None:
    """Make every request to an instance of a framework's class a server span; see wrapping.trace_class()."""
    wrapping.trace_class(cls, call)


def call(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a WSGI callable inside a server span, unless its request has one already or this process does not trace."""
    if (
        len(args) != _ARGUMENTS
        or kwargs
        or not isinstance(args[0], dict)
        # PEP 3333: it may never be missing. Without it, the application's class is called for something else.
        or "REQUEST_METHOD" not in args[0]
        or not on_or_off.open_for_request()
    ):
        return application(*args, **kwargs)
    environ, start_response = args
    if request.KEY in environ:
        nesting.note_nested(environ, application)
        return application(environ, start_response)
    begun = _begin(application, environ)
    if begun is None:
        return application(environ, start_response)
    return _serve(begun, application, environ, start_response)


def use(begin: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Let other functions make the server spans, from now on.

    Args:
        begin: Gets the application and the environ; returns None for a request without a span.
        serve: Gets what ``begin`` has returned, the application, the environ and the ``start_response``.
    """
    global _begin, _serve
    _begin, _serve = begin, serve


def begin_own(application: Any, environ: dict[str, Any]) -> WsgiRequest | None:
    """Start the span of a request; return None if the request is to have no span of ours. Never raises."""
    try:
        if nesting.is_aside(application):
            return None
        # Most requests begin with an empty context.
        if (get_current() or "asgi.scope" in environ) and nesting.find_outer(
            environ, environ.get("asgi.scope"), application
        ):
            return None
        get = environ.get
        options = request.options
        parent = propagation.extract(
            environ, GETTER, has_headers="HTTP_TRACEPARENT" in environ or "HTTP_BAGGAGE" in environ
        )
        scheme = get("wsgi.url_scheme", "http")
        server, port = get("SERVER_NAME", ""), get("SERVER_PORT")
        client = get("REMOTE_ADDR", "")
        # On a Unix socket, a client has no address; uWSGI writes zeros. Both servers make up a port of their own.
        is_unix = port == "" or not client or (client == _NO_ADDRESS and "REMOTE_PORT" not in environ)
        host = get("HTTP_HOST") or (server if is_unix else f"{server}:{port or ''}")
        path = path_of(environ)
        pattern = excluded.patterns["wsgi"]
        if pattern is not None and excluded.matches(pattern, scheme, host, path):
            return WsgiRequest.begin_excluded(application, parent, environ)
        method, attributes = http_attributes.request_attributes(
            options,
            method=get("REQUEST_METHOD", ""),
            scheme=scheme,
            path=path,
            query=http_attributes.quoted(get("QUERY_STRING", "")),
            host=host,
            is_unix=is_unix,
            client="" if is_unix and client == _NO_ADDRESS else client,
            version=http_attributes.version_of(get("SERVER_PROTOCOL", "")),
            user_agent=get("HTTP_USER_AGENT", ""),
        )
        prefix = _mount(application, environ) if get("SCRIPT_NAME") else ""
        begun = WsgiRequest.begin(application, method, prefix, attributes, parent, environ)
        if options.request_headers is not None:
            begun.add_header_attributes("request", _headers(environ))
    except Exception:
        request.complain()
        return None
    return begun


@serves
def serve_own(
    begun: WsgiRequest, application: Callable[..., Any], environ: dict[str, Any], start_response: Callable[..., Any]
) -> Any:
    """Call the application in the context of its request, and follow the body that it returns."""
    token = attach(begun.context)
    try:
        body = application(environ, begun.start_response_for(start_response))
    except BaseException as error:
        begun.failed(error)
        begun.end()
        raise
    finally:
        detach(token)
    if begun.has_given_way:
        nesting.step_aside(begun.application)
    return wsgi_body.followed(body, begun, environ)


_begin: Callable[..., Any] = begin_own
_serve: Callable[..., Any] = serve_own


class WsgiRequest(Request):
    """A request that came with a ``start_response``."""

    _server_start_response: Callable[..., Any]
    _server_write: Callable[[Any], Any]

    def start_response_for(self, theirs: Callable[..., Any]) -> Any:
        """Return what the application gets instead of the ``start_response`` of the server or a middleware."""
        self._server_start_response = theirs
        return _in_place_of(theirs, self, "start_response")

    def start_response(self, *args: Any, **kwargs: Any) -> Any:
        """Pass on to the server, and note the status."""
        if len(args) > _ARGUMENTS or kwargs:
            self._note_error(args, kwargs)
        # First call the server: a status that it refuses is not sent, and must not be noted.
        self._server_write = write = self._server_start_response(*args, **kwargs)
        try:
            status = args[0] if args else kwargs["status"]
            self.status = int(status[:_STATUS_DIGITS])
            if request.options.response_headers is not None:
                self.add_header_attributes("response", args[1] if len(args) > 1 else kwargs["headers"])
        except Exception:
            log.debug("a response cannot be understood", exc_info=True)
        return _in_place_of(write, self, "write")

    def write(self, *args: Any, **kwargs: Any) -> Any:
        """Write a part of the body; PEP 3333 has this function for old frameworks."""
        if not self.is_sending:
            self.is_sending = any(map(wsgi_body.is_something, (*args, *kwargs.values())))
        return self._server_write(*args, **kwargs)

    def _note_error(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the exception that an error page is about."""
        try:
            status = args[0] if args else kwargs["status"]
            exc_info = args[_ARGUMENTS] if len(args) > _ARGUMENTS else kwargs.get("exc_info")
            if exc_info and int(status[:_STATUS_DIGITS]) >= http_attributes.SERVER_ERROR:
                self.record(exc_info[1])
        except Exception:
            log.debug("an exception is not noted", exc_info=True)

    def failed(self, error: BaseException) -> None:
        """Note an exception that leaves the application, unless the server takes it for a normal end."""
        if _comes_from_write(error) or client_has_left(error, self._connection):
            return
        if isinstance(error, StopIteration) and "gunicorn.socket" in self.carrier:
            # Gunicorn's workers take it for the end of a connection that the application has served by itself.
            self.note_takeover()
            return
        super().failed(error)

    def _connection(self) -> Any:
        """Return the client's connection, a socket or a file descriptor; None if the server does not tell."""
        connection = self.carrier.get("gunicorn.socket")
        return find_connection() if connection is None and find_connection is not None else connection


def _comes_from_write(error: BaseException) -> bool:
    """Tell whether an error comes from the server's ``write``, because the client has left."""
    if not isinstance(error, OSError):
        return False
    return any(frame.f_code is WsgiRequest.write.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


_methods: dict[Any, Any] = {}
"""Functions of servers' classes -> the functions that replace them."""
_REQUEST: Final = "_mackerel_otel_request"
"""Where a server's own object holds a weak reference to the request that it is for."""


def _in_place_of(theirs: Any, begun: WsgiRequest, name: str) -> Any:
    """Return a method of the request that looks like the server's function or method.

    It must, because applications find Gunicorn's response as ``start_response.__self__``.

    Args:
        theirs: The function of the server or a middleware; None if a ``start_response`` returns no ``write``.
        begun: The request.
        name: The name of the request's method.
    """
    try:
        if type(theirs) is MethodType:
            # The reference is weak, because the request refers to the server's object.
            vars(theirs.__self__)[_REQUEST] = weakref.ref(begun)
            return MethodType(_methods.get(theirs.__func__) or _method_like(theirs.__func__, name), theirs.__self__)
        if theirs is None:
            return None
        return stand_in_callable(theirs, getattr(begun, name))
    except Exception:
        log.debug("nothing can look like %s", type(theirs), exc_info=True)
        return getattr(begun, name)


def _method_like(original: Any, name: str) -> Any:
    """Return the function that replaces a function of a server's class."""

    @imitates(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = vars(self)[_REQUEST]()
        # The request may have gone, if the application has kept this method.
        return original(self, *args, **kwargs) if begun is None else getattr(begun, name)(*args, **kwargs)

    if "<locals>" not in getattr(original, "__qualname__", "<locals>"):
        # A function that is defined within another one may be a new one for each request, so it is not kept.
        _methods[original] = method
    return method


def path_of(environ: dict[str, Any]) -> str:
    """Return the path as the client sent it: Gunicorn's ``RAW_URI``, uWSGI's ``REQUEST_URI``, else rebuilt."""
    target: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if not target:
        decoded = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return quote(decoded[: http_attributes.LONGEST_TEXT], encoding="latin-1", errors="replace") or "/"
    return http_attributes.quoted(http_attributes.path_of(target))


def _mount(application: Any, environ: dict[str, Any]) -> str:
    """Return where the server has mounted the application; its routes begin with that.

    Not each SCRIPT_NAME is a mount of the server. A middleware may put names of tenants there, for example, and so may
    a client whose header Gunicorn takes from a trusted proxy. There is no end of such names, so no route has them.
    """
    script_name: str = environ["SCRIPT_NAME"]
    if wrapping.identity(application) in _served and environ.get("HTTP_SCRIPT_NAME") != script_name:
        return script_name
    found = (mount for mount in find_mounts() if script_name == mount or script_name.startswith(f"{mount}/"))
    return max(found, key=len, default="")


def _headers(environ: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            yield key[len("HTTP_") :].replace("_", "-"), value
        elif key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            yield key.replace("_", "-"), value


_KEYS: Final = {name: f"HTTP_{name.upper()}" for name in ("traceparent", "tracestate", "baggage")}
"""Where an environ has the headers that each request is searched for."""


class _Getter(BoundedGetter[dict[str, Any]]):
    """Reads the headers of an environ."""

    def find(self, carrier: dict[str, Any], name: str) -> str | None:
        return carrier.get(_KEYS.get(name) or f"HTTP_{name.upper().replace('-', '_')}")

    def names(self, carrier: dict[str, Any]) -> list[str]:
        return [key[len("HTTP_") :].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


GETTER: Final = _Getter()
