"""uvicorn, by itself or as a worker class of Gunicorn's.

Registers: ``instrument()`` in the application, or Gunicorn's hook post_fork.
Starts: with the first span; as a worker class in Gunicorn's hooks.
Stops: when ``Server.shutdown()`` has ended, because uvicorn ends the process by a signal after that.
Kills: by itself nothing; Gunicorn kills its workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mackerel_otel_server import worker
from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.process.on_import import on_import

if TYPE_CHECKING:
    from types import ModuleType


def register() -> None:
    """Watch for uvicorn's server, whether or not it has been imported."""
    on_import("uvicorn.server", _stop_after_shutdown, "the spans of its last seconds are lost at TERM")


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
            # A private attribute, but nothing else tells a server that ends its process from one that a program only
            # uses for a while. stop() may block the event loop, which has nothing left to do.
            if getattr(self, "_captured_signals", True):
                # Requests that were cancelled have their last step to do.
                await asyncio.sleep(0)
                worker.stop()

    module.Server.shutdown = shutdown
