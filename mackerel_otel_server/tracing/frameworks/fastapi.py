"""FastAPI, which stands on Starlette."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.framework import Framework, before
from mackerel_otel_server.tracing.frameworks import starlette
from mackerel_otel_server.tracing.requests import asgi, wrapping
from mackerel_otel_server.tracing.requests.request import KEY, NO_TOKEN, of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _call(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        if on_or_off.active and args:
            _prepare(application.__self__, args[0])  # type: ignore[attr-defined]
    except Exception:
        log.debug("FastAPI is not what it was", exc_info=True)
    return asgi.call(application, args, kwargs)


def _prepare(app: Any, scope: Any) -> None:
    root_path = app.root_path
    if root_path and starlette.MOUNTED not in scope:
        # FastAPI's own __call__ does the same in a moment, but the server span begins before that.
        scope["root_path"] = root_path
        if (begun := of(scope)) is not None:
            begun.prefix = root_path.rstrip("/")
    # Newer releases make a server span and spans of their own parts wherever a tracer provider is set. Their server
    # span would be the request's second one, and has no exceptions. The attribute is private, but the constructor's
    # argument of this name would count also where this package does not trace.
    telemetry = vars(app).get("_telemetry")
    if telemetry and telemetry["tracing"]:
        if telemetry["tracer_provider"] is None:
            telemetry["tracing"] = False
        else:
            # The application has asked for FastAPI's spans, so they stand for this request.
            scope.setdefault(KEY, NO_TOKEN)


def _note_routes(module: ModuleType) -> None:
    # Older releases inherit Starlette's handle(), which notes the route already.
    if "handle" in vars(module.APIRoute):
        before(module.APIRoute, "handle", starlette.note_route, "no route")


FRAMEWORK: Final = Framework(
    name="FastAPI",
    package="fastapi",
    distribution="fastapi",
    oldest="0.70",
    instrumentation="fastapi",
    asgi={"fastapi.applications": lambda module: wrapping.trace_class(module.FastAPI, _call)},
    routes={"fastapi.routing": _note_routes},
)
