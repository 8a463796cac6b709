"""A line on the terminal about what is waited for, while it takes long."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mackerel_otel_server.cli import style
from mackerel_otel_server.settings import is_dumb_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress(what: str) -> Iterator[Callable[[], None]]:
    """Yield a function to be called often, which shows what is waited for and how many seconds so far.

    Only a terminal is written to, standard error, not in the first second, and in the end the line is wiped out.

    Args:
        what: What is done, e.g. ``waiting for the server``; empty shows nothing.
    """
    started = time.monotonic()
    shown = 0
    animated = bool(what) and sys.stderr.isatty() and not is_dumb_terminal()

    def tick() -> None:
        nonlocal shown
        seconds = int(time.monotonic() - started)
        if animated and seconds != shown:
            shown = seconds
            limit = (style.width(sys.stderr) or 80) - 1  # the last column would begin a new line
            text = "".join(part.text for part in style.fitted([style.Part(f"{what} ({seconds} s)")], limit))
            sys.stderr.write(f"\r{style.paint(text, 'dim', stream=sys.stderr)}")
            sys.stderr.flush()

    try:
        yield tick
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")  # ECMA-48, 8.3.41: erase to the end of the line
            sys.stderr.flush()
