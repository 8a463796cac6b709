"""What has been received and not been printed yet, in bounded memory: who reads the output may stop, as in a pager."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from mackerel_otel_server.cli.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mackerel_otel_server.cli.receiver.spans import ReceivedSpan

MOST_CHARACTERS = 8_000_000
"""Of what the spans say that wait. As Python objects they need a few times as many bytes."""
# A trace comes in parts within seconds: later ones of a trace that was left out belong to it. So many are remembered.
_MOST_REMEMBERED = 10_000


@dataclass
class LeftOut:
    """What came while there was no room."""

    traces: int = 0
    spans: int = 0
    refusals: int = 0

    def __str__(self) -> str:
        """Say it to the person who has started the program."""
        what = []
        if self.spans:
            what.append(f"{counted(self.traces, 'trace')} ({counted(self.spans, 'span')})")
        if self.refusals:
            what.append(f"{counted(self.refusals, 'refused request')}")
        were = "was" if self.traces + self.refusals == 1 else "were"
        return (
            f"{' and '.join(what)} {were} not shown: they came faster than this output was read. To keep every span, "
            "type: mackerel-otel-server receive --json > spans.jsonl"
        )


# Spans of one request, or what is to be said about one that was refused.
Event: TypeAlias = "Sequence[ReceivedSpan] | str | LeftOut"


class Backlog:
    """Hand events from the threads that receive to the one that prints; the former never wait for the latter.

    Without room, what comes is left out and counted until all that was kept has been taken: one gap, not a hundred.
    """

    def __init__(self, *, most_characters: int = MOST_CHARACTERS) -> None:
        self._most_characters = most_characters
        self._events: deque[tuple[Event, int]] = deque()
        self._characters = 0
        self._remembered: dict[str, None] = {}
        self._stopped = False
        self._is_waited_for = False
        self._lock = threading.Lock()
        # put() may be called from a signal handler, which may interrupt anything.
        self._wake: SimpleQueue[None] = SimpleQueue()

    def add_spans(self, spans: Sequence[ReceivedSpan]) -> None:
        """Add the spans of one request."""
        self._add(spans, sum(span.size for span in spans))

    def add_refusal(self, line: str) -> None:
        """Add what is to be said about a request that was refused."""
        self._add(line, len(line))

    def stop(self) -> None:
        """Take nothing more; a signal handler may call this."""
        self._stopped = True
        self._wake.put(None)

    def take(self, timeout: float) -> Event | None:
        """Return what came first; nothing, ``()``, when nothing came in time; None when all is taken after a stop.

        Args:
            timeout: Seconds to wait at most.
        """
        with self._lock:
            if self._events or self._stopped:
                return self._first()
            self._is_waited_for = True
        with suppress(Empty):
            self._wake.get(timeout=timeout)
        with self._lock:
            self._is_waited_for = False
            return self._first()

    def _first(self) -> Event | None:
        if not self._events:
            return None if self._stopped else ()
        event, size = self._events.popleft()
        self._characters -= size
        if isinstance(event, LeftOut):
            self._remembered.clear()
        return event

    def _add(self, event: Sequence[ReceivedSpan] | str, size: int) -> None:
        with self._lock:
            if self._stopped:
                return
            if self._has_room(size):
                self._events.append((event, size))
                self._characters += size
            else:
                self._leave_out(event)
            if self._is_waited_for:
                self._is_waited_for = False
                self._wake.put(None)

    def _has_room(self, size: int) -> bool:
        if not self._events:
            return True
        return not isinstance(self._events[-1][0], LeftOut) and self._characters + size <= self._most_characters

    def _leave_out(self, event: Sequence[ReceivedSpan] | str) -> None:
        last = self._events[-1][0]
        if not isinstance(last, LeftOut):
            last = LeftOut()
            self._events.append((last, 0))
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
