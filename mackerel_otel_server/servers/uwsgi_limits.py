"""When uWSGI kills a worker: a request takes longer than ``harakiri``, or than ``uwsgi.set_user_harakiri()`` allows.

The master looks once a second, and sends SIGKILL (or, with ``harakiri-graceful-timeout``, a signal before that). A
worker has one such clock, whatever the number of its threads (``set_harakiri()`` in core/utils.c): each request that
begins sets the clock anew, each that ends stops it. The clock knows whole seconds only.
https://uwsgi-docs.readthedocs.io/en/latest/Options.html#harakiri
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import uwsgi

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.servers.before_the_kill import Doom, Watcher
from mackerel_otel_server.tracing.requests.killed import Killing

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.requests.request import Request

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
        from mackerel_otel_server.tracing.requests import request

        request.last_end = 0
        _watcher = Watcher((lambda: _harakiri(limit), lambda: _doom("user harakiri", *_user_limit)))


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
    from mackerel_otel_server.tracing.requests import request

    return _doom("harakiri", limit, max((request.last_begin, *map(_began, request.under_way()))))


def _doom(name: str, limit: float, was_set: int) -> Doom | None:
    """Return what happens at the end of a clock that was set then, in nanoseconds since the epoch, if it still runs."""
    from mackerel_otel_server.tracing.requests import request

    if not limit or request.last_end >= was_set:
        return None
    # By the monotonic clock; rounded, because it is computed repeatedly.
    end = round(time.monotonic() + was_set // _NANOSECONDS + limit - time.time(), 1)
    return Doom(end, limit, Killing("uwsgi.Harakiri", f"uWSGI {name} after {limit:g} s"))


def _began(request: Request) -> int:
    """Return when a request began, in nanoseconds since the epoch."""
    return getattr(request.span, "start_time", None) or time.time_ns()
