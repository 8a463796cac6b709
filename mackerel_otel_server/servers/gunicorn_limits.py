"""When Gunicorn kills a worker: at the end of ``timeout`` without a heartbeat, and at the end of ``graceful_timeout``.

https://docs.gunicorn.org/en/stable/settings.html#timeout
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Any, Final

from mackerel_otel_server import worker as tracing_worker
from mackerel_otel_server.servers.before_the_kill import Doom, Watcher
from mackerel_otel_server.tracing.requests.killed import Killing

_stop_at: mmap.mmap | None = None
"""When the arbiter will kill what is left, by the monotonic clock; 0 before it is told to stop. Workers share it."""
_FORMAT: Final = struct.Struct("d")
_watcher: Watcher | None = None
_HEARTBEATS_ARE_MONOTONIC: Final = (22,)
"""The first release whose workers/workertmp.py keeps them by the monotonic clock; by the wall clock before."""


def note_stop(server: Any) -> None:
    """Arbiter: let the workers know when it is going to kill those that are left.

    The signal does not tell them: a reload sends the same one, and after a reload nobody is killed.
    """
    global _stop_at
    original = getattr(server, "stop", None)
    if original is None or _stop_at is not None:
        return
    _stop_at = shared = mmap.mmap(-1, _FORMAT.size)

    def stop(*args: Any, **kwargs: Any) -> Any:
        # The arbiter may be told to stop twice. It begins to wait anew then.
        _FORMAT.pack_into(shared, 0, time.monotonic() + server.cfg.graceful_timeout)
        return original(*args, **kwargs)

    server.stop = stop


def server_goes_on() -> bool:
    """Worker: tell whether the arbiter has not been told to stop, as far as is known."""
    return _stop_at is not None and not _FORMAT.unpack_from(_stop_at, 0)[0]


def watch(worker: Any) -> None:
    """Worker: report what is under way shortly before the arbiter kills this process."""
    global _watcher
    _watcher = Watcher((lambda: _end_of_timeout(worker), lambda: _end_of_graceful_timeout(worker)))


def report_timeout(worker: Any) -> None:
    """Worker, in a signal handler: report what is under way, unless that was done."""
    if _watcher is None:
        return
    # After this heartbeat the arbiter waits for another timeout before it sends SIGKILL.
    worker.notify()
    _watcher.report(_timeout(worker), tracing_worker.shutdown_timeout())


def _end_of_timeout(worker: Any) -> Doom | None:
    limit = worker.cfg.timeout
    if not limit:
        return None
    try:
        last = worker.tmp.last_update()
    except (OSError, ValueError):
        # Closed: the worker leaves.
        return None
    now = time.monotonic()
    if last > now:
        import gunicorn  # optional: a configuration file can be read without it

        if gunicorn.version_info >= _HEARTBEATS_ARE_MONOTONIC:
            # This is the time at which the file was made. The arbiter kills nobody before the first heartbeat.
            return None
        last = round(last + now - time.time(), 1)
    return Doom(last + limit, limit, _timeout(worker))


def _end_of_graceful_timeout(worker: Any) -> Doom | None:
    if _stop_at is None:
        return None
    (at,) = _FORMAT.unpack_from(_stop_at, 0)
    if not at:
        return None
    limit = worker.cfg.graceful_timeout
    message = f"gunicorn graceful_timeout of {limit} s is over"
    return Doom(at, limit, Killing("gunicorn.GracefulTimeout", message, spares_streams=True))


def _timeout(worker: Any) -> Killing:
    return Killing("gunicorn.WorkerTimeout", f"gunicorn worker timeout after {worker.cfg.timeout} s")
