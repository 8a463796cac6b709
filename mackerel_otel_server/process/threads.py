"""Threads of the operating system, also where gevent has replaced those of the standard library.

A greenlet in the place of a thread would not run while the application blocks gevent's hub.
"""

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


def get_within(queue: Any, timeout: float) -> Any:
    """Return the next item of a SimpleQueue.

    Where the queue is empty and its lock is free, get() of CPython 3.10 to 3.12 takes the lock and looks again. What is
    left of a very short timeout is negative by then, which means no limit: it waits for ever. After a look that has
    found nothing, the lock is taken.

    Args:
        queue: Only one thread may take items out of it.
        timeout: Seconds.

    Raises:
        Empty: There is no item in that time.
    """
    try:
        return queue.get_nowait()
    except Empty:
        if timeout <= 0:
            raise
    return queue.get(timeout=timeout)


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

    uWSGI handles a signal in C, in the thread in which the signal arrives, and ends the interpreter there. In a thread
    of ours, the end of the interpreter would wait for that same thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def original(module: str, name: str) -> Any:
    """Return a function of the standard library, also where gevent has replaced it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


thread_ident: Final = original("_thread", "get_ident")
"""Return the ident of the calling thread, whichever greenlet it runs."""
