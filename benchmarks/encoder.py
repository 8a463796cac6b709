"""What it costs to turn spans into bytes: ours, the library's, and gzip at three levels.

The spans are those of 256 requests to a Flask application with one query on SQLite each: paths, client ports and span
names as they vary in real life. Times are the thread's CPU time, in medians of interleaved rounds. Run it with
``python benchmarks/encoder.py [rounds]``.
"""

# ruff: noqa: PLR2004, S311 - a script; its numbers and its chance describe what is measured

from __future__ import annotations

import gzip
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from mackerel_otel_server.pipeline.encoder import EncodedSpan, Encoder

BATCH = 512
CHUNK = 64
LEVELS = (1, 6, 9)
RESOURCE = Resource(
    {
        "service.name": "shop",
        "service.version": "1.2.3",
        "deployment.environment.name": "production",
        "host.name": "web-1",
        "process.pid": 4242,
        "service.instance.id": "627cc493-f310-47de-96bd-71410b7dec09",
    }
)


EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))


def make_spans(chance: random.Random, number: int = BATCH) -> list[ReadableSpan]:
    """Record spans through the SDK."""
    EXPORTER.clear()
    server = PROVIDER.get_tracer("opentelemetry.instrumentation.wsgi", "0.66b2")
    client = PROVIDER.get_tracer("opentelemetry.instrumentation.sqlite3", "0.66b2")
    for _ in range(number // 2):
        with server.start_as_current_span(
            "GET /items/<int:item_id>",
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": "GET",
                "server.address": "shop.example.com",
                "server.port": 443,
                "url.scheme": "https",
                "url.path": f"/items/{chance.randrange(100_000)}",
                "network.protocol.version": "1.1",
                "client.address": f"203.0.113.{chance.randrange(256)}",
                "client.port": chance.randrange(1024, 65536),
                "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
                f"Chrome/{chance.randrange(90, 130)}.0.0.0 Safari/537.36",
            },
        ) as span:
            with client.start_as_current_span(
                "SELECT items",
                kind=SpanKind.CLIENT,
                attributes={
                    "db.system.name": "sqlite",
                    "db.namespace": "shop.db",
                    "db.operation.name": "SELECT",
                    "db.collection.name": "items",
                    "db.query.text": "SELECT id, name, price, stock FROM items WHERE id = ?",
                    "db.response.returned_rows": 1,
                },
            ):
                pass
            span.set_attribute("http.route", "/items/<int:item_id>")
            span.set_attribute("http.response.status_code", 200 if chance.random() < 0.95 else 404)
    return list(EXPORTER.get_finished_spans())


def microseconds(run: Callable[[], object]) -> float:
    """Return what one span of a batch costs."""
    start = time.thread_time()
    run()
    return (time.thread_time() - start) / BATCH * 1e6


def measure(label: str, rounds: int, seed: int | None) -> None:
    """Print the table for one load.

    Args:
        label: Says what varies.
        rounds: How often to repeat.
        seed: The same requests in each chunk; None: all different.
    """
    chance = random.Random(1)
    spans = make_spans(chance)
    encoder = Encoder(RESOURCE)
    encoded: list[EncodedSpan] = []
    body = encoder.assemble([encoder.encode(span) for span in spans])
    library_body = encode_spans(spans).SerializeToString()
    times: dict[str, list[float]] = {name: [] for name in ("ours", "join", "library", *map(str, LEVELS))}
    ratios = []
    for _ in range(rounds):
        encoded.clear()
        spans, ours = [], 0.0
        for _ in range(BATCH // CHUNK):  # ours encodes a span when it ends, the library a batch
            chunk = make_spans(chance if seed is None else random.Random(seed), CHUNK)
            ours += microseconds(partial(encode_all, encoder, chunk, encoded))
            spans += chunk
        join = microseconds(partial(encoder.assemble, encoded))
        library = microseconds(partial(encode_with_library, spans))
        for name, value in (("ours", ours), ("join", join), ("library", library)):
            times[name].append(value)
        ratios.append(library / (ours + join))
        for level in LEVELS:
            times[str(level)].append(microseconds(partial(gzip.compress, body, level)))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{label:44} {'µs/span':>8} {'bytes':>8}")
    print(f"  {'encode (ours)':42} {median['ours']:8.2f} {len(body) / BATCH:8.1f}")
    print(f"  {'assemble (ours)':42} {median['join']:8.2f}")
    print(f"  {'encode_spans().SerializeToString()':42} {median['library']:8.2f} {len(library_body) / BATCH:8.1f}")
    print(f"  {'library / (encode + assemble)':42} {statistics.median(ratios):7.1f}x")
    for level in LEVELS:
        print(f"  {f'gzip {level}':42} {median[str(level)]:8.2f} {len(gzip.compress(body, level)) / BATCH:8.1f}")


def encode_all(encoder: Encoder, spans: list[ReadableSpan], encoded: list[EncodedSpan]) -> None:
    """Encode spans as the processor does."""
    encoded.extend(map(encoder.encode, spans))


def encode_with_library(spans: list[ReadableSpan]) -> bytes:
    """Encode spans as the standard exporter does."""
    return encode_spans(spans).SerializeToString()


def main(rounds: int) -> None:
    """Print both tables, and what they were measured on."""
    measure("requests that repeat", rounds, seed=2)
    measure("path and client different in each request", rounds, seed=None)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, opentelemetry-sdk "
        f"{version('opentelemetry-sdk')}, protobuf {version('protobuf')}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} CPUs; batches of {BATCH}, CPU time of the thread, medians of {rounds} interleaved rounds"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
