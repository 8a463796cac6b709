"""Bottle. It leaves its route in the environ, see ``routes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import routes
from mackerel_otel_server.tracing.http import SERVER_ERROR
from mackerel_otel_server.tracing.request import of
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _note_mounts(cls: Any) -> None:
    """Note where an application is mounted in another one that calls it, as Bottle 0.12 does with all it mounts."""
    original = cls.__call__

    @imitates(original)
    def call(self: Any, environ: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if (begun := of(environ)) is not None:
                begun.add_prefix(routes.enter_mount(environ))
        except Exception:
            log.debug("no mount", exc_info=True)
        return original(self, environ, *args, **kwargs)

    cls.__call__ = call


def _note_errors(module: ModuleType) -> None:
    """Note the exceptions that Bottle makes an HTTPError of, for its 500 page or the application's.

    https://bottlepy.org/docs/stable/api.html#bottle.HTTPError
    """
    original = module.HTTPError.__init__

    @imitates(original)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            if isinstance(self.exception, BaseException) and self.status_code >= SERVER_ERROR:
                begun = of(module.request.environ)
                if begun is not None:
                    begun.record(self.exception)
        except Exception:
            log.debug("an exception is not noted", exc_info=True)

    module.HTTPError.__init__ = initialize


def _hook(module: ModuleType) -> None:
    _note_mounts(module.Bottle)
    trace_class(module.Bottle)
    _note_errors(module)


OLDEST: Final = {"bottle": ("bottle", "0.12")}
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {"bottle": _hook}
