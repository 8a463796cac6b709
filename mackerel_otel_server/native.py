"""A thread of the operating system, also where gevent has replaced the standard library's: its hub may be blocked."""

from __future__ import annotations

import _queue
import importlib
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SimpleQueue: Final[Any] = _queue.SimpleQueue
"""The one written in C: get() blocks a thread, not a greenlet; put() may be called by a signal handler."""
Empty: Final[Any] = _queue.Empty
"""What its get() raises after a timeout."""

_LONGEST_WAIT: Final = 0.05
"""Seconds; nobody holds such a lock for longer than microseconds, unless it was interrupted."""


def start_thread(function: Callable[[], None]) -> None:
    """Start a thread that nobody waits for at exit.

    Args:
        function: Must not raise.
    """
    with threads_without_signals():
        original("_thread", "start_new_thread")(function, ())


@contextmanager
def threads_without_signals() -> Iterator[None]:
    """Let threads that are started here leave the signals to the main thread.

    uWSGI handles them in C, in whichever thread they arrive, and ends the interpreter there: one of ours would wait
    for itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_free(span: Any) -> bool:
    """Tell whether a span of OpenTelemetry's SDK can be changed without waiting for ever.

    A signal handler that waits for this thread may have interrupted the one that holds the lock, which is private.
    """
    lock = getattr(span, "_lock", None)
    if lock is None:
        return True
    if not lock.acquire(timeout=_LONGEST_WAIT):
        return False
    lock.release()
    return True


def original(module: str, name: str) -> Any:
    """Return a function of the standard library, also where gevent has replaced it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


thread_ident: Final = original("_thread", "get_ident")
"""Return the ident of the calling thread, whichever greenlet it runs."""
