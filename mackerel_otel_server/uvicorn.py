"""uvicorn, by itself or as a worker class of Gunicorn's: send what is queued before it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mackerel_otel_server import worker
from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.imports import on_import
from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from types import ModuleType

_registered = False


def register() -> None:
    """Watch for uvicorn's server, whether or not it has been imported."""
    global _registered
    if not _registered:
        _registered = True
        on_import("uvicorn.server", _stop_after_shutdown, _warn)


def _warn(name: str, error: Exception) -> None:
    log.warning(
        "%s is not as expected (%s: %s): the spans of its last seconds are lost at TERM",
        name,
        type(error).__name__,
        error,
    )


def _stop_after_shutdown(module: ModuleType) -> None:
    """Send what is queued when uvicorn has shut down: every response is sent, and the lifespan is over.

    uvicorn then raises the signal again that made it stop, with the default action (``Server.capture_signals()``): at
    TERM neither Gunicorn's worker_exit nor Python's atexit runs.
    """
    # Not where uvicorn is not.
    import asyncio
    import inspect

    original = module.Server.shutdown
    if not inspect.iscoroutinefunction(original):
        raise TypeError("Server.shutdown is no coroutine function")

    @imitates(original)
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            # Private, but nothing else tells a server that takes its process along from one that a program only uses
            # for a while. It may block the loop, in which nothing is left to do.
            if getattr(self, "_captured_signals", True):
                # Requests that were cancelled have their last step to do.
                await asyncio.sleep(0)
                worker.stop()

    module.Server.shutdown = shutdown
