"""The fields of OTLP's protobuf messages as bytes: numbers, texts, times and the values of attributes.

https://protobuf.dev/programming-guides/encoding/
"""

# ruff: noqa: PLR2004 - the numbers are the wire format's

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.version import __version__ as sdk_version

# OpenTelemetry's encoder has sent None as a value since this version, which is also the SDK's. The encoder itself is
# not asked, because its import takes megabytes. open-telemetry/opentelemetry-python#5305
_NONE_IS_A_VALUE: Final = tuple(map(int, sdk_version.split(".")[:2])) >= (1, 43)
ROOM: Final = 100 - 6
"""How deep the value of an attribute may be nested. Protobuf's readers refuse a request with messages that are nested
more than 100 deep, and the value of an event's attribute is the 6th."""
_pack_fixed64: Final = struct.Struct("<BQ").pack
_pack_double: Final = struct.Struct("<Bd").pack


def repeated(tag: bytes, encode: Callable[[Any], bytes], items: Iterable[Any]) -> tuple[bytes, int]:
    """Encode the items that can be encoded; return their bytes and the number of the other items."""
    parts: list[bytes] = []
    lost = 0
    for item in items:
        try:
            parts.append(tag + delimited(encode(item)))
        except Exception:  # noqa: PERF203 - one that fails must not take the others along
            lost += 1
    return b"".join(parts), lost


def key_value(item: tuple[Any, Any], room: int = ROOM) -> bytes:
    """Return a ``KeyValue``; see any_value()."""
    return key_field(item[0]) + delimited(any_value(item[1], room))


def key_field(key: Any) -> bytes:
    """Return ``key`` = 1 of a ``KeyValue``, and the tag of its ``value`` = 2."""
    return text_field(b"\x0a", key) + b"\x12"


def any_value(value: Any, room: int) -> bytes:  # noqa: PLR0911 - one for each type
    """Return an ``AnyValue``.

    Args:
        value: Of an attribute.
        room: How deep it may be nested.

    Raises:
        Exception: The value has a type that OTLP does not have, or protobuf's readers would refuse it.
    """
    if isinstance(value, str):
        return text_field(b"\x0a", value)
    if isinstance(value, bool):  # before int, which it is
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return integer_value(value)
    if isinstance(value, float):
        return _pack_double(0x21, value)
    if isinstance(value, bytes):
        return b"\x3a" + delimited(value)
    if value is None and _NONE_IS_A_VALUE:
        return b""
    if room < 3:
        raise RecursionError("nested too deep")
    if isinstance(value, Sequence):
        items = [b"\x0a" + delimited(any_value(item, room - 2)) for item in value]
        return b"\x2a" + delimited(b"".join(items))
    if isinstance(value, Mapping):
        items = [b"\x0a" + delimited(key_value((str(key), item), room - 3)) for key, item in value.items()]
        return b"\x32" + delimited(b"".join(items))
    raise TypeError(type(value).__name__)


def integer_value(value: int) -> bytes:
    """Return an ``AnyValue`` that is an integer.

    Raises:
        OverflowError: It has more than 64 bits.
    """
    if not -1 << 63 <= value < 1 << 63:
        raise OverflowError("more than 64 bits")
    return b"\x18" + varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def text_field(tag: bytes, value: Any) -> bytes:
    """Return a string field; nothing for None. A lone surrogate becomes ``?``, because UTF-8 does not have it."""
    if value is None:
        return b""
    return tag + delimited(str.encode(value if isinstance(value, str) else str(value), "utf-8", "replace"))


def time_field(tag: int, nanoseconds: int | None) -> bytes:
    """Return a field of 64 bits; 0 and the largest number stand for what is below and above."""
    return _pack_fixed64(tag, min(max(int(nanoseconds or 0), 0), 0xFFFF_FFFF_FFFF_FFFF))


def count_field(tag: bytes, number: int) -> bytes:
    """Return an integer field; nothing for 0."""
    return tag + varint(number) if number else b""


def varint(number: int) -> bytes:
    """Return a number in groups of 7 bits, the lowest first."""
    if number < 0x80:
        return number.to_bytes(1, "little")
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0x20_0000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + varint(number >> 14)


def delimited(data: bytes) -> bytes:
    """Return bytes with their length before them."""
    size = len(data)
    return (VARINTS[size] if size < len(VARINTS) else varint(size)) + data


VARINTS: Final = tuple(map(varint, range(512)))
