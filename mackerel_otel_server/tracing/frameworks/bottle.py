"""Bottle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.tracing.framework import Framework, after
from mackerel_otel_server.tracing.requests.http_attributes import SERVER_ERROR
from mackerel_otel_server.tracing.requests.request import of
from mackerel_otel_server.tracing.requests.wsgi import trace_class

if TYPE_CHECKING:
    from types import ModuleType

_MATCHED: Final = "bottle.route"
"""Where ``Bottle._handle()`` puts the route into the environ as soon as the router has found it."""


def _note_route(module: ModuleType) -> None:
    """Note the route as soon as a router has found it.

    https://bottlepy.org/docs/stable/api.html#bottle.Router
    """

    def note(found: Any, _router: Any, environ: Any) -> None:
        begun, route = of(environ), found[0]
        # Bottle asks the router again for the same request when a plugin raises RouteReset.
        if begun is not None and begun.carrier is environ and environ.get(_MATCHED) is not route:
            mounted_at = _mounted_at(route)
            begun.prefix += mounted_at
            begun.note_route(route.rule.removeprefix(mounted_at), environ)

    after(module.Router, "match", note, "no route")


def _mounted_at(route: Any) -> str:
    """Return ``/shop`` for the route of an application that is mounted at ``/shop/``, nothing for other routes.

    The mounted application may be of any framework. If it has routes, its own one follows the prefix.
    https://bottlepy.org/docs/stable/api.html#bottle.Bottle.mount
    """
    parts = str(route.config.get("mountpoint.prefix", "")).split("/")
    return "".join(f"/{part}" for part in parts if part)


def _note_errors(module: ModuleType) -> None:
    """Note the exceptions that Bottle puts into an HTTPError, for its own 500 page or the application's.

    https://bottlepy.org/docs/stable/api.html#bottle.HTTPError
    """

    def note(_none: None, error: Any, *_args: Any, **_kwargs: Any) -> None:
        if isinstance(error.exception, BaseException) and error.status_code >= SERVER_ERROR:
            begun = of(module.request.environ)
            if begun is not None:
                begun.record(error.exception)

    after(module.HTTPError, "__init__", note, "an exception is not noted")


FRAMEWORK: Final = Framework(
    name="Bottle",
    package="bottle",
    distribution="bottle",
    oldest="0.12",
    wsgi={"bottle": lambda module: trace_class(module.Bottle)},
    routes={"bottle": _note_route},
    exceptions={"bottle": _note_errors},
)
