"""Werkzeug's dispatcher: the paths at which it mounts applications belong to their routes.

https://werkzeug.palletsprojects.com/en/stable/middleware/dispatcher/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.request import of
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _hook(module: ModuleType) -> None:
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
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {"werkzeug.middleware.dispatcher": _hook}
