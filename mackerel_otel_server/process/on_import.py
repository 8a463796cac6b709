"""The one way to change a module of the application's as soon as it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

_registered: set[tuple[str, object]] = set()


def on_import(name: str, hook: Callable[[Any], None], lost: str) -> None:
    """Call a hook with a module once the application has imported it, or now where that has happened.

    A hook is called once for a module, however often it is registered. It runs inside the application's import
    statement, so an exception of the hook ends here, in a warning.

    Args:
        name: The module's name. This does not import the module.
        hook: Gets the module.
        lost: What follows where the hook fails, for the warning: "it is not traced".
    """
    if (name, hook) in _registered:
        return
    _registered.add((name, hook))

    def run(module: Any) -> None:
        try:
            hook(module)
        except Exception as error:
            log.warning("%s is not as expected (%s: %s): %s", name, type(error).__name__, error, lost)
            log.debug("a hook of %s failed", name, exc_info=True)

    wrapt.register_post_import_hook(run, name)
