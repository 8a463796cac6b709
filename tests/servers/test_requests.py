"""What comes with a request and goes with its response, through real servers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gunicorn as gunicorn_package
import pytest
from servers import DEADLINE, Server, environment, gunicorn, server_span, server_spans, uwsgi, wait_until

from mackerel_otel_server.cli.receiver.endpoint import Receiver

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
BIG = 30_000_000  # more than the sockets' buffers hold
UWSGI = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\nmodule = echo\n"


def _json(server: Server, path: str, **headers: str) -> Any:
    return json.loads(server.get(path, headers={name.replace("_", "-"): text for name, text in headers.items()}).body)


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    file = tmp_path / "big"
    with file.open("wb") as output:
        output.truncate(BIG)
    return file


def _read_slowly(server: Server, path: str) -> None:
    """Read a response's beginning, wait, and read the rest."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
        received = len(connection.recv(1000))
        threading.Event().wait(0.3)
        while part := connection.recv(1_000_000):
            received += len(part)
    assert received > BIG
    server.answered += 1


def _check_file(receiver: Receiver) -> None:
    (span,) = server_spans(receiver.spans)
    assert span.attributes["http.response.status_code"] == 200
    assert span.end_time_unix_nano - span.start_time_unix_nano > 0.25e9


@pytest.mark.parametrize("app", ["echo", "web_flask:app", "web_django.wsgi"])
def test_gunicorn_sends_a_file_by_sendfile(tmp_path: Path, receiver: Receiver, big_file: Path, app: str) -> None:
    (tmp_path / "files.py").write_text(f"import echo\nfrom {app.partition(':')[0]} import *\n")
    env = environment(receiver, BIG_FILE=str(big_file), PYTHONPATH=f"{environment()['PYTHONPATH']}:{tmp_path}")
    # The frameworks' own ways to send a file are in their applications; echo notes the call.
    app = app if app == "echo" else f"files:{'app' if app == 'web_flask:app' else 'application'}"
    with gunicorn(tmp_path, env=env, app=app, workers=1) as server:
        if app == "echo":
            _read_slowly(server, "/file")
        else:
            assert server.get("/file").body
        log = server.stop()
    assert "os.sendfile was called" in log
    if app == "echo":
        _check_file(receiver)
    else:
        assert server_span(receiver, "/file").name == "GET /file"


def test_uwsgi_sends_a_file_by_sendfile(tmp_path: Path, receiver: Receiver, big_file: Path) -> None:
    with uwsgi(tmp_path, UWSGI, env=environment(receiver, BIG_FILE=str(big_file)), processes=1) as server:
        _read_slowly(server, "/file")
        server.wait_until_idle()
        log = server.stop()
    assert "via sendfile()" in log
    _check_file(receiver)


@pytest.mark.parametrize("options", [[], ["-k", "gthread"], ["-k", "gevent"]], ids=["sync", "gthread", "gevent"])
def test_a_client_that_leaves_ends_the_span(tmp_path: Path, receiver: Receiver, options: list[str]) -> None:
    with gunicorn(tmp_path, *options, env=environment(receiver, OTEL_BSP_SCHEDULE_DELAY="50"), app="echo") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
            connection.sendall(b"GET /stream HTTP/1.1\r\nHost: shop\r\n\r\n")
            connection.recv(1000)
        wait_until(lambda: server_spans(receiver.spans), "the span", lambda: server.log)
        log = server.stop()
    spans = {span.name: span for span in receiver.spans}
    assert set(spans) == {"GET", "streaming"}, log
    assert spans["GET"].attributes["http.response.status_code"] == 200
    assert spans["streaming"].parent_span_id == spans["GET"].span_id


@pytest.mark.parametrize(
    "options", [["-k", "sync"], ["--threads", "2"], ["-k", "gevent"]], ids=["sync", "gthread", "gevent"]
)
def test_each_request_has_its_own_context_and_leaves_none_behind(
    tmp_path: Path, receiver: Receiver, options: list[str]
) -> None:
    log_format = ["--access-logfile", "-", "--access-logformat", "seen %(U)s %({otel_trace_id}e)s %({otel_span_id}e)s"]
    with gunicorn(tmp_path, *options, *log_format, env=environment(receiver), app="echo", workers=1) as server:
        seen = {"/parent": _json(server, "/parent", traceparent=TRACEPARENT, baggage="user=taro")}
        paths = [f"/{kind}/{number}" for number in range(15) for kind in ("leak", "plain")]
        with ThreadPoolExecutor(4) as pool:
            seen |= dict(zip(paths, pool.map(lambda path: _json(server, path), paths), strict=True))
        log = server.stop()
    assert {answer["before"][0] for answer in seen.values()} == {None}
    if "gevent" not in options:
        assert len({answer["before"][1] for answer in seen.values()}) <= 2  # the threads were used again
    spans = {str(span.attributes["url.path"]): span for span in server_spans(receiver.spans)}
    assert set(spans) == set(seen)
    own = {str(span.attributes["of"]): span for span in receiver.spans if span.name == "own"}
    for path, span in spans.items():
        assert own[path].parent_span_id == span.span_id
        assert own[path].trace_id == span.trace_id
        if not path.startswith("/leak"):
            assert seen[path]["span"] == span.span_id
        assert f"seen {path} {span.trace_id} {span.span_id}\n" in log
    assert (spans["/parent"].trace_id, spans["/parent"].parent_span_id) == (TRACE_ID, PARENT_ID)
    assert seen["/parent"]["user"] == "taro"
    others = [span for path, span in spans.items() if path != "/parent"]
    assert len({span.trace_id for span in others}) == len(others)
    assert {span.parent_span_id for span in others} == {""}


B3 = {"x_b3_traceid": TRACE_ID, "x_b3_spanid": PARENT_ID, "x_b3_sampled": "1"}


@pytest.mark.parametrize(
    ("propagators", "headers", "continued"),
    [
        ("b3multi", B3, True),
        ("b3multi", {"traceparent": TRACEPARENT}, False),
        ("baggage", {"traceparent": TRACEPARENT, "baggage": "user=taro"}, False),
        ("tracecontext,b3multi", {"traceparent": TRACEPARENT}, True),
    ],
)
def test_the_propagators_that_are_asked_for_are_used(
    tmp_path: Path, receiver: Receiver, propagators: str, headers: dict[str, str], continued: bool
) -> None:
    pytest.importorskip("opentelemetry.propagators.b3")
    with gunicorn(tmp_path, env=environment(receiver, OTEL_PROPAGATORS=propagators), app="echo", workers=1) as server:
        seen = _json(server, "/x", **headers)
        log = server.stop()
    span = server_span(receiver, "/x")
    assert (span.trace_id == TRACE_ID) is (span.parent_span_id == PARENT_ID) is continued, log
    assert seen["user"] == ("taro" if "baggage" in headers else None)


def test_variables_that_choose_what_is_recorded(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(
        receiver,
        OTEL_TRACES_SAMPLER="always_on",  # which asks no parent
        OTEL_PYTHON_WSGI_EXCLUDED_URLS="health,/internal/.*",
        OTEL_PYTHON_EXCLUDED_URLS="never-read",
        OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS="GET,PURGE",
        OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST="X-Token,X-Shop",
        OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE="X-.*",
        OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS=".*token.*,.*secret.*",
        MACKEREL_OTEL_OMIT_ATTRIBUTES="client.address,user_agent.original,url.query",
    )
    with gunicorn(tmp_path, env=env, app="echo", workers=1) as server:
        for path in ("/healthz", "/internal/x", "/internal/x?y"):
            _json(server, path)
        _json(server, "/all?q=1", X_Token="s3cret", X_Shop="no 1")
        server.get("/purge", "PURGE")
        server.get("/post", "POST")
        server.get("/never-read")
        server.stop()
    names = sorted(span.name for span in receiver.spans)
    assert names == ["GET", "GET", "HTTP", "PURGE", "own", "own", "own", "own"]
    attributes = server_span(receiver, "/all").attributes
    assert {name: value for name, value in attributes.items() if ".header." in name} == {
        "http.request.header.x_token": ["[REDACTED]"],
        "http.request.header.x_shop": ["no 1"],
        "http.response.header.x_answer": ["a", "b"],
        "http.response.header.x_secret": ["[REDACTED]"],
    }
    assert not {"client.address", "user_agent.original", "url.query"} & set(attributes)
    assert server_span(receiver, "/post").attributes["http.request.method_original"] == "POST"


def test_wrong_regular_expressions_are_errors_of_the_settings(tmp_path: Path, receiver: Receiver) -> None:
    names = (
        "OTEL_PYTHON_FLASK_EXCLUDED_URLS",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS",
    )
    with gunicorn(tmp_path, env=environment(receiver, **dict.fromkeys(names, "ok,(")), app="echo") as server:
        assert server.get("/x").status == 200
        log = server.stop()
    for name in names:
        assert log.count(f"{name}: '(' is not a regular expression") == 1, log
    assert receiver.spans == []


def test_a_ratio_samples_whole_requests(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
    with gunicorn(tmp_path, env=env, app="echo", workers=1) as server:
        # The sampler looks at the lower half of the id.
        for half in ("0" * 15 + "1", "f" * 16):
            _json(server, f"/{half[0]}", traceparent=f"00-{'a' * 16}{half}-{PARENT_ID}-01")
        server.stop()
    assert sorted(span.name for span in receiver.spans) == ["GET", "own"]
    assert server_span(receiver, "/0").trace_id.endswith("0001")


def test_the_scheme_is_what_gunicorn_takes_from_proxies_that_it_trusts(tmp_path: Path, receiver: Receiver) -> None:
    for trusted in ("127.0.0.1", "192.0.2.1"):
        options = ["--forwarded-allow-ips", trusted]
        with gunicorn(tmp_path, *options, env=environment(receiver), app="echo", workers=1) as server:
            seen = _json(server, f"/{trusted}", X_Forwarded_Proto="https", X_Forwarded_For="203.0.113.9")
            server.stop()
        scheme = "https" if trusted == "127.0.0.1" else "http"
        attributes = server_span(receiver, f"/{trusted}").attributes
        assert attributes["url.scheme"] == seen["scheme"] == scheme
        assert attributes["client.address"] == "127.0.0.1"


@pytest.mark.skipif(
    tuple(map(int, gunicorn_package.__version__.split(".")[:2])) < (27, 0), reason="Gunicorn's HTTP/2 came later"
)
def test_requests_of_http_2_are_one_span_each(tmp_path: Path, receiver: Receiver) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("h2")
    # As behind a proxy that ends TLS: https needs a certificate, and makes no difference to the application.
    options = ["-k", "gthread", "--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"]
    with gunicorn(tmp_path, *options, env=environment(receiver), app="echo", workers=1) as server:
        with httpx.Client(http1=False, http2=True, base_url=f"http://127.0.0.1:{server.port}") as client:
            for number in range(3):
                answer = client.get(f"/{number}", headers={"traceparent": TRACEPARENT})
                assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
                assert answer.json()["protocol"].startswith("HTTP/2")
        log = server.stop()
    spans = server_spans(receiver.spans)
    assert sorted(str(span.attributes["url.path"]) for span in spans) == ["/0", "/1", "/2"], log
    assert {span.attributes["network.protocol.version"] for span in spans} == {"2"}
    assert {span.parent_span_id for span in spans} == {PARENT_ID}


STOCK = """
import json, os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from mackerel_otel_server import settings, trace_wsgi
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import request

exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
on_or_off.active = True
request.prepare(settings.read({**os.environ, "OTEL_TRACES_EXPORTER": "none"}).http, "0")
ENVIRON = {
    "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/shop", "RAW_URI": "/shop?q=1", "QUERY_STRING": "q=1",
    "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
    "REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "5000", "HTTP_HOST": "shop:8000", "HTTP_USER_AGENT": "curl/8",
    "HTTP_X_TOKEN": "s3cret", "HTTP_ACCEPT_LANGUAGE": "ja", "CONTENT_TYPE": "text/x",
}

def application(environ, start_response):
    headers = [("Content-Type", "text/plain"), ("X-Token", "s3cret"), ("X-Two", "1"), ("X-Two", "2")]
    start_response(sys.argv[1], headers)
    return [b"x"]

for wrap in (trace_wsgi, OpenTelemetryMiddleware):
    exporter.clear()
    body = wrap(application)(dict(ENVIRON), lambda *args: None)
    list(body)
    getattr(body, "close", tuple)()
    (span,) = exporter.get_finished_spans()
    print(json.dumps(dict(span.attributes)))
"""


@pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
@pytest.mark.parametrize("mode", ["http", "http/dup", "database"], ids=["new", "both", "old"])
def test_the_attributes_are_those_of_opentelemetrys_own_middleware(tmp_path: Path, status: str, mode: str) -> None:
    env = environment(
        OTEL_SEMCONV_STABILITY_OPT_IN=mode,
        OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST="X-Token,Accept.*,content-type",
        OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE="content-type,X-.*",
        OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS=".*token",
    )
    command = [sys.executable, "-W", "ignore", "-c", STOCK, status]
    output = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True)
    ours, theirs = map(json.loads, output.stdout.splitlines())
    # What theirs has beyond ours: nothing that Mackerel groups by, and as many values as there are clients.
    for name in ("client.port", "net.peer.port", "http.server_name"):
        theirs.pop(name, None)
        assert name not in ours
    # The convention has the host without its port, which has a name of its own.
    for name in ("server.address", "net.host.name"):
        if name in ours:
            assert (ours.pop(name), theirs.pop(name)) == ("shop", "shop:8000")
    # Theirs joins the values of one header, and overlooks WSGI's CONTENT_TYPE.
    assert (ours.pop("http.response.header.x_two"), theirs.pop("http.response.header.x_two")) == (["1", "2"], ["1,2"])
    assert ours.pop("http.request.header.content_type") == ["text/x"]
    assert ours == theirs
    assert "s3cret" not in output.stdout
