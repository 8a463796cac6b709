from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import at, exception, span

from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan
from mackerel_otel_server.cli.receiver.tree import render, walk
from mackerel_otel_server.cli.text import columns

if TYPE_CHECKING:
    from types import FrameType

# What turns the direction of text: UAX #9, section 2.
TURNING = [*map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C))]


def drawn(*spans: ReceivedSpan, encoding: str = "utf-8") -> list[str]:
    """Return the lines of one trace below its header."""
    return [line for line in render(spans, encoding=encoding) if line][1:]


def test_the_header_says_which_trace_of_which_service_and_process_and_when() -> None:
    header = next(iter(render([span("a", "1")])))
    assert re.fullmatch(r"trace t1  shop  pid 42  2023-11-1\d \d\d:\d\d:20\.000", header)


def test_children_hang_below_their_parents_in_the_order_of_their_start() -> None:
    lines = drawn(
        span("second", "3", "1", **at(20)),
        span("inner", "4", "2", **at(11)),
        span("root", "1", **at(0, 100.5)),
        span("first", "2", "1", **at(10)),
    )
    assert lines == [
        "  100.50 ms  INTERNAL root",
        "    1.00 ms  ├─ INTERNAL first",
        "    1.00 ms  │  └─ INTERNAL inner",
        "    1.00 ms  └─ INTERNAL second",
    ]


def test_an_encoding_without_branches_gets_ascii() -> None:
    spans = span("root", "1"), span("a", "2", "1"), span("さば", "3", "1"), span("b", "4", "2")
    assert drawn(*spans, encoding="ascii") == [
        "  2.00 ms  INTERNAL root",
        "  2.00 ms  |- INTERNAL a",
        "  2.00 ms  |  `- INTERNAL b",
        "  2.00 ms  `- INTERNAL \\u3055\\u3070",
    ]


def test_a_span_whose_parent_has_not_arrived_is_a_root_that_says_so() -> None:
    assert drawn(span("a", "2", "1"), span("b", "3", "2")) == [
        "  2.00 ms  INTERNAL a  (parent not received)",
        "  2.00 ms  └─ INTERNAL b",
    ]


def test_each_trace_has_a_tree_of_its_own_oldest_first() -> None:
    lines = list(render([span("b", "1", trace_id="late", **at(5)), span("a", "1", trace_id="early", **at(0))]))
    assert [line.split()[1] for line in lines if line.startswith("trace")] == ["early", "late"]
    assert lines.count("") == 2


@pytest.mark.parametrize("name", ["http.response.status_code", "http.status_code"])
def test_a_server_span_shows_its_status(name: str) -> None:
    assert drawn(span("GET /", "1", kind="SERVER", attributes={name: 404})) == ["  2.00 ms  SERVER GET /  404"]


@pytest.mark.parametrize("name", ["db.query.text", "db.statement"])
def test_a_database_span_shows_its_query_on_one_short_line(name: str) -> None:
    query = "SELECT *\n  FROM fish\n WHERE " + "name = 'mackerel' AND " * 10
    (line,) = drawn(span("SELECT", "1", kind="CLIENT", attributes={name: query}))
    assert line.startswith("  2.00 ms  CLIENT SELECT  SELECT * FROM fish WHERE name = 'mackerel' AND")
    assert line.endswith("...")
    assert len(line) < 140


def test_an_error_is_marked_with_its_exception() -> None:
    (line,) = drawn(span("a", "1", status_code="ERROR", events=exception("ZeroDivisionError", "division\nby zero")))
    assert line == "  2.00 ms  INTERNAL a  ERROR  ZeroDivisionError: division by zero"


def test_an_error_without_exception_shows_its_message() -> None:
    (line,) = drawn(span("a", "1", status_code="ERROR", status_message="gone"))
    assert line == "  2.00 ms  INTERNAL a  ERROR  gone"


@pytest.mark.parametrize("nasty", ["\x1b[2J", "a\r\nb", "\x00", *TURNING, "\x9b", "\u2028"])
def test_nothing_in_a_span_reaches_the_terminal_as_a_control_character(nasty: str) -> None:
    lines = render(
        [
            span(
                nasty,
                "1",
                kind="SERVER",
                status_code="ERROR",
                attributes={"http.response.status_code": nasty},
                events=exception(nasty, nasty),
                resource={"service.name": nasty, "process.pid": nasty},
            ),
            span("q", "2", "1", kind="CLIENT", attributes={"db.query.text": nasty}, status_message=nasty),
        ]
    )
    for line in lines:
        assert line.isprintable(), ascii(line)


def test_a_child_in_another_process_says_which() -> None:
    child = span("b", "2", "1", resource={"service.name": "stock", "process.pid": 77})
    assert drawn(span("a", "1"), child)[1] == "  2.00 ms  └─ INTERNAL b  (stock  pid 77)"


def test_a_resource_without_names_is_drawn() -> None:
    assert "unknown_service  pid ?" in next(iter(render([span("a", "1", resource={})])))


def test_spans_that_are_each_others_parents_are_drawn_once() -> None:
    lines = drawn(span("a", "1", "2"), span("b", "2", "1"), span("c", "3", "3"))
    assert sorted(line.split("INTERNAL ")[1][0] for line in lines) == ["a", "b", "c"]


def test_a_span_that_arrived_twice_is_drawn_twice_and_its_children_once() -> None:
    lines = drawn(span("a", "1"), span("a", "1"), span("b", "2", "1"))
    assert [line.split("INTERNAL ")[1] for line in lines] == ["a", "b", "a"]


def test_a_very_deep_trace_is_drawn() -> None:
    assert len(drawn(*(span("s", str(n), str(n - 1) if n else "") for n in range(3000)))) == 3000


def test_the_branches_of_a_very_deep_trace_do_not_grow_with_it() -> None:
    lines = drawn(*(span("s", str(n), str(n - 1) if n else "") for n in range(20_000)))
    assert max(map(len, lines)) < 200
    assert re.match(r"  2\.00 ms  \.\.  +└─ INTERNAL s$", lines[-1])


@pytest.mark.parametrize("size", [1, 2])
def test_thousands_of_circles_take_no_search_through_all_of_them(size: int) -> None:
    spans = [span("s", f"{n}.{k}", f"{n}.{(k + 1) % size}") for n in range(2_000) for k in range(size)]
    steps = 0

    def count(_frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        nodes = list(walk(spans))
    finally:
        sys.settrace(before)
    assert len(nodes) == len(spans)
    assert steps < 50 * len(spans)


def test_a_service_of_thousands_of_characters_does_not_fill_the_header() -> None:
    resource = {"service.name": "s" * 5_000, "process.pid": "p" * 5_000}
    cut, whole = (next(iter(render([span("a", "1", resource=resource)], full=full))) for full in (False, True))
    assert len(cut) < 300
    assert all(letter * 5_000 in whole for letter in "sp")


def test_all_of_a_text_is_drawn_where_that_is_asked_for() -> None:
    long = span("n" * 500, "1", kind="CLIENT", attributes={"db.query.text": "q" * 500}, status_message="m" * 500)
    cut, whole = (next(line for line in render([long], full=full) if "CLIENT" in line) for full in (False, True))
    assert len(cut) < 350
    assert all(letter * 500 in whole for letter in "nqm")


def test_a_text_of_megabytes_is_not_looked_through_for_its_line() -> None:
    (line,) = drawn(span(f"{' ' * 1_000_000}x", "1"))
    assert line == "  2.00 ms  INTERNAL ..."


TROUBLED: tuple[ReceivedSpan, ...] = (
    span("GET /さば/{id}", "1", kind="SERVER", attributes={"http.response.status_code": 500}, status_code="ERROR"),
    span("SELECT", "2", "1", kind="CLIENT", attributes={"db.query.text": "SELECT * FROM 魚 WHERE 名前 = '鯖' " * 5}),
    span("b", "3", "2", status_code="ERROR", events=exception("ValueError", "無効な値です")),
    *(span(f"深い {n}", str(n), str(n - 1)) for n in range(4, 40)),
)


@given(limit=st.integers(1, 200), encoding=st.sampled_from(["utf-8", "ascii", "shift_jis"]))
def test_no_line_is_wider_than_the_limit(limit: int, encoding: str) -> None:
    for line in render(TROUBLED, encoding=encoding, limit=limit):
        assert columns(line) <= limit, line


def test_in_twenty_columns_names_are_read_and_the_header_goes_on_below() -> None:
    lines = list(render(TROUBLED[:3], limit=20))
    assert re.fullmatch(r"  \d\d:\d\d:20\.000", lines.pop(2))
    assert lines == [
        "trace t1  shop",
        "  pid 42",
        "  2.00 ms  GET /...",
        "  2.00 ms  └─ SEL...",
        "  2.00 ms  .. b  ...",
        "",
    ]


def test_branches_that_leave_no_room_are_left_out() -> None:
    deep = [line for line in render(TROUBLED, limit=40) if "深い 39" in line]
    assert deep == [line for line in deep if re.match(r"  2\.00 ms  \.\. └─ INTERNAL", line)]
    assert len(deep) == 1


def test_without_a_limit_nothing_more_is_cut() -> None:
    (line,) = (line for line in render(TROUBLED) if "深い 39" in line)
    assert line.startswith(f"  2.00 ms  {' ' * 3 * 37}└─ ")


def test_what_went_wrong_stands_before_the_query() -> None:
    failed = span("SELECT", "1", kind="CLIENT", status_code="ERROR", attributes={"db.query.text": "SELECT x"})
    assert drawn(failed) == ["  2.00 ms  CLIENT SELECT  ERROR  SELECT x"]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_500, "1.5 µs"),
        (10_000, "0.01 ms"),
        (270_000, "0.27 ms"),
        (100_500_000, "100.50 ms"),
        (1_234_000_000, "1.23 s"),
        (60_000_000_000, "1 min"),
        (123_400_000_000, "2 min 3 s"),
        (3_600_000_000_000, "1 h"),
        (11_045_000_000_000, "3 h 4 min"),
        (183_600_000_000_000, "2 d 3 h"),
        (-1_500_000, "-1.50 ms"),
    ],
)
def test_durations_are_readable_from_nanoseconds_to_days(nanoseconds: int, text: str) -> None:
    assert drawn(span("a", "1", start_time_unix_nano=10**18, end_time_unix_nano=10**18 + nanoseconds)) == [
        f"  {text}  INTERNAL a"
    ]


def test_an_encoding_without_a_micro_sign_gets_a_u() -> None:
    assert drawn(span("a", "1", end_time_unix_nano=1_700_000_000_000_001_500), encoding="ascii") == [
        "  1.5 us  INTERNAL a"
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (1.5, "1.5"), (["a", 1], '["a", 1]'), (b"x", "eA=="), (None, "null"), ({"k": "v"}, '{"k": "v"}')],
)
def test_what_is_no_text_reads_as_on_the_page(value: object, text: str) -> None:
    assert drawn(span("a", "1", attributes={"db.query.text": value})) == [f"  2.00 ms  INTERNAL a  {text}"]
