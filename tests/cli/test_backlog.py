"""What waits to be printed: bounded, and what is left out is counted."""

from __future__ import annotations

import threading

from making import span

from mackerel_otel_server.cli.receiver.backlog import MOST_BYTES, Backlog, LeftOut
from mackerel_otel_server.cli.receiver.printing import Trees
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

TIMEOUT = 30.0


def traced(number: int, text: str = "") -> ReceivedSpan:
    return span(f"n{number}", "1", trace_id=f"t{number}", attributes={"text": text})


def test_what_comes_is_taken_in_its_order() -> None:
    backlog = Backlog()
    backlog.add([traced(1)])
    backlog.add("no")
    backlog.add([traced(2)])
    assert [backlog.take(0) for _ in range(4)] == [[traced(1)], "no", [traced(2)], ()]


def test_who_waits_gets_what_comes_meanwhile() -> None:
    backlog = Backlog()
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(backlog.take(TIMEOUT)))
    waiting.start()
    backlog.add([traced(1)])
    waiting.join(TIMEOUT / 2)
    assert got == [[traced(1)]]


def test_a_stop_wakes_who_waits_and_what_came_before_is_still_taken() -> None:
    backlog = Backlog()
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(backlog.take(TIMEOUT)))
    waiting.start()
    backlog.stop()
    waiting.join(TIMEOUT / 2)
    assert got == [None]
    backlog = Backlog()
    backlog.add("no")
    backlog.stop()
    backlog.add("too late")
    assert [backlog.take(TIMEOUT), backlog.take(TIMEOUT), backlog.take(TIMEOUT)] == ["no", None, None]


def test_what_has_no_room_is_one_gap_and_counted_as_traces() -> None:
    backlog = Backlog(most_bytes=2 * traced(1).size + 10)
    backlog.add([traced(1)])
    backlog.add([traced(2)])
    for number in (3, 4, 3, 5):
        backlog.add([traced(number)])
    backlog.add("no")
    assert backlog.take(0) == [traced(1)]
    backlog.add([traced(6)])  # there is room again, but it would be a gap within the gap
    assert backlog.take(0) == [traced(2)]
    gap = backlog.take(0)
    assert gap == LeftOut(traces=4, spans=5, refusals=1)
    assert isinstance(gap, LeftOut)
    told = "4 traces (5 spans) and 1 refused request were not shown: they came faster than this output was "
    assert gap.words(is_file=False).startswith(told + "read. To keep every span, type: ")
    # Who writes into a file already needs no advice to do so.
    assert gap.words(is_file=True).startswith(told + "written. To lose none, ")
    assert ">" not in gap.words(is_file=True)
    backlog.add([traced(7)])
    assert [backlog.take(0), backlog.take(0)] == [[traced(7)], ()]


def test_a_request_that_is_too_large_by_itself_is_shown_when_nothing_else_waits() -> None:
    backlog = Backlog(most_bytes=100)
    backlog.add([traced(1, "x" * 1000)])
    assert backlog.take(0) == [traced(1, "x" * 1000)]


def test_what_is_being_printed_still_needs_its_room() -> None:
    backlog = Backlog(most_bytes=2 * traced(1).size + 10)
    backlog.add([traced(1), traced(2)])
    assert backlog.take(0) == [traced(1), traced(2)]
    backlog.add([traced(3)])  # the two are still held
    assert backlog.take(0) == LeftOut(traces=1, spans=1)
    backlog.add([traced(4)])
    assert backlog.take(0) == [traced(4)]


def test_trees_that_wait_for_more_spans_hold_no_more_than_the_backlog() -> None:
    trees = Trees()
    trees.add([traced(1, "x" * 1_000_000)])
    assert trees.due() > 0
    trees.add([traced(2, "x" * MOST_BYTES)])
    assert trees.due() == 0
    trees.print_due(0.0)
    assert (trees.traces, trees.size) == ({}, 0)
