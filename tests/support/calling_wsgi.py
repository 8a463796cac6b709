"""A WSGI server in this process: it calls a traced application, and the test looks at the spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from mackerel_otel_server.settings.http_options import HttpOptions
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import excluded, nesting, propagation, request


class Spans:
    """What was finished while tracing."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def one(self) -> ReadableSpan:
        (span,) = self.all
        return span

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.one.attributes or {})

    @property
    def errors(self) -> list[Any]:
        return [(event.attributes or {})["exception.type"] for event in self.one.events]


@contextmanager
def tracing(options: HttpOptions | None = None, sampler: Sampler = ALWAYS_ON) -> Iterator[Spans]:
    """Trace in this process, and leave nothing of it behind."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_or_off, "active", True)
        patch.setattr(on_or_off, "start", None)
        patch.setattr(nesting, "_aside", {})
        patch.setattr(propagation, "_propagate", propagate)
        patch.setattr(request, "options", options := options or HttpOptions())
        patch.setattr(excluded, "patterns", {name: options.excluded_by([name.upper()]) for name in ("wsgi", "asgi")})
        patch.setattr(request, "_tracer", provider.get_tracer("test"))
        yield Spans(exporter)
    assert trace.get_current_span() is trace.INVALID_SPAN


def environ(**more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "192.0.2.1"}
    setup_testing_defaults(made)
    made |= {"HTTP_HOST": "shop.example.com:8000"} | more
    return {name: value for name, value in made.items() if value is not ...}


class Sent:
    """What a server has got of a response."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.body = b""
        self.error: BaseException | None = None

    def start_response(self, *args: Any, **kwargs: Any) -> Callable[[bytes], None]:
        if len(args) > 2 and args[2] and self.body:
            raise args[2][1]
        self.starts.append((args, kwargs))
        return self.write

    def write(self, data: bytes) -> None:
        self.body += data


def ok(start_response: Callable[..., Any]) -> Any:
    return start_response("200 OK", [("Content-Type", "text/plain")])


class Body:
    """An iterable that notes what is done to it, and the span that is current then."""

    def __init__(self, parts: list[Any], error: BaseException | None = None) -> None:
        self.parts = parts
        self.error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts)

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error
