"""Falcon's WSGI applications."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.request import KEY
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class _NoteRoute:
    """A middleware, the innermost: it takes part in a request that Falcon's router has seen, and in no other."""

    def process_response(self, req: Any, resp: Any, resource: Any, req_succeeded: Any) -> None:  # noqa: ARG002 - Falcon's names
        """Note the route. Never raises."""
        begun = req.env.get(KEY)
        if begun is not None:
            begun.route = req.uri_template


_NOTE_ROUTE: Final = _NoteRoute()


def _hook(module: ModuleType) -> None:
    trace_class(module.App)
    _add_middleware(module.App)
    _note_errors(module.App)


def _add_middleware(cls: Any) -> None:
    """Give each application our middleware.

    https://falcon.readthedocs.io/en/stable/api/middleware.html
    """
    original = cls.__init__

    @functools.wraps(original)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # ASGI applications call theirs another way.
        if not any(base.__module__ == "falcon.asgi.app" for base in type(self).__mro__):
            try:
                self.add_middleware(_NOTE_ROUTE)
            except Exception:
                log.debug("no routes", exc_info=True)

    cls.__init__ = initialize


def _note_errors(cls: Any) -> None:
    """Note the exceptions that Falcon's own handler turns into its 500 page; the application's handlers replace it.

    Private, but nothing else tells the one from the others.
    """
    original = vars(cls).get("_python_error_handler")
    if original is None:
        log.debug("Falcon has no _python_error_handler: its 500 pages come without an exception")
        return

    @functools.wraps(original)
    def handle(self: Any, req: Any, resp: Any, error: BaseException, *args: Any, **kwargs: Any) -> Any:
        try:
            if (begun := req.env.get(KEY)) is not None:
                begun.record(error)
        except Exception:
            log.debug("an exception is not noted", exc_info=True)
        return original(self, req, resp, error, *args, **kwargs)

    cls._python_error_handler = handle


HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {"falcon.app": _hook}
