"""Celery's prefork workers.

Registers: ``instrument()`` in the module of the Celery application.
Starts: with the first span of each process.
Stops: at Celery's signal ``worker_process_shutdown``, because each worker ends by ``os._exit()``.
Kills: by SIGKILL, without an announcement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mackerel_otel_server import worker
from mackerel_otel_server.process.on_import import on_import

if TYPE_CHECKING:
    from types import ModuleType


def register() -> None:
    """Watch for Celery's signals, whether or not they have been imported."""
    on_import("celery.signals", _stop_at_shutdown, "the spans of the last seconds of Celery's workers are lost")


def _stop_at_shutdown(module: ModuleType) -> None:
    # https://docs.celeryq.dev/en/stable/userguide/signals.html#worker-process-shutdown
    module.worker_process_shutdown.connect(_stop, weak=False)


def _stop(**_: Any) -> None:
    worker.stop()
