"""What tracing costs in instructions, which a busy machine does not change: a whole Gunicorn worker under valgrind.

    pip install . -r benchmarks/requirements.txt
    python benchmarks/instructions.py
    python benchmarks/instructions.py --variants ours --also before=/path/to/another/bin/python

Each figure is the slope between two numbers of requests, over all threads of the worker, until the receiver, another
process, has the spans. Every request has a connection of its own and is sampled where nothing else stands. With
``--also``, "ours" is measured in another environment, too, which has another version of this package. Prints a table in
Markdown, and repeats to 1 %. Linux with valgrind; ten minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import report
from load import drive
from server import VARIANTS, Case, Server
from sink import Sink

_WARM_UP_REQUESTS = 100
_SECONDS = 600.0
# Milliseconds. valgrind makes a request slow; a batch shall be as full as it is without valgrind.
_SCHEDULE_DELAY = 15_000
_TOTALS = re.compile(r"^totals:\s*(\d+)", re.MULTILINE)
# A hash of its own for each run makes other collisions, and so other figures.
_EQUAL_RUNS = {"PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class _Figure:
    """One line of the table.

    Attributes:
        label: What it says.
        application: The module in apps/.
        variables: Further variables of the server.
        less: Those of a second server, which does less: the figure is the difference.
        apart: How many queries a request to the second server makes less.
        variants: The variants that it can be measured with.
    """

    label: str
    application: str
    variables: Mapping[str, str] = field(default_factory=dict)
    less: Mapping[str, str] = field(default_factory=dict)
    apart: int = 1
    variants: Sequence[str] = VARIANTS


_FIGURES = {
    "request": _Figure("a request", "generic"),
    "excluded": _Figure("an excluded request", "generic", {"OTEL_PYTHON_EXCLUDED_URLS": "."}, variants=("ours",)),
    "unsampled": _Figure(
        "a request that is not sampled", "generic", {"OTEL_TRACES_SAMPLER": "always_off"}, variants=("ours",)
    ),
    "query": _Figure(
        "one more query (sqlite3)", "queries", {"BENCHMARK_QUERIES": "10"}, {"BENCHMARK_QUERIES": "0"}, apart=10
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit code."""
    arguments = _arguments(argv)
    columns = [(name, name, sys.executable) for name in arguments.variants]
    columns += [(label, "ours", python) for label, python in arguments.also]
    print(report.machine(), flush=True)
    print(f"\n| instructions, M | {' | '.join(label for label, _, _ in columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}", flush=True)
    for name in arguments.figures:
        figure = _FIGURES[name]
        cells = []
        untouched = None
        for label, variant, python in columns:
            if variant not in (*figure.variants, "untouched"):
                cells.append("–")  # noqa: RUF001 - a dash of its own, for what was not measured
                continue
            print(f"{figure.label}: {label}", file=sys.stderr, flush=True)
            million = _measure(figure, Case("sync", figure.application, variant, python), arguments.requests) / 1e6
            untouched = million if variant == "untouched" else untouched
            added = "" if untouched is None or variant == "untouched" else f" (+ {million - untouched:.4f})"
            cells.append(f"{million:.4f}{added}")
        print(f"| {figure.label} | {' | '.join(cells)} |", flush=True)
    return 0


def _measure(figure: _Figure, case: Case, requests: int) -> float:
    """Return the instructions of a request, or of one more query."""
    count = _count(case, figure.variables, requests)
    if not figure.less:
        return count
    return (count - _count(case, figure.less, requests)) / figure.apart


def _count(case: Case, variables: Mapping[str, str], requests: int) -> float:
    """Return the instructions of one worker for each request, until the receiver has all spans."""
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--trace-children=yes"]
        # Nothing is known about functions, which makes the counting faster.
        valgrind += ["--log-file=/dev/null", f"--callgrind-out-file={folder}/counted.%p"]
        with Server(
            case,
            1,
            endpoint=sink.url,
            folder=folder,
            schedule_delay=_SCHEDULE_DELAY,
            wrapper=valgrind,
            variables={**_EQUAL_RUNS, **variables},
            deadline=_SECONDS,
        ) as server:
            (pid,) = server.workers
            spans = _spans(case, variables)
            served = 1
            counts = []
            for number in (_WARM_UP_REQUESTS, requests, 3 * requests):
                _tell(pid, "instrumentation", "on" if number > _WARM_UP_REQUESTS else "off")
                _drive(server, number)
                served += number
                _wait_for(sink, spans * served, server)
                _tell(pid, "dump")
                counts.append(_counted(folder, pid, server))
    return (counts[2] - counts[1]) / (2 * requests)


def _counted(folder: str, pid: int, server: Server) -> int:
    """Return the sum of the newest file that a process has left."""
    newest = max(Path(folder).glob(f"counted.{pid}.*"), key=lambda path: int(path.suffix[1:]))
    found = _TOTALS.search(newest.read_text())
    if found is None:
        raise server.failure("has left no count of instructions")
    return int(found.group(1))


def _drive(server: Server, requests: int) -> None:
    loaded = drive(server.port, seconds=_SECONDS, requests=requests)
    if loaded.failed or loaded.answered != requests:
        raise server.failure(f"has answered {loaded.answered} of {requests} requests")


def _wait_for(sink: Sink, spans: int, server: Server) -> None:
    deadline = time.monotonic() + _SECONDS
    while (arrived := sink.count().spans) != spans:
        if arrived > spans or time.monotonic() > deadline:
            raise server.failure(f"has sent {arrived} spans instead of {spans}")
        time.sleep(0.1)


def _tell(pid: int, *command: str) -> None:
    """Tell valgrind something about a process."""
    subprocess.run(["vgdb", f"--pid={pid}", *command], check=True, capture_output=True)  # noqa: S607 - from the PATH


def _spans(case: Case, variables: Mapping[str, str]) -> int:
    """Return how many spans a request makes."""
    if case.variant == "untouched" or {"OTEL_PYTHON_EXCLUDED_URLS", "OTEL_TRACES_SAMPLER"} & set(variables):
        return 0
    # OpenTelemetry's command instruments sqlite3 by itself, as its integration was called by hand for the recipe.
    return 1 + int(variables.get("BENCHMARK_QUERIES", 0))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--figures", nargs="+", choices=_FIGURES, default=tuple(_FIGURES))
    parser.add_argument("--requests", type=int, default=256, help="the smaller number of requests")
    parser.add_argument(
        "--also", action="append", default=[], type=_labelled, metavar="LABEL=PYTHON", help="another environment"
    )
    return parser.parse_args(argv)


def _labelled(text: str) -> tuple[str, str]:
    label, _, python = text.partition("=")
    if not label or not os.access(python, os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r} must be LABEL=PYTHON, with an interpreter that can be run")
    return label, python


if __name__ == "__main__":
    sys.exit(main())
