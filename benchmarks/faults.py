"""What a faulty far end costs the application: a real Gunicorn under load against each fault.

    pip install . -r benchmarks/requirements.txt
    python benchmarks/faults.py --rounds 3

Prints Markdown: latency of a steady load, and its p99 against those of the untouched server and of a healthy far end in
the same round; memory after one third of the load and at its end, where the queue was filled before; what became of
the spans, as the worker said at its end. One sync worker, a WSGI callable of no framework. Not a test: it fails only
when the counts of a case do not add up, or a request was not answered. Linux only.
"""

from __future__ import annotations

import argparse
import re
import ssl
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import processes
import report
import trustme
from load import Load, drive
from server import DEADLINE, Case, Server

# The far end of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import fault_server as far
from fault_server import FaultServer, Step, accepted, refused

from mackerel_otel_server.pipeline.sender import AFTER_FAILED_ATTEMPT, NOT_IN_TIME

if TYPE_CHECKING:
    from collections.abc import Sequence

UNTOUCHED, HEALTHY, DOWN, CERTIFICATE, REDIRECT = "untouched", "healthy", "down", "wrong certificate", "302"
FAULTS: dict[str, list[Step]] = {
    UNTOUCHED: [],
    HEALTHY: [accepted()],
    DOWN: [],
    "never answers": [Step(act=far.never)],
    "its head drips": [Step(act=far.drip)],
    "its body drips": [Step(act=far.drip_body)],
    "closes in the middle": [Step(act=far.half_an_answer)],
    "200 with garbage": [Step(200, b"<html>garbage</html>")],
    "200 with partial_success": [accepted(1, "too old")],
    "200, endless body": [Step(act=far.endless_body)],
    REDIRECT: [],
    "400 Invalid API Key": [refused(400, "Invalid API Key")],
    "401": [Step(401)],
    "403": [Step(403)],
    "413": [Step(413)],
    "429": [Step(429)],
    "429, Retry-After: 0": [Step(429, headers={"Retry-After": "0"})],
    "429, Retry-After: 5": [Step(429, headers={"Retry-After": "5"})],
    "429, Retry-After: 99999": [Step(429, headers={"Retry-After": "99999"})],
    "429, Retry-After: past": [Step(429, headers={"Retry-After": formatdate(0, usegmt=True)})],
    "500": [Step(500)],
    "503 twice, then 200": [Step(503), Step(503), accepted()],
    CERTIFICATE: [accepted()],
}
_WARM_UP_REQUESTS = 2500
"""More than OTEL_BSP_MAX_QUEUE_SIZE, by default 2048."""
_SCHEDULE_DELAY = 1000
_END = re.compile(r"sent (\d+) spans in \d+ requests, lost (\d+)(?: \((.*?)\))?(?:; .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One case in one round."""

    load: Load
    early: int
    late: int
    finished: int
    delivered: int
    lost: str
    queued: int
    adds_up: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds, print the table, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    arguments = parser.parse_args(argv)
    samples: dict[str, list[Sample]] = defaultdict(list)
    begin, others = time.monotonic(), processes.other_cpu_seconds()
    print(report.machine(), flush=True)
    for number in range(arguments.rounds):
        # In another order each time, so that other work of the machine disturbs different cases.
        shift = number * len(FAULTS) // arguments.rounds
        for name in [*FAULTS][shift:] + [*FAULTS][:shift]:
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            samples[name].append(_measure(name, arguments.seconds, arguments.rate))
    print("\n" + "\n".join(_table(samples)) + "\n")
    print(report.quiet((processes.other_cpu_seconds() - others) / (time.monotonic() - begin)))
    return int(not all(sample.adds_up for by_round in samples.values() for sample in by_round))


def _measure(name: str, seconds: float, rate: float) -> Sample:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        far_end, elsewhere = _far_ends(name, stack)
        case = Case("sync", "generic", "untouched" if name == UNTOUCHED else "ours")
        with Server(case, 1, endpoint=far_end.url, folder=folder, schedule_delay=_SCHEDULE_DELAY) as server:
            (pid,) = server.workers
            warm_up = drive(server.port, seconds=DEADLINE, connections=4, requests=_WARM_UP_REQUESTS)
            with ThreadPoolExecutor(1) as pool:
                loading = pool.submit(drive, server.port, seconds=seconds, rate=rate)
                time.sleep(seconds / 3)
                early = processes.pss_bytes(pid)
                load = loading.result()
            late = processes.pss_bytes(pid)
        end = _END.search(Path(folder, "server.log").read_text())
        answered = 1 + warm_up.answered + load.answered
        right = not warm_up.failed and not load.failed and not elsewhere.connections
        if end is None:
            return Sample(load, early, late, 0, 0, "", 0, right and name == UNTOUCHED)
        arrived = len(set(far_end.span_ids))
        delivered, lost = int(end[1]), dict(re.findall(r"(\w[\w ]*) (\d+)", end[3] or ""))
        queued = sum(int(lost.pop(reason, 0)) for reason in (NOT_IN_TIME, AFTER_FAILED_ATTEMPT))
        adds_up = delivered + int(end[2]) == answered and delivered <= arrived <= answered
        words = ", ".join(f"{count} {reason}" for reason, count in lost.items())
        return Sample(load, early, late, answered, delivered, words or "0", queued, right and adds_up)


def _far_ends(name: str, stack: ExitStack) -> tuple[FaultServer, FaultServer]:
    """Return the far end of a case, and the host that its redirect leads to."""
    elsewhere = stack.enter_context(FaultServer())
    context = None
    steps = FAULTS[name]
    if name == REDIRECT:
        steps = [Step(302, headers={"Location": elsewhere.url})]
    if name == CERTIFICATE:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost").configure_cert(context)
    far_end = FaultServer(*steps, context=context)
    if name == DOWN:
        stack.push(far_end)
    else:
        stack.enter_context(far_end)
    return far_end, elsewhere


def _table(samples: dict[str, list[Sample]]) -> list[str]:
    """Return medians over the rounds; the counts are the last round's, and add up in all or not."""
    head = "far end|p50, ms|p99, ms|/ untouched|/ healthy|PSS at 1/3|at end, MB|finished|delivered|lost|queued|adds up"
    lines = [head.split("|"), ["---", *["---:"] * 8, "---", "---:", "---"]]
    for name in FAULTS:
        rounds = samples[name]
        last = rounds[-1]
        ratios = [
            median(sample.load.p99 / other.load.p99 for sample, other in zip(rounds, samples[base], strict=True))
            for base in (UNTOUCHED, HEALTHY)
        ]
        lines.append(
            [
                name,
                f"{median(sample.load.p50 for sample in rounds) * 1e3:.2f}",
                f"{median(sample.load.p99 for sample in rounds) * 1e3:.2f}",
                *(f"{ratio:.2f}" for ratio in ratios),
                f"{median(sample.early for sample in rounds) / 1e6:.1f}",
                f"{median(sample.late for sample in rounds) / 1e6:.1f}",
                *map(str, (last.finished, last.delivered, last.lost, last.queued)),
                "yes" if all(sample.adds_up for sample in rounds) else "NO",
            ]
        )
    return [f"| {' | '.join(cells)} |" for cells in lines]


if __name__ == "__main__":
    sys.exit(main())
