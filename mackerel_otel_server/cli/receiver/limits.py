"""How much of a request is kept: its parts are counted before Python makes objects of them, its texts are cut.

gzip may hold a thousand times its own size.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

LONGEST_TEXT = 50_000
"""Characters of one text, unless all is to be shown: a stack trace has fewer."""
# Characters of all texts of a request, and how many more for each byte that was sent: gzip packs real spans to a tenth
# or a fiftieth of their size.
_OF_A_REQUEST = 100_000
_OF_A_BYTE = 100
# Characters of a resource, which belongs to each of its spans and is printed with each.
_SHARED = 4_000
# Characters that are kept of each text when there is no room left. The number of texts is bounded elsewhere.
_SHORTEST = 100
_ANY = sys.maxsize
# About how many bytes of memory a list, a number or a place in a dictionary takes.
_PART_BYTES = 100
# Protobuf's own limit: what is deeper is refused when it is decoded.
_DEEPEST = 100
# https://protobuf.dev/programming-guides/encoding/#structure
_VARINT, _LENGTH = 0, 2
# The other wire types, and how many bytes their values have.
_FIXED_SIZES = {1: 8, 5: 4}
_MORE = 0x80
# Fields of a message on average: a span without attributes has a dozen, an attribute three.
_FIELDS_OF_A_MESSAGE = 10

# Field number -> the message that the field holds, and whether there may be many of them.
_Fields: TypeAlias = "dict[int, tuple[_Fields, bool]]"


def holds_more(body: bytes, descriptor: Descriptor, most: int) -> bool:
    """Return whether repeated fields hold more than ``most`` messages, at all depths together.

    A message without content is two bytes of the body and a hundred or more in memory. Ten times as many fields, also
    those that nobody knows, are too many as well: it takes time to count them. Counting stops where the body is no
    message of the type that ``descriptor`` tells; decoding tells that.
    """
    if len(body) <= 2 * most:
        return False
    try:
        return _count(body, _fields(descriptor, {}), most) > most
    except IndexError:
        return False


def _count(body: bytes, fields: _Fields, most: int) -> int:
    count = position = read = 0
    end = len(body)
    outer: list[tuple[int, _Fields]] = []
    while count <= most and len(outer) <= _DEEPEST:
        while position >= end:
            if not outer:
                return count
            end, fields = outer.pop()
        read += 1
        if read > _FIELDS_OF_A_MESSAGE * most:
            return most + 1
        tag, position = _varint(body, position)
        wire_type = tag & 7
        if wire_type == _LENGTH:
            size, position = _varint(body, position)
            field = fields.get(tag >> 3)
            if field is None:
                position += size
            else:
                outer.append((end, fields))
                end = position + size
                fields, many = field
                count += many
        elif wire_type == _VARINT:
            position = _varint(body, position)[1]
        else:
            position += _FIXED_SIZES.get(wire_type, 0)
    return count


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = body[position]
        position += 1
        value |= (byte & (_MORE - 1)) << shift
        if byte < _MORE:
            return value, position
    raise IndexError("a number of more than ten bytes")


def _fields(descriptor: Descriptor, known: dict[str, _Fields]) -> _Fields:
    """Return which fields of a message are messages; a value may hold values, so a table may hold itself."""
    if descriptor.full_name not in known:
        table: _Fields = {}
        known[descriptor.full_name] = table
        # Whether a field is repeated has other names in each protobuf; the description of a description has not.
        described = DescriptorProto()
        descriptor.CopyToProto(described)
        for field, its in zip(descriptor.fields, described.field, strict=True):
            if field.message_type is not None:
                many = its.label == FieldDescriptorProto.LABEL_REPEATED
                table[field.number] = _fields(field.message_type, known), many
    return known[descriptor.full_name]


@dataclass
class Room:
    """How much more of a request is kept.

    Attributes:
        longest: Characters of one text.
        left: Characters of all further texts together.
        parts: How many attributes and the like there have been.
        size: About how many bytes of memory all takes that there has been.
    """

    longest: int
    left: int
    parts: int = 0
    size: int = 0

    def part(self) -> None:
        """Count an attribute, an event, a link or a member of a list."""
        self.parts += 1
        self.size += _PART_BYTES

    def text(self, text: str) -> str:
        """Cut a text, and say by how much."""
        longest = self._longest(text)
        if len(text) > longest:
            text = f"{text[:longest]}... ({len(text) - longest} more characters)"
        self.size += sys.getsizeof(text)
        return text

    def data(self, data: bytes) -> bytes | str:
        """Cut bytes; those that are cut become text."""
        longest = self._longest(data)
        kept: bytes | str = data
        if len(data) > longest:
            kept = f"{base64.b64encode(data[:longest]).decode('ascii')}... ({len(data) - longest} more bytes)"
        self.size += sys.getsizeof(kept)
        return kept

    def _longest(self, value: str | bytes) -> int:
        """Return how much of the next value is kept, and take the room for it."""
        longest = max(_SHORTEST, min(self.longest, self.left))
        self.left -= min(len(value), longest)
        return longest

    def shared(self) -> Room:
        """Return the room for what spans share."""
        return Room(self.longest, self.left if self.longest == _ANY else _SHARED)


def room_for(sent: int, longest: int | None) -> Room:
    """Return the room for a request of ``sent`` bytes; ``longest`` characters of a text are kept, with None all."""
    return Room(_ANY, _ANY) if longest is None else Room(longest, _OF_A_REQUEST + _OF_A_BYTE * sent)
