"""OTLP protobuf bytes to spans as plain Python values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mackerel_otel_server.cli.receiver.counting import holds_more

if TYPE_CHECKING:
    from collections.abc import Iterable

# Spans of one request. Real ones have 60 bytes at the least, of which Mackerel's 6 MB hold as many.
MOST = 100_000
# Spans, attributes, events, links and members of lists of one request: 6 MB hold as many of 20 bytes each.
MOST_PARTS = 300_000


class TooManySpansError(Exception):
    """A request holds more spans, or more in its spans, than anybody sends."""


@dataclass(frozen=True)
class ReceivedEvent:
    """One event of a span, e.g. an ``exception``."""

    name: str
    time_unix_nano: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ReceivedLink:
    """One link of a span to another one, maybe of another trace."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it arrived: identifiers in hexadecimal, ``parent_span_id`` empty without a parent."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_time_unix_nano: int
    end_time_unix_nano: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str
    status_code: str
    status_message: str
    events: tuple[ReceivedEvent, ...]
    links: tuple[ReceivedLink, ...] = ()
    trace_state: str = ""

    @cached_property
    def size(self) -> int:
        """How much it says, in characters: what limits of memory are counted in."""
        return len(repr(self))


def decode(body: bytes) -> list[ReceivedSpan]:
    """Decode the body of one export request.

    Raises:
        google.protobuf.message.DecodeError: It is no ``ExportTraceServiceRequest``.
        TooManySpansError: A body may be small and hold millions of parts without content, which Python is not.
    """
    if holds_more(body, ExportTraceServiceRequest.DESCRIPTOR, MOST_PARTS):
        raise TooManySpansError(f"the request has more than {MOST_PARTS} spans, attributes, events and links")
    request = ExportTraceServiceRequest.FromString(body)
    if sum(len(part.spans) for resource_spans in request.resource_spans for part in resource_spans.scope_spans) > MOST:
        raise TooManySpansError(f"the request has more than {MOST} spans")
    spans: list[ReceivedSpan] = []
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            spans.extend(_span(span, resource, scope_spans.scope.name) for span in scope_spans.spans)
    return spans


def _span(span: Span, resource: dict[str, Any], scope: str) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=_enum_name(Span.SpanKind, span.kind, "SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        resource=resource,
        scope=scope,
        status_code=_enum_name(Status.StatusCode, span.status.code, "STATUS_CODE_"),
        status_message=span.status.message,
        events=tuple(
            ReceivedEvent(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events
        ),
        links=tuple(
            ReceivedLink(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links
        ),
        trace_state=span.trace_state,
    )


def _enum_name(enum: Any, number: int, prefix: str) -> str:
    # proto3 enumerations are open: a newer client may send a number that has no name here.
    name: str = enum.Name(number) if number in enum.values() else str(number)
    return name.removeprefix(prefix)


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [_value(item) for item in value.array_value.values]
    if which == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, which)
