"""What a terminal gets and a pipe does not: colour, and lines that fit."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from mackerel_otel_server.settings import wants_colour

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# ECMA-48, 8.3.117: the colours that every terminal has, as its user has chosen them.
_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
_CUT = "..."


@dataclass(frozen=True)
class Part:
    """A piece of a line and how it looks."""

    text: str
    styles: tuple[str, ...] = ()


def paint(text: str, *styles: str, stream: TextIO | None = None) -> str:
    """Return the text in colour, or as it is where nobody looks at it who wants that.

    Args:
        text: What is going to be written.
        styles: Any of bold, dim, red, green, yellow, blue, cyan.
        stream: Where it is going to be written, by default standard output.

    Raises:
        KeyError: There is no such style.
    """
    codes = ";".join(str(_CODES[style]) for style in styles)
    stream = sys.stdout if stream is None else stream
    if not text or not codes or not stream.isatty() or not wants_colour():
        return text
    return f"\x1b[{codes}m{text}\x1b[0m"


def paint_parts(parts: Iterable[Part]) -> str:
    """Return the parts of a line as one text for standard output."""
    return "".join(paint(part.text, *part.styles) for part in parts)


def width(stream: TextIO | None = None) -> int | None:
    """Return how many columns the terminal has, or None when the stream is none: then lines may be of any length."""
    stream = sys.stdout if stream is None else stream
    return shutil.get_terminal_size().columns if stream.isatty() else None


def columns(text: str) -> int:
    """Return how many columns a terminal needs: two for a wide character (UAX #11), none for one that combines."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


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
