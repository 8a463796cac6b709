"""One case measured once: figures by name."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import processes
from load import drive
from server import DEADLINE, Case, Server, ServerError, environment
from sink import Counts, Sink

_WARM_UP_REQUESTS = 50
_EXPORTED_SPANS = 20_000
_EXPORT_SECONDS = 120.0
# One full batch, and a few spans more.
_REQUESTS_BEFORE_EXIT = 600
_CONNECTIONS = {"sync": 4, "gthread": 8, "gevent": 8, "asgi": 8}


@dataclass(frozen=True)
class Settings:
    """How long and how hard.

    Attributes:
        seconds: How long each load lasts.
        rate: Requests per second of the open loop.
        schedule_delay: Milliseconds between two batches.
        workers: How many workers the measurement of memory has besides the one of one worker.
    """

    seconds: float
    rate: float
    schedule_delay: int
    workers: int


def load(case: Case, settings: Settings) -> dict[str, float]:
    """Measure boot, CPU, throughput, latency and memory with one worker, and what arrives, the end included."""
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        with Server(case, 1, endpoint=sink.url, folder=folder, schedule_delay=settings.schedule_delay) as server:
            (pid,) = server.workers
            connections = _CONNECTIONS[case.worker_class]
            warm_up = drive(server.port, seconds=DEADLINE, connections=connections, requests=_WARM_UP_REQUESTS)
            cpu = processes.cpu_seconds(pid)
            closed = drive(server.port, seconds=settings.seconds, connections=connections)
            # The CPU time of the exporter's thread is part of what the requests cost.
            _wait_for_spans(sink, case, 1 + warm_up.answered + closed.answered, settings)
            cpu = processes.cpu_seconds(pid) - cpu
            pss = processes.pss_bytes(pid)
            open_ = drive(server.port, seconds=settings.seconds, rate=settings.rate)
            if not closed.answered or not open_.answered:
                raise server.failure("answers no request")
            if server.workers != processes.children(server.process_id):
                raise server.failure("has lost its worker")
        counts = sink.count()
    answered = 1 + warm_up.answered + closed.answered + open_.answered
    return {
        "cpu": cpu / closed.answered,
        "throughput": closed.answered / closed.seconds,
        "utilisation": settings.rate * closed.seconds / closed.answered,
        "p50": open_.p50,
        "p99": open_.p99,
        "pss_1": pss,
        "start": server.seconds_to_first_answer,
        "fork": server.seconds_from_fork,
        "failed": warm_up.failed + closed.failed + open_.failed,
        **_arrival(counts, answered * case.spans_per_request),
    }


def memory(case: Case, settings: Settings) -> dict[str, float]:
    """Measure the memory of several workers once each has served and exported."""
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        with Server(
            case, settings.workers, endpoint=sink.url, folder=folder, schedule_delay=settings.schedule_delay
        ) as server:
            served = drive(server.port, seconds=settings.seconds, connections=4 * settings.workers)
            _wait_for_spans(sink, case, 1 + served.answered, settings)
            pss = mean(processes.pss_bytes(pid) for pid in server.workers)
        counts = sink.count()
    return {"pss_n": pss, "failed": served.failed, **_arrival(counts, (1 + served.answered) * case.spans_per_request)}


def leaving(case: Case, settings: Settings) -> dict[str, float]:
    """Measure how long a worker takes from TERM to its end when the endpoint accepts and never answers."""
    # The kernel accepts as many connections as its queue takes, and nobody reads from them.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, tempfile.TemporaryDirectory() as folder:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces"
        with Server(case, 1, endpoint=endpoint, folder=folder, schedule_delay=settings.schedule_delay) as server:
            (pid,) = server.workers
            connections = _CONNECTIONS[case.worker_class]
            drive(server.port, seconds=DEADLINE, connections=connections, requests=_REQUESTS_BEFORE_EXIT)
            begin = time.perf_counter()
            server.terminate()
            while not processes.has_ended(pid):
                if time.perf_counter() - begin > 2 * DEADLINE:
                    raise server.failure("does not end")
                time.sleep(0.005)
            return {"exit": time.perf_counter() - begin}


def exporting(case: Case, settings: Settings) -> dict[str, float]:
    """Measure the CPU time from a finished span to its delivery, without a server and its requests."""
    variant = case.variant
    script = str(Path(__file__).with_name("exporting.py"))
    command = [sys.executable, script, variant, str(_EXPORTED_SPANS)]
    if variant == "opentelemetry-instrument":
        command.insert(0, str(Path(sys.executable).with_name(variant)))
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment(variant, sink.url, folder, settings.schedule_delay),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_EXPORT_SECONDS,
            check=False,
            start_new_session=True,
        )
        if result.returncode:
            raise ServerError(f"{case}: no spans can be exported:\n{result.stderr}")
        figures = json.loads(result.stdout)
        counts = sink.count()
    return {"export": figures["seconds_per_span"], **_arrival(counts, figures["spans"])}


def _wait_for_spans(sink: Sink, case: Case, requests: int, settings: Settings) -> None:
    """Wait until every span has arrived, or no more can be expected."""
    deadline = time.monotonic() + settings.schedule_delay / 1000 + 2
    while sink.count().distinct < requests * case.spans_per_request and time.monotonic() < deadline:
        time.sleep(0.1)


def _arrival(counts: Counts, expected: int) -> dict[str, float]:
    return {
        "expected": expected,
        "missing": expected - counts.distinct,
        "twice": counts.spans - counts.distinct,
        "unreadable": counts.unreadable,
    }
