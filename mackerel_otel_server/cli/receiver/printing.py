"""What ``receive`` writes: trees for people, or lines of JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.output import complain, paint, say, stdout_encoding
from mackerel_otel_server.cli.receiver.attributes_as_text import jsonable
from mackerel_otel_server.cli.receiver.backlog import MOST_BYTES
from mackerel_otel_server.cli.receiver.tree import show
from mackerel_otel_server.cli.text import encodable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

QUIET_SECONDS = 1.0
# A trace that never falls silent is printed in parts rather than kept without limit.
MOST_SPANS_HELD = 10_000


@dataclass
class _Held:
    """The spans of one trace so far and when the last of them came."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    last: float = 0.0

    def due(self) -> float:
        return self.last + QUIET_SECONDS if len(self.spans) < MOST_SPANS_HELD else 0.0


@dataclass
class Trees:
    """Print a trace as a tree when nothing of it has come for a while, or when too much is held."""

    full: bool = False
    """Whether texts are printed whole."""
    traces: dict[str, _Held] = field(default_factory=dict)
    size: int = 0
    """How many bytes of memory the held spans take."""

    def tell(self, line: str = "", *styles: str) -> None:
        """Say something between the trees, to the person who has started the program."""
        say(paint(line, *styles))

    def add(self, spans: Sequence[ReceivedSpan]) -> None:
        """Hold spans until their trace is complete."""
        for span in spans:
            trace = self.traces.setdefault(span.trace_id, _Held())
            trace.spans.append(span)
            trace.last = time.monotonic()
            self.size += span.size

    def due(self) -> float:
        """Return when print_due() is to be called again, on the monotonic clock; infinite: nothing is held."""
        if self.size > MOST_BYTES:
            return 0.0
        return min((trace.due() for trace in self.traces.values()), default=float("inf"))

    def print_due(self, now: float) -> None:
        """Print traces that have fallen silent; an infinite ``now`` prints everything."""
        if self.size > MOST_BYTES:
            now = float("inf")
        for trace_id in [trace_id for trace_id, trace in self.traces.items() if trace.due() <= now]:
            spans = self.traces.pop(trace_id).spans
            self.size -= sum(span.size for span in spans)
            show(spans, full=self.full)


class Lines:
    """As Trees, but print each span at once, as a line of JSON with everything that was decoded, and nothing else."""

    def __init__(self) -> None:
        self._encoding = stdout_encoding()
        # A request has many spans and few resources.
        self._resource: dict[str, Any] = {}
        self._resource_text = "{}"

    def tell(self, line: str = "", *styles: str) -> None:
        """Say it on standard error."""
        complain(paint(line, *styles, stream=sys.stderr))

    def add(self, spans: Sequence[ReceivedSpan]) -> None:
        """Print spans."""
        for span in spans:
            if span.resource is not self._resource:
                self._resource, self._resource_text = span.resource, self._json(span.resource)
            own = {name: value for name, value in vars(span).items() if name not in {"resource", "size"}}
            own["events"], own["links"] = [*map(vars, span.events)], [*map(vars, span.links)]
            say(f'{self._json(own)[:-1]}, "resource": {self._resource_text}}}')

    def due(self) -> float:
        """Say that nothing is held."""
        return float("inf")

    def print_due(self, now: float) -> None:
        """Do nothing, because nothing is held."""

    def _json(self, value: Any) -> str:
        """Escape all that is not ASCII if the output cannot carry it, or if a terminal might obey it."""
        value = jsonable(value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        is_safe = text.isprintable() and encodable(text, self._encoding) == text
        return text if is_safe else json.dumps(value)
