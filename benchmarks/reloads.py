"""Workers that are replaced all the time, under load: is every answered request one span, and is anything left behind?

    pip install . -r benchmarks/requirements.txt
    python benchmarks/reloads.py

For each worker class: so many requests, four or more at a time, with workers that leave after 200 requests each and a
HUP every two seconds; then so many HUPs under load, two a second. The arbiter's open files, children and zombies are
counted before and after. Untouched servers do the same, because what they drop by themselves is not ours to answer for.
Prints a table. Linux only.

Not a test: it fails only when a span is missing or came twice, or a process was left behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import processes
import report
from load import Load, drive
from server import UVICORN, Case, Server
from sink import Sink

_CLASSES = {"sync": 4, "gthread": 8, "gevent": 8, "asgi": 8, UVICORN: 8}
_SCHEDULE_DELAY = 1000
_MOST_SECONDS = 600.0
_BETWEEN_HUPS = 2.0
_BETWEEN_MANY_HUPS = 0.5
_REQUESTS_OF_A_WORKER = 200
_SETTLED_SECONDS = 20.0


class _RecyclingCase(Case):
    def command(self, workers: int, listener: int) -> list[str]:
        *command, target = super().command(workers, listener)
        limit = str(_REQUESTS_OF_A_WORKER)
        return [*command, "--max-requests", limit, "--max-requests-jitter", "20", target]


def main() -> int:
    """Print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="of each worker class (default: 10000)")
    parser.add_argument("--reloads", type=int, default=50, help="of each worker class (default: 50)")
    parser.add_argument("--classes", default=",".join(_CLASSES), help="comma-separated (default: all)")
    arguments = parser.parse_args()
    print(report.machine(), flush=True)
    print("\n| | answered | not answered | spans | spans twice | workers started | open files | left behind |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    problems = 0
    for worker_class in arguments.classes.split(","):
        for variant in ("untouched", "ours"):
            problems += _measure(
                _RecyclingCase(worker_class, "generic", variant), arguments.requests, arguments.reloads
            )
    return int(problems > 0)


def _measure(case: Case, requests: int, reloads: int) -> int:
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        with Server(case, 2, endpoint=sink.url, folder=folder, schedule_delay=_SCHEDULE_DELAY) as server:
            files = _open_files(server.process_id)
            load = _reloading(server, case, requests, reloads=0)
            more = _reloading(server, case, 10**9, reloads=reloads)
            deadline = time.monotonic() + _SETTLED_SECONDS
            while len(processes.children(server.process_id)) != len(server.workers) and time.monotonic() < deadline:
                time.sleep(0.1)
            files_after = _open_files(server.process_id)
            left = len(processes.children(server.process_id)) - len(server.workers) + _zombies(server.process_id)
        counts = sink.count()
        started = Path(folder, "server.log").read_text(errors="replace").count("Booting worker")
    answered = 1 + load.answered + more.answered
    failed = load.failed + more.failed
    print(
        f"| {case} | {answered} | {failed} | {counts.distinct} | {counts.spans - counts.distinct} | {started} "
        f"| {files} → {files_after} | {left} |",
        flush=True,
    )
    if case.variant == "untouched":
        return 0
    # A request whose connection broke may have had its span.
    missing = not answered <= counts.distinct <= answered + failed
    return missing + (counts.spans != counts.distinct) + (left > 0)


def _reloading(server: Server, case: Case, requests: int, *, reloads: int) -> Load:
    """Load a server while it is reloaded: as often as given, or until the requests are done."""
    done = threading.Event()
    between = _BETWEEN_MANY_HUPS if reloads else _BETWEEN_HUPS
    seconds = reloads * between if reloads else _MOST_SECONDS

    def reload() -> None:
        while not done.wait(between):
            os.kill(server.process_id, signal.SIGHUP)

    thread = threading.Thread(target=reload)
    thread.start()
    try:
        return drive(server.port, seconds=seconds, connections=_CLASSES[case.worker_class], requests=requests)
    finally:
        done.set()
        thread.join()


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _zombies(parent: int) -> int:
    found = 0
    for entry in Path("/proc").iterdir():
        try:
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        found += state == "Z" and int(ppid) == parent
    return found


if __name__ == "__main__":
    sys.exit(main())
