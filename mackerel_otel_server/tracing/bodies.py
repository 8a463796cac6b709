"""The body of a WSGI response: whether it is complete when the application returns it, and what its end is otherwise.

A body that is complete is left alone, and its request's span ends. A body that the application makes while the server
sends it is replaced by an object that looks like it: the application's code runs inside the request's span there, and
the span ends when the body is exhausted or closed. https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import io
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import attach, detach, get_current

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import request
from mackerel_otel_server.tracing.standing_in import StandIn, original_of, stand_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from mackerel_otel_server.tracing.request import Request

_COMPLETE: Final = frozenset({list, tuple, bytes, str, bytearray, memoryview, dict, set, frozenset, io.BytesIO})

_complete_classes: tuple[type, ...] = ()
_answered: weakref.WeakKeyDictionary[Any, Context] = weakref.WeakKeyDictionary()
"""Complete bodies and responses of a framework's own class -> the contexts of their requests, whose spans have ended.

Not the requests themselves: an application may keep a response in its environ, which would keep both for ever.
"""


def add_complete_class(cls: type) -> None:
    """Take the responses of a framework's class for complete when the application returns them.

    What fails in its ``close()`` is noted by follow_close().
    """
    global _complete_classes
    _complete_classes = (*_complete_classes, cls)


def follow_close(cls: Any) -> None:
    """Note what the ``close()`` of a framework's class raises, where it closes a complete body or response."""
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
    """End the span of a request now or when its body ends.

    Args:
        body: What the application has returned.
        begun: The request.
        environ: Its environ.

    Returns:
        What the server is to get: ``body`` itself, or what looks like it.
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
    """Tell whether an application's subclass of a framework's class is iterated or closed in a way of its own."""
    return all((kind.__iter__, kind.close) != (cls.__iter__, cls.close) for cls in _complete_classes)  # type: ignore[attr-defined]


def _is_complete(body: Any, kind: Any, environ: dict[str, Any]) -> bool:
    # uWSGI takes None for an empty body, and other servers fail, see _note_no_body().
    if not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        return True
    if isinstance(body, (list, tuple)):
        return kind.__iter__ in (list.__iter__, tuple.__iter__) and not hasattr(body, "close")
    return "uwsgi.version" in environ and _is_buffer(body)


def _note_no_body(body: Any, begun: Request) -> None:
    """Note that the server is going to fail with what is no body, but for Gunicorn's sign that there is none."""
    worker = sys.modules.get("gunicorn.workers.base_async")
    if worker is not None and body is getattr(worker, "ALREADY_HANDLED", worker):
        return
    try:
        iter(body)
    except TypeError as error:
        begun.failed(error)


def _is_buffer(body: Any) -> bool:
    """Tell whether uWSGI may send the very object as a whole, without iterating over it.

    It does so with what is an instance of ``bytes`` and, under ``wsgi-accept-buffer``, with any buffer
    (``uwsgi_python_send_body()`` in plugins/python/wsgi_subhandler.c). A buffer that uWSGI iterates over instead is no
    body, because it yields numbers.
    """
    try:
        memoryview(body).release()
    except Exception:
        return False
    return True


def is_something(chunk: Any) -> bool:
    """Tell whether a part of a body is more than nothing: the response is on its way then. Never raises."""
    try:
        return bool(chunk)
    except Exception:
        # An array of numpy's, which uWSGI sends under wsgi-accept-buffer, does not say.
        return True


class _Sending:
    """A body that is being sent; shared by the body and its iterators, so that the last of them ends the span."""

    __slots__ = ("begun", "context")

    def __init__(self, begun: Request) -> None:
        self.begun = begun
        # A generator that has made a span of its own current finds it so again when it goes on.
        self.context = begun.context

    def inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run code of the application's inside the request's span."""
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
    """A body that is no iterator: each ``iter()`` begins anew, as with the original."""

    __slots__ = ("_mackerel_otel_sending",)

    def __iter__(self) -> Any:
        sending = _sending_of(self)
        return _streamed(sending.inside(iter, original_of(self)), sending)

    @property
    def close(self) -> Any:
        """The original's ``close()``, if it has one; ends the span as well."""
        close, sending = original_of(self).close, _sending_of(self)

        def close_and_end(*args: Any, **kwargs: Any) -> Any:
            # The response is on its way: what fails now is noted, but its status stays what it was.
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
    """Tell whether the server is to send a file its own way, for which it must get the very object.

    Gunicorn and wsgiref look for the class that ``wsgi.file_wrapper`` is; uWSGI compares with the file it was given.
    """
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is None:
        return False
    return isinstance(body, wrapper) if isinstance(wrapper, type) else hasattr(body, "read")


class _Close:
    """The ``close()`` of a file that the server gets as it is: ends the span as well, as does being forgotten."""

    __slots__ = ("_begun", "_find", "_theirs")

    def __init__(self, body: Any, begun: Request) -> None:
        self._begun = begun
        self._theirs = own = vars(body).get("close")
        # The wrappers of Gunicorn and wsgiref keep a close() in themselves. A strong reference from our close() to such
        # a wrapper would make a cycle.
        self._find: Callable[[], Any] = (lambda: body) if own is None else weakref.ref(body)

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
        # It takes no attributes. The span ends when the file is handed over.
        begun.end()
    return body
