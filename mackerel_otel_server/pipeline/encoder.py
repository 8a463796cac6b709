"""A finished span -> OTLP protobuf bytes, without a protobuf message in between.

Field numbers are written as tags (``number << 3 | wire type``), from ``trace/v1/trace.proto``,
``common/v1/common.proto`` and ``resource/v1/resource.proto`` of https://github.com/open-telemetry/opentelemetry-proto.
A reader takes the fields of a message in any order, so what is constant or cached can go first. What a span looks like
on the wire is decided by ``opentelemetry-exporter-otlp-proto-common``: the tests compare with it.
"""

# ruff: noqa: PLR2004, SLF001 - the numbers are the wire format's; the private names are the SDK's, see below

from __future__ import annotations

import contextlib
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import DEFAULT_TRACE_STATE

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext

# What the library has sent since these versions. It is released with the SDK, and need not be installed.
_SDK: Final = tuple(int(number) for number in sdk_version.split(".")[:2])
_SCOPES_ARE_COMPLETE: Final = _SDK >= (1, 31)  # open-telemetry/opentelemetry-python#4359
_NONE_IS_A_VALUE: Final = _SDK >= (1, 43)  # open-telemetry/opentelemetry-python#5305

# Protobuf's readers refuse a request with messages nested more than 100 deep; an event attribute's value is the 6th.
_ROOM: Final = 100 - 6
_LARGEST_IN_CACHE: Final = 1024  # bytes; above, hashing the value costs more than encoding it again
_SEEN: Final = 8192
_ENTRY: Final = 110  # bytes; an entry's share of a dict, at most
_COLUMN: Final = 450  # bytes; with its entry in the dict of columns, and the first entries of its own
_MANY_MISSES: Final = 1024  # of one attribute; from then on only one in so many is kept if it was seen before:
_MANY_MISSES_TRIED: Final = 16

_LOCAL: Final = 0x100  # SpanFlags: whether the parent is remote is known
_REMOTE: Final = 0x300  # ... and it is
_pack_ids: Final = struct.Struct(">H16sHQ").pack  # trace_id = 1, span_id = 2
_pack_ids_of_child: Final = struct.Struct(">H16sHQHQ").pack  # the same, and parent_span_id = 4
_pack_parent: Final = struct.Struct(">HQ").pack
_pack_times: Final = struct.Struct("<BQBQ").pack  # start = 7, end = 8
_pack_fixed64: Final = struct.Struct("<BQ").pack
_pack_double: Final = struct.Struct("<Bd").pack


EncodedSpan: TypeAlias = "tuple[InstrumentationScope | None, bytes]"
"""A span's scope, and the span as field 2 of ``ScopeSpans`` (tag, length, ``Span``): ready to be joined with others."""


class _Column(dict[object, bytes]):
    """What the values of one attribute, or the names of spans, were encoded to."""

    __slots__ = ("head", "misses")

    def __init__(self, head: bytes) -> None:
        self.head = head  # the attribute's key, encoded
        self.misses = 0


_EMPTY: Final = _Column(b"")


class _Cache:
    """Remember bytes by attribute key and value, within a number of bytes.

    What is seen for the first time is not kept: most of it (paths, ports, ids) never comes again, and to keep it costs
    more than to encode it. Of what varies all the time, most is not even looked at. When the cache is full, it starts
    anew: what is in use is back with the next span.

    A look-up takes no lock: values are exact ``str`` and ``int`` objects, which are hashed and compared in C, so that
    ``dict.get`` and ``dict[key] = value`` are one step each under the GIL (and locked by the dict without one).
    Whoever adds must not wait either, since a signal handler may have interrupted another who adds, in the same thread:
    then nothing is added.
    """

    def __init__(self, limit: int) -> None:
        self.columns: dict[str | None, _Column] = {}  # by attribute key; None: names of spans
        self._free = self._limit = limit
        self._adding = threading.Lock()
        self._seen = bytearray(_SEEN)  # a byte of the hash of what was seen, at a place that the hash gives

    def new_column(self, key: str | None, head: bytes) -> _Column:
        """Return a column without values; the one to use from now on, if the key has been seen before."""
        column = _Column(head)
        if len(head) <= _LARGEST_IN_CACHE and self._was_seen(key):
            self._add(self.columns, key, column, _COLUMN + sys.getsizeof(key) + sys.getsizeof(head))
        return column

    def offer(self, column: _Column, value: str | int, data: bytes) -> None:
        """Keep what a value that is not in its column was encoded to, if it may come again."""
        if len(data) <= _LARGEST_IN_CACHE and self._was_seen((column.head, value)):
            self._add(column, value, data, _ENTRY + sys.getsizeof(value) + sys.getsizeof(data))

    def _was_seen(self, key: object) -> bool:
        number = hash(key)
        place, mark = number % _SEEN, number >> 16 & 0xFF
        if self._seen[place] == mark:
            return True
        self._seen[place] = mark
        return False

    def _add(self, to: dict[Any, Any], key: object, value: object, size: int) -> None:
        if not self._adding.acquire(blocking=False):
            return
        try:
            if size > self._free:
                self.columns, self._free = {}, self._limit
            else:
                self._free -= size
                to[key] = value
        finally:
            self._adding.release()


class Encoder:
    """Encode the spans of one process. Never raises; any thread or signal handler may call it at any time.

    Args:
        resource: Who is speaking: goes into each request once.
        cache_bytes: Memory, in bytes, for what span names and attributes were encoded to.
    """

    def __init__(self, resource: Resource, *, cache_bytes: int = 1_000_000) -> None:
        attributes, lost = _repeated(b"\x0a", _key_value, resource.attributes.items())
        self._resource: Final = b"\x0a" + _delimited(attributes + _count(b"\x10", lost))
        self._schema_url: Final = _text(b"\x1a", resource.schema_url)
        self._cache: Final = _Cache(cache_bytes)

    def encode(self, span: ReadableSpan) -> EncodedSpan:
        """Encode one finished span; an attribute, event or link that cannot be encoded is counted as dropped."""
        try:
            return self._encode_sdk_span(span)
        except Exception:
            return span.instrumentation_scope, _encode_with_care(span)

    # The branches are the SDK's optional parts, in one function for speed; its fields have no other names.
    def _encode_sdk_span(self, span: Any) -> EncodedSpan:  # noqa: C901, PLR0912
        """Encode a span as the SDK (1.30 to 1.45, at least) makes it; raises where the long way is to be taken.

        The SDK's properties take locks and make copies, which is most of the time that its own encoder needs.
        """
        context, parent, name, status = span._context, span._parent, span._name, span._status
        attributes = span._attributes
        # By way of the dict: a span of ours has them only once there is one (see spans).
        fields = span.__dict__
        events, links = fields.get("_events"), fields.get("_links")
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
        head = data + ids + _pack_times(0x39, span._start_time, 0x41, span._end_time)
        if status._description is None:
            head += ends[span._kind._value_][status._status_code._value_]
        else:
            head += ends[span._kind._value_][-1] + _status(span)
        if context[4] is not DEFAULT_TRACE_STATE:
            head += _trace_state(span)
        if events is not None and (events._dq or events.dropped):
            head += _events(span)
        if links is not None and (links._dq or links.dropped):
            head += _links(span)
        if type(attributes) is not dict:  # of a span of ours, as long as nothing unusual is in it
            if attributes.dropped:
                head += _count(b"\x50", attributes.dropped)
            attributes = attributes._dict

        parts = [head]
        for key, value in attributes.items():
            kind = type(value)
            if kind is str or kind is int:  # not bool and float: True == 1 == 1.0
                data = columns.get(key, _EMPTY).get(value)
                parts.append(self._attribute(key, value, kind) if data is None else data)
            else:
                parts.append(self._attribute(key, value, kind))
        # attributes = 9: the tag goes between, as the head comes first.
        body = b"\x4a".join(parts)
        size = len(body)
        if size < len(_SPANS):
            return span._instrumentation_scope, _SPANS[size] + body
        return span._instrumentation_scope, b"\x12" + _delimited(body)

    def _name(self, name: Any) -> bytes:
        data = _text(b"\x2a", name)
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
            column = cache.new_column(key, _key(key)) if type(key) is str else _Column(_key(key))
        head = column.head
        if kind is str:
            text = value.encode("utf-8", "replace")
            size = len(text)
            data = _STRINGS[size] + text if size < len(_STRINGS) else _delimited(b"\x0a" + _delimited(text))
        elif kind is not int:
            return _delimited(head + _delimited(_any_value(value, _ROOM)))
        elif 0x80 <= value < 0x1_0000:  # ports, status codes
            data = (_INTEGERS_2 if value < 0x4000 else _INTEGERS_3)[value & 0x7F] + _VARINTS[value >> 7]
        else:
            data = _delimited(_integer(value))
        size = len(head) + len(data)
        data = (_VARINTS[size] if size < len(_VARINTS) else _varint(size)) + head + data
        column.misses = misses = column.misses + 1
        if misses < _MANY_MISSES or misses % _MANY_MISSES_TRIED == 0:
            cache.offer(column, value, data)
        return data

    def assemble(self, spans: Sequence[EncodedSpan]) -> bytes:
        """Join spans to one ``ExportTraceServiceRequest``, grouped by scope, in their order within a scope."""
        by_scope: dict[int, list[bytes]] = {}
        by_content: dict[tuple[bytes, bytes], list[bytes]] = {}
        for scope, data in spans:
            group = by_scope.get(id(scope))
            if group is None:  # scopes that are equal need not be the same object
                group = by_scope[id(scope)] = by_content.setdefault(_scope(scope), [])
            group.append(data)
        if not by_content:
            return b""
        parts = [self._resource]
        for (scope_bytes, schema_url), group in by_content.items():
            size = len(scope_bytes) + sum(map(len, group)) + len(schema_url)
            parts += (b"\x12" + _varint(size), scope_bytes, *group, schema_url)  # scope_spans = 2
        parts.append(self._schema_url)
        return b"".join((b"\x0a", _varint(sum(map(len, parts))), *parts))  # resource_spans = 1


def _encode_with_care(span: ReadableSpan) -> bytes:
    """Encode by the public interface alone, part by part: one that cannot be encoded is left out."""
    parts: tuple[Callable[[ReadableSpan], bytes], ...]
    parts = (_ids, _parent, _trace_state, _name, _kind, _times, _status, _attributes, _events, _links)
    body = []
    for part in parts:
        with contextlib.suppress(Exception):
            body.append(part(span))
    return b"\x12" + _delimited(b"".join(body))


def _ids(span: ReadableSpan) -> bytes:
    return _context(span.get_span_context())


def _context(context: SpanContext | None) -> bytes:
    """Return ``trace_id`` = 1 and ``span_id`` = 2 of a ``Span`` or a ``Link``."""
    if context is None:
        return b""
    return _pack_ids(0x0A10, context.trace_id.to_bytes(16, "big"), 0x1208, context.span_id)


def _parent(span: ReadableSpan) -> bytes:
    parent = span.parent
    return _flags(b"\x85\x01", parent) + (_pack_parent(0x2208, parent.span_id) if parent else b"")


def _flags(tag: bytes, context: SpanContext | None) -> bytes:
    return tag + (_REMOTE if context and context.is_remote else _LOCAL).to_bytes(4, "little")


def _trace_state(span: ReadableSpan) -> bytes:
    context = span.get_span_context()
    items = context.trace_state.items() if context else ()
    return _text(b"\x1a", ",".join(f"{key}={value}" for key, value in items))


def _name(span: ReadableSpan) -> bytes:
    return _text(b"\x2a", span.name)


def _kind(span: ReadableSpan) -> bytes:
    return _count(b"\x30", span.kind.value + 1)


def _times(span: ReadableSpan) -> bytes:
    return _time(0x39, span.start_time) + _time(0x41, span.end_time)


def _status(span: ReadableSpan) -> bytes:
    code = _count(b"\x18", span.status.status_code.value)
    return b"\x7a" + _delimited(code + _text(b"\x12", span.status.description))


def _attributes(span: ReadableSpan) -> bytes:
    data, lost = _repeated(b"\x4a", _key_value, (span.attributes or {}).items())
    return data + _count(b"\x50", span.dropped_attributes + lost)


def _events(span: ReadableSpan) -> bytes:
    data, lost = _repeated(b"\x5a", _event, span.events)
    return data + _count(b"\x60", span.dropped_events + lost)


def _event(event: Event) -> bytes:
    attributes, lost = _repeated(b"\x1a", _key_value, (event.attributes or {}).items())
    dropped = _count(b"\x20", event.dropped_attributes + lost)
    return _time(0x09, event.timestamp) + _text(b"\x12", event.name) + attributes + dropped


def _links(span: ReadableSpan) -> bytes:
    data, lost = _repeated(b"\x6a", _link, span.links)
    return data + _count(b"\x70", span.dropped_links + lost)


def _link(link: Link) -> bytes:
    """Return a ``Link``; without its trace state, as the library has it."""
    attributes, lost = _repeated(b"\x22", _key_value, (link.attributes or {}).items())
    dropped = _count(b"\x28", link.dropped_attributes + lost)
    return _context(link.context) + attributes + dropped + _flags(b"\x35", link.context)


def _scope(scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
    """Return ``scope`` = 1 and ``schema_url`` = 3 of ``ScopeSpans``."""
    if scope is None:
        return b"\x0a\x00", b""
    body = _text(b"\x0a", scope.name) + _text(b"\x12", scope.version)
    if not _SCOPES_ARE_COMPLETE:
        return b"\x0a" + _delimited(body), b""
    attributes, lost = _repeated(b"\x1a", _key_value, (scope.attributes or {}).items())
    return b"\x0a" + _delimited(body + attributes + _count(b"\x20", lost)), _text(b"\x1a", scope.schema_url)


def _repeated(tag: bytes, encode: Callable[[Any], bytes], items: Iterable[Any]) -> tuple[bytes, int]:
    """Encode what can be encoded, and count what cannot."""
    parts: list[bytes] = []
    lost = 0
    for item in items:
        try:
            parts.append(tag + _delimited(encode(item)))
        except Exception:  # noqa: PERF203 - one that fails must not take the others along
            lost += 1
    return b"".join(parts), lost


def _key_value(item: tuple[Any, Any], room: int = _ROOM) -> bytes:
    return _key(item[0]) + _delimited(_any_value(item[1], room))


def _key(key: Any) -> bytes:
    """Return ``key`` = 1 of a ``KeyValue``, and the tag of its ``value`` = 2."""
    return _text(b"\x0a", key) + b"\x12"


def _any_value(value: Any, room: int) -> bytes:  # noqa: PLR0911 - one for each type
    """Return an ``AnyValue``.

    Raises:
        Exception: The library cannot encode it either, or nobody could read it.
    """
    if isinstance(value, str):
        return _text(b"\x0a", value)
    if isinstance(value, bool):  # before int, which it is
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _pack_double(0x21, value)
    if isinstance(value, bytes):
        return b"\x3a" + _delimited(value)
    if value is None and _NONE_IS_A_VALUE:
        return b""
    if room < 3:
        raise RecursionError("nested too deep")
    if isinstance(value, Sequence):
        items = [b"\x0a" + _delimited(_any_value(item, room - 2)) for item in value]
        return b"\x2a" + _delimited(b"".join(items))
    if isinstance(value, Mapping):
        items = [b"\x0a" + _delimited(_key_value((str(key), item), room - 3)) for key, item in value.items()]
        return b"\x32" + _delimited(b"".join(items))
    raise TypeError(type(value).__name__)


def _integer(value: int) -> bytes:
    if not -1 << 63 <= value < 1 << 63:
        raise OverflowError("more than 64 bits")
    return b"\x18" + _varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def _text(tag: bytes, value: Any) -> bytes:
    """Return a string; ``?`` for each lone surrogate, which UTF-8 does not have."""
    if value is None:
        return b""
    return tag + _delimited(str.encode(value if isinstance(value, str) else str(value), "utf-8", "replace"))


def _time(tag: int, nanoseconds: int | None) -> bytes:
    return _pack_fixed64(tag, min(max(int(nanoseconds or 0), 0), 0xFFFF_FFFF_FFFF_FFFF))


def _count(tag: bytes, number: int) -> bytes:
    return tag + _varint(number) if number else b""


def _varint(number: int) -> bytes:
    if number < 0x80:
        return number.to_bytes(1, "little")
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0x20_0000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + _varint(number >> 14)


def _delimited(data: bytes) -> bytes:
    size = len(data)
    return (_VARINTS[size] if size < len(_VARINTS) else _varint(size)) + data


def _ends(flags: int) -> tuple[tuple[bytes, ...], ...]:
    """Return kind = 6, flags = 16 and status = 15 by SpanKind and StatusCode; at the end of each kind: no status."""
    statuses = (b"\x7a\x00", b"\x7a\x02\x18\x01", b"\x7a\x02\x18\x02", b"")  # an empty one is sent, too
    kinds = (b"\x30" + _varint(kind + 1) + b"\x85\x01" + flags.to_bytes(4, "little") for kind in range(5))
    return tuple(tuple(kind + status for status in statuses) for kind in kinds)


_ENDS_LOCAL: Final = _ends(_LOCAL)
_ENDS_REMOTE: Final = _ends(_REMOTE)
_VARINTS: Final = tuple(map(_varint, range(512)))
_SPANS: Final = tuple(b"\x12" + _varint(size) for size in range(1024))
# What goes before the rest of an integer's varint that is an attribute's value, by its lowest 7 bits.
_INTEGERS_2: Final = tuple(bytes((3, 0x18, number | 0x80)) for number in range(0x80))
_INTEGERS_3: Final = tuple(bytes((4, 0x18, number | 0x80)) for number in range(0x80))
# What goes before a string of so many bytes that is an attribute's value: AnyValue's length, tag, the string's length.
_STRINGS: Final = tuple(_varint(1 + len(size) + number) + b"\x0a" + size for number, size in enumerate(_VARINTS))
