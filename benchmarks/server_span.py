"""What a server span costs: ours and OpenTelemetry's middleware around an application that names its route.

    pip install . -r benchmarks/requirements.txt
    python benchmarks/server_span.py

Two tables in Markdown, with medians of interleaved rounds. In the first, a loop calls the application with an environ
or scope of eight headers and nothing else; the provider is this package's, whose tracers for others are the SDK's, and
its one processor does nothing. In the second, Gunicorn serves with one worker, a connection for each request, and the
spans of both are sent by this package's pipeline to a receiver in another process. Linux only; two idle cores are
needed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import processes
import report
from load import drive
from server import STOCK_SPAN, Case, Server
from sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VARIANTS = ("untouched", STOCK_SPAN, "ours")
_WORKER_CLASSES = {"WSGI": "sync", "ASGI": "asgi"}
_CONNECTIONS = 4
_SCHEDULE_DELAY = 300
_HEADERS = {
    "host": "shop.example.com",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "accept-language": "ja,en;q=0.8",
    "accept-encoding": "gzip, deflate, br",
    "cookie": "session=0123456789abcdef",
    "x-forwarded-for": "192.0.2.1",
    "x-forwarded-proto": "https",
}
_ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/fish/1",
    "RAW_URI": "/fish/1?page=2",
    "QUERY_STRING": "page=2",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "192.0.2.1",
    "wsgi.url_scheme": "http",
    **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in _HEADERS.items()},
}
_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/fish/1",
    "raw_path": b"/fish/1",
    "query_string": b"page=2",
    "root_path": "",
    "headers": [(name.encode(), value.encode()) for name, value in _HEADERS.items()],
    "client": ("192.0.2.1", 54321),
    "server": ("127.0.0.1", 8000),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often everything is measured (default: 15)")
    parser.add_argument("--requests", type=int, default=10_000, help="in a loop (default: 10000)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of load on a server (default: 1)")
    parser.add_argument("--no-servers", action="store_true", help="only the loops")
    arguments = parser.parse_args()
    print(report.machine())
    begin, others = time.monotonic(), processes.other_cpu_seconds()
    _print_table("In a loop", _rounds(arguments.rounds, _loops(arguments.requests)))
    if not arguments.no_servers:
        with _servers(arguments.seconds) as measurements:
            samples = _rounds(arguments.rounds, measurements)
        _print_table("On Gunicorn", samples)
    print("\n" + report.quiet((processes.other_cpu_seconds() - others) / (time.monotonic() - begin)))


def _rounds(
    rounds: int, measurements: dict[tuple[str, str], Callable[[], float]]
) -> dict[tuple[str, str], list[float]]:
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        # The order is another one each time.
        for key in sorted(measurements, key=lambda key: (key[0], (_VARIANTS.index(key[1]) + number) % len(_VARIANTS))):
            samples[key].append(measurements[key]())
    return samples


def _print_table(title: str, samples: dict[tuple[str, str], list[float]]) -> None:
    print(f"\n### {title}: CPU per request, µs\n")
    print("| | untouched | added by the stock middleware | added by ours | ours / stock | budget | met |")
    print("| --- | ---: | ---: | ---: | ---: | --- | --- |")
    for interface in _WORKER_CLASSES:
        untouched = samples[interface, "untouched"]
        stock, ours = (
            median(value - base for value, base in zip(samples[interface, variant], untouched, strict=True))
            for variant in _VARIANTS[1:]
        )
        met = "yes" if ours <= stock / 2 else "no"
        figures = f"{median(untouched) * 1e6:.1f} | {stock * 1e6:.1f} | {ours * 1e6:.1f} | {ours / stock:.2f}"
        print(f"| {interface} | {figures} | ≤ half of stock | {met} |")


@contextmanager
def _servers(seconds: float) -> Iterator[dict[tuple[str, str], Callable[[], float]]]:
    """Run all servers side by side, so that a round is short and the machine the same for all in it."""
    with ExitStack() as stack:
        sinks: dict[str, Sink] = {variant: stack.enter_context(Sink()) for variant in _VARIANTS}
        answered = dict.fromkeys(_VARIANTS, 0)

        def start(interface: str, variant: str) -> Callable[[], float]:
            case = Case(_WORKER_CLASSES[interface], "named", variant)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(
                Server(case, 1, endpoint=sinks[variant].url, folder=folder, schedule_delay=_SCHEDULE_DELAY)
            )
            answered[variant] += 1

            def load() -> float:
                (pid,) = server.workers
                cpu = processes.cpu_seconds(pid)
                figures = drive(server.port, seconds=seconds, connections=_CONNECTIONS)
                # The CPU time of the exporter's thread is part of what the requests cost.
                time.sleep(2 * _SCHEDULE_DELAY / 1000)
                answered[variant] += figures.answered
                if figures.failed or not figures.answered:
                    raise server.failure(f"has failed {figures.failed} requests")
                return (processes.cpu_seconds(pid) - cpu) / figures.answered

            load()
            return load

        yield {
            (interface, variant): start(interface, variant) for interface in _WORKER_CLASSES for variant in _VARIANTS
        }
        for variant in _VARIANTS[1:]:
            counts = sinks[variant].count()
            if counts.distinct != answered[variant]:
                raise SystemExit(f"{variant}: {answered[variant]} requests, {counts.distinct} spans")


def _loops(requests: int) -> dict[tuple[str, str], Callable[[], float]]:
    sys.path.insert(0, str(Path(__file__).with_name("apps")))
    wsgi, asgi = import_module("named"), import_module("asgi_named")
    _trace_this_process()
    import mackerel_otel_server

    applications = {
        ("WSGI", "untouched"): wsgi.application,
        ("WSGI", STOCK_SPAN): wsgi.traced(),
        ("WSGI", "ours"): mackerel_otel_server.trace_wsgi(wsgi.application),
        ("ASGI", "untouched"): asgi.application,
        ("ASGI", STOCK_SPAN): asgi.traced(),
        ("ASGI", "ours"): mackerel_otel_server.trace_asgi(asgi.application),
    }
    loops = {"WSGI": _call_wsgi, "ASGI": lambda *arguments: asyncio.run(_call_asgi(*arguments))}

    def measurement(key: tuple[str, str]) -> Callable[[], float]:
        def run() -> float:
            loop = loops[key[0]]
            loop(applications[key], requests // 10)
            gc.collect()
            begin = time.process_time()
            loop(applications[key], requests)
            return (time.process_time() - begin) / requests

        return run

    return {key: measurement(key) for key in applications}


def _trace_this_process() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor

    from mackerel_otel_server import __version__
    from mackerel_otel_server.pipeline.spans import Provider
    from mackerel_otel_server.settings.http_options import HttpOptions
    from mackerel_otel_server.tracing import on_or_off
    from mackerel_otel_server.tracing.requests import request

    # The stock middleware reads it once, too.
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
    provider = Provider(lambda *_: True, shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    trace.set_tracer_provider(provider)
    request.prepare(HttpOptions(), __version__)
    on_or_off.start = lambda: True


def _call_wsgi(application: Any, count: int) -> None:
    def start_response(_status: str, _headers: list[tuple[str, str]], _error: Any = None) -> None:
        pass

    for _ in range(count):
        body = application(_ENVIRON.copy(), start_response)
        for _part in body:
            pass
        if hasattr(body, "close"):
            body.close()


async def _call_asgi(application: Any, count: int) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_message: dict[str, Any]) -> None:
        pass

    for _ in range(count):
        await application(_SCOPE.copy(), receive, send)


if __name__ == "__main__":
    main()
