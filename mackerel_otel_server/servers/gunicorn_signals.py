"""Signals that end a Gunicorn worker before it has handlers of its own, or when it has none any more.

From the fork on until ``Worker.init_signals()`` a worker has the arbiter's handler, which puts a signal into a queue
that nobody reads in the worker: it would serve until the arbiter kills it, ``graceful_timeout`` later. What this
package does in ``post_fork`` makes that time longer. And some worker classes take all handlers away before they leave.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server import worker as tracing_worker

if TYPE_CHECKING:
    from types import FrameType

_ENDING: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def keep(worker: Any) -> None:
    """Let signals that come from now on arrive as soon as the worker's own handlers stand.

    Does nothing the second time, and in the arbiter, where a hook of the user's may call ours: the handlers there stay.

    Args:
        worker: Gunicorn's ``Worker``.
    """
    if worker.pid != os.getpid() or "init_signals" in vars(worker):
        return
    came: list[int] = []
    original = worker.init_signals

    def init_signals() -> None:
        del worker.init_signals
        original()
        for number in came:
            signal.raise_signal(number)

    worker.init_signals = init_signals
    for number in _ENDING:
        signal.signal(number, lambda number, _frame: came.append(number))


def hold_back() -> None:
    """Send what is queued before a signal that nobody handles ends this process, e.g. a reload's after max_requests."""
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    if tracing_worker.is_stopping():
        # The process sends its last spans and ends after that by itself.
        return
    tracing_worker.stop()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
