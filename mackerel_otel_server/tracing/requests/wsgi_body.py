"""The body of a WSGI response, and when it ends.

A body that is complete when the application returns it is left alone, and the span of its request ends. Other bodies
are made by the application while the server sends them. Such a body is replaced by an object that looks like it and
runs the application's code inside the span of the request. The span ends when the body is exhausted or closed.
https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import io
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import attach, detach, get_current

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing.requests import request
from mackerel_otel_server.tracing.requests.proxies import StandIn, original_of, stand_in
from mackerel_otel_server.tracing.requests.stacks import serves

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from mackerel_otel_server.tracing.requests.request import Request

_COMPLETE: Final = frozenset({list, tuple, bytes, str, bytearray, memoryview, dict, set, frozenset, io.BytesIO})

_complete_classes: tuple[type, ...] = ()
_answered: weakref.WeakKeyDictionary[Any, Context] = weakref.WeakKeyDictionary()
"""Complete bodies and responses of a framework's own class -> the contexts of their requests, whose spans have ended.

The requests themselves would never be freed if the application keeps its response in the environ.
"""


def add_complete_class(cls: type) -> None:
    """Take the responses of a framework's class for complete when the application returns them.

    follow_close() notes the exceptions of their ``close()``.
    """
    global _complete_classes
    _complete_classes = (*_complete_classes, cls)


def follow_close(cls: Any) -> None:
    """Note the exceptions of the ``close()`` of a framework's class whose responses are complete."""
    original = cls.close

    @imitates(original)
    def close(self: Any) -> Any:
        try:
            return original(self)
        except Exception as error:
            failed_to_close(self, error)
            raise

    cls.close = close


def failed_to_close(response: Any, error: BaseException) -> None:
    """Note an exception that the ``close()`` of a complete response has raised. Never raises."""
    try:
        if (context := _answered.get(response)) is not None:
            request.record_late(error, context)
    except Exception:
        log.debug("an exception is not noted", exc_info=True)


def followed(body: Any, begun: Request, environ: dict[str, Any]) -> Any:
    """End the span of a request now or when the body ends that the application has returned.

    Returns:
        The body for the server: ``body`` itself, or an object that looks like it.
    """
    try:
        kind = type(body)
        if kind in _COMPLETE:
            pass
        elif body is begun.complete_body or (isinstance(body, _complete_classes) and not _has_own_ways(kind)):
            _answered[body] = begun.context
        elif _is_file(body, environ):
            return _closing(body, begun)
        elif not _is_complete(body, kind, environ):
            return _streamed(body, _Sending(begun))
        elif not hasattr(kind, "__iter__") and not (body is None and "uwsgi.version" in environ):
            _note_no_body(body, begun)
    except Exception:
        log.debug("the end of a response is not known", exc_info=True)
    if not begun.status:
        begun.note_takeover()
    begun.end()
    return body


def _has_own_ways(kind: Any) -> bool:
    """Tell whether an application's subclass of a framework's class has its own ``__iter__()`` or ``close()``."""
    return all((kind.__iter__, kind.close) != (cls.__iter__, cls.close) for cls in _complete_classes)  # type: ignore[attr-defined]


def _is_complete(body: Any, kind: Any, environ: dict[str, Any]) -> bool:
    # uWSGI takes None for an empty body. Other servers fail then, see _note_no_body().
    if not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        return True
    if isinstance(body, (list, tuple)):
        return kind.__iter__ in (list.__iter__, tuple.__iter__) and not hasattr(body, "close")
    return "uwsgi.version" in environ and _is_buffer(body)


def _note_no_body(body: Any, begun: Request) -> None:
    """Note that the server is going to fail, because what the application has returned is no body.

    Gunicorn has an object that stands for "no body", with which it does not fail.
    """
    worker = sys.modules.get("gunicorn.workers.base_async")
    if worker is not None and body is getattr(worker, "ALREADY_HANDLED", worker):
        return
    try:
        iter(body)
    except TypeError as error:
        begun.failed(error)


def _is_buffer(body: Any) -> bool:
    """Tell whether uWSGI may send the object itself as a whole, without iterating over it.

    uWSGI does so with instances of ``bytes`` and, under ``wsgi-accept-buffer``, with any buffer; see
    ``uwsgi_python_send_body()`` in plugins/python/wsgi_subhandler.c. A buffer that uWSGI iterates over is no valid
    body, because it yields numbers.
    """
    try:
        memoryview(body).release()
    except Exception:
        return False
    return True


def is_something(chunk: Any) -> bool:
    """Tell whether a part of a body is not empty, so that the response is on its way. Never raises."""
    try:
        return bool(chunk)
    except Exception:
        # An array of numpy has no truth value, and uWSGI sends arrays under wsgi-accept-buffer.
        return True


class _Sending:
    """A body that is being sent. The body and its iterators share it, so that the last one of them ends the span."""

    __slots__ = ("begun", "context")

    def __init__(self, begun: Request) -> None:
        self.begun = begun
        # If a generator has made a span current, that span is current again when the generator goes on.
        self.context = begun.context

    @serves
    def inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run code of the application inside the request's span."""
        begun = self.begun
        token = attach(self.context)
        is_exhausted = False
        try:
            return function(*args)
        except StopIteration:
            is_exhausted = True
            raise
        except BaseException as error:
            begun.failed(error)
            raise
        finally:
            self.context = get_current()
            detach(token)
            if is_exhausted:
                begun.end()

    def __del__(self) -> None:
        """End the span after all: the server has forgotten the response without closing it."""
        if self.begun.span is not None:
            self.begun.end()


class _Body(StandIn):
    """A body that is no iterator. Each ``iter()`` begins again, as with the original."""

    __slots__ = ("_mackerel_otel_sending",)

    def __iter__(self) -> Any:
        sending = _sending_of(self)
        return _streamed(sending.inside(iter, original_of(self)), sending)

    @property
    def close(self) -> Any:
        """The ``close()`` of the original, if it has one. It ends the span as well."""
        close, sending = original_of(self).close, _sending_of(self)

        def close_and_end(*args: Any, **kwargs: Any) -> Any:
            # The response is on its way, so its status stays what it was if close() raises. The exception is noted.
            sending.begun.is_sending = True
            try:
                return sending.inside(lambda: close(*args, **kwargs))
            finally:
                sending.begun.end()

        return close_and_end


class _Iterator(_Body):
    """A body that is an iterator, or the iterator of a body."""

    __slots__ = ()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        sending = _sending_of(self)
        chunk = sending.inside(original_of(self).__next__)
        if not sending.begun.is_sending:
            sending.begun.is_sending = is_something(chunk)
        return chunk


_set_sending: Final = _Body._mackerel_otel_sending.__set__  # type: ignore[attr-defined]  # noqa: SLF001
_sending_of: Final[Callable[[Any], _Sending]] = _Body._mackerel_otel_sending.__get__  # type: ignore[attr-defined]  # noqa: SLF001


def _streamed(original: Any, sending: _Sending) -> Any:
    made = stand_in(_Iterator if hasattr(type(original), "__next__") else _Body, original)
    _set_sending(made, sending)
    return made


def _is_file(body: Any, environ: dict[str, Any]) -> bool:
    """Tell whether the body is a file that the server sends in its own way. Then the server must get the same object.

    Gunicorn and wsgiref look whether it is an instance of their ``wsgi.file_wrapper``. uWSGI looks whether it is the
    file that ``wsgi.file_wrapper()`` got.
    """
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is None:
        return False
    return isinstance(body, wrapper) if isinstance(wrapper, type) else hasattr(body, "read")


class _Close:
    """The ``close()`` of a file that the server gets as it is. It ends the span, and so does its destruction."""

    __slots__ = ("_begun", "_find", "_theirs")

    def __init__(self, body: Any, begun: Request) -> None:
        self._begun = begun
        self._theirs = own = vars(body).get("close")
        # The wrappers of Gunicorn and wsgiref have close() as an attribute of the instance, which this object replaces.
        # A strong reference from here to the wrapper would make a cycle.
        self._find: Callable[[], Any] = (lambda: body) if own is None else weakref.ref(body)

    @serves
    def __call__(self) -> Any:
        body, theirs, begun = self._find(), self._theirs, self._begun
        try:
            if theirs is None:
                del body.close
                theirs = getattr(body, "close", None)
            elif body is not None:
                body.close = theirs
            return theirs() if theirs is not None else None
        except BaseException as error:
            begun.is_sending = True
            begun.failed(error)
            raise
        finally:
            begun.end()

    def __del__(self) -> None:
        """End the span after all: the server has forgotten the file without closing it."""
        if self._begun.span is not None:
            self._begun.end()


def _closing(body: Any, begun: Request) -> Any:
    """Return the same object, whose ``close()`` ends the span as well."""
    try:
        body.close = _Close(body, begun)
    except Exception:
        # The file takes no attributes, so the span ends when the server gets the file.
        begun.end()
    return body
