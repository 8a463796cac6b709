"""Pyramid. It has no 500 page of its own: what no exception view takes comes to the server, and passes by us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.request import of
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _trace_class(module: ModuleType) -> None:
    trace_class(module.Router)


def _note_route(module: ModuleType) -> None:
    """Note the route as soon as a request is matched with it; traversal matches none.

    https://docs.pylonsproject.org/projects/pyramid/en/latest/api/interfaces.html#pyramid.interfaces.IRoutesMapper
    """
    cls = module.RoutesMapper
    original = cls.__call__

    @imitates(original)
    def match(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, request, *args, **kwargs)
        try:
            route, begun = found["route"], of(request.environ)
            if route is not None and begun is not None:
                begun.note_route("/" + route.pattern.removeprefix("/"), request.environ)
        except Exception:
            log.debug("no route", exc_info=True)
        return found

    cls.__call__ = match


OLDEST: Final = {"pyramid": ("pyramid", "2.0")}
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "pyramid.router": _trace_class,
    "pyramid.urldispatch": _note_route,
}
