"""When uWSGI kills a worker: a request takes longer than ``harakiri``, or than ``uwsgi.set_user_harakiri()`` allows.

The master looks once a second, and sends SIGKILL (or, with ``harakiri-graceful-timeout``, a signal before that). A
worker has one such clock, whatever the number of its threads (``set_harakiri()`` in core/utils.c): each request that
begins sets it anew, each that ends stops it. It knows whole seconds only.
https://uwsgi-docs.readthedocs.io/en/latest/Options.html#harakiri
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import uwsgi

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.watcher import Doom, Watcher

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.request import Request

_NANOSECONDS: Final = 1_000_000_000
_watcher: Watcher | None = None
_user_limit = (0.0, 0)
"""The seconds of set_user_harakiri(), and when it was called."""


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
        from mackerel_otel_server.tracing import inflight

        inflight.note_ends()
        _watcher = Watcher((lambda: _harakiri(limit), _user_harakiri))


def _follow_user_harakiri(limit: float) -> None:
    original = uwsgi.set_user_harakiri

    @imitates(original)
    def set_user_harakiri(seconds: int, *args: Any) -> Any:
        global _user_limit
        _user_limit = (float(seconds), time.time_ns())
        if seconds:
            _start(limit)
        return original(seconds, *args)

    uwsgi.set_user_harakiri = set_user_harakiri


def _harakiri(limit: float) -> Doom | None:
    from mackerel_otel_server.tracing import inflight

    requests = inflight.requests()
    if not limit or not requests:
        return None
    began = max(map(_began, requests))
    if inflight.last_end >= began:
        return None
    return Doom(_end(began, limit), limit, inflight.Killing("uwsgi.Harakiri", f"uWSGI harakiri after {limit:g} s"))


def _user_harakiri() -> Doom | None:
    from mackerel_otel_server.tracing import inflight

    limit, was_set = _user_limit
    if not limit or inflight.last_end >= was_set:
        return None
    killing = inflight.Killing("uwsgi.Harakiri", f"uWSGI user harakiri after {limit:g} s")
    return Doom(_end(was_set, limit), limit, killing)


def _end(began: int, limit: float) -> float:
    """Return when a clock that was set then ends, by the monotonic clock; rounded, as it is computed repeatedly."""
    end = began // _NANOSECONDS + limit
    return round(time.monotonic() + end - time.time(), 1)


def _began(request: Request) -> int:
    """Return nanoseconds since the epoch."""
    return getattr(request.span, "start_time", None) or time.time_ns()
