"""How much a protobuf message holds, before protobuf and Python make objects of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

# Protobuf's own limit: what is deeper is refused when it is decoded.
_DEEPEST = 100
# https://protobuf.dev/programming-guides/encoding/#structure
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_MORE = 0x80

# Field number -> the message that the field holds, and whether there may be many of them.
_Fields: TypeAlias = "dict[int, tuple[_Fields, bool]]"


def holds_more(body: bytes, descriptor: Descriptor, most: int) -> bool:
    """Return whether repeated fields hold more than ``most`` messages, at all depths together.

    A message without content is two bytes of the body and a hundred or more in memory. What is no message of this
    type is not counted to its end: who decodes it says so.

    Args:
        body: The message.
        descriptor: Its type.
        most: How many are not too many.
    """
    if len(body) <= 2 * most:
        return False
    try:
        return _count(body, _fields(descriptor, {}), most) > most
    except IndexError:
        return False


def _count(body: bytes, fields: _Fields, most: int) -> int:
    count = position = 0
    end = len(body)
    outer: list[tuple[int, _Fields]] = []
    while count <= most and len(outer) <= _DEEPEST:
        while position >= end:
            if not outer:
                return count
            end, fields = outer.pop()
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
            position += {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire_type, 0)
    return count


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = body[position]
    position += 1
    if value < _MORE:
        return value, position
    value &= _MORE - 1
    for shift in range(7, 70, 7):
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
