"""A thread that acts shortly before the server kills this process, where nothing else can any more.

A worker that the server kills runs no code of Python's: SIGKILL does not ask, and a handler of another signal waits
until the interpreter's main thread comes back from what it does. What holds the GIL holds up this thread as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mackerel_otel_server import native, worker
from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from mackerel_otel_server.tracing.inflight import Killing

    Limit = Callable[[], "Doom | None"]

_LEAD: Final = 1.0
_LEAST_LEAD: Final = 0.3
_PART: Final = 0.1
_LONGEST_NAP: Final = 1.0
_SHORTEST_NAP: Final = 0.05


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
        """When there is still time to send, and hardly any for the request to end by itself."""
        return self.at - min(_LEAD, max(self.limit * _PART, _LEAST_LEAD))


class Watcher:
    """Watch limits from a thread of this process's own. Start after the fork.

    Args:
        limits: Functions that tell what the server will do if nothing changes; None for nothing.
    """

    def __init__(self, limits: Collection[Limit]) -> None:
        self._limits = limits
        self._orders: Any = native.SimpleQueue()
        self._reported: dict[int, float] = {}
        native.start_thread(self._run)

    def report(self, killing: Killing, timeout: float) -> None:
        """Report all that is under way now, and wait until that is done; for a signal handler.

        Args:
            killing: Why.
            timeout: Seconds to wait at most.
        """
        done: Any = native.SimpleQueue()
        self._orders.put((killing, done))
        try:
            done.get(timeout=timeout)
        except native.Empty:
            log.debug("a report takes longer than %s s", timeout)

    def _run(self) -> None:
        nap = _SHORTEST_NAP
        while True:
            try:
                order = self._orders.get(timeout=nap)
            except native.Empty:
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
        """Act on what is due; return how long nothing will be."""
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
