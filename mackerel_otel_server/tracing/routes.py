"""The route template of a request: what a framework leaves in the environ, read when the request ends.

Frameworks that leave nothing there say their route to the request themselves, see ``frameworks``.
"""

from __future__ import annotations

from typing import Any, Final

from mackerel_otel_server.log import log

BOTTLE: Final = "bottle.route"
"""Where Bottle leaves the route that it has matched last."""
_ENTERED: Final = "mackerel_otel_server.bottle.entered"
"""Where an environ holds the id() of the last mount by which one Bottle application has called another one."""


def enter_mount(environ: dict[str, Any]) -> str:
    """Return where the Bottle application that is about to be called is mounted in another one. Never raises.

    https://bottlepy.org/docs/stable/api.html#bottle.Bottle.mount

    Args:
        environ: Of the call. The route of the application below is going to replace that of the mount there.
    """
    try:
        mount = environ.get(BOTTLE)
        if mount is not None and environ.get(_ENTERED) != id(mount):
            environ[_ENTERED] = id(mount)
            return _mounted_at(mount)
    except Exception:
        log.debug("no mount", exc_info=True)
    return ""


def of_environ(environ: dict[str, Any], route: str | None) -> str | None:
    """Return the template that Bottle matched, None where it did not. Never raises.

    Args:
        environ: At the end of the request.
        route: What a framework within has told: Bottle may have mounted its application.
    """
    if BOTTLE not in environ:
        return None
    try:
        matched = environ[BOTTLE]  # Bottle._handle()
        if environ.get(_ENTERED) == id(matched):
            # The Bottle application below the mount has matched nothing.
            return str(matched.rule).removeprefix(_mounted_at(matched))
        return str(matched.rule) if route is None else _mounted_at(matched) + route
    except Exception:
        log.debug("no route", exc_info=True)
        return None


def _mounted_at(route: Any) -> str:
    """Return ``/shop`` for a mount at ``/shop/``, nothing for a route that is no mount."""
    parts = str(route.config.get("mountpoint.prefix", "")).split("/")
    return "".join(f"/{part}" for part in parts if part)
