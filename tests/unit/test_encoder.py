"""Spans on the wire: what the library would have sent, whatever is in them; and no span lost where it raises."""

from __future__ import annotations

import logging
import math
import random
import re
import signal
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from mackerel_otel_server.pipeline import encoder as module
from mackerel_otel_server.pipeline import spans
from mackerel_otel_server.pipeline.encoder import EncodedSpan, Encoder
from mackerel_otel_server.pipeline.oversized_spans import cut

LIBRARY = tuple(int(part) for part in re.findall(r"\d+", version("opentelemetry-exporter-otlp-proto-common"))[:2])
RESOURCE = Resource({"service.name": "shop", "process.pid": 42, "tags": ("a", "b")}, "https://example.com/resource")
DEEPEST = 31  # mappings in an attribute of a span that protobuf's reader still takes

PROPERTIES = settings(max_examples=150, deadline=None, derandomize=True, database=None)

# Equal and of equal hash, or alike on the wire.
LOOKALIKES = st.sampled_from([1, True, 1.0, 0, False, 0.0, -0.0, "1", b"1", "", b"", "True", (), (1,), (True,), (1.0,)])
TEXT = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["", "x" * 127, "x" * 128, "é" * 300, "x" * 511, "x" * 20_000, "\ud800", "a\udfffb", "\U0001f600"]
)
INTEGERS = st.integers() | st.sampled_from([0, 127, 128, 2**14, 2**21, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64])
SCALARS = LOOKALIKES | TEXT | INTEGERS | st.floats() | st.binary(max_size=200) | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=3),
    max_leaves=8,
)
# Few keys, so that the values meet in the cache.
KEYS = st.sampled_from(["k", "http.route", "é", "x" * 300]) | TEXT
ATTRIBUTES = st.dictionaries(KEYS, VALUES, max_size=6)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep the SDK and the library from logging each value that they do not take."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Recorder:
    """The SDK, and what it recorded."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests", "1.0", "https://example.com/scope", {"k": "v"})

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def span(self, name: str = "span", **arguments: Any) -> ReadableSpan:
        self.tracer.start_span(name, **arguments).end()
        return self.spans[-1]


def canonical(request: bytes) -> bytes:
    """Bytes, not messages, are compared: NaN is not equal to itself, and 0.0 is to -0.0."""
    return ExportTraceServiceRequest.FromString(request).SerializeToString(deterministic=True)


def from_library(spans: Sequence[ReadableSpan]) -> bytes:
    return encode_spans(spans).SerializeToString(deterministic=True)


def by_library(span: ReadableSpan) -> EncodedSpan:
    return span.instrumentation_scope, module._by_library(span)  # noqa: SLF001


def assert_as_library(spans: Sequence[ReadableSpan], encoder: Encoder | None = None) -> None:
    """Compare what becomes of spans, also when they come again and again and when the SDK is not as we know it."""
    encoder = encoder or Encoder(RESOURCE)
    clean = [sendable(span) for span in spans]
    expected = from_library(clean)
    for _ in range(4):
        assert canonical(encoder.assemble([encoder.encode_known(span) for span in spans])) == expected
    assert canonical(encoder.assemble([by_library(span) for span in clean])) == expected


def sendable(span: ReadableSpan) -> ReadableSpan:
    """Return the span without what the library would raise at."""
    events = [Event(text(event.name), attributes(event), event.timestamp) for event in span.events]
    copy = ReadableSpan(
        text(span.name),
        span.context,
        span.parent,
        span.resource,
        attributes(span),
        events,
        [Link(link.context, attributes(link)) for link in span.links],
        span.kind,
        status=Status(span.status.status_code, span.status.description and text(span.status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
    if not span.dropped_events + span.dropped_links:
        return copy

    class Counting(ReadableSpan):
        dropped_events = span.dropped_events
        dropped_links = span.dropped_links

    copy.__class__ = Counting
    return copy


def attributes(bearer: ReadableSpan | Event | Link) -> BoundedAttributes:
    found: Mapping[str, Any] = bearer.attributes or {}
    result = BoundedAttributes(immutable=False)
    # Not by its own methods, which would clean the values again.
    cleaned: dict[str, Any] = result._dict  # noqa: SLF001
    result.dropped = bearer.dropped_attributes
    for key, value in found.items():
        try:
            cleaned[text(key)] = attribute_value(value)
        except ValueError:  # noqa: PERF203
            result.dropped += 1
    return result


def attribute_value(value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("the library logs this one, and sends the span without it")
    if value is None and LIBRARY < (1, 43):
        raise ValueError("the same")
    if isinstance(value, tuple):
        return tuple(map(attribute_value, value))
    if isinstance(value, dict):
        return {text(key): attribute_value(item) for key, item in value.items()}
    return value


def text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()


def distinct(found: dict[str, Any]) -> bool:
    """Tell whether keys stay different when their lone surrogates are replaced."""
    nested = [item for value in found.values() for item in (value if isinstance(value, list) else [value])]
    here = len({text(key) for key in found}) == len(found)
    return here and all(distinct(item) for item in nested if isinstance(item, dict))


@PROPERTIES
@given(st.lists(ATTRIBUTES.filter(distinct), min_size=1, max_size=4))
def test_any_attributes_are_sent_as_the_library_would(several: list[dict[str, Any]]) -> None:
    recorder = Recorder()
    for found in several:
        recorder.span(attributes=found)
    assert_as_library(recorder.spans)


SHARED = Encoder(RESOURCE, cache_bytes=4_000)


@PROPERTIES
@given(st.lists(st.tuples(KEYS, SCALARS), min_size=1, max_size=40))
def test_a_cache_that_overflows_all_the_time_confuses_nothing(items: list[tuple[str, Any]]) -> None:
    recorder = Recorder()
    for key, value in items:
        recorder.span(attributes={key: value})
    assert_as_library(recorder.spans, SHARED)


@pytest.mark.parametrize("first", [1, True, 1.0, 0, False, 0.0, -0.0, "1", b"1", (1,), (True,), math.nan])
def test_values_that_are_equal_or_alike_never_stand_for_each_other(first: Any) -> None:
    recorder = Recorder()
    spans = [recorder.span(attributes={"k": first}) for _ in range(4)]
    spans += [
        recorder.span(attributes={"k": value})
        for value in (1, True, 1.0, 0, False, 0.0, -0.0, "1", b"1", (1,), (True,), (1.0,), math.nan, -math.nan)
    ]
    assert_as_library(spans)
    for cache_bytes in range(600, 3_000, 100):  # so that they meet in the former generation, too
        assert_as_library(spans, Encoder(RESOURCE, cache_bytes=cache_bytes))


@PROPERTIES
@given(
    name=TEXT,
    event=TEXT,
    description=TEXT,
    found=ATTRIBUTES.filter(distinct),
    times=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    kind=st.sampled_from(SpanKind),
    ids=st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)),
    code=st.sampled_from(StatusCode),
    state=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["1", "x=y"])), max_size=2),
    remote=st.booleans(),
)
def test_everything_else_of_a_span_is_sent_as_the_library_would(  # noqa: PLR0913
    *,
    name: str,
    event: str,
    description: str,
    found: dict[str, Any],
    times: tuple[int, int, int],
    kind: SpanKind,
    ids: tuple[int, int],
    code: StatusCode,
    state: list[tuple[str, str]],
    remote: bool,
) -> None:
    recorder = Recorder()
    context = SpanContext(*ids, remote, TraceFlags(1), TraceState(state))
    span = recorder.tracer.start_span(
        name,
        trace.set_span_in_context(trace.NonRecordingSpan(context)),
        kind,
        links=[Link(context, found), Link(SpanContext(1, 2, not remote))],
        start_time=times[0],
    )
    span.add_event(event, found, times[1])
    span.set_status(Status(code, description))
    span.end(times[2])
    assert_as_library(recorder.spans)


def test_exceptions_remote_parents_scopes_and_order_are_sent_as_the_library_would() -> None:
    recorder = Recorder()
    other = recorder.provider.get_tracer("other")
    with (
        pytest.raises(ZeroDivisionError),
        recorder.tracer.start_as_current_span("parent", kind=SpanKind.SERVER),
        other.start_as_current_span("child", kind=SpanKind.CLIENT),
        recorder.provider.get_tracer("").start_as_current_span("unnamed"),
    ):
        print(1 / 0)
    # Equal to the first one, but another object.
    recorder.provider.get_tracer("tests", "1.0", "https://example.com/scope", {"k": "v"}).start_span("again").end()
    other.start_span("last").end()
    assert len(recorder.spans[0].events) == 1
    assert recorder.spans[0].status.description == "ZeroDivisionError: division by zero"
    assert_as_library(recorder.spans)


def test_what_span_limits_dropped_is_counted() -> None:
    limits = SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1)
    recorder = Recorder(span_limits=limits)
    three = {"a": 1, "b": 2, "c": 3}
    link = Link(SpanContext(1, 2, is_remote=True), three)
    with recorder.tracer.start_as_current_span("span", attributes=three, links=[link, link]) as span:
        span.add_event("first", three)
        span.add_event("second", three)
    (finished,) = recorder.spans
    assert (finished.dropped_attributes, finished.dropped_events, finished.dropped_links) == (1, 1, 1)
    assert_as_library(recorder.spans)


def test_no_spans_make_an_empty_request() -> None:
    assert Encoder(RESOURCE).assemble([]) == b""


def test_the_installed_sdk_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    with recorder.tracer.start_as_current_span("parent", attributes={"a": "b", "c": 1, "d": 1.5, "e": ("f",)}) as span:
        span.add_event("event")
        recorder.span("child")
    monkeypatch.setattr(module, "_by_library", lambda span: pytest.fail(f"{span.name} went the long way"))
    encoder = Encoder(RESOURCE)
    for finished in recorder.spans:
        encoder.encode(finished)
        encoder.encode(cut(finished))
    assert sdk_differences() == [None, None]


def sdk_differences() -> list[str | None]:
    return [module.sdk_difference.__wrapped__(), spans.sdk_difference()]


def parsed(span: ReadableSpan) -> Any:
    encoder = Encoder(RESOURCE)
    request = ExportTraceServiceRequest.FromString(encoder.assemble([encoder.encode(span)]))
    return request.resource_spans[0].scope_spans[0].spans[0]


class Evil:
    def __str__(self) -> str:
        raise RuntimeError("no words for that")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [Evil(), {1, 2}, object(), [Evil()], {"k": Evil()}, 2**63, [2**64], {"k": -(2**70)}],
    ids=["object", "set", "plain object", "in a list", "in a mapping", "int", "int in a list", "int in a mapping"],
)
def test_an_attribute_that_cannot_be_encoded_is_dropped_and_counted(value: Any) -> None:
    span = Recorder().span(attributes={"a": 1, "b": 2})
    found: dict[str, Any] = span._attributes._dict  # type: ignore[union-attr]  # noqa: SLF001
    found["weird"] = value
    assert [item.key for item in parsed(span).attributes] == ["a", "b"]
    assert parsed(span).dropped_attributes_count == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"_name": Evil()},
        {"_name": 1},
        {"_name": None},
        {"_kind": "server"},
        {"_start_time": 1.5e18},
        {"_start_time": "now"},
        {"_end_time": None},
        {"_end_time": -1},
        {"_end_time": 2**64},
        {"_events": [Evil()]},
        {"_events": None},
        {"_links": (Evil(),)},
        {"_status": None},
        {"_attributes": None},
        {"_attributes": Evil()},
        {"_parent": Evil()},
    ],
    ids="".join,
)
def test_a_part_that_cannot_be_encoded_costs_that_part_alone(changes: dict[str, Any]) -> None:
    span = Recorder().span("name", attributes={"a": 1})
    vars(span).update(changes)
    found = parsed(span)
    if "_name" not in changes:
        assert found.name == "name"
    if "_attributes" not in changes:
        assert [item.key for item in found.attributes] == ["a"]
    assert span.context is not None
    assert found.span_id == span.context.span_id.to_bytes(8, "big")


@pytest.mark.parametrize("kind", ["sequence", "mapping"])
def test_an_attribute_that_no_reader_would_take_costs_no_batch(kind: str) -> None:
    def nested(levels: int) -> Any:
        value: Any = "x"
        for _ in range(levels):
            value = (value,) if kind == "sequence" else {"k": value}
        return value

    span = Recorder().span(attributes={"a": 1})
    found: dict[str, Any] = span._attributes._dict  # type: ignore[union-attr]  # noqa: SLF001
    for levels in range(60):
        found["deep"] = nested(levels)
        encoded = parsed(span)
        sent = [item.key for item in encoded.attributes]
        assert encoded.dropped_attributes_count == 2 - len(sent)
        assert ("deep" in sent) == (levels <= (DEEPEST if kind == "mapping" else 46))
    looped: dict[str, Any] = {}
    looped["k"] = looped
    found["deep"] = looped
    assert parsed(span).dropped_attributes_count == 1


def test_the_cache_keeps_to_its_bytes_and_keeps_what_is_in_use() -> None:
    recorder = Recorder()
    limit = 300_000
    encoder = Encoder(RESOURCE, cache_bytes=limit)
    chance = random.Random(1)
    span = recorder.span(attributes={"used": "all the time", "id": ""})
    found: dict[str, Any] = span._attributes._dict  # type: ignore[union-attr]  # noqa: SLF001
    cache = encoder._cache  # noqa: SLF001
    # What other threads of the tests allocate meanwhile does not count.
    here = [tracemalloc.Filter(inclusive=True, filename_pattern=name) for name in ("*/pipeline/*", __file__)]
    tracemalloc.start()
    most = 0
    for number in range(10_000):
        found["id"] = ("\U0001f600" if number % 3 else "x") * chance.randrange(200) + str(number)
        found["number"] = number + 1000
        found.pop(f"key {number - 2}", None)
        found[f"key {number}"] = True
        vars(span)["_name"] = f"name {number}"
        encoder.encode(span)
        encoder.encode(span)
        encoder.encode(span)
        if number % 100 == 0:
            traces = tracemalloc.take_snapshot().filter_traces(here).traces
            most = max(most, sum(trace.size for trace in traces))
            if "all the time" not in cache.columns.get("used", ()):
                # It may have started anew with the last one: what is in use is back with the next ones.
                encoder.encode(span)
                encoder.encode(span)
            assert number < 100 or "all the time" in cache.columns["used"]
    tracemalloc.stop()
    assert limit / 3 < most < limit


def test_large_values_are_not_kept() -> None:
    recorder = Recorder()
    encoder = Encoder(RESOURCE)
    for _ in range(5):
        encoder.encode(recorder.span("y" * 5000, attributes={"k": "x" * 5000}))
    columns = encoder._cache.columns  # noqa: SLF001
    assert set(columns) == {None, "k"}
    assert all(len(data) < 2000 for column in columns.values() for data in column.values())


def test_values_that_vary_are_not_kept_and_one_that_stops_varying_is() -> None:
    recorder = Recorder()
    encoder = Encoder(RESOURCE)
    span = recorder.span("name", attributes={"k": "", "constant": "value"})
    found: dict[str, Any] = span._attributes._dict  # type: ignore[union-attr]  # noqa: SLF001
    for number in range(5000):
        found["k"] = f"value {number}"
        encoder.encode(span)
    columns = encoder._cache.columns  # noqa: SLF001
    assert len(columns["k"]) < 50
    for _ in range(100):
        encoder.encode(span)
    assert "value 4999" in columns["k"]
    assert list(columns["constant"]) == ["value"]


def workload() -> tuple[list[ReadableSpan], bytes]:
    recorder = Recorder()
    values = [1, True, 1.0, "1", 0, False, 0.0, -0.0, *range(40), *(f"value {number % 50}" for number in range(200))]
    for number, value in enumerate(values):
        recorder.span(f"name {number % 7}", attributes={"k": value, "l": str(value), "m": number})
    return recorder.spans, from_library(recorder.spans)


def test_threads_may_encode_at_the_same_time() -> None:
    spans, expected = workload()
    encoder = Encoder(RESOURCE, cache_bytes=8_000)
    wrong: list[bytes] = []
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        for _ in range(20):
            request = encoder.assemble([encoder.encode(span) for span in spans])
            if canonical(request) != expected:
                wrong.append(request)

    threads = [threading.Thread(target=work) for _ in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_signal_handler_may_encode_in_the_middle_of_an_encode() -> None:
    spans, expected = workload()
    encoder = Encoder(RESOURCE, cache_bytes=8_000)
    interrupted: list[bytes] = []

    def handler(*_: object) -> None:
        interrupted.append(encoder.assemble([encoder.encode(span) for span in spans]))

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        while len(interrupted) < 30:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            assert canonical(encoder.assemble([encoder.encode(span) for span in spans])) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert {canonical(request) for request in interrupted} == {expected}
