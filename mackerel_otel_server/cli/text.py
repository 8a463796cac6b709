"""Lines for a terminal: what other programs have sent is shown, and never obeyed."""

from __future__ import annotations

import select
import sys
from contextlib import suppress


class OutputError(Exception):
    """Standard output takes nothing more; the text says why."""


def say(line: str = "") -> None:
    """Print one line at once, so that a pipe sees it too, whatever the output's encoding can carry.

    Raises:
        BrokenPipeError: Who reads it has left.
        OutputError: It cannot be written, e.g. because the disk is full or the terminal is gone.
    """
    try:
        print(encodable(line, stdout_encoding()), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from None


def complain(line: str) -> None:
    """Print one line to standard error, if anybody takes it."""
    with suppress(OSError):
        print(encodable(line, sys.stderr.encoding or "ascii"), file=sys.stderr, flush=True)


def reader_has_left() -> bool:
    """Return whether the reader of standard output, where that is a pipe or a terminal, is gone for good."""
    poll = select.poll()
    # No events: an error and a hang-up are told always.
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


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
