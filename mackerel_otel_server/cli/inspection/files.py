"""Read the files that are looked at: what can be wrong with one is known here, and nowhere else.

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
"""Bytes. What people write by hand is smaller; who names a log file or a disk shall not wait."""


class UnreadableError(Exception):
    """A file cannot be read; its words say why."""


def problem(file: Path) -> str:
    """Return why a file cannot be read, or nothing: none is there, no permission, or no regular file."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if not stat.S_ISREG(mode):
            # A pipe would be waited for without end.
            return "it is no regular file"
        with file.open("rb"):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError:  # a zero byte
        return "that is no name of a file"


def content(file: Path) -> bytes:
    """Return what is in a regular file.

    Raises:
        UnreadableError: There is none that may be read, or it is larger than anything that is looked at.
    """
    if words := problem(file):
        raise UnreadableError(words)
    try:
        with file.open("rb") as opened:
            found = opened.read(LARGEST + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from None
    if len(found) > LARGEST:
        raise UnreadableError(f"it has more than {LARGEST:,} bytes")
    return found


def text(file: Path) -> str:
    """Return what is in a regular file as text, with a mark in the place of what is no UTF-8.

    Raises:
        UnreadableError: As content().
    """
    return content(file).decode("utf-8", "replace")


def text_or_nothing(file: Path) -> str:
    """Return the text, and none of a file that cannot be read: for those who only look whether it says something."""
    try:
        return text(file)
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
