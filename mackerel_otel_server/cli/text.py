"""Text that fits into a line of a terminal: what other programs have sent is shown there, and never obeyed."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CUT = "..."
# one_line() looks at so many times as many characters as the line may have, because white space is folded.
_LOOKED_AT = 10
_MICROSECOND, _MILLISECOND, _SECOND = 1_000, 1_000_000, 1_000_000_000
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_MINUTE = 60


@dataclass(frozen=True)
class Part:
    """A piece of a line and how it looks."""

    text: str
    styles: tuple[str, ...] = ()


def encodable(text: str, encoding: str) -> str:
    """Escape the characters that ``encoding`` cannot carry."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(value: object) -> str:
    """Escape control characters: a span's name may hold whatever a client has put into a URL."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(value)
    )


def one_line(value: object, limit: int | None) -> str:
    """Fold white space, escape control characters, and cut the text to ``limit`` characters; None: do not cut."""
    text = str(value)
    # A text may have megabytes.
    most = len(text) if limit is None else _LOOKED_AT * limit
    line = printable(" ".join(text[:most].split()))
    if limit is None or (len(line) <= limit and len(text) <= most):
        return line
    return line[: limit - len(_CUT)] + _CUT


def counted(number: int, noun: str) -> str:
    """Return ``1 span``, ``2 spans``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def took(nanoseconds: int, *, micro: str = "µ") -> str:
    """Return a duration: milliseconds, as a column of them is easy to compare, unless they say too little or too much.

    A duration is negative where a clock was set back. ``micro`` is ``u`` where the output has no ``µ``.
    """
    if nanoseconds < 0:
        return f"-{took(-nanoseconds, micro=micro)}"
    if nanoseconds < _MICROSECOND:
        return f"{nanoseconds} ns"
    if nanoseconds < 10 * _MICROSECOND:
        return f"{nanoseconds / _MICROSECOND:.1f} {micro}s"
    if nanoseconds < _SECOND:
        return f"{nanoseconds / _MILLISECOND:.2f} ms"
    if nanoseconds < _MINUTE * _SECOND:
        return f"{nanoseconds / _SECOND:.2f} s"
    return _two_units(nanoseconds // _SECOND)


def _two_units(seconds: int) -> str:
    place = next(place for place, (_, length) in enumerate(_UNITS) if seconds >= length)
    (unit, length), (smaller, part) = _UNITS[place : place + 2]
    rest = seconds % length // part
    return f"{seconds // length} {unit}" + (f" {rest} {smaller}" if rest else "")


def columns(text: str) -> int:
    """Return how many columns a terminal needs: two for a wide character (UAX #11), none for one that combines."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def fitted(parts: Iterable[Part], limit: int | None) -> Iterator[Part]:
    """Cut a line to ``limit`` columns and mark the cut; None leaves it as it is."""
    parts = list(parts)
    if limit is None or sum(columns(part.text) for part in parts) <= limit:
        yield from parts
        return
    mark = _CUT[: max(limit, 0)]
    room = limit - len(mark)
    for part in parts:
        kept = _cut(part.text, room)
        room -= columns(kept)
        if kept != part.text:
            yield Part(kept + mark, part.styles)
            return
        yield part


def _cut(text: str, room: int) -> str:
    for position, character in enumerate(text):
        room -= _columns(character)
        if room < 0:
            return text[:position]
    return text


def _columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
