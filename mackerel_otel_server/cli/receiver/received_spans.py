"""OTLP protobuf bytes to spans as plain Python values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mackerel_otel_server.cli.receiver.http_server import RefusedError
from mackerel_otel_server.cli.receiver.limits import Room, holds_more, room_for

if TYPE_CHECKING:
    from collections.abc import Iterable

# Spans of one request. A real span has 60 bytes or more, so that Mackerel's 6 MB hold as many.
MOST = 100_000
# Spans, attributes, events, links and members of lists of one request: as many of 20 bytes each as 6 MB hold.
MOST_PARTS = 300_000
# JSON repeats a resource with each of its spans. Its attributes are counted as often, and may be so many times as many.
_REPEATED = 4
# Bytes of an id. OTLP's have 16 and 8.
_LONGEST_ID = 32
# About how many bytes of memory a span without attributes takes.
_BARE_BYTES = 800


@dataclass(frozen=True)
class ReceivedEvent:
    """One event of a span, e.g. an ``exception``."""

    name: str
    time_unix_nano: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ReceivedLink:
    """One link of a span to another one."""

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
    size: int = field(default=0, repr=False, compare=False)
    """About how many bytes of memory it takes, with its share of the resource: what limits are counted in."""


def decode(body: bytes, sent: int | None = None, *, longest_text: int | None = None) -> list[ReceivedSpan]:
    """Decode the body of one export request.

    A few kilobytes of gzip hold megabytes of one text, or a hundred thousand spans that are all alike. So what is kept
    of a request is bounded by its size as sent.

    Args:
        body: The unpacked body.
        sent: How many bytes were sent; by default as many as the body has.
        longest_text: Characters of one text, beyond which it is cut and says so; then all texts together have a limit,
            too. None: every text is whole.

    Raises:
        RefusedError: It is no ``ExportTraceServiceRequest``, or holds more than so many bytes of real spans do.
    """
    sent = len(body) if sent is None else sent
    # Identical attributes of spans need a byte or two each in gzip.
    most_parts = min(MOST_PARTS, 10_000 + 4 * sent)
    if holds_more(body, ExportTraceServiceRequest.DESCRIPTOR, most_parts):
        raise RefusedError(413, f"the request has more than {most_parts} spans, attributes, events and links")
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise RefusedError(400, "the body is no ExportTraceServiceRequest") from None
    # The id of a span has eight random bytes, which nothing packs.
    most = min(MOST, 1_000 + sent // 8)
    numbers = [sum(len(part.spans) for part in one.scope_spans) for one in request.resource_spans]
    if sum(numbers) > most:
        raise RefusedError(413, f"the request has more than {most} spans")
    room = room_for(sent, longest_text)
    repeated = 0
    spans: list[ReceivedSpan] = []
    for resource_spans, number in zip(request.resource_spans, numbers, strict=True):
        if not number:
            continue
        shared = room.shared()
        resource = _attributes(resource_spans.resource.attributes, shared)
        repeated += shared.parts * number
        if repeated > _REPEATED * most_parts:
            raise RefusedError(413, "the request's spans have resources of too many attributes")
        share = shared.size // number
        for scope_spans in resource_spans.scope_spans:
            scope = shared.text(scope_spans.scope.name)
            spans.extend(_span(span, resource, scope, room, share) for span in scope_spans.spans)
    return spans


def _span(span: Span, resource: dict[str, Any], scope: str, room: Room, share: int) -> ReceivedSpan:
    before = room.size
    return ReceivedSpan(
        name=room.text(span.name),
        kind=_enum_name(Span.SpanKind, span.kind, "SPAN_KIND_"),
        trace_id=_id(span.trace_id),
        span_id=_id(span.span_id),
        parent_span_id=_id(span.parent_span_id),
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        attributes=_attributes(span.attributes, room),
        resource=resource,
        scope=scope,
        status_code=_enum_name(Status.StatusCode, span.status.code, "STATUS_CODE_"),
        status_message=room.text(span.status.message),
        events=tuple(_event(event, room) for event in span.events),
        links=tuple(_link(link, room) for link in span.links),
        trace_state=room.text(span.trace_state),
        # Last: by now everything above has been counted.
        size=_BARE_BYTES + share + room.size - before,
    )


def _event(event: Span.Event, room: Room) -> ReceivedEvent:
    room.part()
    return ReceivedEvent(room.text(event.name), event.time_unix_nano, _attributes(event.attributes, room))


def _link(link: Span.Link, room: Room) -> ReceivedLink:
    room.part()
    return ReceivedLink(_id(link.trace_id), _id(link.span_id), _attributes(link.attributes, room))


def _id(data: bytes) -> str:
    return data[:_LONGEST_ID].hex()


def _enum_name(enum: Any, number: int, prefix: str) -> str:
    # proto3 enumerations are open: a newer client may send a number that has no name here.
    name: str = enum.Name(number) if number in enum.values() else str(number)
    return name.removeprefix(prefix)


def _attributes(pairs: Iterable[Any], room: Room) -> dict[str, Any]:
    return {room.text(pair.key): _value(pair.value, room) for pair in pairs}


def _value(value: Any, room: Room) -> Any:
    room.part()
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [_value(item, room) for item in value.array_value.values]
    if which == "kvlist_value":
        return _attributes(value.kvlist_value.values, room)
    if which == "string_value":
        return room.text(value.string_value)
    if which == "bytes_value":
        return room.data(value.bytes_value)
    return getattr(value, which)
