"""Spans that are not printed yet, in bounded memory: the reader of the output may pause, as a pager does."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from mackerel_otel_server.cli.text import counted
from mackerel_otel_server.process.threads import get_within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

MOST_BYTES = 20_000_000
"""Bytes of memory that waiting spans may take. One request alone may take more; its size as sent bounds that."""
# Traces that were left out are remembered, so many at most: later parts of them do not count as further traces.
_MOST_REMEMBERED = 10_000
_FEWER = "OTEL_TRACES_SAMPLER=parentbased_traceidratio with OTEL_TRACES_SAMPLER_ARG=0.1"


@dataclass
class LeftOut:
    """What came while there was no room."""

    traces: int = 0
    spans: int = 0
    refusals: int = 0

    def words(self, *, is_file: bool) -> str:
        """Say it to the person who has started the program, whose output may be a file already."""
        what = []
        if self.spans:
            what.append(f"{counted(self.traces, 'trace')} ({counted(self.spans, 'span')})")
        if self.refusals:
            what.append(f"{counted(self.refusals, 'refused request')}")
        were = "was" if self.traces + self.refusals == 1 else "were"
        told = f"{' and '.join(what)} {were} not shown: they came faster than this output was"
        if is_file:
            return f"{told} written. To lose none, let the application send fewer: {_FEWER}"
        return f"{told} read. To keep every span, type: mackerel-otel-server receive --json > spans.jsonl"


# Spans of one request, or what is to be said about one that was refused.
Event: TypeAlias = "Sequence[ReceivedSpan] | str | LeftOut"


class Backlog:
    """Hand events from the threads that receive to the one that prints; the former never wait for the latter.

    Without room, what comes is left out and counted until all that was kept has been taken: one gap, not a hundred.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._events: deque[tuple[Event, int]] = deque()
        # Bytes of the events that wait and of the one that was taken last, which is being printed; then of that alone.
        self._bytes = 0
        self._taken = 0
        self._remembered: dict[str, None] = {}
        self._stopped = False
        self._is_waited_for = False
        self._lock = threading.Lock()
        # put() may be called from a signal handler, which may interrupt anything.
        self._wake: SimpleQueue[None] = SimpleQueue()

    def add(self, event: Sequence[ReceivedSpan] | str) -> None:
        """Add the spans of one request, or what is to be said about one that was refused."""
        size = len(event) if isinstance(event, str) else sum(span.size for span in event)
        with self._lock:
            if self._stopped:
                return
            last = self._events[-1][0] if self._events else None
            if isinstance(last, LeftOut):
                self._leave_out(event, last)
            elif self._bytes and self._bytes + size > self._most_bytes:
                last = LeftOut()
                self._events.append((last, 0))
                self._leave_out(event, last)
            else:
                self._events.append((event, size))
                self._bytes += size
            if self._is_waited_for:
                self._is_waited_for = False
                self._wake.put(None)

    def stop(self) -> None:
        """Take nothing more; a signal handler may call this."""
        self._stopped = True
        self._wake.put(None)

    def take(self, timeout: float) -> Event | None:
        """Return what came first; ``()`` when nothing came in so many seconds; None when all is taken after a stop."""
        with self._lock:
            if self._events or self._stopped:
                return self._first()
            self._is_waited_for = True
        with suppress(Empty):
            get_within(self._wake, timeout)
        with self._lock:
            self._is_waited_for = False
            return self._first()

    def _first(self) -> Event | None:
        self._bytes -= self._taken
        self._taken = 0
        if not self._events:
            return None if self._stopped else ()
        event, self._taken = self._events.popleft()
        if isinstance(event, LeftOut):
            self._remembered.clear()
        return event

    def _leave_out(self, event: Sequence[ReceivedSpan] | str, last: LeftOut) -> None:
        if isinstance(event, str):
            last.refusals += 1
            return
        last.spans += len(event)
        for span in event:
            if span.trace_id not in self._remembered:
                last.traces += 1
                self._remembered[span.trace_id] = None
                if len(self._remembered) > _MOST_REMEMBERED:
                    del self._remembered[next(iter(self._remembered))]
