"""What the page keeps: the latest traces, and never more than fits."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from making import at, exception, span

from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan
from mackerel_otel_server.cli.receiver.summary import detail, summarise
from mackerel_otel_server.cli.receiver.traces import Trace, Traces

TIMEOUT = 30.0


def traced(number: int, name: str = "a", **changes: Any) -> ReceivedSpan:
    return span(name, "1", trace_id=f"t{number}", **changes)


def kept(traces: Traces) -> list[str]:
    return [trace.id for trace in traces.news(0, 0).traces]


def get(traces: Traces, trace_id: str = "t1") -> Trace:
    trace = traces.get(trace_id)
    assert trace
    return trace


def of(*spans: ReceivedSpan) -> Trace:
    traces = Traces()
    traces.add(spans)
    return get(traces)


def test_the_oldest_traces_go_when_there_are_too_many() -> None:
    traces = Traces(most_traces=3)
    for number in range(5):
        traces.add([traced(number)])
    assert kept(traces) == ["t2", "t3", "t4"]
    assert traces.news(0, 0).oldest == get(traces, "t2").number
    assert traces.get("t0") is None


def test_the_oldest_traces_go_when_their_spans_say_too_much() -> None:
    traces = Traces(most_bytes=24_000)
    for number in range(9):
        traces.add([traced(number, "x" * 5_000)])
    assert kept(traces) == ["t5", "t6", "t7", "t8"]


def test_a_very_large_trace_neither_grows_without_limit_nor_drives_the_others_out() -> None:
    traces = Traces(most_spans=10, most_bytes=24_000)
    traces.add([traced(1)])
    traces.add([span("b", str(n), trace_id="t2") for n in range(25)])
    traces.add([traced(3, "x" * 1_000_000)])
    assert kept(traces) == ["t1", "t2"]
    assert (len(get(traces, "t2").spans), get(traces, "t2").left_out) == (10, 15)


@pytest.mark.parametrize("together", [True, False], ids=["at once", "one by one"])
def test_the_request_and_what_failed_are_kept_of_a_very_large_trace_though_they_come_last(together: bool) -> None:
    traces = Traces(most_spans=10)
    queries = [span(f"query {n}", f"q{n}", "view", **at(n)) for n in range(30)]
    failed = span("failed", "f", "view", status_code="ERROR", **at(31))
    view, request = span("view", "view", "root", **at(0, 40)), span("GET /", "root", kind="SERVER", **at(0, 50))
    arriving = [*queries, failed, view, request]
    for some in [arriving] if together else [[one] for one in arriving]:
        traces.add(some)
    trace = get(traces)
    assert [s.name for s in trace.spans] == [*(f"query {n}" for n in range(7)), "failed", "view", "GET /"]
    assert trace.left_out == 23
    assert (summarise(trace)["name"], summarise(trace)["errors"]) == ("GET /", 1)


def test_the_request_is_kept_also_where_everything_fails_or_is_large() -> None:
    traces = Traces(most_spans=10, most_bytes=80_000)
    traces.add([span("query", f"q{n}", "root", status_code="ERROR") for n in range(30)])
    traces.add([span("GET /", "root", kind="SERVER")])
    assert [s.name for s in get(traces).spans].count("GET /") == 1
    traces.add([span("x" * 1_000, f"q{n}", "root", trace_id="t2") for n in range(9)])
    traces.add([span("y" * 18_000, "root", kind="SERVER", trace_id="t2")])
    assert get(traces, "t2").spans[-1].span_id == "root"
    assert get(traces, "t2").size <= 20_000


def test_a_trace_of_which_nothing_can_be_kept_is_no_trace() -> None:
    traces = Traces(most_bytes=2_000)
    traces.add([traced(1, "x" * 5_000), traced(2)])
    assert kept(traces) == ["t2"]


def test_only_what_has_changed_is_news() -> None:
    traces = Traces()
    traces.add([traced(1), traced(2)])
    version = traces.news(0, 0).version
    traces.add([traced(1, "b")])
    news = traces.news(version, 0)
    assert [(trace.id, len(trace.spans)) for trace in news.traces] == [("t1", 2)]
    assert traces.news(news.version, 0).traces == ()


def test_who_waits_for_news_gets_them_when_they_come() -> None:
    traces = Traces()
    got: list[str] = []
    waiting = threading.Thread(target=lambda: got.extend(t.id for t in traces.news(0, TIMEOUT).traces))
    waiting.start()
    traces.add([traced(1)])
    waiting.join(TIMEOUT)
    assert got == ["t1"]


def test_nobody_waits_for_news_of_a_store_that_is_closed() -> None:
    traces = Traces()
    traces.close()
    before = time.monotonic()
    assert traces.news(0, TIMEOUT).traces == ()
    assert time.monotonic() - before < TIMEOUT / 2


def test_the_list_gets_the_request_its_worker_and_its_error() -> None:
    root = span(
        "GET /{id}",
        "1",
        kind="SERVER",
        attributes={"http.request.method": "GET", "http.route": "/{id}", "http.response.status_code": 500},
        resource={"service.name": "shop", "process.pid": 42, "host.name": "h1", "service.instance.id": "i1"},
        status_code="ERROR",
        events=exception("ValueError", "無効"),
        **at(0, 5),
    )
    # Children end, and arrive, before their parents.
    line = summarise(of(span("SELECT", "2", "1", **at(1, 1)), root))
    assert (line["name"], line["method"], line["route"], line["status"]) == ("GET /{id}", "GET", "/{id}", "500")
    assert (line["spans"], line["errors"], line["error"]) == (2, 1, "ValueError: 無効")
    assert line["worker"] == {"service": "shop", "pid": "42", "host": "h1", "instance": "i1"}
    assert (line["duration"], line["services"]) == (5_000_000, ["shop"])
    assert "無効" in line["text"]
    assert "select" in line["text"]


def test_a_span_of_a_trace_that_began_elsewhere_is_its_head() -> None:
    assert summarise(of(span("b", "2", "1", **at(1)), span("a", "1", "0", **at(0))))["name"] == "a"


def test_the_waterfall_gets_parents_before_children_and_times_from_the_start() -> None:
    spans = detail(of(span("b", "2", "1", **at(3, 1)), span("a", "1", **at(1, 5))))["spans"]
    assert [(s["name"], s["depth"], s["offset"], s["duration"]) for s in spans] == [
        ("a", 0, 0, 5_000_000),
        ("b", 1, 2_000_000, 1_000_000),
    ]


def test_a_span_of_another_process_is_marked() -> None:
    elsewhere = {"service.name": "stock", "process.pid": 43}
    got = detail(of(span("a", "1"), span("b", "2", "1", resource=elsewhere)))
    assert [s["elsewhere"] for s in got["spans"]] == [False, True]
    assert got["resources"][got["spans"][1]["resource"]]["worker"]["service"] == "stock"


def test_a_span_of_another_process_that_starts_before_its_parent_tells_how_far_its_clock_is_behind() -> None:
    there = {"service.name": "stock", "process.pid": 43}
    parts = span("a", "1", **at(80)), span("b", "2", "1", resource=there, **at(0)), span("c", "3", "1", **at(70))
    late = span("d", "4", "1", resource=there, **at(90))
    early = {s["name"]: s["early"] for s in detail(of(*parts, late))["spans"]}
    assert early == {"a": 0, "b": 80_000_000, "c": 0, "d": 0}


def test_the_list_says_why_the_request_failed_before_why_its_children_did() -> None:
    query = span("UPDATE", "2", "1", status_code="ERROR", status_message="try again")
    request = span("GET /", "1", kind="SERVER", status_code="ERROR", events=exception("SoldOutError", "no mackerel"))
    assert summarise(of(query, request))["error"] == "SoldOutError: no mackerel"
    assert summarise(of(query, span("GET /", "1", kind="SERVER")))["error"] == "try again"


def test_what_json_lacks_is_text_for_the_page() -> None:
    attributes = {"nan": float("nan"), "raw": b"\0", "nothing": None, "list": [1, float("inf")], "lone": "\ud800"}
    got = json.dumps(detail(of(span("a", "1", attributes=attributes))), allow_nan=False)
    pairs = dict(json.loads(got)["spans"][0]["attributes"])
    assert (pairs["nan"], pairs["raw"], pairs["nothing"], pairs["list"]) == ("NaN", "AA==", "null", '[1, "Infinity"]')


def test_the_list_gets_lines_and_not_texts() -> None:
    long, many = "x" * 20_000, [{"service.name": f"{'s' * 1_000}{n}", "host.name": "h" * 20_000} for n in range(100)]
    root = span(long, "1", kind="SERVER", attributes={"http.request.method": long, "http.route": long})
    line = summarise(of(root, *(span("a", f"c{n}", "1", resource=many[n], status_message=long) for n in range(100))))
    assert len(json.dumps(line)) < 30_000


def test_a_resource_that_comes_with_many_requests_is_one() -> None:
    parts = [span("a", str(n), resource={"service.name": "shop", "process.pid": n % 2}) for n in range(50)]
    got = detail(of(*parts))
    assert [found["worker"]["pid"] for found in got["resources"]] == ["0", "1"]
    assert [s["resource"] for s in got["spans"]] == [0, 1] * 25


def test_a_thousand_large_resources_are_not_compared_with_each_other() -> None:
    compared = 0

    class Counted(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    parts = [span("a", str(n), resource={f"k{k}": Counted("x") for k in range(50)} | {"z": n}) for n in range(1000)]
    assert len(detail(of(*parts))["resources"]) == 1000
    assert compared < 1000
