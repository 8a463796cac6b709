"""Whether this process traces. ``worker`` answers; the wrappers around the application and the drivers ask."""

from __future__ import annotations

from collections.abc import Callable

from mackerel_otel_server.process import pid

active = False
"""True once this process, or the one it was forked from, traces."""

refused = False
"""True once the settings were refused: what fails because of them has been reported."""

_asked_in_pid = 0
_start: Callable[[], bool] | None = None


def on_first_request(start: Callable[[], bool]) -> None:
    """Name the function that starts tracing in a process, to be called by its first server span.

    Args:
        start: Returns whether the process traces now. Never raises.
    """
    global _start
    _start = start


def open_for_request() -> bool:
    """Tell whether a request is to be traced; a process that was forked since the last one starts tracing now."""
    global active, _asked_in_pid
    if _asked_in_pid != pid() and _start is not None:
        active = _start()
        # Last: another thread's first request must wait for the answer, not take the old one.
        _asked_in_pid = pid()
    return active
