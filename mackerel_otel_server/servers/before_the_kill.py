"""A thread that acts shortly before the server kills this process, where nothing else can any more.

The worker's main thread cannot act: SIGKILL calls no handler, and Python calls the handler of another signal only when
the main thread comes back from what it does. Code that holds the GIL holds up the thread of this module, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mackerel_otel_server import worker
from mackerel_otel_server.process import threads
from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from mackerel_otel_server.tracing.requests.killed import Killing

    Limit = Callable[[], "Doom | None"]

_LEAD: Final = 1.0
_LEAST_LEAD: Final = 0.3
"""Seconds before the kill in which the thread acts, at most and at least."""
_PART: Final = 0.1
"""The part of a limit that is left then, where it lies between these two."""
_LONGEST_NAP: Final = 1.0
_SHORTEST_NAP: Final = 0.05
"""Seconds from one look at the limits to the next."""


@dataclass(frozen=True)
class Doom:
    """What the server is going to do.

    Attributes:
        at: When it does so at the earliest, by the monotonic clock, in seconds.
        limit: How long it waits before, in seconds.
        killing: Why.
    """

    at: float
    limit: float
    killing: Killing

    @property
    def act_at(self) -> float:
        """When to act: there is still time to send, and the request will hardly end by itself any more."""
        return self.at - min(_LEAD, max(self.limit * _PART, _LEAST_LEAD))


class Watcher:
    """Watch limits from a thread of this process's own. Start after the fork.

    Args:
        limits: Functions that tell what the server will do if nothing changes; None for nothing.
    """

    def __init__(self, limits: Collection[Limit]) -> None:
        self._limits = limits
        self._orders: Any = threads.SimpleQueue()
        self._reported: dict[int, float] = {}
        threads.start_thread(self._run)

    def report(self, killing: Killing, timeout: float) -> None:
        """Report all that is under way now, and wait until that is done; for a signal handler.

        Args:
            killing: Why.
            timeout: Seconds to wait at most.
        """
        done: Any = threads.SimpleQueue()
        self._orders.put((killing, done))
        try:
            threads.get_within(done, timeout)
        except threads.Empty:
            log.debug("a report takes longer than %s s", timeout)

    def _run(self) -> None:
        nap = _SHORTEST_NAP
        while True:
            try:
                order = threads.get_within(self._orders, nap)
            except threads.Empty:
                order = None
            try:
                if order is not None:
                    killing, done = order
                    count = worker.report_killed(killing)
                    # Before the log, whose lock the waiting thread may have held when the signal came.
                    done.put(None)
                    _log(killing, count)
                nap = self._look()
            except Exception:
                log.exception("a limit of the server cannot be watched")
                nap = _LONGEST_NAP

    def _look(self) -> float:
        """Act on the limits that are nearly over; return the seconds until the next look."""
        nap = _LONGEST_NAP
        for number, limit in enumerate(self._limits):
            doom = limit()
            if doom is None or self._reported.get(number) == doom.at:
                continue
            left = doom.act_at - time.monotonic()
            if left <= 0:
                self._reported[number] = doom.at
                _log(doom.killing, worker.report_killed(doom.killing))
            else:
                nap = min(nap, max(left, _SHORTEST_NAP))
        return nap


def _log(killing: Killing, count: int) -> None:
    if count:
        log.warning("%s: requests under way, which are reported as killed: %d", killing.message, count)
