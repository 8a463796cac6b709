"""A finished span -> OTLP protobuf bytes, when it ends and without a protobuf message in between.

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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.exporter.otlp.proto.common import __version__ as library_version
from opentelemetry.trace import DEFAULT_TRACE_STATE

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext

_LIBRARY: Final = tuple(int(number) for number in library_version.split(".")[:2])
_SCOPES_ARE_COMPLETE: Final = _LIBRARY >= (1, 31)  # open-telemetry/opentelemetry-python#4359
_NONE_IS_A_VALUE: Final = _LIBRARY >= (1, 43)  # open-telemetry/opentelemetry-python#5305

# Protobuf's readers refuse a request with messages nested more than 100 deep; an event attribute's value is the 6th.
_ROOM: Final = 100 - 6
_LARGEST_IN_CACHE: Final = 1024  # bytes; above, hashing the value costs more than encoding it again
_SEEN: Final = 8192
_CACHE_ENTRY: Final = 180  # bytes; an entry's share of a dict and its tuples, at most

_LOCAL: Final = 0x100  # SpanFlags: whether the parent is remote is known
_REMOTE: Final = 0x300  # ... and it is
_STATUS: Final = (b"\x7a\x00", b"\x7a\x02\x18\x01", b"\x7a\x02\x18\x02")  # by StatusCode; an empty one is sent, too

_pack_ids: Final = struct.Struct(">H16sHQ").pack  # trace_id = 1, span_id = 2
_pack_parent: Final = struct.Struct(">HQ").pack  # parent_span_id = 4
_pack_middle: Final = struct.Struct("<BQBQBBHI").pack  # start = 7, end = 8, kind = 6, flags = 16
_pack_start: Final = struct.Struct("BBB").pack  # spans = 2 of ScopeSpans, a length of two bytes
_pack_fixed64: Final = struct.Struct("<BQ").pack
_pack_double: Final = struct.Struct("<Bd").pack
_new: Final = tuple.__new__  # what a NamedTuple's own __new__ calls


class EncodedSpan(NamedTuple):
    """A span, ready to be joined with others."""

    scope: InstrumentationScope | None
    data: bytes
    """The span as field 2 of ``ScopeSpans``: tag, length, ``Span``."""


class _Cache:
    """Remember bytes by what they were made of, within a number of bytes.

    What is seen for the first time is not kept: most of it (paths, ports, ids) never comes again, and to keep it costs
    more than to encode it. What was kept and is not in use goes, by generations: what is found in the former one moves
    to the recent one, which becomes the former one when it is full.

    A look-up takes no lock: keys are exact ``str``, ``int`` and ``type`` objects and tuples of them, which are hashed
    and compared in C, so that ``dict.get`` and ``dict[key] = value`` are one step each under the GIL (and locked by the
    dict without one). Whoever adds must not wait either, since a signal handler may have interrupted another who adds,
    in the same thread: then nothing is added.
    """

    def __init__(self, limit: int) -> None:
        self.recent: dict[object, bytes] = {}
        self._former: dict[object, bytes] = {}
        self._free = self._half = limit // 2
        self._adding = threading.Lock()
        self._seen = bytearray(_SEEN)  # a byte of the hash of what was seen, at a place that the hash gives

    def find(self, key: object) -> bytes | None:
        """Return what is kept for a key that ``recent.get`` does not find; ``b""`` when the key is new."""
        number = hash(key)
        place, mark = number % _SEEN, number >> 16 & 0xFF
        if self._seen[place] != mark:
            self._seen[place] = mark
            return b""
        return self._former.get(key)

    def add(self, key: object, data: bytes, *parts: str | int) -> bytes:
        """Keep ``data``, unless it is large or something else is just being added.

        Args:
            key: What it was made of.
            data: What it was encoded to, also what is returned.
            parts: What the key keeps alive.
        """
        if len(data) > _LARGEST_IN_CACHE:
            return data
        size = sum(map(sys.getsizeof, parts), _CACHE_ENTRY + sys.getsizeof(data))
        if size > self._half or not self._adding.acquire(blocking=False):
            return data
        try:
            if size > self._free:
                self._former, self.recent, self._free = self.recent, {}, self._half
            self._free -= size
            self.recent[key] = data
        finally:
            self._adding.release()
        return data


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
            return _new(EncodedSpan, (span.instrumentation_scope, self._encode_sdk_span(span)))
        except Exception:
            return _new(EncodedSpan, (span.instrumentation_scope, _encode_with_care(span)))

    # The branches are the SDK's optional parts, in one function for speed; its fields have no other names.
    def _encode_sdk_span(self, span: Any) -> bytes:  # noqa: C901, PLR0912
        """Encode a span as the SDK (1.30 to 1.45, at least) makes it; raises where the long way is to be taken.

        The SDK's properties take locks and make copies, which is most of the time that its own encoder needs.
        """
        trace_id, span_id, _, _, trace_state, _ = span._context
        attributes, events, links, status = span._attributes, span._events, span._links, span._status
        get = self._cache.recent.get

        name = span._name
        head = get(name) if type(name) is str else None
        if head is None:
            head = self._name(name)
        head += _pack_ids(0x0A10, trace_id.to_bytes(16, "big"), 0x1208, span_id)
        parent, flags = span._parent, _LOCAL
        if parent is not None:
            _, parent_id, remote, _, _, _ = parent
            head += _pack_parent(0x2208, parent_id)
            if remote:
                flags = _REMOTE
        head += _pack_middle(0x39, span._start_time, 0x41, span._end_time, 0x30, span._kind._value_ + 1, 0x0185, flags)
        if status._description is None:
            head += _STATUS[status._status_code._value_]
        else:
            head += _status(span)
        if trace_state is not DEFAULT_TRACE_STATE:
            head += _trace_state(span)
        if events._dq or events.dropped:
            head += _events(span)
        if links._dq or links.dropped:
            head += _links(span)
        if attributes.dropped:
            head += _count(b"\x50", attributes.dropped)

        parts = [head]
        for item in attributes._dict.items():
            kind = type(item[1])
            if kind is str:
                data = get(item)
            elif kind is int or kind is bool:
                data = get((item, kind))  # 1 == True, and they hash alike
            else:
                data = None
            parts.append(self._attribute(item, kind) if data is None else data)
        # attributes = 9: the tag goes between, as the head comes first.
        body = b"\x4a".join(parts)
        size = len(body)
        if 0x80 <= size < 0x4000:
            return _pack_start(0x12, size & 0x7F | 0x80, size >> 7) + body
        return b"\x12" + _delimited(body)

    def _name(self, name: Any) -> bytes:
        found = self._cache.find(name) if type(name) is str else b""
        data = found or _text(b"\x2a", name)
        return data if found == b"" else self._cache.add(name, data, name)

    def _key(self, key: str) -> bytes:
        found = self._cache.find((key,))
        data = found or _key(key)
        return data if found == b"" else self._cache.add((key,), data, key)

    def _attribute(self, item: tuple[str, Any], kind: type) -> bytes:
        """Encode an attribute that is not in the cache's recent generation, its length first."""
        key, value = item
        cache = self._cache
        # b"", not for the cache, unless of these exact types: 0.0 == -0.0, (1,) == (True,), a subclass may be anything.
        found: bytes | None = b""
        entry: tuple[Any, Any] = item
        if type(key) is str:
            if kind is str:
                found = cache.find(item)
            elif kind is int or kind is bool:
                entry = (item, kind)
                found = cache.find(entry)
            if found:
                return cache.add(entry, found, key, value)
            data = cache.recent.get((key,)) or self._key(key)
        else:
            data = _key(key)
        if kind is str:
            text = value.encode("utf-8", "replace")
            size = len(text)
            data += _STRINGS[size] + text if size < len(_STRINGS) else _delimited(b"\x0a" + _delimited(text))
        elif kind is int:
            data += _delimited(_integer(value))
        else:
            data += _delimited(_any_value(value, _ROOM))
        data = _delimited(data)
        return data if found == b"" else cache.add(entry, data, key, value)

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


_VARINTS: Final = tuple(map(_varint, range(512)))
# What goes before a string of so many bytes that is an attribute's value: AnyValue's length, tag, the string's length.
_STRINGS: Final = tuple(_varint(1 + len(size) + number) + b"\x0a" + size for number, size in enumerate(_VARINTS))
