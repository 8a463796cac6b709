"""Werkzeug, on which Flask stands: its dispatcher, and its responses.

The paths at which the dispatcher mounts applications belong to their routes:
https://werkzeug.palletsprojects.com/en/stable/middleware/dispatcher/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import bodies
from mackerel_otel_server.tracing.request import of
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _note_mounts(module: ModuleType) -> None:
    cls: Any = module.DispatcherMiddleware
    original = cls.__call__

    @imitates(original)
    def dispatch(self: Any, environ: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if (begun := of(environ)) is not None:
                begun.add_prefix(_mount(self.mounts, environ.get("PATH_INFO", "")))
        except Exception:
            log.debug("no mount", exc_info=True)
        return original(self, environ, *args, **kwargs)

    cls.__call__ = dispatch
    trace_class(cls)


def _mount(mounts: Any, path: str) -> str:
    """Return the longest of the paths in ``mounts`` that ``path`` is below, as the dispatcher finds it."""
    while "/" in path:
        if path in mounts:
            return path
        path = path.rpartition("/")[0]
    return ""


OLDEST: Final = {"werkzeug": ("werkzeug", "2.0")}


def _know_complete_bodies(module: ModuleType) -> None:
    """Tell the request which iterator stands for a list of parts, as in nearly all of Flask's responses.

    https://werkzeug.palletsprojects.com/en/stable/wrappers/#werkzeug.wrappers.Response.get_app_iter
    """
    cls: Any = module.Response
    original = cls.get_app_iter

    @imitates(original)
    def get_app_iter(self: Any, environ: Any) -> Any:
        body = original(self, environ)
        try:
            if self.is_sequence and (begun := of(environ)) is not None:
                begun.complete_body = body
        except Exception:
            log.debug("nobody knows whether a body is complete", exc_info=True)
        return body

    cls.get_app_iter = get_app_iter


def _follow_close(module: ModuleType) -> None:
    """Note what fails when a complete body is closed, such as a function of Response.call_on_close()."""
    bodies.follow_close(module.ClosingIterator)


HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "werkzeug.middleware.dispatcher": _note_mounts,
    "werkzeug.wrappers.response": _know_complete_bodies,
    "werkzeug.wsgi": _follow_close,
}
