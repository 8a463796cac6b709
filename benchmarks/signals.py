"""Signals at random moments of a server's first second, with this package and without it: does each one arrive?

    pip install . -r benchmarks/requirements.txt pyuwsgi
    python benchmarks/signals.py

TERM, INT, QUIT and HUP go in turn to the arbiter or master, and every second INT to the whole process group, as Ctrl-C
does. What becomes of the server is written down: its exit status, or that it serves (after a reload), or that nothing
has happened ten seconds later. The moments are made by a random number generator with a seed that is printed.
Prints a table for each mode.

Not a test: it fails only when a signal was lost more often with this package than without it.
"""

# ruff: noqa: S311 - chance that protects nothing

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import report
from server import CLASSES, UVICORN, UWSGI, Case, environment
from sink import Sink

_GUNICORN = (*CLASSES, UVICORN, "preload")
_LESS = {"uWSGI, TERM reloads": ("--die-on-term",), "uWSGI without a master": ("--die-on-term", "--master")}
"""Options that a mode of uWSGI lacks."""
_MODES = (*_GUNICORN, *UWSGI, *_LESS)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_KINDS = [(number, to_all and number == signal.SIGINT) for to_all in (False, True) for number in _SIGNALS]
_VARIANTS = ("untouched", "ours")
_RELOADS = {signal.SIGHUP: _MODES, signal.SIGQUIT: tuple(UWSGI), signal.SIGTERM: ("uWSGI, TERM reloads",)}
"""Where a signal makes the server start anew."""
_AFTER = 10.0
_WORKERS = 2
_LOST = "nothing happens"


@dataclass(frozen=True)
class _Run:
    mode: str
    variant: str
    number: signal.Signals
    to_group: bool
    moment: float
    """Seconds after the start."""


def main() -> int:
    """Print the tables, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=200, help="in each mode (default: 200)")
    parser.add_argument("--first", type=float, default=1.0, help="seconds from the start on (default: 1)")
    parser.add_argument("--at-once", type=int, default=2, help="servers that run side by side (default: 2)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--modes", default=";".join(_MODES), help="separated by semicolons (default: all)")
    arguments = parser.parse_args()
    # A program that a shell has started in the background ignores these signals, and its servers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    print(report.machine())
    print(f"seed {arguments.seed}", flush=True)
    worse = 0
    with Sink() as sink, ThreadPoolExecutor(arguments.at_once) as pool:
        for mode in arguments.modes.split(";"):
            some = random.Random(arguments.seed)
            runs = [
                _Run(mode, variant, *_KINDS[number % len(_KINDS)], moment)
                for number in range(arguments.moments)
                for moment in [some.uniform(0, arguments.first)]
                for variant in _VARIANTS
            ]
            worse += _print(mode, dict(zip(runs, pool.map(partial(_outcome, sink.url), runs), strict=True)))
    return 1 if worse else 0


def _print(mode: str, outcomes: dict[_Run, str]) -> int:
    """Print a mode's table; return how many more signals were lost with this package than without it."""
    print(f"\n| {mode} | {' | '.join(_VARIANTS)} |\n| --- | --- | --- |")
    lost = Counter[str]()
    for number in _SIGNALS:
        cells = []
        for variant in _VARIANTS:
            came = Counter(what for run, what in outcomes.items() if (run.variant, run.number) == (variant, number))
            lost[variant] += came[_LOST]
            cells.append(", ".join(f"{what}: {count}" for what, count in sorted(came.items())))
        print(f"| {number.name} | {' | '.join(cells)} |")
    for run, what in outcomes.items():
        if what == _LOST:
            print(f"lost: {run.variant}, {run.number.name} after {run.moment:.3f} s")
    sys.stdout.flush()
    return max(lost["ours"] - lost["untouched"], 0)


def _outcome(endpoint: str, run: _Run) -> str:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        process = subprocess.Popen(
            _command(run.mode, run.variant, fd),
            cwd=folder,
            env=environment(run.variant, endpoint, folder, 1000),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[fd],
        )
        try:
            time.sleep(run.moment)
            if run.to_group:
                os.killpg(process.pid, run.number)
            else:
                process.send_signal(run.number)
            return _wait(process, port if run.mode in _RELOADS.get(run.number, ()) else None)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int | None) -> str:
    """Wait for the end of the server, or for its first answer after the reload that the port is given for."""
    deadline = time.monotonic() + _AFTER
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(1.0)
            return f"exit {status}" if status >= 0 else signal.Signals(-status).name
        if port is not None and _answers(port):
            return "serves"
    return _LOST


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/fish/1")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _command(mode: str, variant: str, listener: int) -> list[str]:
    server = mode if mode in (*CLASSES, UVICORN, *UWSGI) else "uWSGI" if mode in _LESS else "sync"
    command = Case(server, "generic", variant).command(_WORKERS, listener)
    if mode == "preload":
        return [*command[:-1], "--preload", command[-1]]
    if mode in _GUNICORN:
        return command
    # Without this option, a reload of uWSGI runs the interpreter from which the virtual environment was made.
    return [*(word for word in command if word not in _LESS.get(mode, ())), "--binary-path", sys.executable]


if __name__ == "__main__":
    sys.exit(main())
