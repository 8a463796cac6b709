"""Read the files that ``check`` looks at. Only this module knows what can be wrong with a file.

What a server's own settings name, such as the key file, is read as the pipeline does it, which is in ``settings``.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST: Final = 1_000_000
"""Bytes. No file that is written by hand is larger, and nobody shall wait because a log file or a disk was named."""


class UnreadableError(Exception):
    """A file cannot be read; the exception's text says why."""


def content(file: Path) -> bytes:
    """Return what is in a regular file.

    Raises:
        UnreadableError: There is none that may be read, or it is larger than anything that is looked at.
    """
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            # Reading a pipe might never end.
            raise UnreadableError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
        with file.open("rb") as opened:
            found = opened.read(LARGEST + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from None
    except ValueError:  # a zero byte
        raise UnreadableError("that is no name of a file") from None
    if len(found) > LARGEST:
        raise UnreadableError(f"it has more than {LARGEST:,} bytes")
    return found


def text_or_nothing(file: Path) -> str:
    """Return the text of a file, and none where it cannot be read, for those who only look whether it says something.

    What is no UTF-8 has a mark in its place.
    """
    try:
        return content(file).decode("utf-8", "replace")
    except UnreadableError:
        return ""


@contextmanager
def inside(folder: str) -> Iterator[None]:
    """Be in another working directory, as the server is: names of files are relative to it.

    One that cannot be entered is told of elsewhere; then nothing changes.
    """
    before = Path.cwd()
    with suppress(OSError):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
