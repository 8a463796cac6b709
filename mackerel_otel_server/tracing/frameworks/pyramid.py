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


def _hook(module: ModuleType) -> None:
    trace_class(module.Router)
    _note_route(module.Router)


def _note_route(cls: Any) -> None:
    """Note the route that a request has been matched with; traversal matches none.

    https://docs.pylonsproject.org/projects/pyramid/en/latest/api/request.html#pyramid.request.Request.matched_route
    """
    original = cls.invoke_request

    @imitates(original)
    def invoke_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, request, *args, **kwargs)
        finally:
            try:
                route, begun = request.matched_route, of(request.environ)
                if route is not None and begun is not None:
                    begun.note_route("/" + route.pattern.removeprefix("/"), request.environ)
            except Exception:
                log.debug("no route", exc_info=True)

    cls.invoke_request = invoke_request


HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {"pyramid.router": _hook}
