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


class _NoteRoute:
    """A middleware, the innermost: it takes part in a request that Falcon's router has seen, and in no other."""

    def process_response(self, req: Any, resp: Any, resource: Any, req_succeeded: Any) -> None:  # noqa: ARG002 - Falcon's names
        """Note the route. Never raises."""
        _note_route(req.env, req)

    async def process_response_async(self, req: Any, resp: Any, resource: Any, req_succeeded: Any) -> None:  # noqa: ARG002 - the same
        """Note the route. Never raises."""
        _note_route(req.scope, req)

    async def process_resource_ws(self, req: Any, ws: Any, resource: Any, params: Any) -> None:  # noqa: ARG002 - the same
        """Note the route of a WebSocket. Never raises."""
        _note_route(req.scope, req)


def _note_route(carrier: dict[str, Any], req: Any) -> None:
    begun = of(carrier)
    if begun is not None:
        begun.note_route(req.uri_template, carrier)


_NOTE_ROUTE: Final = _NoteRoute()


def _trace_wsgi(module: ModuleType) -> None:
    wsgi.trace_class(module.App)
    # ASGI applications are of a class below this one, and have all but these three in common.
    _add_middleware(module.App)
    _note_errors(module.App, "env")


def _trace_asgi(module: ModuleType) -> None:
    asgi.trace_class(module.App)
    _note_errors(module.App, "scope")


def _add_middleware(cls: Any) -> None:
    """Give each application our middleware.

    https://falcon.readthedocs.io/en/stable/api/middleware.html
    """
    original = cls.__init__

    @imitates(original)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            self.add_middleware(_NOTE_ROUTE)
        except Exception:
            log.debug("no routes", exc_info=True)

    cls.__init__ = initialize


def _note_errors(cls: Any, carrier: str) -> None:
    """Note the exceptions that Falcon's own handler turns into its 500 page; the application's handlers replace it.

    Private, but nothing else tells the one from the others.
    """
    original = vars(cls).get("_python_error_handler")
    if original is None:
        log.debug("Falcon has no _python_error_handler: its 500 pages come without an exception")
        return

    def note(req: Any, error: BaseException) -> None:
        try:
            if (begun := of(getattr(req, carrier))) is not None:
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


HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {"falcon.app": _trace_wsgi, "falcon.asgi.app": _trace_asgi}
