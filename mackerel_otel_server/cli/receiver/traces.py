"""The latest traces, in bounded memory, for somebody who looks at them while they arrive."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

MOST_TRACES = 200
MOST_SPANS = 1000
"""Spans that are kept of one trace."""
MOST_BYTES = 24_000_000
"""Bytes of memory that all spans may take together."""


@dataclass(frozen=True)
class Trace:
    """What is known of one trace.

    Attributes:
        number: Counts traces in the order in which they began to arrive.
        version: Counts changes of any trace; that of this one's last.
        spans: In the order of their arrival. Of a very large trace, the request and what failed are kept first.
        left_out: How many more have arrived than are kept.
    """

    id: str
    number: int
    version: int = 0
    spans: tuple[ReceivedSpan, ...] = ()
    left_out: int = 0
    size: int = field(default=0, repr=False)


@dataclass(frozen=True)
class News:
    """What has changed since a version.

    Attributes:
        version: What to ask with next.
        oldest: Traces with a smaller number are no longer kept.
        traces: Those that have changed, oldest first.
    """

    version: int
    oldest: int
    traces: tuple[Trace, ...]


class Traces:
    """Keep the latest traces; all methods may be called from any thread."""

    def __init__(
        self, *, most_traces: int = MOST_TRACES, most_spans: int = MOST_SPANS, most_bytes: int = MOST_BYTES
    ) -> None:
        # The name of this store: a version of another one means nothing here.
        self.store = uuid.uuid4().hex
        self._most_traces = most_traces
        self._most_spans = most_spans
        self._most_bytes = most_bytes
        self._traces: dict[str, Trace] = {}
        self._bytes = 0
        self._number = 0
        self._version = 0
        self._closed = False
        self._changed = threading.Condition()

    def add(self, spans: Iterable[ReceivedSpan]) -> None:
        """Keep spans; what is too much makes the oldest traces go."""
        by_trace: dict[str, list[ReceivedSpan]] = {}
        for span in spans:
            by_trace.setdefault(span.trace_id, []).append(span)
        with self._changed:
            for trace_id, more in by_trace.items():
                self._extend(trace_id, more)
            self._forget()
            self._changed.notify_all()

    def get(self, trace_id: str) -> Trace | None:
        """Return one trace, or None when it is not kept."""
        with self._changed:
            return self._traces.get(trace_id)

    def news(self, after: int, timeout: float) -> News:
        """Return what has changed after a version, 0 for all, when something has, or after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > after or self._closed, timeout)
            traces = tuple(trace for trace in self._traces.values() if trace.version > after)
            oldest = min((trace.number for trace in self._traces.values()), default=0)
            return News(self._version, oldest, traces)

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _extend(self, trace_id: str, more: list[ReceivedSpan]) -> None:
        trace = self._traces.get(trace_id) or Trace(trace_id, self._number + 1)
        kept = self._most_important([*trace.spans, *more])
        size = sum(span.size for span in kept)
        if not kept:
            return
        self._bytes += size - trace.size
        self._version += 1
        self._number = max(self._number, trace.number)
        left_out = trace.left_out + len(trace.spans) + len(more) - len(kept)
        self._traces[trace_id] = replace(trace, version=self._version, spans=tuple(kept), left_out=left_out, size=size)

    def _most_important(self, spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        if len(spans) <= self._most_spans and sum(span.size for span in spans) <= self._most_bytes // 4:
            return spans
        parents = {span.parent_span_id for span in spans}
        kept: list[tuple[int, ReceivedSpan]] = []
        # No trace may drive out all others, however large its spans are.
        room = self._most_bytes // 4
        # sorted() keeps the order of arrival among equals.
        for place, span in sorted(enumerate(spans), key=lambda item: _importance(item[1], parents)):
            if len(kept) < self._most_spans and span.size <= room:
                kept.append((place, span))
                room -= span.size
        return [span for _, span in sorted(kept, key=itemgetter(0))]

    def _forget(self) -> None:
        # A dictionary keeps the order in which its keys came, whatever their values become.
        while len(self._traces) > self._most_traces or self._bytes > self._most_bytes:
            gone = self._traces.pop(next(iter(self._traces)))
            self._bytes -= gone.size


def _importance(span: ReceivedSpan, parents: set[str]) -> tuple[bool, ...]:
    """Return a key that sorts a trace's most important spans first: the request, what failed, what has children."""
    return bool(span.parent_span_id), span.kind != "SERVER", span.status_code != "ERROR", span.span_id not in parents
