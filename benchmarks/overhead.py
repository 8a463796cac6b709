"""What tracing costs: real Gunicorn untouched, with the guide's recipe, under opentelemetry-instrument, and with ours.

    pip install . -r benchmarks/requirements.txt
    python benchmarks/overhead.py --quick
    python benchmarks/overhead.py --classes sync --applications generic --rounds 5 --budget

The second makes the table that the budgets are about, in ten minutes; all classes and applications take 45.

Prints Markdown: the machine, one table for each worker class and application with the medians over the rounds, and
what other processes took meanwhile, which must be next to nothing: two idle cores are needed, one for the server and
one for its client. Each round runs every variant, in another order. Every request is sampled and has a connection of
its own; spans go to a receiver in another process. CPU, throughput (closed loop) and then latency (open loop) come from
one server, memory and exit from further ones. Linux only.

Not a test: it fails only when a server does not start, answer or end, and when spans of ours are missing.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import measure
import processes
import report
from server import APPLICATIONS, CLASSES, VARIANTS, Case, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

_MEASUREMENTS = {
    "load": measure.load,
    "memory": measure.memory,
    "exit": measure.leaving,
    "export": measure.exporting,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds, print the tables, return the exit code."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    settings = measure.Settings(
        seconds=arguments.seconds, rate=arguments.rate, schedule_delay=arguments.schedule_delay, workers=4
    )
    samples: report.Samples = defaultdict(lambda: defaultdict(list))
    status = 0
    print(report.machine(), flush=True)
    begin, others = time.monotonic(), processes.other_cpu_seconds()
    try:
        for number in range(arguments.rounds):
            for name, case in _steps(arguments, number):
                _progress(f"round {number + 1} of {arguments.rounds}, {name}: {case}")
                for key, value in _MEASUREMENTS[name](case, settings).items():
                    samples[case][key].append(value)
    except KeyboardInterrupt:
        _progress("interrupted; what was measured so far:")
        status = 130
    except (ServerError, RuntimeError, OSError) as error:
        _progress(f"error: {error}")
        status = 1
    print(report.tables(samples, workers=settings.workers, budget=arguments.budget))
    print("\n" + report.quiet((processes.other_cpu_seconds() - others) / (time.monotonic() - begin)))
    problems = report.problems(samples)
    for problem in problems:
        _progress(f"error: {problem}")
    return status or int(bool(problems))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second where latency is measured")
    parser.add_argument("--variants", type=_list_of(VARIANTS), default=VARIANTS, help="comma-separated")
    parser.add_argument("--classes", type=_list_of(tuple(CLASSES)), default=tuple(CLASSES), help="comma-separated")
    parser.add_argument(
        "--applications", type=_list_of(tuple(APPLICATIONS)), default=tuple(APPLICATIONS), help="comma-separated"
    )
    parser.add_argument(
        "--figures", type=_list_of(tuple(_MEASUREMENTS)), default=tuple(_MEASUREMENTS), help="comma-separated"
    )
    parser.add_argument("--schedule-delay", type=int, default=5000, help="OTEL_BSP_SCHEDULE_DELAY, milliseconds")
    parser.add_argument("--budget", action="store_true", help="compare with the budgets")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="other defaults, to see whether it works: one round, short loads, sync, generic, no waiting at exit",
    )
    quick, _ = parser.parse_known_args(argv)
    if quick.quick:
        parser.set_defaults(
            rounds=1,
            seconds=0.5,
            schedule_delay=300,
            classes=("sync",),
            applications=("generic",),
            figures=("load", "memory", "export"),
        )
    return parser.parse_args(argv)


def _list_of(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if not names or not set(names) <= set(allowed):
            raise argparse.ArgumentTypeError(f"{text!r} must be some of {','.join(allowed)}")
        return names

    return parse


def _steps(arguments: argparse.Namespace, number: int) -> Iterator[tuple[str, Case]]:
    """Yield what one round measures; the next round has the variants in another order."""
    shift = number % len(arguments.variants)
    variants = arguments.variants[shift:] + arguments.variants[:shift]
    for worker_class in arguments.classes:
        for application in arguments.applications:
            cases = [Case(worker_class, application, variant) for variant in variants]
            for name in ("load", "memory", "exit"):
                # Measuring the exit takes minutes, and gives the same figure for every application and in every round.
                if name in arguments.figures and (name != "exit" or (number == 0 and application == "generic")):
                    yield from ((name, case) for case in cases if case.exists())
    if "export" in arguments.figures:
        yield from (("export", report.export_case(variant)) for variant in variants if variant != "untouched")


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal.signal() wants it
    # TERM does the same as Ctrl-C: the servers are ended in order.
    raise KeyboardInterrupt


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
