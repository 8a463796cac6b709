"""One request to a WSGI callable -> one server span, from the call to the end of the response's body.

Application and server get what they would give to each other without us, or what looks like it (``bodies``,
``standing_in``). https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import functools
import traceback
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from opentelemetry.context import attach, detach, get_current

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import bodies, gate, http, propagation, request, wrapping
from mackerel_otel_server.tracing.departure import client_has_left
from mackerel_otel_server.tracing.propagation import BoundedGetter
from mackerel_otel_server.tracing.request import Request
from mackerel_otel_server.tracing.standing_in import stand_in_callable

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARGUMENTS: Final = 2
_STATUS_DIGITS: Final = 3
_NO_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - nothing listens there

_served: dict[int, Any] = {}
"""Applications, by id, that the server itself calls, so that the SCRIPT_NAME they get is the server's own."""
_find_mounts: Callable[[], Iterable[str]] = tuple


def _find_connection() -> int | None:
    return None


def trace_wsgi(application: Any) -> Any:
    """Make every request to a WSGI callable a server span.

    Args:
        application: The WSGI callable.

    Returns:
        The callable to give to the server: a framework's object itself, or a proxy.
    """
    return wrapping.wrap(application, call)


def trace_served(application: Any) -> Any:
    """Trace what a server has loaded as its application; see trace_wsgi()."""
    note_served(application)
    return trace_wsgi(application)


def trace_callable(application: Any) -> Any:
    """Return a proxy that makes every request a server span, for a server's own reference to the application."""
    note_served(application)
    return wrapping.wrap_callable(application, call)


def note_served(application: Any) -> None:
    """Remember that the server itself calls this application, no middleware between the two."""
    application = wrapping.unwrapped(application)
    _served[wrapping.identity(application)] = application


def note_mounts(find: Callable[[], Iterable[str]]) -> None:
    """Say where a server has mounted its applications.

    Args:
        find: Returns the paths, ``/shop``; called once, by the first request that comes with a SCRIPT_NAME.
    """
    global _find_mounts
    _find_mounts = functools.cache(find)


def note_connection(find: Callable[[], int | None]) -> None:
    """Say how to find the connection of the request under way, for a server that puts no socket into the environ.

    Args:
        find: Returns the file descriptor.
    """
    global _find_connection
    _find_connection = find


def trace_class(cls: type) -> None:
    """Make every request to an instance of a framework's class a server span."""
    if not wrapping.wrap_class(cls, call):
        log.warning("%s is not traced: its __call__ is not a Python function", cls.__qualname__)


def call(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a WSGI callable inside a server span, unless its request has one already or this process does not trace."""
    if (
        len(args) != _ARGUMENTS
        or kwargs
        or not isinstance(args[0], dict)
        # PEP 3333: it may never be missing. Without it, the application's class is called for something else.
        or "REQUEST_METHOD" not in args[0]
        or not gate.open_for_request()
    ):
        return application(*args, **kwargs)
    environ, start_response = args
    if request.KEY in environ:
        request.note_nested(environ, application)
        return application(environ, start_response)
    begun = _begin(application, environ)
    if begun is None:
        return application(environ, start_response)
    return _serve(begun, application, environ, start_response)


def _begin(application: Any, environ: dict[str, Any]) -> WsgiRequest | None:
    """Start the span of a request; None where it is to have none of ours. Never raises."""
    try:
        if request.is_aside(application):
            return None
        # Nothing is current at all, as with most requests.
        if (get_current() or "asgi.scope" in environ) and request.find_outer(
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
        # There a client has no address, for which uWSGI has zeros, and both servers make up a port for themselves.
        is_unix = port == "" or not client or (client == _NO_ADDRESS and "REMOTE_PORT" not in environ)
        host = get("HTTP_HOST") or (server if is_unix else f"{server}:{port or ''}")
        path = _path(environ)
        if options.excluded_urls and http.is_excluded(options.excluded_urls.get("wsgi"), scheme, host, path):
            return WsgiRequest.begin_excluded(application, parent, environ)
        method, attributes = http.request_attributes(
            options,
            method=get("REQUEST_METHOD", ""),
            scheme=scheme,
            path=path,
            query=http.quoted(get("QUERY_STRING", "")),
            host=host,
            is_unix=is_unix,
            client="" if is_unix and client == _NO_ADDRESS else client,
            version=http.version_of(get("SERVER_PROTOCOL", "")),
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


def _serve(
    begun: WsgiRequest, application: Callable[..., Any], environ: dict[str, Any], start_response: Callable[..., Any]
) -> Any:
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
        request.step_aside(begun.application)
    return bodies.followed(body, begun, environ)


class WsgiRequest(Request):
    """A request that came with a ``start_response``."""

    _server_start_response: Callable[..., Any]
    _server_write: Callable[[Any], Any]

    def start_response_for(self, theirs: Callable[..., Any]) -> Any:
        """Return what the application gets in the place of the server's ``start_response``, or a middleware's."""
        self._server_start_response = theirs
        return _in_place_of(theirs, self, "start_response")

    def start_response(self, *args: Any, **kwargs: Any) -> Any:
        """Pass on to the server, and note the status."""
        if len(args) > _ARGUMENTS or kwargs:
            self._note_error(args, kwargs)
        # What the server refuses is not sent.
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
        """Write a part of the body, as PEP 3333 has it for frameworks from before it."""
        if not self.is_sending:
            self.is_sending = any(map(bodies.is_something, (*args, *kwargs.values())))
        return self._server_write(*args, **kwargs)

    def _note_error(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the exception that an error page is about."""
        try:
            status = args[0] if args else kwargs["status"]
            exc_info = args[_ARGUMENTS] if len(args) > _ARGUMENTS else kwargs.get("exc_info")
            if exc_info and int(status[:_STATUS_DIGITS]) >= http.SERVER_ERROR:
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
        """Return the client's connection, a socket or a file descriptor, where the server gives it to applications."""
        connection = self.carrier.get("gunicorn.socket")
        return _find_connection() if connection is None else connection


def _comes_from_write(error: BaseException) -> bool:
    """Tell whether an error comes from the server's ``write``: the client has left then."""
    if not isinstance(error, OSError):
        return False
    return any(frame.f_code is WsgiRequest.write.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


_methods: dict[Any, Any] = {}
"""Functions of servers' classes -> what stands in their places."""
_REQUEST: Final = "_mackerel_otel_request"
"""Where a server's own object holds a weak reference to the request that it is for."""


def _in_place_of(theirs: Any, begun: WsgiRequest, name: str) -> Any:
    """Return a method of the request's in a form that looks like the server's function or method.

    Applications reach for Gunicorn's response by ``start_response.__self__``.

    Args:
        theirs: Of the server's or of a middleware's; None where a ``start_response`` returns no ``write``.
        begun: The request.
        name: Of its method.
    """
    try:
        if type(theirs) is MethodType:
            # Weak, because the request leads to the server's object.
            vars(theirs.__self__)[_REQUEST] = weakref.ref(begun)
            return MethodType(_methods.get(theirs.__func__) or _method_like(theirs.__func__, name), theirs.__self__)
        if theirs is None:
            return None
        return stand_in_callable(theirs, getattr(begun, name))
    except Exception:
        log.debug("nothing can look like %s", type(theirs), exc_info=True)
        return getattr(begun, name)


def _method_like(original: Any, name: str) -> Any:
    """Return what stands in the place of a function of a server's class."""

    @imitates(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = vars(self)[_REQUEST]()
        # An application may keep it for longer than its request lasts.
        return original(self, *args, **kwargs) if begun is None else getattr(begun, name)(*args, **kwargs)

    if "<locals>" not in getattr(original, "__qualname__", "<locals>"):
        # There may be one of the others for each request.
        _methods[original] = method
    return method


def _path(environ: dict[str, Any]) -> str:
    """Return the path as the client sent it: Gunicorn's ``RAW_URI``, uWSGI's ``REQUEST_URI``, else rebuilt."""
    target: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if not target:
        decoded = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return quote(decoded[: http.LONGEST_TEXT], encoding="latin-1", errors="replace") or "/"
    return http.quoted(http.path_of(target))


def _mount(application: Any, environ: dict[str, Any]) -> str:
    """Return where the server has mounted the application: what its routes begin with.

    A middleware that stands between the server and this application may have put a tenant's name there, say, of which
    there is no end. So may whoever sends the header that Gunicorn takes from a trusted proxy.
    """
    script_name: str = environ["SCRIPT_NAME"]
    if wrapping.identity(application) in _served and environ.get("HTTP_SCRIPT_NAME") != script_name:
        return script_name
    found = (mount for mount in _find_mounts() if script_name == mount or script_name.startswith(f"{mount}/"))
    return max(found, key=len, default="")


def _headers(environ: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            yield key[len("HTTP_") :].replace("_", "-"), value
        elif key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            yield key.replace("_", "-"), value


_KEYS: Final = {name: f"HTTP_{name.upper()}" for name in ("traceparent", "tracestate", "baggage")}
"""Where an environ has the headers that every request is asked for."""


class _Getter(BoundedGetter[dict[str, Any]]):
    """Reads the headers of an environ."""

    def find(self, carrier: dict[str, Any], name: str) -> str | None:
        return carrier.get(_KEYS.get(name) or f"HTTP_{name.upper().replace('-', '_')}")

    def names(self, carrier: dict[str, Any]) -> list[str]:
        return [key[len("HTTP_") :].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


GETTER: Final = _Getter()
