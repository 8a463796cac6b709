"""The command line ``mackerel-otel-server``: one module per sub-command, imported when it is chosen."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.output import OutputError, complain
from mackerel_otel_server.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "check": "look at this installation and say what is wrong with it, and what to type",
    "config": "print the settings in force, and where each comes from",
    "flush": "deliver the spans that killed workers have left in their journals",
    "init": "write a commented configuration for a server, a container, a Collector or a framework",
    "demo": "run a traced application on this machine and show its traces",
    "receive": "receive traces as Mackerel does and print them as trees",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command, and return the exit status: 0, or 1 on any problem, or 130 after Ctrl-C.

    ``argv`` is what was typed after the program's name, by default ``sys.argv[1:]``. SystemExit is raised after
    ``--help`` and ``--version``, and with status 2 when the arguments cannot be understood.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not _has_output():
        return 1
    try:
        # Within the block: Ctrl-C may come while a sub-command is imported.
        options = _parser(arguments).parse_args(arguments)
        status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has left, as in `receive | head`. What Python still holds for it goes nowhere.
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        _write_nowhere()
        return 1
    except OutputError as error:
        return _cannot_write(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _cannot_write(str(error.strerror))
    return status


def _has_output() -> bool:
    """Return whether there is a standard output, and open the null device in place of another stream that is closed.

    Otherwise the next file or socket would get the number of the closed stream, and would be taken for it.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        if sys.stderr is not None:
            complain("standard output is closed: nothing was done. Send it elsewhere, e.g. > /dev/null")
        return False
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return True


def _cannot_write(why: str) -> int:
    _write_nowhere()
    complain(f"cannot write the output ({why}): make room, or send it elsewhere")
    return 1


def _write_nowhere() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mackerel-otel-server",
        description="Traces from Gunicorn and uWSGI workers to Mackerel, with OpenTelemetry.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in arguments:
            module = importlib.import_module(f"mackerel_otel_server.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
