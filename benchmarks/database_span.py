"""What one query costs inside a recorded span: untouched, with OpenTelemetry's dbapi integration, and with ours.

A tight loop of ``SELECT 1`` on sqlite3 in memory, and on MySQL and PostgreSQL where a server answers (``MYSQL_*``,
``PG*`` as in the tests). Times are the process's CPU time, in medians of interleaved rounds; each variant has a process
of its own, since a patched driver stays patched. Run it with ``python benchmarks/database_span.py [rounds]``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

QUERIES = 2_000
TEXT = "SELECT id, name, price FROM items WHERE id = ? AND name <> ?"
SCHEMA = "CREATE TABLE items (id INTEGER, name VARCHAR(20), price INTEGER)"
LONG = 5_000_000
VARIANTS = ("untouched", "dbapi", "ours")

MYSQL: dict[str, Any] = {
    "host": os.environ.get("MYSQL_HOST", "127.0.0.1"),
    "port": int(os.environ.get("MYSQL_PORT", "3306")),
    "user": os.environ.get("MYSQL_USER", "root"),
    "password": os.environ.get("MYSQL_PASSWORD", ""),
    "database": os.environ.get("MYSQL_DATABASE", "test"),
}
POSTGRESQL: dict[str, Any] = {
    "host": os.environ.get("PGHOST", "127.0.0.1"),
    "port": int(os.environ.get("PGPORT", "5432")),
    "user": os.environ.get("PGUSER", "postgres"),
    "password": os.environ.get("PGPASSWORD", ""),
    "dbname": os.environ.get("PGDATABASE", "test"),
}
DRIVERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "sqlite3": ("sqlite", {"database": ":memory:"}, "?"),
    "pymysql": ("mysql", MYSQL, "%s"),
    "psycopg2": ("postgresql", POSTGRESQL, "%s"),
}
# Without these settings it is a matter of luck whether glibc asks the kernel anew for each 5 MB, which takes
# milliseconds a query.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
# The span that is current while the queries run, and the queries.
SITUATIONS = ("recorded parent", "unsampled parent", "no parent", "recorded parent, 5 MB text")


def main() -> None:
    """Measure and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(
        f"Python {platform.python_version()}, OpenTelemetry {version('opentelemetry-sdk')}, "
        f"opentelemetry-instrumentation-dbapi {version('opentelemetry-instrumentation-dbapi')}; "
        f"medians of {rounds} interleaved rounds of {QUERIES} queries; "
        "µs of CPU per query, + what is added to untouched"
    )
    for driver in DRIVERS:
        print(f"\n{driver}" + "".join(f"{variant:>22}" for variant in VARIANTS))
        workers = {variant: _Worker(driver, variant) for variant in VARIANTS}
        try:
            for situation in SITUATIONS:
                times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
                for _ in range(rounds):
                    for variant, worker in workers.items():
                        times[variant].append(worker.measure(situation))
                medians = {variant: statistics.median(seconds) * 1e6 for variant, seconds in times.items()}
                cells = [f"{medians[v]:.1f} (+{medians[v] - medians['untouched']:.1f})" for v in VARIANTS]
                print(f"  {situation:<28}" + "".join(f"{cell:>20}" for cell in cells))
        except EOFError:
            print("  not measured: not installed, or no server answers")
        finally:
            for worker in workers.values():
                worker.close()


class _Worker:
    """A process with one variant, asked over its standard input."""

    def __init__(self, driver: str, variant: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", driver, variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": "http,database", **_ALLOCATION},
        )

    def measure(self, situation: str) -> float:
        assert self._process.stdin  # noqa: S101 - a pipe
        assert self._process.stdout  # noqa: S101 - a pipe
        try:
            print(situation, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise EOFError from None
        if not (line := self._process.stdout.readline()):
            raise EOFError
        return float(json.loads(line))

    def close(self) -> None:
        try:
            self._process.communicate(timeout=10)
        except BrokenPipeError:
            self._process.wait(10)


def work(driver: str, variant: str) -> None:
    """Answer each line of standard input, a situation, with seconds per query."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import NonRecordingSpan, SpanContext

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    trace.set_tracer_provider(provider)
    system, address, mark = DRIVERS[driver]
    if variant == "ours":
        from mackerel_otel_server.tracing import databases, on_or_off

        # Otherwise an instrumentation of this driver that happens to be installed would be measured instead.
        vars(databases)["entry_points"] = lambda **_: ()
        databases.register()
        on_or_off.active = True
    module = import_module(driver)
    if variant == "dbapi":
        from opentelemetry.instrumentation.dbapi import trace_integration

        trace_integration(module, "connect", system)  # type: ignore[arg-type]  # a module, whatever it declares
    connection = module.connect(**address)
    cursor = connection.cursor()
    cursor.execute(SCHEMA.replace("CREATE", "CREATE TEMPORARY"))
    execute, text = cursor.execute, TEXT.replace("?", mark)
    unsampled = NonRecordingSpan(SpanContext(1, 1, is_remote=False))
    recorded = provider.get_tracer("benchmark").start_span("request")
    parents = {"no parent": trace.INVALID_SPAN, "unsampled parent": unsampled}
    for line in sys.stdin:
        long = line.strip().endswith("text")
        query = f"{text} -- {'x' * LONG}" if long else text
        with trace.use_span(parents.get(line.strip(), recorded), end_on_exit=False):
            number = QUERIES // 100 if long else QUERIES
            print(json.dumps(_seconds(partial(execute, query, (1, "a")), number)), flush=True)


def _seconds(call: Callable[[], object], number: int) -> float:
    call()
    start = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - start) / number


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
