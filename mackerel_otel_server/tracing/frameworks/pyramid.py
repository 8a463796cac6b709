"""Pyramid. It has no 500 page of its own: an exception that no exception view takes passes through our wrapper."""

from __future__ import annotations

from typing import Any, Final

from mackerel_otel_server.tracing.framework import Framework, after
from mackerel_otel_server.tracing.requests.request import of
from mackerel_otel_server.tracing.requests.wsgi import trace_class


def _note_route(found: Any, _mapper: Any, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """Note the route as soon as Pyramid has found it; a request that is served by traversal has none.

    https://docs.pylonsproject.org/projects/pyramid/en/latest/api/interfaces.html#pyramid.interfaces.IRoutesMapper
    """
    route, begun = found["route"], of(request.environ)
    if route is not None and begun is not None:
        begun.note_route("/" + route.pattern.removeprefix("/"), request.environ)


FRAMEWORK: Final = Framework(
    name="Pyramid",
    package="pyramid",
    distribution="pyramid",
    oldest="2.0",
    instrumentation="pyramid",
    wsgi={"pyramid.router": lambda module: trace_class(module.Router)},
    routes={"pyramid.urldispatch": lambda module: after(module.RoutesMapper, "__call__", _note_route, "no route")},
)
