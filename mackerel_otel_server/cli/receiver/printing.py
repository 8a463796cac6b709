"""What ``receive`` writes: trees for people, or lines of JSON for programs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mackerel_otel_server.cli.receiver import jsonable
from mackerel_otel_server.cli.receiver.backlog import MOST_CHARACTERS
from mackerel_otel_server.cli.receiver.tree import show
from mackerel_otel_server.cli.style import paint
from mackerel_otel_server.cli.text import complain, say, stdout_encoding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mackerel_otel_server.cli.receiver.spans import ReceivedSpan

QUIET_SECONDS = 1.0
# A trace that never falls silent is printed in parts rather than kept without limit.
MOST_SPANS_HELD = 10_000


class Output(Protocol):
    """Where spans and words go."""

    def tell(self, line: str = "", *styles: str) -> None:
        """Say something to the person who has started the program."""

    def add(self, spans: Sequence[ReceivedSpan]) -> None:
        """Take spans, to be printed now or later."""

    def due(self) -> float:
        """Return when print_due() is to be called again, on the monotonic clock."""

    def print_due(self, now: float) -> None:
        """Print what need not be held any longer; an infinite ``now`` prints everything."""


@dataclass
class _Trace:
    """The spans of one trace so far and when the last of them came."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    last: float = 0.0

    def due(self) -> float:
        return self.last + QUIET_SECONDS if len(self.spans) < MOST_SPANS_HELD else 0.0


@dataclass
class Trees:
    """Print a trace as a tree when nothing of it has come for a while, or when too much is held."""

    traces: dict[str, _Trace] = field(default_factory=dict)
    characters: int = 0

    def tell(self, line: str = "", *styles: str) -> None:
        """Say it between the trees."""
        say(paint(line, *styles))

    def add(self, spans: Sequence[ReceivedSpan]) -> None:
        """Hold spans until their trace is complete."""
        for span in spans:
            trace = self.traces.setdefault(span.trace_id, _Trace())
            trace.spans.append(span)
            trace.last = time.monotonic()
            self.characters += span.size

    def due(self) -> float:
        """Return when the first trace is."""
        if self.characters > MOST_CHARACTERS:
            return 0.0
        return min((trace.due() for trace in self.traces.values()), default=float("inf"))

    def print_due(self, now: float) -> None:
        """Print traces that have fallen silent."""
        if self.characters > MOST_CHARACTERS:
            now = float("inf")
        for trace_id in [trace_id for trace_id, trace in self.traces.items() if trace.due() <= now]:
            spans = self.traces.pop(trace_id).spans
            self.characters -= sum(span.size for span in spans)
            show(spans)


class Lines:
    """Print each span as it arrives; standard output has nothing but them."""

    def tell(self, line: str = "", *styles: str) -> None:
        """Say it on standard error."""
        complain(paint(line, *styles, stream=sys.stderr))

    def add(self, spans: Sequence[ReceivedSpan]) -> None:
        """Print spans."""
        for span in spans:
            say(jsonable.line(span, stdout_encoding()))

    def due(self) -> float:
        """Return that nothing is held."""
        return float("inf")

    def print_due(self, now: float) -> None:
        """Do nothing."""
