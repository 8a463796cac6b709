"""CPU time from a finished span to its delivery: encode, batch, compress, send.

Run by overhead.py in the environment of a variant: the name of the variant and the number of spans are given, the CPU
seconds of the whole process per span are printed. The spans are those of a Flask request with one query, and are made
before the clock runs.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

_SPANS_AT_ONCE = 1536
"""Three full batches, and less than the queue's 2048."""
_WARM_UP_SPANS = 2 * _SPANS_AT_ONCE
_QUERY = "SELECT column1, column2 FROM (VALUES ('mackerel', 480), ('saury', 350)) WHERE column2 < ?"


def main(variant: str, count: int) -> None:
    """Export ``count`` spans and print the figures."""
    provider = _provider(variant)
    processor = provider._active_span_processor  # noqa: SLF001 - where a tracer hands its finished spans
    tracer: Any = provider.get_tracer("benchmark", "1.0")
    # A span as the application makes it, because a pipeline may begin with the first span.
    with tracer.start_as_current_span("first", kind=SpanKind.SERVER):
        pass
    # From here on, no span that ends is handed on.
    tracer.span_processor = SpanProcessor()
    exported = 0
    seconds = 0.0
    while exported < count + _WARM_UP_SPANS:
        spans = _spans(tracer, _SPANS_AT_ONCE)
        begin = time.process_time()
        for span in spans:
            processor.on_end(span)
        provider.force_flush()
        if exported >= _WARM_UP_SPANS:
            seconds += time.process_time() - begin
        exported += len(spans)
    provider.shutdown()
    figures = {"seconds_per_span": seconds / (exported - _WARM_UP_SPANS), "spans": exported + 1}
    print(json.dumps(figures))


def _provider(variant: str) -> TracerProvider:
    if variant == "recipe":
        # The module recipe lies beside the applications, whose folder is on the path.
        import_module("recipe").instrument()
    elif variant in ("ours", "standard"):
        import mackerel_otel_server

        mackerel_otel_server.instrument()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        raise SystemExit(f"{variant} has set no tracer provider")
    return provider


def _spans(tracer: Any, count: int) -> list[ReadableSpan]:
    spans: list[ReadableSpan] = []
    for number in range(count // 2):
        server: Any = tracer.start_span("GET /fish/<int:price>", kind=SpanKind.SERVER, context=None)
        server.set_attributes(
            {
                "http.request.method": "GET",
                "url.scheme": "http",
                "url.path": f"/fish/{number % 50}",
                "http.route": "/fish/<int:price>",
                "server.address": "127.0.0.1",
                "server.port": 8000,
                "client.address": "127.0.0.1",
                "client.port": 32768 + number % 28232,
                "network.protocol.version": "1.1",
                "user_agent.original": "benchmark/1.0",
                "http.response.status_code": 200,
            }
        )
        query: Any = tracer.start_span("SELECT", kind=SpanKind.CLIENT, context=trace.set_span_in_context(server))
        query.set_attributes({"db.system.name": "sqlite", "db.namespace": ":memory:", "db.query.text": _QUERY})
        query.end()
        server.end()
        # What Span.end() hands to the processor.
        spans += [query._readable_span(), server._readable_span()]  # noqa: SLF001
    return spans


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
