"""``mackerel-otel-server init``: write a file that starts the tracing in one kind of surroundings."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.fragments import FRAGMENTS
from mackerel_otel_server.cli.text import complain, say

if TYPE_CHECKING:
    import argparse

    from mackerel_otel_server.cli.fragments import Fragment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``init`` understands."""
    parser.add_argument("target", nargs="?", metavar="TARGET", help=", ".join(FRAGMENTS))
    parser.add_argument("-l", "--list", action="store_true", help="say what each target is, and write nothing")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, - for standard output (default: ./NAME)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    # Not `choices`, whose message tells nothing about any of them.
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Write the file and say what to type next.

    Returns:
        0, or 1 when the file could not be written.

    Raises:
        SystemExit: With status 2 and a list of the targets, when none of them was named.
    """
    if args.list:
        say(_list())
        return 0
    if args.target not in FRAGMENTS:
        seen = "no TARGET is named" if args.target is None else f"TARGET {args.target!r} is not known"
        args.refuse(f"{seen}; type one of these after `mackerel-otel-server init`:\n{_list()}")
    fragment = FRAGMENTS[args.target]
    if args.output == "-":
        print(fragment.read(), end="")
        return 0
    target = fragment.file if args.output is None else args.output
    try:
        _write(Path(target), fragment.read(), overwrite=args.force)
    except FileExistsError:
        complain(
            f"{target!r} exists: nothing was written. To overwrite it, type: mackerel-otel-server init {args.target}"
            f"{'' if args.output is None else f' -o {shlex.quote(target)}'} --force"
        )
        return 1
    except OSError as error:
        complain(
            f"cannot write {target!r} ({error.strerror or error}): to write elsewhere, type: "
            f"mackerel-otel-server init {args.target} -o FILE"
        )
        return 1
    _say_what_is_next(fragment, target)
    return 0


def _list() -> str:
    width = max(map(len, FRAGMENTS))
    return "\n".join(f"  {name:{width}}  {fragment.file}: {fragment.summary}" for name, fragment in FRAGMENTS.items())


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # "x" fails on a file that appears at the same moment; a check beforehand would not.
    file = path.open("w" if overwrite else "x", encoding="utf-8")
    try:
        with file:
            file.write(text)
    except OSError:
        # A full disk. What is left of the file would be in the way of the next attempt.
        if not overwrite:
            path.unlink(missing_ok=True)
        raise


def _say_what_is_next(fragment: Fragment, target: str) -> None:
    say(f"wrote {target}. Next:")
    if "CHANGE: " in fragment.read():
        say(f"  grep -A2 CHANGE {shlex.quote(target)}   (what to change in it)")
    folder, module = Path(target).parent, Path(target).stem
    if str(folder) != "." and any("{module}" in step for step in fragment.steps):
        say(f"  cd {shlex.quote(str(folder))}")
    for step in fragment.steps:
        say("  " + step.format(shlex.quote(target), module=shlex.quote(module)))
