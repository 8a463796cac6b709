"""Signals that end a uWSGI worker before it has handlers for them.

uWSGI's handlers stand in a worker from the moment on at which it begins to serve (``uwsgi_worker_run()`` in
core/uwsgi.c). A signal that comes before that moment is lost. SIGINT raises a KeyboardInterrupt in the Python code that
runs, but uWSGI prints what a post-fork hook or an ``import =`` raises, and goes on. SIGTERM and SIGHUP are ignored. And
a worker that takes the place of another one still has the master's handlers. Such a worker would serve, and the master,
which has told it to end, would wait for a minute before it kills the worker.
"""

from __future__ import annotations

import signal

import uwsgi

_WORKER_ENDED, _WORKER_RELOADED = 30, 17
"""The exit statuses of workers that leave because the master told them to (UWSGI_END_CODE, UWSGI_RELOAD_CODE)."""


class Held:
    """A context in which signals wait that end a worker; at its end, one that has come ends the process.

    Args:
        mask: The signals that were blocked before, if the caller lets those that end a worker wait already.
    """

    def __init__(self, mask: set[int | signal.Signals] | None = None) -> None:
        self._mask = mask

    def __enter__(self) -> None:
        """Let them wait."""
        if self._mask is None:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})

    def __exit__(self, *_error: object) -> None:
        """Look whether one has come.

        Raises:
            SystemExit: One has come; with the status that uWSGI gives to a process that ends so. The signals stay
                blocked then, so that none of them interrupts the end.
        """
        status = _status(signal.sigpending())
        if status is not None:
            raise SystemExit(status)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _status(came: set[int | signal.Signals]) -> int | None:
    """Return the exit status that the process is to end with, if it is to end."""
    if not uwsgi.worker_id() and uwsgi.masterpid():
        # This is the master, which ignores SIGTERM and SIGHUP until it has workers. What we do makes that time longer.
        ends = signal.SIGINT in came or (signal.SIGTERM in came and "die-on-term" in uwsgi.opt)
        return 0 if ends else None
    if signal.SIGINT in came or signal.SIGTERM in came:
        return _WORKER_ENDED
    return _WORKER_RELOADED if signal.SIGHUP in came else None
