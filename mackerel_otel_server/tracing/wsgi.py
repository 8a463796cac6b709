"""One request to a WSGI callable -> one server span, from the call to the end of the response's body.

What the server gets to see of a response is what the application returned, but for a thin iterable around it:
https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from opentelemetry.context import attach, detach, get_current
from opentelemetry.propagators.textmap import Getter

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate, http, request, routes, wrapping
from mackerel_otel_server.tracing.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARGUMENTS: Final = 2
_STATUS_DIGITS: Final = 3

_served: dict[int, Any] = {}
"""Applications, by id, that the server itself calls, so that the SCRIPT_NAME they get is the server's own."""
_find_mounts: Callable[[], Iterable[str]] = tuple


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


def trace_class(cls: type) -> None:
    """Make every request to an instance of a framework's class a server span."""
    if not wrapping.wrap_class(cls, call):
        log.warning("%s is not traced: its __call__ is not a Python function", cls.__qualname__)


def call(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a WSGI callable inside a server span, unless its request has one already or this process does not trace."""
    if len(args) != _ARGUMENTS or kwargs or not isinstance(args[0], dict) or not gate.open_for_request():
        return application(*args, **kwargs)
    environ, start_response = args
    if request.KEY in environ:
        request.note_nested(environ[request.KEY], application)
        return application(environ, start_response)
    begun = _begin(application, environ)
    if begun is None:
        return application(environ, start_response)
    return _serve(begun, application, environ, start_response)


def _begin(application: Any, environ: dict[str, Any]) -> _WsgiRequest | None:
    """Start the span of a request; None where it is to have none of ours. Never raises."""
    try:
        if request.is_aside(application):
            return None
        if request.has_outer_span():
            environ[request.KEY] = None
            return None
        get = environ.get
        options = request.options
        parent = request.extract(
            environ, _GETTER, has_headers="HTTP_TRACEPARENT" in environ or "HTTP_BAGGAGE" in environ
        )
        scheme = get("wsgi.url_scheme", "http")
        host = get("HTTP_HOST") or f"{get('SERVER_NAME', '')}:{get('SERVER_PORT', '')}"
        path = _path(environ)
        excluded = options.excluded_urls.get("wsgi")
        if excluded is not None and excluded.search(f"{scheme}://{host}{path}"):
            return _WsgiRequest.begin_excluded(application, parent, environ)
        method, attributes = http.request_attributes(
            options,
            method=get("REQUEST_METHOD", ""),
            scheme=scheme,
            path=path,
            query=http.quoted(get("QUERY_STRING", "")),
            host=host,
            client=get("REMOTE_ADDR", ""),
            version=http.version_of(get("SERVER_PROTOCOL", "")),
            user_agent=get("HTTP_USER_AGENT", ""),
        )
        prefix = _mount(application, get("SCRIPT_NAME"))
        begun = _WsgiRequest.begin(application, method, prefix, attributes, parent, environ)
        if options.request_headers is not None:
            begun.add_header_attributes("request", _headers(environ))
    except Exception:
        request.complain()
        return None
    return begun


def _serve(
    begun: _WsgiRequest, application: Callable[..., Any], environ: dict[str, Any], start_response: Callable[..., Any]
) -> Any:
    token = attach(begun.context)
    try:
        begun.server_start_response = start_response
        body = application(environ, begun.start_response)
    except BaseException as error:
        begun.failed(error)
        begun.end(routes.of_environ(environ, begun.route))
        raise
    finally:
        detach(token)
    if begun.has_given_way:
        request.step_aside(begun.application)
    kind = type(body)
    if kind is list:
        return _Chunks(body, begun, environ)
    if kind is bytes or kind is str or body is None:
        # No iterable of WSGI's, but uWSGI takes bytes; and what is wrong with the rest is between those two.
        begun.end(routes.of_environ(environ, begun.route))
        return body
    if _is_file(body, environ):
        return _closing(body, begun, environ)
    if not hasattr(kind, "__len__"):
        return _Body(body, begun, environ)
    if "uwsgi.version" in environ and _is_buffer(body):
        begun.end(routes.of_environ(environ, begun.route))
        return body
    return _SizedBody(body, begun, environ)


class _WsgiRequest(Request):
    """A request that came with a ``start_response``.

    Attributes:
        server_start_response: The server's.
    """

    server_start_response: Callable[..., Any]
    _server_write: Callable[[Any], Any]

    def start_response(self, *args: Any, **kwargs: Any) -> Any:
        """Pass on to the server, and note the status."""
        if len(args) > _ARGUMENTS or kwargs:
            self._note_error(*args, **kwargs)
        # What the server refuses is not sent.
        self._server_write = self.server_start_response(*args, **kwargs)
        try:
            status = args[0] if args else kwargs["status"]
            self.status = int(status[:_STATUS_DIGITS])
            if request.options.response_headers is not None:
                self.add_header_attributes("response", args[1] if len(args) > 1 else kwargs["headers"])
        except Exception:
            log.debug("a response cannot be understood", exc_info=True)
        return self._write

    def _write(self, data: Any) -> Any:
        """Write a part of the body, as PEP 3333 has it for frameworks from before it."""
        if not self.is_sending:
            self.is_sending = _is_something(data)
        return self._server_write(data)

    def _note_error(self, status: Any = "", headers: Any = None, exc_info: Any = None) -> None:  # noqa: ARG002 - PEP 3333's names
        """Note the exception that an error page is about."""
        try:
            if exc_info and int(status[:_STATUS_DIGITS]) >= http.SERVER_ERROR:
                self.record(exc_info[1])
        except Exception:
            log.debug("an exception is not noted", exc_info=True)


class _Chunks(list):  # type: ignore[type-arg]
    """A body that is complete, and the list that it was for the middlewares around: no code runs while it is sent."""

    __slots__ = ("_begun", "_environ")

    def __init__(self, chunks: list[Any], begun: Request, environ: dict[str, Any]) -> None:
        super().__init__(chunks)
        self._begun = begun
        self._environ = environ

    def close(self) -> None:
        self._begun.end(routes.of_environ(self._environ, self._begun.route))

    def __del__(self) -> None:
        """End the span after all: the server has forgotten the response without closing it."""
        if self._begun.span is not None:
            self._begun.end(routes.of_environ(self._environ, self._begun.route))


class _Body:
    """A body that the application makes while it is sent: its code runs inside the span, the server's does not."""

    __slots__ = ("_begun", "_context", "_environ", "_iterable", "_next")

    def __init__(self, iterable: Any, begun: Request, environ: dict[str, Any]) -> None:
        self._iterable = iterable
        self._begun = begun
        self._environ = environ
        # A generator that has made a span of its own current finds it so again when it goes on.
        self._context = begun.context
        self._next: Callable[[], Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterable, name)

    def __iter__(self) -> _Body:
        self._next = self._inside(iter, self._iterable).__next__
        return self

    def __next__(self) -> Any:
        begun = self._begun
        token = attach(self._context)
        try:
            if self._next is None:
                # A middleware takes the generator of an application for what it is.
                self._next = iter(self._iterable).__next__
            chunk = self._next()
        except StopIteration:
            raise
        except BaseException as error:
            begun.failed(error)
            raise
        finally:
            self._context = get_current()
            detach(token)
        if not begun.is_sending:
            begun.is_sending = _is_something(chunk)
        return chunk

    def close(self) -> None:
        # The response is on its way: what fails now is noted, but its status stays what it was.
        self._begun.is_sending = True
        try:
            close = getattr(self._iterable, "close", None)
            if close is not None:
                self._inside(close)
        finally:
            self._begun.end(routes.of_environ(self._environ, self._begun.route))

    def __del__(self) -> None:
        """End the span after all: the server has forgotten the response without closing it."""
        if self._begun.span is not None:
            self._begun.end(routes.of_environ(self._environ, self._begun.route))

    def _inside(self, function: Callable[..., Any], *args: Any) -> Any:
        token = attach(self._context)
        try:
            return function(*args)
        except BaseException as error:
            self._begun.failed(error)
            raise
        finally:
            detach(token)


class _SizedBody(_Body):
    __slots__ = ()

    def __len__(self) -> int:
        return len(self._iterable)


def _is_something(chunk: Any) -> bool:
    """Tell whether a part of a body is more than nothing: the response is on its way then. Never raises."""
    try:
        return bool(chunk)
    except Exception:
        # An array of numpy's, which uWSGI sends under wsgi-accept-buffer, does not say.
        return True


def _is_buffer(body: Any) -> bool:
    """Tell whether uWSGI may send the very object as a whole, without iterating over it.

    It does so with what is an instance of ``bytes`` and, under ``wsgi-accept-buffer``, with any buffer
    (``uwsgi_python_send_body()`` in plugins/python/wsgi_subhandler.c). What it does not send so is no body either: it
    yields numbers.
    """
    try:
        memoryview(body).release()
    except Exception:
        return False
    return True


def _is_file(body: Any, environ: dict[str, Any]) -> bool:
    """Tell whether the server is to send a file its own way, for which it must get the very object.

    Gunicorn and wsgiref look for the class that ``wsgi.file_wrapper`` is; uWSGI compares with the file it was given.
    """
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(body, wrapper) if isinstance(wrapper, type) else hasattr(body, "read")


class _Close:
    """The ``close()`` of a file that the server gets as it is: ends the span as well, as does being forgotten."""

    __slots__ = ("_begun", "_environ", "_find", "_theirs")

    def __init__(self, body: Any, begun: Request, environ: dict[str, Any]) -> None:
        self._begun = begun
        self._environ = environ
        self._theirs = own = vars(body).get("close")
        # An object of Gunicorn's or wsgiref's has its close() for itself, and shall not hold itself alive by ours.
        self._find: Callable[[], Any] = (lambda: body) if own is None else weakref.ref(body)

    def __call__(self) -> Any:
        body, theirs = self._find(), self._theirs
        try:
            if theirs is None:
                del body.close
                theirs = getattr(body, "close", None)
            elif body is not None:
                body.close = theirs
            return theirs() if theirs is not None else None
        finally:
            self._end()

    def __del__(self) -> None:
        """End the span after all: the server has forgotten the file without closing it."""
        if self._begun.span is not None:
            self._end()

    def _end(self) -> None:
        self._begun.end(routes.of_environ(self._environ, self._begun.route))


def _closing(body: Any, begun: Request, environ: dict[str, Any]) -> Any:
    """Return the same object, whose ``close()`` ends the span as well."""
    try:
        body.close = _Close(body, begun, environ)
    except Exception:
        # It takes no attributes. The span ends when the file is handed over.
        begun.end(routes.of_environ(environ, begun.route))
    return body


def _path(environ: dict[str, Any]) -> str:
    """Return the path as the client sent it: Gunicorn's ``RAW_URI``, uWSGI's ``REQUEST_URI``, else rebuilt."""
    target: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if not target:
        decoded = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return quote(decoded, encoding="latin-1", errors="replace") or "/"
    return http.quoted(http.path_of(target))


def _mount(application: Any, script_name: str | None) -> str:
    """Return where the server has mounted the application: what its routes begin with.

    A middleware that stands between the server and this application may have put a tenant's name there, say, of which
    there is no end.
    """
    if not script_name or wrapping.identity(application) in _served:
        return script_name or ""
    found = (mount for mount in _find_mounts() if script_name == mount or script_name.startswith(f"{mount}/"))
    return max(found, key=len, default="")


def _headers(environ: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            yield key[len("HTTP_") :].replace("_", "-"), value
        elif key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            yield key.replace("_", "-"), value


class _Getter(Getter[dict[str, Any]]):
    """Reads the headers of an environ."""

    def get(self, carrier: dict[str, Any], key: str) -> list[str] | None:
        value = carrier.get(f"HTTP_{key.upper().replace('-', '_')}")
        return None if value is None else [value]

    def keys(self, carrier: dict[str, Any]) -> list[str]:
        return [key[len("HTTP_") :].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_GETTER: Final = _Getter()
