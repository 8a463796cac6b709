"""Starlette, and FastAPI, which stands on it.

A route is known when it handles the request. Mounts hand the same request on to what is below them, so each adds its
part; ``scope["root_path"]`` would have the concrete values instead of the templates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import asgi, gate, wrapping
from mackerel_otel_server.tracing.request import KEY, NO_TOKEN, REST, Request, of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_MOUNTED: Final = "mackerel_otel_server.mounted"
"""Where a scope holds the templates of the mounts above, as ``root_path`` holds their paths."""


def _trace_starlette(module: ModuleType) -> None:
    asgi.trace_class(module.Starlette)


def _note_starlette_routes(module: ModuleType) -> None:
    for cls in (module.Route, module.WebSocketRoute):
        _before(cls, "handle", _note_route)
    _before(module.Mount, "handle", _note_mount)


def _note_fastapi_routes(module: ModuleType) -> None:
    # What was imported before has been changed already; this class has a handle() of its own.
    if "handle" in vars(module.APIRoute):
        _before(module.APIRoute, "handle", _note_route)


def _trace_fastapi(module: ModuleType) -> None:
    if not wrapping.wrap_class(module.FastAPI, _call_fastapi):
        log.warning("FastAPI is not traced: its __call__ is not a Python function")


def _call_fastapi(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        if gate.active and args:
            _prepare_fastapi(application.__self__, args[0])  # type: ignore[attr-defined]
    except Exception:
        log.debug("FastAPI is not what it was", exc_info=True)
    return asgi.call(application, args, kwargs)


def _prepare_fastapi(app: Any, scope: Any) -> None:
    root_path = app.root_path
    if root_path and _MOUNTED not in scope:
        # As its own __call__ does in a moment: the server span begins before that.
        scope["root_path"] = root_path
        if (begun := of(scope)) is not None:
            begun.prefix = root_path.rstrip("/")
    # Newer releases make a server span and spans of their own parts wherever a tracer provider is set: a second server
    # span, and one without exceptions. Private, but the constructor's argument of this name would count also where
    # this package does not trace.
    telemetry = vars(app).get("_telemetry")
    if telemetry and telemetry["tracing"]:
        if telemetry["tracer_provider"] is None:
            telemetry["tracing"] = False
        else:
            # The application has asked for them: they stand for this request.
            scope.setdefault(KEY, NO_TOKEN)


def _before(cls: Any, name: str, note: Callable[[Any, Any, Request], None]) -> None:
    """Call ``note`` with the route, the scope and the request before a route handles a request."""
    original = vars(cls)[name]

    @imitates(original)
    async def handle(self: Any, scope: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if (begun := of(scope)) is not None:
                note(self, scope, begun)
        except Exception:
            log.debug("no route", exc_info=True)
        return await original(self, scope, *args, **kwargs)

    setattr(cls, name, handle)


def _note_route(route: Any, scope: Any, begun: Request) -> None:
    # A router that another one includes leaves its routes as they are; FastAPI says here under which prefix they are.
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        route = context
    begun.note_route(scope.get(_MOUNTED, "") + route.path, scope)


def _note_mount(mount: Any, scope: Any, begun: Request) -> None:
    scope[_MOUNTED] = mounted = scope.get(_MOUNTED, "") + mount.path
    begun.note_mount(mounted + REST, scope)


def _know_departure(name: str) -> Callable[[ModuleType], None]:
    def hook(module: ModuleType) -> None:
        asgi.add_departure(getattr(module, name))

    return hook


OLDEST: Final = {"starlette": ("starlette", "0.16"), "fastapi": ("fastapi", "0.70")}
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "starlette.applications": _trace_starlette,
    "starlette.routing": _note_starlette_routes,
    "starlette.requests": _know_departure("ClientDisconnect"),
    "starlette.websockets": _know_departure("WebSocketDisconnect"),
    "fastapi.applications": _trace_fastapi,
    "fastapi.routing": _note_fastapi_routes,
}
