"""``mackerel-otel-server init``: write the configuration file of a server."""

from __future__ import annotations

import errno
import os
import shlex
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.text import complain, say

if TYPE_CHECKING:
    import argparse

# Server: the file's usual name, which is also its name in the package, and how the server is started with it.
SERVERS = {
    "gunicorn": ("mackerel_otel_server.conf", "gunicorn -c {} mysite.wsgi"),
    "uwsgi": ("mackerel_otel_server.ini", "uwsgi --ini {}"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``init`` understands."""
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, - for standard output (default: ./NAME)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run(args: argparse.Namespace) -> int:
    """Write the file and say what to type next.

    Returns:
        0, or 1 when the file could not be written.
    """
    name, start = SERVERS[args.server]
    content = _example(name)
    if args.output == "-":
        print(content, end="")
        return 0
    target = name if args.output is None else args.output
    try:
        if Path(target).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # "x" fails on a file that appears at the same moment; a check beforehand would not.
        with Path(target).open("w" if args.force else "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        complain(
            f"{target!r} exists: nothing was written. To overwrite it, type: mackerel-otel-server init {args.server}"
            f"{'' if args.output is None else f' -o {shlex.quote(target)}'} --force"
        )
        return 1
    except OSError as error:
        complain(
            f"cannot write {target!r} ({error.strerror or error}): to write elsewhere, type: "
            f"mackerel-otel-server init {args.server} -o FILE"
        )
        return 1
    say(f"wrote {target}. Next:")
    say("  export MACKEREL_APIKEY=...        (a Mackerel API key with write permission)")
    say("  " + start.format(shlex.quote(target)))
    return 0


def _example(name: str) -> str:
    package = files("mackerel_otel_server")
    packaged = package / "conf_examples" / name
    # The wheel holds conf_examples inside the package, a checkout beside it.
    return (packaged if packaged.is_file() else package / ".." / "conf_examples" / name).read_text(encoding="utf-8")
