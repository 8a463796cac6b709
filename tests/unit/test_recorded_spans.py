"""Spans of real requests and queries on the wire: ours must be what the library sends, for each framework and driver.

Each row runs in an interpreter of its own, traced as by a user. The spans are recorded beside our pipeline, encoded by
both, and compared after decoding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

HARNESS = """
import json, sqlite3, sys
from contextlib import closing
from wsgiref.util import setup_testing_defaults

import mackerel_otel_server

mackerel_otel_server.instrument()

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mackerel_otel_server.pipeline.encoder import Encoder

recorded = InMemorySpanExporter()
provider = trace.get_tracer_provider()
provider.add_span_processor(SimpleSpanProcessor(recorded))
ADDRESS = json.loads(sys.argv[1])

def query(text, *values):
    with closing(sqlite3.connect(":memory:")) as connection:
        return str(connection.execute(text, values).fetchone()[0])

def ask(application, trace=mackerel_otel_server.trace_wsgi):
    application = trace(application)
    for path in ("/items/1", "/items/1", "/items/2", "/caf\\u00c3\\u00a9", "/missing", "/fail"):
        environ = {"PATH_INFO": path, "QUERY_STRING": "q=1", "HTTP_USER_AGENT": "test/1.0",
                   "REMOTE_ADDR": "203.0.113.9", "REMOTE_PORT": "51234",
                   "HTTP_TRACEPARENT": f"00-{'ab' * 16}-{'cd' * 8}-01", "HTTP_TRACESTATE": "a=1"}
        setup_testing_defaults(environ)
        try:
            body = application(environ, lambda *_: None)
            list(body)
            getattr(body, "close", list)()
        except Exception as error:
            assert path == "/fail", repr(error)

"""

REPORT = """
spans = recorded.get_finished_spans()
encoder = Encoder(provider.resource)
for _ in range(3):  # what is in a cache is no other
    ours = encoder.assemble([encoder.encode(span) for span in spans])
print(json.dumps({"ours": ours.hex(), "library": encode_spans(spans).SerializeToString().hex()}))
"""

PLAIN = """
def application(environ, start_response):
    text = query("SELEKT 1" if environ["PATH_INFO"] == "/fail" else "SELECT ? + 1", 1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""

MIDDLEWARE = """
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
ask(application, OpenTelemetryMiddleware)
"""

FLASK = """
import flask

application = flask.Flask("shop")
application.config["PROPAGATE_EXCEPTIONS"] = True
application.add_url_rule("/items/<int:number>", "item", lambda number: query("SELECT ? + 1", number))
application.add_url_rule("/fail", "fail", lambda: query("SELEKT 1"))
ask(application)
"""

DJANGO = """
from django.conf import settings

settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", DEBUG_PROPAGATE_EXCEPTIONS=True,
                   DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})

from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path

def view(request, text="SELECT %s + 1", number=1):
    with connection.cursor() as cursor:
        cursor.execute(text, [number])
        return HttpResponse(str(cursor.fetchone()[0]))

urlpatterns = [path("items/<int:number>", view), path("fail", view, {"text": "SELEKT %s"})]
ask(get_wsgi_application())
"""

REQUESTS = 6
FRAMEWORKS = {
    "a plain callable": PLAIN + "ask(application)\n",
    "a plain callable in OpenTelemetry's middleware": PLAIN + MIDDLEWARE,
    "flask": FLASK,
    "django": DJANGO,
}
"""What each does with six requests, three of them with a query, and the last with one that fails."""


@dataclass(frozen=True)
class Driver:
    """A DB-API driver, and how it is told where its database is."""

    module: str
    server: str = ""
    """The fixture that has its address."""
    options: Mapping[str, Any] = field(default_factory=dict)
    mark: str = "%s"

    def __str__(self) -> str:
        return " ".join([self.module, *(name for name in self.options if name == "use_pure")])


UTF8 = {"charset": "utf8mb4"}
DRIVERS = [
    Driver("MySQLdb", "mysql", UTF8),
    Driver("pymysql", "mysql", UTF8),
    Driver("mysql.connector", "mysql", UTF8),
    Driver("mysql.connector", "mysql", {**UTF8, "use_pure": True}),
    Driver("psycopg2", "postgresql"),
    Driver("psycopg", "postgresql"),
    Driver("sqlite3", options={"database": ":memory:"}, mark="?"),
]
QUERIES = """
import {module} as driver

with (
    trace.get_tracer("parent").start_as_current_span("parent"),
    closing(driver.connect(**ADDRESS)) as connection,
    closing(connection.cursor()) as cursor,
):
    for number in (1, 1, 2):
        cursor.execute("SELECT {mark}, 'さば'", (number,))
        cursor.fetchall()
    cursor.execute("CREATE TEMPORARY TABLE fish (price INTEGER, name VARCHAR(9))")
    cursor.executemany("INSERT INTO fish VALUES ({mark}, {mark})", [(1, "さば"), (2, None)])
    try:
        cursor.execute("SELEKT '\\n'")
    except driver.Error:
        pass
    else:
        raise AssertionError("no error")
"""
CLIENT_SPANS = 6

conventions = pytest.mark.parametrize("conventions", ["http,database", "http/dup,database/dup"], ids=["stable", "both"])


def spans_of(folder: Path, code: str, conventions: str, address: Mapping[str, Any]) -> list[Any]:
    """Run the code and compare its spans as sent by ours and by the library; return them."""
    script = folder / "recorded.py"
    script.write_text(HARNESS + code + REPORT, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MACKEREL_"))}
    env |= {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_SEMCONV_STABILITY_OPT_IN": conventions,
    }
    result = subprocess.run(
        [sys.executable, str(script), json.dumps(address)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    sent = json.loads(result.stdout.splitlines()[-1])
    ours, library = (ExportTraceServiceRequest.FromString(bytes.fromhex(sent[name])) for name in ("ours", "library"))
    assert ours == library
    return [
        span
        for resource_spans in ours.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def count(spans: list[Any], kind: str) -> int:
    return sum(span.kind == span.SpanKind.Value(f"SPAN_KIND_{kind}") for span in spans)


def exceptions(spans: list[Any]) -> list[str]:
    return [event.name for span in spans for event in span.events if event.name == "exception"]


@conventions
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_requests_are_sent_as_the_library_would(tmp_path: Path, framework: str, conventions: str) -> None:
    spans = spans_of(tmp_path, FRAMEWORKS[framework], conventions, {})
    assert count(spans, "SERVER") == REQUESTS
    # Django asks SQLite for more than the view does.
    assert count(spans, "CLIENT") >= 4
    assert exceptions(spans)


@conventions
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_queries_are_sent_as_the_library_would(
    tmp_path: Path, request: pytest.FixtureRequest, need: Callable[[str], None], driver: Driver, conventions: str
) -> None:
    need(driver.module)
    address = {**(request.getfixturevalue(driver.server) if driver.server else {}), **driver.options}
    spans = spans_of(tmp_path, QUERIES.format(module=driver.module, mark=driver.mark), conventions, address)
    assert count(spans, "CLIENT") == CLIENT_SPANS
    assert exceptions(spans) == ["exception"]
