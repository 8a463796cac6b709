"""Celery's prefork workers: send what is queued before each ends, which it does by ``os._exit()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

from mackerel_otel_server import worker

if TYPE_CHECKING:
    from types import ModuleType

_registered = False


def register() -> None:
    """Watch for Celery's signals, whether or not they have been imported."""
    global _registered
    if not _registered:
        _registered = True
        wrapt.register_post_import_hook(_stop_at_shutdown, "celery.signals")


def _stop_at_shutdown(module: ModuleType) -> None:
    # https://docs.celeryq.dev/en/stable/userguide/signals.html#worker-process-shutdown
    module.worker_process_shutdown.connect(_stop, weak=False)


def _stop(**_: Any) -> None:
    worker.stop()
