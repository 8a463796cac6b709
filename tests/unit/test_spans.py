"""The spans that this package makes itself are those that the SDK would have made."""

# ruff: noqa: SLF001 - whose spans these are shows in a private name only

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from mackerel_otel_server.pipeline import make_tracer_provider, spans
from mackerel_otel_server.pipeline.encoder import Encoder
from mackerel_otel_server.pipeline.spans import Provider
from mackerel_otel_server.settings import catalogue, read

if TYPE_CHECKING:
    from types import FrameType

ATTRIBUTES: dict[str, str | int | float] = {"http.request.method": "GET", "server.port": 8000, "ratio": 0.5, "is": True}
MANY = 4_400
"""Spans that are open at once: more than those with which nothing is looked for."""
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


class Ended(SpanProcessor):
    """A processor of the user's own."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.spans: list[ReadableSpan] = []

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:  # noqa: ARG002
        self.started.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@contextmanager
def providing(environ: Mapping[str, str] | None = None) -> Iterator[tuple[Provider, Ended]]:
    settings = read({"OTEL_SERVICE_NAME": "shop", "OTEL_TRACES_EXPORTER": "none", **(environ or {})})
    provider, processor = make_tracer_provider(settings, lambda _: None, lambda: None, lambda: None)
    ended = Ended()
    provider.add_span_processor(ended)
    assert isinstance(provider, Provider)
    try:
        yield provider, ended
    finally:
        processor.shutdown()


def both(provider: Provider) -> tuple[trace.Tracer, trace.Tracer]:
    """Return a tracer of ours, and the SDK's for the same scope."""
    return provider.get_tracer("mackerel_otel_server", "1"), TracerProvider.get_tracer(
        provider, "mackerel_otel_server", "1"
    )


def parent_of(*, sampled: bool, remote: bool = True, flags: int = 0) -> Context:
    state = TraceState([("vendor", "x")])
    ids = SpanContext(TRACE_ID, 7, remote, TraceFlags(int(sampled) | flags), state)
    return trace.set_span_in_context(NonRecordingSpan(ids), Context())


PARENTS = {
    "root": Context(),
    "remote": parent_of(sampled=True),
    "remote, random": parent_of(sampled=True, flags=2),
    "remote, unsampled": parent_of(sampled=False),
    "local": parent_of(sampled=True, remote=False),
}


def shown(span: ReadableSpan) -> dict[str, Any]:
    """Return what a span says, but for ids and times."""
    said: dict[str, Any] = json.loads(span.to_json())
    for name in ("start_time", "end_time"):
        assert said.pop(name)
    context = said["context"]
    assert len(context.pop("span_id")) == len("0x") + 16
    if said["parent_id"] is None:
        del context["trace_id"]
    for event in said["events"]:
        del event["timestamp"]
        event["attributes"].pop("exception.stacktrace", None)
    ids = span.get_span_context()
    assert ids is not None
    return {**said, "flags": int(ids.trace_flags), "remote": span.parent and span.parent.is_remote, "kind": span.kind}


def use(tracer: trace.Tracer, context: Context) -> trace.Span:
    """Do with a span all that instrumentations and applications do."""
    span = tracer.start_span("GET", context, SpanKind.SERVER, {**ATTRIBUTES})
    span.set_attribute("http.route", "/fish/<int:id>")
    span.set_attribute("server.port", 8001)
    span.set_attribute("list", ["a", "b"])
    span.set_attributes({"x": 1, "y": "z"})
    span.set_attribute("", "no name")
    span.update_name("GET /fish/<int:id>")
    span.add_event("note", {"a": 1})
    span.add_link(SpanContext(TRACE_ID, 9, is_remote=True), {"why": "so"})
    span.record_exception(ValueError("wrong"))
    span.set_status(StatusCode.ERROR, "failed")
    span.end()
    span.set_attribute("too", "late")
    span.update_name("too late")
    span.end()
    return span


@pytest.mark.parametrize("sampler", catalogue.SAMPLER.words)
@pytest.mark.parametrize("parent", PARENTS)
def test_a_span_of_ours_is_the_sdks_span(sampler: str, parent: str) -> None:
    with providing({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "1"}) as (provider, ended):
        ours, theirs = both(provider)
        assert isinstance(ours, spans._QuickTracer)
        assert isinstance(theirs, Tracer)
        made = [use(tracer, PARENTS[parent]) for tracer in (ours, theirs)]
        contexts = [span.get_span_context() for span in made]
        assert [span.is_recording() for span in made] == [False, False]
        assert contexts[0].trace_flags == contexts[1].trace_flags
        assert contexts[0].trace_state == contexts[1].trace_state
        assert contexts[0].is_valid
        if parent != "root":
            assert contexts[0].trace_id == contexts[1].trace_id == TRACE_ID
        if ended.spans:
            first, second = ended.spans
            assert shown(first) == shown(second)
            # Of the same size, since the ids and times are: the same fields.
            sizes = [len(Encoder(provider.resource).encode(span)[1]) for span in (first, second)]
            assert abs(sizes[0] - sizes[1]) < 200  # the line of the exception's stack trace
        assert len(ended.started) == len(ended.spans) in (0, 2)


def test_the_same_share_of_the_same_traces_is_sampled() -> None:
    with providing({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.3"}) as (provider, _):
        ours, theirs = both(provider)
        for number in range(64):
            ids = SpanContext((number << 58) + 1, 7, is_remote=True, trace_flags=TraceFlags(1))
            context = trace.set_span_in_context(NonRecordingSpan(ids), Context())
            flags = [tracer.start_span("x", context).get_span_context().trace_flags for tracer in (ours, theirs)]
            assert flags[0] == flags[1], number


def test_only_so_many_attributes_are_kept() -> None:
    with providing() as (provider, ended):
        for tracer in both(provider):
            with tracer.start_as_current_span("work") as span:
                for number in range(200):
                    span.set_attribute(f"a{number}", number)
    first, second = ended.spans
    assert first.attributes == second.attributes
    assert first.dropped_attributes == second.dropped_attributes == 72


def test_an_attribute_of_the_callers_dict_that_changes_later_is_not_changed_in_the_sdks_spans() -> None:
    # For whom the dict is made: the tracer of an application's own is the SDK's.
    with providing() as (provider, _):
        assert type(provider.get_tracer("shop")) is type(TracerProvider.get_tracer(provider, "shop"))


@pytest.mark.parametrize("variable", ["OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
def test_where_attributes_are_limited_the_sdk_makes_all_spans(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "3")
    with providing() as (provider, ended):
        ours, _ = both(provider)
        ours.start_span("work", attributes={"a": "12345", "b": 1, "c": 2, "d": 3}).end()
    (span,) = ended.spans
    attributes = span.attributes or {}
    assert attributes.get("a", "123") == "123"
    assert len(attributes) == (3 if "COUNT" in variable else 4)


def test_an_sdk_with_other_fields_makes_all_spans_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_FIELDS", spans._FIELDS | {"_of_tomorrow"})
    with providing() as (provider, ended):
        ours, theirs = both(provider)
        assert type(ours) is type(theirs)
        use(ours, Context())
    assert len(ended.spans) == 1


def test_links_and_unusual_arguments_go_the_sdks_way() -> None:
    with providing() as (provider, ended):
        ours, _ = both(provider)
        link = trace.Link(SpanContext(TRACE_ID, 9, is_remote=True))
        ours.start_span("work", links=[link], start_time=5).end(7)
        ours.start_span("work", start_time=5).end(7)
        with ours.start_as_current_span("work") as span:
            assert trace.get_current_span() is span
    assert [len(span.links) for span in ended.spans] == [1, 0, 0]
    assert [(span.start_time, span.end_time) for span in ended.spans[:2]] == [(5, 7), (5, 7)]


def test_a_span_more_takes_no_search_through_all_that_are_open() -> None:
    lines = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    with providing() as (provider, _):
        tracer = both(provider)[0]
        before = sys.gettrace()
        sys.settrace(count)
        try:
            opened = [tracer.start_span("query") for _ in range(MANY)]
        finally:
            sys.settrace(before)
        assert lines < 100 * MANY
        for span in opened:
            span.end()


def test_spans_that_nobody_ends_or_has_any_more_are_forgotten() -> None:
    settings = read({"OTEL_SERVICE_NAME": "shop", "OTEL_TRACES_EXPORTER": "none"})
    provider, processor = make_tracer_provider(settings, lambda _: None, lambda: None, lambda: None)
    tracer = both(cast("Provider", provider))[0]
    kept = [tracer.start_span("kept") for _ in range(MANY)]
    for _ in range(6 * MANY):
        tracer.start_span("lost")
    assert len(processor._open) <= 2 * MANY + 1
    for span in kept:
        span.end()
    processor.shutdown()
