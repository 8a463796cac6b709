"""Celery's prefork workers: send what is queued before each ends, which it does by ``os._exit()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mackerel_otel_server import worker
from mackerel_otel_server.imports import on_import
from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from types import ModuleType

_registered = False


def register() -> None:
    """Watch for Celery's signals, whether or not they have been imported."""
    global _registered
    if not _registered:
        _registered = True
        on_import("celery.signals", _stop_at_shutdown, _warn)


def _warn(name: str, error: Exception) -> None:
    log.warning(
        "%s is not as expected (%s: %s): the spans of the last seconds of Celery's workers are lost",
        name,
        type(error).__name__,
        error,
    )


def _stop_at_shutdown(module: ModuleType) -> None:
    # https://docs.celeryq.dev/en/stable/userguide/signals.html#worker-process-shutdown
    module.worker_process_shutdown.connect(_stop, weak=False)


def _stop(**_: Any) -> None:
    worker.stop()
