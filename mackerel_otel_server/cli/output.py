"""What is written to standard output and standard error: lines, in colour on a terminal, and what is waited for."""

from __future__ import annotations

import select
import shutil
import stat
import sys
import time
from contextlib import contextmanager, suppress
from os import fstat
from typing import TYPE_CHECKING, TextIO

from mackerel_otel_server.cli.text import Part, encodable, fitted
from mackerel_otel_server.settings.environment import is_dumb_terminal, wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ECMA-48, 8.3.117: the colours that every terminal has, as its user has chosen them.
_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}


class OutputError(Exception):
    """Standard output takes nothing more, e.g. because the disk is full or the terminal is gone; the text says why."""


def say(line: str = "") -> None:
    """Print one line at once, so that a pipe sees it too; characters that the output cannot carry are escaped.

    Raise BrokenPipeError when whoever read the output has left, and OutputError when the line cannot be written.
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


def stdout_encoding() -> str:
    """Return the name of standard output's encoding."""
    return sys.stdout.encoding or "ascii"


def reader_has_left() -> bool:
    """Return whether standard output is a pipe or a terminal whose other end is gone for good."""
    poll = select.poll()
    # No events are asked for: poll() reports an error and a hang-up always.
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def is_file() -> bool:
    """Return whether standard output is a regular file."""
    return stat.S_ISREG(fstat(sys.stdout.fileno()).st_mode)


def paint(text: str, *styles: str, stream: TextIO | None = None) -> str:
    """Return the text in colour when it goes to a terminal whose user wants colour, else as it is.

    Args:
        text: What is going to be written.
        styles: Names of the codes above. Another name is a KeyError.
        stream: Where the text is going to be written, by default standard output.
    """
    codes = ";".join(str(_CODES[style]) for style in styles)
    stream = sys.stdout if stream is None else stream
    if not text or not codes or not stream.isatty() or not wants_colour():
        return text
    return f"\x1b[{codes}m{text}\x1b[0m"


def width(stream: TextIO | None = None) -> int | None:
    """Return the terminal's number of columns, or None for a file or pipe, where lines may have any length."""
    stream = sys.stdout if stream is None else stream
    return shutil.get_terminal_size().columns if stream.isatty() else None


@contextmanager
def waiting(what: str) -> Iterator[Callable[[], None]]:
    """Yield a function that is to be called often and shows what is waited for, and for how many seconds so far.

    The line appears on standard error only where that is a terminal, not in the first second, and vanishes in the end.
    """
    started = time.monotonic()
    shown = 0
    animated = sys.stderr.isatty() and not is_dumb_terminal()

    def tick() -> None:
        nonlocal shown
        seconds = int(time.monotonic() - started)
        if animated and seconds != shown:
            shown = seconds
            limit = (width(sys.stderr) or 80) - 1  # the last column would begin a new line
            text = "".join(part.text for part in fitted([Part(f"{what} ({seconds} s)")], limit))
            sys.stderr.write(f"\r{paint(text, 'dim', stream=sys.stderr)}")
            sys.stderr.flush()

    try:
        yield tick
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")  # ECMA-48, 8.3.41: erase to the end of the line
            sys.stderr.flush()
