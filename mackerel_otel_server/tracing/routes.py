"""The route template of a request: what a framework leaves in the environ, read when the request ends.

Frameworks that leave nothing there say their route to the request themselves, see ``frameworks``.
"""

from __future__ import annotations

from typing import Any

from mackerel_otel_server.log import log


def of_environ(environ: dict[str, Any], route: str | None) -> str | None:
    """Return the template that Bottle matched, None where it did not. Never raises.

    Args:
        environ: At the end of the request.
        route: What a framework within has told: Bottle may have mounted its application.
    """
    if "bottle.route" not in environ:
        return None
    try:
        matched = environ["bottle.route"]  # Bottle._handle()
        if route is None:
            return str(matched.rule)
        return str(matched.config.get("mountpoint.prefix", "")).rstrip("/") + route
    except Exception:
        log.debug("no route", exc_info=True)
        return None
