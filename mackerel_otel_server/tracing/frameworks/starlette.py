"""Starlette.

A route is known when it handles the request. A mount hands the same request on to the routes below the mount, so each
mount and the route add their parts. ``scope["root_path"]`` would have the concrete values instead of the templates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.tracing.framework import Framework, before
from mackerel_otel_server.tracing.requests import asgi
from mackerel_otel_server.tracing.requests.request import REST, of

if TYPE_CHECKING:
    from types import ModuleType

MOUNTED: Final = "mackerel_otel_server.mounted"
"""Where a scope holds the templates of the mounts above, as ``root_path`` holds their paths."""


def _note_routes(module: ModuleType) -> None:
    before(module.Route, "handle", note_route, "no route")
    before(module.WebSocketRoute, "handle", note_route, "no route")
    before(module.Mount, "handle", _note_mount, "no route")


def note_route(route: Any, scope: Any, *_args: Any, **_kwargs: Any) -> None:
    """Note the template of a route below the mounts above it."""
    if (begun := of(scope)) is None:
        return
    # A router of FastAPI that another one includes leaves its routes as they are; FastAPI says under which prefix.
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        route = context
    begun.note_route(scope.get(MOUNTED, "") + route.path, scope)


def _note_mount(mount: Any, scope: Any, *_args: Any, **_kwargs: Any) -> None:
    if (begun := of(scope)) is not None:
        scope[MOUNTED] = mounted = scope.get(MOUNTED, "") + mount.path
        begun.note_mount(mounted + REST, scope)


FRAMEWORK: Final = Framework(
    name="Starlette",
    package="starlette",
    distribution="starlette",
    oldest="0.16",
    instrumentation="starlette",
    asgi={"starlette.applications": lambda module: asgi.trace_class(module.Starlette)},
    routes={"starlette.routing": _note_routes},
    exceptions={
        "starlette.requests": lambda module: asgi.add_departure(module.ClientDisconnect),
        "starlette.websockets": lambda module: asgi.add_departure(module.WebSocketDisconnect),
    },
)
