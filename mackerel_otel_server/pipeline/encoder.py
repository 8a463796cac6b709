"""A finished span -> OTLP protobuf bytes, without a protobuf message in between.

Field numbers are written as tags (``number << 3 | wire type``), from ``trace/v1/trace.proto``,
``common/v1/common.proto`` and ``resource/v1/resource.proto`` of https://github.com/open-telemetry/opentelemetry-proto.
A reader takes the fields of a message in any order. Therefore constant and cached fields can go first here.

``opentelemetry-exporter-otlp-proto-common`` is the library that decides what a span looks like on the wire. The tests
compare this encoder with that library, and the library encodes each span that this encoder does not understand.
"""

# ruff: noqa: PLR2004, SLF001 - the numbers are the wire format's; Encoder.encode_known() reads the SDK's private fields

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import DEFAULT_TRACE_STATE, Link, SpanContext

from mackerel_otel_server.pipeline import unknown_sdk
from mackerel_otel_server.pipeline.encoder_cache import MANY_MISSES, ONE_IN, Cache, Column
from mackerel_otel_server.pipeline.wire import (
    ROOM,
    VARINTS,
    any_value,
    count_field,
    delimited,
    integer_value,
    key_field,
    key_value,
    repeated,
    text_field,
    time_field,
    varint,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

# OpenTelemetry's encoder has sent the attributes and the schema of scopes since this version, which is also the SDK's.
# The encoder itself is not asked, because its import takes megabytes. open-telemetry/opentelemetry-python#4359
_SCOPES_ARE_COMPLETE: Final = tuple(map(int, sdk_version.split(".")[:2])) >= (1, 31)
_LOCAL: Final = 0x100  # SpanFlags: the parent is in this process
_REMOTE: Final = 0x300  # SpanFlags: the parent is in another process
_pack_ids: Final = struct.Struct(">H16sHQ").pack  # trace_id = 1, span_id = 2
_pack_ids_of_child: Final = struct.Struct(">H16sHQHQ").pack  # the same, and parent_span_id = 4
_pack_times: Final = struct.Struct("<BQBQ").pack  # start = 7, end = 8
_List: Final[Any] = BoundedList
_EMPTY: Final = Column(b"")

EncodedSpan: TypeAlias = "tuple[InstrumentationScope | None, bytes]"
"""A span's scope, and the span as field 2 of ``ScopeSpans`` (tag, length, ``Span``), ready to be joined with others."""
QueuedSpan: TypeAlias = "tuple[InstrumentationScope | None, bytes, int | None]"
"""The same, and the number of its record in the journal."""


class Encoder:
    """Encode the spans of one process. Any thread or signal handler may call it at any time.

    Args:
        resource: Describes this process; each request has it once.
        cache_bytes: How many bytes the cache of encoded names and attributes may take.
    """

    def __init__(self, resource: Resource, *, cache_bytes: int = 1_000_000) -> None:
        attributes, lost = repeated(b"\x0a", key_value, resource.attributes.items())
        self._resource: Final = b"\x0a" + delimited(attributes + count_field(b"\x10", lost))
        self._schema_url: Final = text_field(b"\x1a", resource.schema_url)
        self._cache: Final = Cache(cache_bytes)

    def encode(self, span: ReadableSpan) -> EncodedSpan:
        """Encode one finished span; an attribute, event or link that cannot be encoded is counted as dropped.

        Raises:
            Exception: Neither this encoder nor OpenTelemetry's can make anything of the span.
        """
        try:
            return self.encode_known(span)
        except Exception:
            return span.instrumentation_scope, _by_library(span)

    # One function, because a call for each of the optional parts would take time.
    def encode_known(self, span: Any) -> EncodedSpan:  # noqa: C901, PLR0912
        """Encode a span with the private fields that the SDK (1.30 to 1.45, at least) gives to spans.

        The SDK's properties take locks and make copies, which is most of the time that the library needs.

        Raises:
            Exception: The span has other fields, or something unusual in them.
        """
        context, parent, name, status = span._context, span._parent, span._name, span._status
        attributes = span._attributes
        columns = self._cache.columns

        data = columns.get(None, _EMPTY).get(name) if type(name) is str else None
        if data is None:
            data = self._name(name)
        if parent is None:
            ids = _pack_ids(0x0A10, context[0].to_bytes(16, "big"), 0x1208, context[1])
            ends = _ENDS_LOCAL
        else:
            ids = _pack_ids_of_child(0x0A10, context[0].to_bytes(16, "big"), 0x1208, context[1], 0x2208, parent[1])
            ends = _ENDS_REMOTE if parent[2] else _ENDS_LOCAL
        try:
            head = data + ids + _pack_times(0x39, span._start_time, 0x41, span._end_time)
        except struct.error:  # no integers, or negative ones
            head = data + ids + time_field(0x39, span._start_time) + time_field(0x41, span._end_time)
        if status._description is None:
            head += ends[span._kind._value_][status._status_code._value_]
        else:
            head += ends[span._kind._value_][-1] + _status(span)
        if context[4] is not DEFAULT_TRACE_STATE:
            head += _trace_state(context)
        if not getattr(span, "is_plain", False):  # see spans.QuickSpan
            events, links = span._events, span._links
            # Copies of spans have plain lists.
            if type(events) is not _List or events._dq or events.dropped:
                head += _events(span)
            if type(links) is not _List or links._dq or links.dropped:
                head += _links(span)
        if type(attributes) is not dict:  # of a span of ours, as long as nothing unusual is in it
            if attributes.dropped:
                head += count_field(b"\x50", attributes.dropped)
            attributes = attributes._dict

        parts = [head]
        try:
            for key, value in attributes.items():
                kind = type(value)
                if kind is str or kind is int:  # not bool and float: True == 1 == 1.0
                    data = columns.get(key, _EMPTY).get(value)
                    parts.append(self._attribute(key, value, kind) if data is None else data)
                else:
                    parts.append(self._attribute(key, value, kind))
        except Exception:
            encoded, lost = repeated(b"\x4a", key_value, attributes.items())
            # Of a field that is there twice, readers take the second one.
            parts = [head + encoded + count_field(b"\x50", span.dropped_attributes + lost)]
        # attributes = 9. The head comes first, so the tag of each attribute goes between two parts.
        body = b"\x4a".join(parts)
        size = len(body)
        if size < len(_SPANS):
            return span._instrumentation_scope, _SPANS[size] + body
        return span._instrumentation_scope, b"\x12" + delimited(body)

    def _name(self, name: Any) -> bytes:
        data = text_field(b"\x2a", name)
        if type(name) is str:
            cache = self._cache
            column = cache.columns.get(None)
            cache.offer(cache.new_column(None, b"") if column is None else column, name, data)
        return data

    def _attribute(self, key: str, value: Any, kind: type) -> bytes:
        """Encode an attribute that is not in the cache, its length first."""
        cache = self._cache
        column = cache.columns.get(key)
        if column is None:
            column = cache.new_column(key, key_field(key)) if type(key) is str else Column(key_field(key))
        head = column.head
        if kind is str:
            text = value.encode("utf-8", "replace")
            size = len(text)
            data = _STRINGS[size] + text if size < len(_STRINGS) else delimited(b"\x0a" + delimited(text))
        elif kind is not int:
            return delimited(head + delimited(any_value(value, ROOM)))
        elif 0x80 <= value < 0x1_0000:  # ports, status codes
            data = (_INTEGERS_2 if value < 0x4000 else _INTEGERS_3)[value & 0x7F] + VARINTS[value >> 7]
        else:
            data = delimited(integer_value(value))
        size = len(head) + len(data)
        data = (VARINTS[size] if size < len(VARINTS) else varint(size)) + head + data
        column.misses = misses = column.misses + 1
        if misses < MANY_MISSES or misses % ONE_IN == 0:
            cache.offer(column, value, data)
        return data

    @property
    def resource_fields(self) -> tuple[bytes, bytes]:
        """The resource and its schema URL, as fields of ``ResourceSpans``."""
        return self._resource, self._schema_url

    def assemble(self, spans: Sequence[EncodedSpan] | Sequence[QueuedSpan]) -> bytes:
        """Join spans to one ``ExportTraceServiceRequest``, grouped by scope, in their order within a scope."""
        by_scope: dict[int, list[bytes]] = {}
        by_content: dict[tuple[bytes, bytes], list[bytes]] = {}
        for span in spans:
            scope = span[0]
            group = by_scope.get(id(scope))
            if group is None:  # two objects may be the same scope
                group = by_scope[id(scope)] = by_content.setdefault(scope_fields(scope), [])
            group.append(span[1])
        return assemble(self._resource, self._schema_url, by_content) if by_content else b""


def assemble(resource: bytes, schema_url: bytes, spans: Mapping[tuple[bytes, bytes], Sequence[bytes]]) -> bytes:
    """Return an ``ExportTraceServiceRequest``.

    Args:
        resource: As a field of ``ResourceSpans``.
        schema_url: Of the resource, likewise.
        spans: As fields of ``ScopeSpans``, by what scope_fields() returns.
    """
    parts = [resource]
    for (scope, scope_schema_url), group in spans.items():
        size = len(scope) + sum(map(len, group)) + len(scope_schema_url)
        parts += (b"\x12" + varint(size), scope, *group, scope_schema_url)  # scope_spans = 2
    parts.append(schema_url)
    return b"".join((b"\x0a", varint(sum(map(len, parts))), *parts))  # resource_spans = 1


def _by_library(span: ReadableSpan) -> bytes:
    """Have OpenTelemetry's own encoder encode a span. Parts of the span that it cannot encode either are left out.

    Raises:
        Exception: The span has no ids.
    """
    if (difference := sdk_difference()) is not None:
        unknown_sdk.say_once(difference)
    # Not imported before it is needed: protobuf's classes take megabytes.
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    try:
        request = encode_spans([span])
    except Exception:
        ids: dict[str, Any] = {"name": "", "context": span.get_span_context(), "resource": span.resource}
        usable: dict[str, Any] = {}
        for part in ("name", "parent", "kind", "start_time", "end_time", "status", "attributes", "events", "links"):
            with contextlib.suppress(Exception):
                value = {part: getattr(span, part)}
                encode_spans([ReadableSpan(**{**ids, **value})])
                usable |= value
        request = encode_spans([ReadableSpan(**{**ids, **usable})])
    return b"\x12" + delimited(request.resource_spans[0].scope_spans[0].spans[0].SerializeToString())


@functools.cache
def sdk_difference() -> str | None:
    """Return what this encoder does not understand in a span of the installed SDK; None where it understands all."""
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.get_empty(), shutdown_on_exit=False)
    link = Link(SpanContext(1, 1, is_remote=True), {"key": "value"})
    span: Any = provider.get_tracer(__name__).start_span("span", attributes={"key": "value"}, links=[link])
    span.add_event("event", {"key": "value"})
    span.end()
    # With OTEL_SDK_DISABLED, nothing is recorded.
    if isinstance(span, ReadableSpan):
        try:
            Encoder(provider.resource).encode_known(span)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def _trace_state(context: SpanContext) -> bytes:
    return text_field(b"\x1a", ",".join(f"{key}={value}" for key, value in context.trace_state.items()))


def _status(span: ReadableSpan) -> bytes:
    code = count_field(b"\x18", span.status.status_code.value)
    return b"\x7a" + delimited(code + text_field(b"\x12", span.status.description))


def _events(span: ReadableSpan) -> bytes:
    data, lost = repeated(b"\x5a", _event, span.events)
    return data + count_field(b"\x60", span.dropped_events + lost)


def _event(event: Event) -> bytes:
    attributes, lost = repeated(b"\x1a", key_value, (event.attributes or {}).items())
    dropped = count_field(b"\x20", event.dropped_attributes + lost)
    return time_field(0x09, event.timestamp) + text_field(b"\x12", event.name) + attributes + dropped


def _links(span: ReadableSpan) -> bytes:
    data, lost = repeated(b"\x6a", _link, span.links)
    return data + count_field(b"\x70", span.dropped_links + lost)


def _link(link: Link) -> bytes:
    """Return a ``Link``; without its trace state, as the library has it."""
    attributes, lost = repeated(b"\x22", key_value, (link.attributes or {}).items())
    dropped = count_field(b"\x28", link.dropped_attributes + lost)
    context = link.context
    flags = b"\x35" + (_REMOTE if context.is_remote else _LOCAL).to_bytes(4, "little")
    ids = _pack_ids(0x0A10, context.trace_id.to_bytes(16, "big"), 0x1208, context.span_id)  # trace_id = 1, span_id = 2
    return ids + attributes + dropped + flags


def scope_fields(scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
    """Return ``scope`` = 1 and ``schema_url`` = 3 of ``ScopeSpans``."""
    if scope is None:
        return b"\x0a\x00", b""
    body = text_field(b"\x0a", scope.name) + text_field(b"\x12", scope.version)
    if not _SCOPES_ARE_COMPLETE:
        return b"\x0a" + delimited(body), b""
    attributes, lost = repeated(b"\x1a", key_value, (scope.attributes or {}).items())
    return b"\x0a" + delimited(body + attributes + count_field(b"\x20", lost)), text_field(b"\x1a", scope.schema_url)


def _ends(flags: int) -> tuple[tuple[bytes, ...], ...]:
    """Return kind = 6, flags = 16 and status = 15 by SpanKind and StatusCode; the last of each kind has no status."""
    statuses = (b"\x7a\x00", b"\x7a\x02\x18\x01", b"\x7a\x02\x18\x02", b"")  # UNSET is sent as well
    kinds = (b"\x30" + varint(kind + 1) + b"\x85\x01" + flags.to_bytes(4, "little") for kind in range(5))
    return tuple(tuple(kind + status for status in statuses) for kind in kinds)


_ENDS_LOCAL: Final = _ends(_LOCAL)
_ENDS_REMOTE: Final = _ends(_REMOTE)
_SPANS: Final = tuple(b"\x12" + varint(size) for size in range(1024))
# An integer as the value of an attribute: all bytes but the last of its varint, by its lowest 7 bits.
_INTEGERS_2: Final = tuple(bytes((3, 0x18, number | 0x80)) for number in range(0x80))
_INTEGERS_3: Final = tuple(bytes((4, 0x18, number | 0x80)) for number in range(0x80))
# A string as the value of an attribute: AnyValue's length, the tag and the string's length, by the number of its bytes.
_STRINGS: Final = tuple(varint(1 + len(size) + number) + b"\x0a" + size for number, size in enumerate(VARINTS))
