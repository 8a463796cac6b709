"""The route template of a request: what a framework leaves in the environ, read when the request ends.

Frameworks that leave nothing there say their route to the request themselves, see ``frameworks``.
"""

from __future__ import annotations

from typing import Any

from mackerel_otel_server.log import log


def of_environ(environ: dict[str, Any]) -> str | None:
    """Return the template that Bottle or Pyramid matched, None where no route did. Never raises."""
    try:
        if "bottle.route" in environ:  # Bottle._handle()
            return str(environ["bottle.route"].rule)
        if "bfg.routes.route" in environ:  # pyramid/router.py
            return str(environ["bfg.routes.route"].pattern)
    except Exception:
        log.debug("no route", exc_info=True)
    return None
