"""When uWSGI kills a worker: a request takes longer than ``harakiri``, or than ``uwsgi.set_user_harakiri()`` allows.

The master looks once a second, and sends SIGKILL (or, with ``harakiri-graceful-timeout``, a signal before that).
https://uwsgi-docs.readthedocs.io/en/latest/Options.html#harakiri
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Final

import uwsgi

from mackerel_otel_server import native
from mackerel_otel_server.watcher import Doom, Watcher

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.request import Request

_NANOSECONDS: Final = 1e9
_watcher: Watcher | None = None
_user_limits: dict[int, tuple[float, float]] = {}
"""By the ident of the thread that has set it: when it ends, by the monotonic clock, and its length in seconds."""


def watch(harakiri: str | None) -> None:
    """Worker: report a request shortly before the master kills it.

    Args:
        harakiri: The option, in seconds.
    """
    limit = float(harakiri) if harakiri and harakiri.isdecimal() else 0.0
    if limit:
        _start(limit)
    _follow_user_harakiri(limit)


def _start(limit: float) -> None:
    global _watcher
    if _watcher is None:
        _watcher = Watcher((lambda: _next_harakiri(limit), _next_user_harakiri))


def _follow_user_harakiri(limit: float) -> None:
    original = uwsgi.set_user_harakiri

    @functools.wraps(original)
    def set_user_harakiri(seconds: int, *args: Any) -> Any:
        thread = native.thread_ident()
        if seconds:
            _user_limits[thread] = (time.monotonic() + seconds, float(seconds))
            _start(limit)
            if _watcher is not None:
                _watcher.look()
        else:
            _user_limits.pop(thread, None)
        return original(seconds, *args)

    uwsgi.set_user_harakiri = set_user_harakiri


def _next_harakiri(limit: float) -> Doom | None:
    """Return the end of the oldest request."""
    from mackerel_otel_server.tracing import inflight

    requests = inflight.requests()
    if not limit or not requests:
        return None
    oldest = min(requests, key=_began)
    at = time.monotonic() + limit - (time.time() - _began(oldest))
    message = f"uWSGI harakiri after {limit:g} s"
    return Doom(at, limit, inflight.Killing("uwsgi.Harakiri", message), _killed_with(oldest, requests))


def _next_user_harakiri() -> Doom | None:
    from mackerel_otel_server.tracing import inflight

    for thread, (at, limit) in list(_user_limits.items()):
        of_thread = [request for request in inflight.requests() if request.thread == thread]
        if not of_thread:
            # It has ended without setting it back, which uWSGI does by itself.
            _user_limits.pop(thread, None)
            continue
        killing = inflight.Killing("uwsgi.Harakiri", f"uWSGI user harakiri after {limit:g} s")
        return Doom(at, limit, killing, _killed_with(of_thread[0], inflight.requests()))
    return None


def _killed_with(request: Request, requests: list[Request]) -> list[Request]:
    """Return the requests that end with one: the process is killed, whichever of its threads is late."""
    return [request, *(other for other in requests if other is not request)]


def _began(request: Request) -> float:
    """Return seconds since the epoch."""
    began: int = getattr(request.span, "start_time", None) or time.time_ns()
    return began / _NANOSECONDS
