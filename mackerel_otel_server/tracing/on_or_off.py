"""Whether this process traces: ``worker`` says it, and whatever makes a span asks here."""

from __future__ import annotations

from collections.abc import Callable

from mackerel_otel_server.process.pid import pid

active = False
"""True once this process, or the one it was forked from, traces."""

refused = False
"""True once the settings were refused. The log says why, so nothing that fails because of them is reported again."""

start: Callable[[], bool] | None = None
"""Called by a process's first server span: starts tracing there, and returns whether it traces now. Never raises."""

_asked_in_pid = 0


def open_for_request() -> bool:
    """Tell whether a request is to be traced. The first request of a process that was forked starts tracing there."""
    global active, _asked_in_pid
    if _asked_in_pid != pid() and start is not None:
        active = start()
        # After the line above. Else another thread could read the parent's answer here while tracing is starting.
        _asked_in_pid = pid()
    return active
