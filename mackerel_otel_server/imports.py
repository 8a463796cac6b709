"""The one way to change a module of the application's as soon as it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Callable


def _warn(name: str, error: Exception) -> None:
    log.warning("%s is not traced: %s: %s", name, type(error).__name__, error)


def on_import(name: str, hook: Callable[[Any], None], failed: Callable[[str, Exception], None] = _warn) -> None:
    """Call a hook with a module once the application has imported it, or now where that has happened.

    The hook runs inside the application's import statement, so an exception of the hook ends here.

    Args:
        name: Of the module; nothing imports it for this.
        hook: Gets the module.
        failed: Gets the module's name and what the hook raised, to say what does not work now. Must not raise.
    """

    def run(module: Any) -> None:
        try:
            hook(module)
        except Exception as error:
            failed(name, error)
            log.debug("a hook of %s failed", name, exc_info=True)

    wrapt.register_post_import_hook(run, name)
