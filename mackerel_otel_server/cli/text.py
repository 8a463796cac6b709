"""Lines for a terminal: what other programs have sent is shown, and never obeyed."""

from __future__ import annotations

import sys


def say(line: str = "") -> None:
    """Print one line at once, so that a pipe sees it too, whatever the output's encoding can carry."""
    print(encodable(line, stdout_encoding()), flush=True)


def complain(line: str) -> None:
    """Print one line to standard error."""
    print(encodable(line, sys.stderr.encoding or "ascii"), file=sys.stderr, flush=True)


def stdout_encoding() -> str:
    """Return the name of the encoding that standard output has."""
    return sys.stdout.encoding or "ascii"


def encodable(text: str, encoding: str) -> str:
    """Escape the characters that ``encoding`` cannot carry."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(value: object) -> str:
    """Escape control characters: a span's name may hold whatever a client has put into a URL."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(value)
    )


def one_line(value: object, limit: int) -> str:
    """Fold white space, escape control characters, and cut what is longer than ``limit`` characters."""
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def counted(number: int, noun: str) -> str:
    """Return ``1 span``, ``2 spans``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
