"""The format of a journal's file: the spans of one process, and which of them are settled.

A process may be killed at any moment, so a file is a list of records, each of which is appended by one write(). A
record that is torn or damaged is skipped: every record begins with the mark of its file, which is random, so that no
text of a span can look like a record.

``MAGIC``, mark, then records: mark, size of the content, checksum, number, content. A content is a kind, which is one
byte, and a payload.
"""

from __future__ import annotations

import bisect
import itertools
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MAGIC: Final = b"mackerel-otel-server journal 1\n"
"""The number is that of the format. A file of another format is left to those who know it."""
MARK_BYTES: Final = 8
# Kinds of records.
ABOUT: Final = 1
"""JSON about the process and the destination of its spans."""
RESOURCE: Final = 2
"""The bytes of the resource; number 1: of its schema URL."""
SCOPE: Final = 3
"""The scope of this number: the length of its bytes, its bytes, its schema URL."""
SPANS: Final = 4
"""The record of this number: spans, each with the number of its scope before it."""
SETTLED: Final = 5
"""The first and the last number of records that were delivered or lost, as often as needed."""

_SCOPE_NUMBER: Final = struct.Struct("<H")
pack_scope_number: Final = _SCOPE_NUMBER.pack
_HEAD: Final = struct.Struct("<8sIQQ")
"""The mark, the size of the content, ``zlib.crc32(content) ^ number``, and the number."""
HEAD_BYTES: Final = _HEAD.size
BEFORE_SPAN: Final = 1 + _SCOPE_NUMBER.size
"""Bytes of a content before its first span: the kind, and the number of the scope."""
pack_head_and_scope: Final = struct.Struct(f"{_HEAD.format}{BEFORE_SPAN}s").pack
"""Packs what is written before the first span. Another object of bytes for head and content would take time."""
_RANGE: Final = struct.Struct("<QQ")
_SIZE: Final = struct.Struct("<I")
_TAG_OF_SPAN: Final = 0x12
_crc32: Final = zlib.crc32
_LONGEST_VARINT: Final = 5
"""Bytes of the length of a span, at most."""
_MOST_WASTED: Final = 64_000_000
"""Bytes that are looked at in vain, at most. A file can be made so that all its bytes could begin a record."""
_COST_OF_A_LOOK: Final = 1_000
"""What one look costs, in bytes whose checksum could be computed meanwhile."""

Scope = tuple[bytes, bytes]
"""A scope and its schema URL as fields of ``ScopeSpans``."""
NO_SCOPE: Final[Scope] = (b"\x0a\x00", b"")


def record(mark: bytes, kind: int, number: int, payload: bytes) -> bytes:
    """Return the bytes of one record."""
    content = bytes((kind,)) + payload
    return _HEAD.pack(mark, len(content), _crc32(content) ^ number, number) + content


def beginning(mark: bytes, about: dict[str, Any], resource: bytes, schema_url: bytes) -> bytes:
    """Return what a file begins with."""
    return b"".join(
        (
            MAGIC,
            mark,
            record(mark, ABOUT, 0, json.dumps(about).encode()),
            record(mark, RESOURCE, 0, resource),
            record(mark, RESOURCE, 1, schema_url),
        )
    )


def scope_record(mark: bytes, number: int, scope: Scope) -> bytes:
    """Return the record that gives a scope its number."""
    return record(mark, SCOPE, number, _SIZE.pack(len(scope[0])) + scope[0] + scope[1])


def settled_record(mark: bytes, numbers: Collection[int]) -> bytes:
    """Return the record that says that others are settled."""
    ranges: list[tuple[int, int]] = []
    first, last = min(numbers), max(numbers)
    if last - first == len(numbers) - 1:
        # Most batches are this simple.
        ranges.append((first, last))
        numbers = ()
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return record(mark, SETTLED, 0, b"".join([_RANGE.pack(*both) for both in ranges]))


@dataclass
class Contents:
    """What a file holds that can be read.

    Attributes:
        mark: Of the file, for further records.
        about: What its process said about itself.
        resource: The resource's bytes.
        schema_url: The bytes of the resource's schema URL.
        scopes: By number.
        spans: What is not settled: the spans of each record, each with the number of its scope.
        is_damaged: Whether something was skipped. The last record of a killed process may be torn.
        is_foreign: Whether this is no journal, or one of another format.
    """

    mark: bytes
    about: dict[str, Any] = field(default_factory=dict)
    resource: bytes = b""
    schema_url: bytes = b""
    scopes: dict[int, Scope] = field(default_factory=dict)
    spans: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    is_damaged: bool = False
    is_foreign: bool = False

    def __len__(self) -> int:
        """Return the number of spans that are not settled."""
        return sum(map(len, self.spans.values()))


class NotAJournalError(ValueError):
    """The bytes are no journal, or one of another format."""


def read(data: bytes) -> Contents:
    """Read a file; any bytes may be given.

    Raises:
        NotAJournalError: The file does not begin as a journal does, or the beginning is damaged.
    """
    mark = data[len(MAGIC) : len(MAGIC) + MARK_BYTES]
    if not data.startswith(MAGIC) or len(mark) < MARK_BYTES:
        raise NotAJournalError("no journal")
    contents = Contents(mark)
    settled: list[tuple[int, int]] = []
    for kind, number, payload in _records(data, contents):
        try:
            _take(contents, settled, kind, number, payload)
        except (ValueError, TypeError, RecursionError, struct.error):  # noqa: PERF203 - see is_damaged
            contents.is_damaged = True
    if not contents.about or not contents.resource:
        raise NotAJournalError("its beginning is damaged")
    # By bisection: a damaged file may name more numbers than can be counted, and each of them very often.
    settled.sort()
    firsts = [first for first, _ in settled]
    lasts = list(itertools.accumulate((last for _, last in settled), max))
    for number in list(contents.spans):
        index = bisect.bisect(firsts, number)
        if index and number <= lasts[index - 1]:
            del contents.spans[number]
    return contents


def _take(contents: Contents, settled: list[tuple[int, int]], kind: int, number: int, payload: bytes) -> None:
    """Add one record to what a file holds.

    Raises:
        ValueError: The payload is not what the kind says.
        TypeError: Likewise.
        RecursionError: Likewise.
        struct.error: Likewise.
    """
    if kind == ABOUT:
        found = dict(json.loads(payload))
        # Other values, which a stranger may have written, do not get as far as the log.
        contents.about = {name: value for name, value in found.items() if _can_be_shown(value)}
    elif kind == RESOURCE:
        if number:
            contents.schema_url = payload
        else:
            contents.resource = payload
    elif kind == SCOPE:
        contents.scopes[number] = _scope(payload)
    elif kind == SPANS:
        contents.spans[number] = list(_spans(payload))
    elif kind == SETTLED:
        settled += [(first, last) for first, last in _RANGE.iter_unpack(payload)]


def _can_be_shown(value: object) -> bool:
    return type(value) is int or (isinstance(value, str) and value.isprintable())


def _records(data: bytes, contents: Contents) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, number and payload of the records that are whole."""
    mark = contents.mark
    start = len(MAGIC) + MARK_BYTES
    wasted = 0
    while start < len(data):
        begin = start + _HEAD.size
        if data.startswith(mark, start) and begin <= len(data):
            _, size, checksum, number = _HEAD.unpack_from(data, start)
            content = data[begin : begin + size] if begin + size <= len(data) else b""
            if 0 < size == len(content) and _crc32(content) ^ number == checksum:
                yield content[0], number, content[1:]
                start = begin + size
                continue
            wasted += len(content)
        contents.is_damaged = True
        wasted += _COST_OF_A_LOOK
        start = data.find(mark, start + 1)
        if start < 0 or wasted > _MOST_WASTED:
            return


def _scope(payload: bytes) -> Scope:
    (size,) = _SIZE.unpack_from(payload)
    rest = payload[_SIZE.size :]
    if size > len(rest):
        raise ValueError("cut off")
    return rest[:size], rest[size:]


def _spans(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the spans of a record, each with the number of its scope.

    Raises:
        ValueError: The payload does not consist of spans.
        struct.error: It is cut off.
    """
    start = 0
    while start < len(payload):
        (scope,) = _SCOPE_NUMBER.unpack_from(payload, start)
        start += _SCOPE_NUMBER.size
        position, size = start + 1, 0
        if payload[start : start + 1] != bytes((_TAG_OF_SPAN,)):
            raise ValueError("no span")
        for shift in range(_LONGEST_VARINT):
            if position >= len(payload):
                raise ValueError("cut off")
            byte = payload[position]
            position += 1
            size |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
                break
        else:
            raise ValueError("its length is too long")
        end = position + size
        if end > len(payload):
            raise ValueError("cut off")
        yield scope, payload[start:end]
        start = end
