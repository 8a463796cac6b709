"""Falcon's WSGI and ASGI applications."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import asgi, wsgi
from mackerel_otel_server.tracing.request import of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from mackerel_otel_server.tracing.request import Request


def _trace_wsgi(module: ModuleType) -> None:
    wsgi.trace_class(module.App)
    # The class of ASGI applications is below this one, and has a _python_error_handler() of its own.
    _note_route(module.App)
    _note_errors(module.App)


def _trace_asgi(module: ModuleType) -> None:
    asgi.trace_class(module.App)
    _note_errors(module.App)


def _note_route(cls: Any) -> None:
    """Note the route that Falcon's router has found: the last of the four values that it looks up for each request.

    Private, but a middleware would show in ``falcon.inspect``, and an application can have a router of its own.
    """
    original = vars(cls).get("_get_responder")
    if original is None:
        log.debug("Falcon has no _get_responder: its requests come without a route")
        return

    @imitates(original)
    def get_responder(self: Any, req: Any) -> Any:
        found = original(self, req)
        try:
            if found[-1] is not None and (begun := _request(req)) is not None:
                begun.note_route(found[-1], _carrier(req))
        except Exception:
            log.debug("no route", exc_info=True)
        return found

    cls._get_responder = get_responder


def _note_errors(cls: Any) -> None:
    """Note the exceptions that Falcon's own handler turns into its 500 page; the application's handlers replace it.

    Private, but nothing else tells the one from the others.
    """
    original = vars(cls).get("_python_error_handler")
    if original is None:
        log.debug("Falcon has no _python_error_handler: its 500 pages come without an exception")
        return

    def note(req: Any, error: BaseException) -> None:
        try:
            if (begun := _request(req)) is not None:
                begun.record(error)
        except Exception:
            log.debug("an exception is not noted", exc_info=True)

    handle: Callable[..., Any]
    if inspect.iscoroutinefunction(original):

        @imitates(original)
        async def handle(self: Any, req: Any, resp: Any, error: BaseException, *args: Any, **kwargs: Any) -> Any:
            note(req, error)
            return await original(self, req, resp, error, *args, **kwargs)
    else:

        @imitates(original)
        def handle(self: Any, req: Any, resp: Any, error: BaseException, *args: Any, **kwargs: Any) -> Any:
            note(req, error)
            return original(self, req, resp, error, *args, **kwargs)

    cls._python_error_handler = handle


def _request(req: Any) -> Request | None:
    return of(_carrier(req))


def _carrier(req: Any) -> Any:
    # A request of ASGI has no env: it raises AttributeError.
    environ = getattr(req, "env", None)
    return req.scope if environ is None else environ


OLDEST: Final = {"falcon": ("falcon", "3.0")}
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {"falcon.app": _trace_wsgi, "falcon.asgi.app": _trace_asgi}
