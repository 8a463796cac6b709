"""MACKEREL_OTEL_PARTS: the doors with this package's parts and with OpenTelemetry's own, and what differs."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from documents import both
from fault_server import FaultServer, Step, accepted, never, refused
from servers import (
    APPS,
    ASGI_CLASSES,
    LOADED,
    assert_one_server_span_per_request,
    environment,
    gunicorn,
    query_text,
    server_span,
    server_spans,
    uwsgi,
    wait_until,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan
from mackerel_otel_server.worker_log import LOST_WITH_STANDARD_PARTS

LIMITED = """
import time
import uwsgi

def application(environ, start_response):
    path = environ["PATH_INFO"]
    start_response("200 OK", [])
    if "set" in path:
        uwsgi.set_user_harakiri(2)
    if "sleep" in path:
        time.sleep(60)
    if "late" in path:
        time.sleep(2.5)
    return [b"" if "unread" in path else b"ok"]
"""
SCOPES = {"own": "mackerel_otel_server", "standard": "opentelemetry.instrumentation."}
"""How the names of what has made the server spans and the spans of queries begin."""
DOOR = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\n"


def _assert_made_by(parts: str, spans: list[ReceivedSpan]) -> None:
    assert spans
    assert {span.scope for span in spans if not span.scope.startswith(SCOPES[parts])} == set()


# The doors

GUNICORN = {
    "sync": ("plain:application", []),
    "sync-preload": ("plain:application", ["--preload"]),
    "gthread": ("plain:application", ["--threads", "2"]),
    "gevent": ("plain:application", ["-k", "gevent"]),
    "flask": ("shop:app", []),
    "django": ("mysite.wsgi", []),
    "wsgi.py": ("mysite.traced_wsgi", []),
    "fastapi": ("asgi_fastapi:application", ["-k", "uvicorn_worker.UvicornWorker"]),
    **{name.rpartition(".")[2]: ("asgi_plain:application", ["-k", name]) for name in ASGI_CLASSES},
}
UWSGI = {
    "prefork": "module = plain:application\n",
    "lazy-apps": "lazy-apps = true\nmodule = plain:application\n",
    "gevent": "gevent = 20\nmodule = plain:application\n",
    "django": "module = mysite.wsgi:application\n",
}


@pytest.mark.parametrize("door", GUNICORN)
def test_under_gunicorn_a_request_is_one_server_span_of_the_chosen_parts(
    tmp_path: Path, receiver: Receiver, parts: str, door: str
) -> None:
    app, options = GUNICORN[door]
    conf = None if door == "wsgi.py" else "python:mackerel_otel_server.conf"
    with gunicorn(tmp_path, *options, env=environment(receiver), conf=conf, app=app) as server:
        pids = server.ask_every_worker(2, 6)
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    _assert_made_by(parts, server_spans(receiver.spans))
    if door != "django":  # its LOGGING switches Gunicorn's lines off
        assert log.count("sends traces as 'shop'") == log.count("requests, lost 0") == 2, log
        assert log.count("MACKEREL_OTEL_PARTS=standard: ") == (parts == "standard"), log


@pytest.mark.parametrize("door", UWSGI)
def test_under_uwsgi_a_request_is_one_server_span_of_the_chosen_parts(
    tmp_path: Path, receiver: Receiver, parts: str, door: str
) -> None:
    with uwsgi(tmp_path, DOOR + UWSGI[door], env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 6)
        server.wait_until_idle()
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    _assert_made_by(parts, server_spans(receiver.spans))
    assert log.count("sends traces as 'shop'") == 2, log


def test_under_gevent_spans_arrive_over_https(tmp_path: Path, parts: str) -> None:
    authority = trustme.CA()
    certificate = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FaultServer(context=context) as far:
        env = environment(
            None,
            MACKEREL_OTEL_ENDPOINT=far.url,
            MACKEREL_APIKEY="test-key",
            OTEL_SERVICE_NAME="shop",
            OTEL_EXPORTER_OTLP_CERTIFICATE=certificate,
        )
        with gunicorn(tmp_path, "-k", "gevent", env=env) as server:
            server.ask_every_worker(2, 6)
            server.stop()
    assert len(far.span_ids) == len(set(far.span_ids)) == server.answered, server.log


@pytest.mark.parametrize(
    ("app", "path"), [("plain:application", "/query"), ("mysite.wsgi", "/orm/default?table=items")], ids=str
)
def test_a_query_is_a_child_of_its_request(tmp_path: Path, receiver: Receiver, parts: str, app: str, path: str) -> None:
    env = environment(receiver, SQLITE_FILE=str(tmp_path / "db.sqlite3"))
    with gunicorn(tmp_path, env=env, app=app, workers=1) as server:
        assert server.get(path).status == 200, server.log
        server.stop()
    request = server_span(receiver, path.partition("?")[0])
    queries = [span for span in receiver.spans if span.kind == "CLIENT"]
    assert {span.parent_span_id for span in queries} == {request.span_id}
    _assert_made_by(parts, queries)
    assert "secret-value" not in repr([span.attributes for span in queries])


def test_a_process_that_the_application_forks_sends_its_own_spans(
    tmp_path: Path, receiver: Receiver, parts: str
) -> None:
    with gunicorn(tmp_path, env=environment(receiver), app="forking:application", workers=1) as server:
        for _ in range(3):
            pid = server.get("/multiprocessing").body.decode()
        server.stop()
    children = [span for span in receiver.spans if span.name == "of the child"]
    assert len(children) == len({span.resource["process.pid"] for span in children}) == 3
    assert {str(span.resource["process.pid"]) for span in server_spans(receiver.spans)} == {pid}
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 6


@pytest.mark.parametrize("instrumented", ["FlaskInstrumentor().instrument_app(app)", "app.wsgi_app = W(app.wsgi_app)"])
def test_where_the_application_is_instrumented_by_itself_that_makes_the_one_server_span(
    tmp_path: Path, receiver: Receiver, parts: str, instrumented: str
) -> None:
    (tmp_path / "instrumented.py").write_text(
        "from opentelemetry.instrumentation.flask import FlaskInstrumentor\n"
        "from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as W\n"
        f"from shop import app\n{instrumented}\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="instrumented:app", workers=1) as server:
        for _ in range(3):
            server.get("/pid")
        log = server.stop()
    requests = [span for span in receiver.spans if "http.request.method" in span.attributes]
    assert [span.kind for span in requests] == ["SERVER"] * 3, log
    assert "makes the server spans of this application, so this package makes none" in log


def test_a_pattern_captures_no_header_that_holds_credentials(tmp_path: Path, receiver: Receiver, parts: str) -> None:
    (tmp_path / "sets.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Set-Cookie', 'topsecret'), ('X-Cookie-Law', 'plain')])\n"
        "    return [b'']\n"
    )
    headers = {"Authorization": "topsecret", "X-Api-Key": "topsecret", "X-CSRF-Token": "named", "X-Cookie-Law": "plain"}
    capture = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_"
    env = environment(receiver, **{f"{capture}SERVER_REQUEST": ".*,X-CSRF-Token", f"{capture}SERVER_RESPONSE": ".*"})
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="sets", workers=1) as server:
        assert server.get("/", headers={**headers, "Cookie": "topsecret"}).status == 200
        server.stop()
    attributes = server_span(receiver, "/").attributes
    assert "topsecret" not in repr(attributes)
    for name in ("request.header.authorization", "request.header.cookie", "response.header.set_cookie"):
        assert list(attributes[f"http.{name}"]) == ["[REDACTED]"]
    assert list(attributes["http.request.header.x_csrf_token"]) == ["named"]
    for kind in ("request", "response"):
        assert list(attributes[f"http.{kind}.header.x_cookie_law"]) == ["plain"]


# Limits of uWSGI


@pytest.mark.parametrize("by", ["harakiri", "set_user_harakiri"])
def test_a_request_that_uwsgi_kills_arrives_as_an_error(
    tmp_path: Path, receiver: Receiver, parts: str, by: str
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    ini = f"{DOOR}module = limited\npythonpath = .\n" + "harakiri = 2\n" * (by == "harakiri")
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        assert server.get("/quick").status == 200
        server.wait_until_idle()
        with suppress(AssertionError):  # the connection is closed
            server.get("/set-and-sleep" if by == "set_user_harakiri" else "/sleep")
        server.wait_for_log("sends traces as", count=2)
        server.get("/quick")
        server.wait_until_idle()
        log = server.stop()
    spans = {span.attributes["url.path"]: span for span in server_spans(receiver.spans)}
    killed = spans["/set-and-sleep" if by == "set_user_harakiri" else "/sleep"]
    assert killed.attributes["http.response.status_code"] == 500
    assert [event.attributes["exception.type"] for event in killed.events] == ["uwsgi.Harakiri"]
    assert spans["/quick"].status_code == "UNSET"
    assert "requests under way, which are reported as killed: 1" in log


@pytest.mark.parametrize("path", ["/set", "/set-unread"])
def test_a_limit_that_ended_with_its_request_kills_no_later_one(
    tmp_path: Path, receiver: Receiver, parts: str, path: str
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    ini = f"{DOOR}module = limited\npythonpath = .\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        server.get(path)
        server.wait_until_idle()
        # It is under way when the watcher would report.
        assert server.get("/late").status == 200
        server.wait_until_idle()
        log = server.stop()
    span = server_span(receiver, "/late")
    assert (span.status_code, span.attributes["http.response.status_code"], span.events) == ("UNSET", 200, ())
    assert "reported as killed" not in log


def test_that_the_parts_are_standard_is_said_once_per_start(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, MACKEREL_OTEL_PARTS="standard")
    with uwsgi(tmp_path, f"{DOOR}module = plain\n", env=env, processes=3) as server:
        server.ask_every_worker(3, 6)
        server.wait_until_idle()
        log = server.stop()
    assert log.count("MACKEREL_OTEL_PARTS=standard: ") == 1, log


# What is wrong


def test_a_package_that_is_missing_is_one_error_with_the_command(tmp_path: Path, receiver: Receiver) -> None:
    # A finder that hides two of the packages, in every process of the server.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "found = metadata.distribution\n"
        "def distribution(name):\n"
        "    if name.endswith(('-dbapi', 'proto-http')):\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.distribution = distribution\n"
    )
    env = environment(receiver, MACKEREL_OTEL_PARTS="standard")
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env) as server:
        server.ask_every_worker(2, 4)
        log = server.stop()
    assert receiver.spans == []
    assert log.count("MACKEREL_OTEL_PARTS") == 1, log
    assert (
        "tracing is off, the application serves without it: MACKEREL_OTEL_PARTS='standard' needs packages that are not "
        "installed (opentelemetry-exporter-otlp-proto-http, opentelemetry-instrumentation-dbapi); type pip install "
        "'mackerel-otel-server[standard]', or unset the variable\n"
    ) in log


# The table of docs/standard-parts.md: a row is a fact that the functions below find in one kind of parts or the other.


def _compared(parts: str, receiver: Receiver, tmp_path: Path) -> dict[str, Any]:
    """Run tests/apps/compared.py."""
    found: dict[str, Any] = _script((APPS / "compared.py").read_text(), tmp_path, environment(receiver), parts)[0]
    return found


def _script(text: str, tmp_path: Path, env: dict[str, str], parts: str) -> tuple[Any, str]:
    """Run a script; return what its last line says in JSON, and its log."""
    file = tmp_path / "script.py"
    file.write_text(text)
    env |= {"MACKEREL_OTEL_PARTS": parts, "OTEL_PYTHON_EXCLUDED_URLS": "/excluded"}
    result = subprocess.run(
        [sys.executable, file], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def _of_requests(parts: str, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what one run of a script with requests of all kinds shows."""
    with Receiver(api_key="test-key") as receiver:
        found = _compared(parts, receiver, tmp_path)
    spans = server_spans(receiver.spans)
    by_path: dict[str, list[ReceivedSpan]] = {}
    for span in spans:
        by_path.setdefault(span.attributes["url.path"], []).append(span)
    queries = [query_text(span) for span in receiver.spans if span.kind == "CLIENT"]
    others = ("compared", "opentelemetry.instrumentation.sqlalchemy")
    _assert_made_by(parts, [span for span in receiver.spans if span.scope not in others])

    def events(path: str) -> list[str]:
        return [event.attributes["exception.type"] for span in by_path.get(path, []) for event in span.events]

    yield "one server span per request, also where applications are nested", len(by_path["/nested"]) == 1
    yield "`OTEL_PYTHON_EXCLUDED_URLS`", "/excluded" not in by_path
    yield "an exception that leaves the application, with its stack trace", events("/fails") == ["ValueError"]
    yield "queries of a cursor", "SELECT 1" in queries
    yield "routes: `GET /items/<int:number>`", by_path["/items/1"][0].name == "GET /items/<int:number>"
    yield "an exception that a framework answers with its 500 page", events("/page-500") == ["LookupError"]
    yield "a request that ends by `SystemExit`", "/exit" in by_path
    yield "a response that the server closes unread", "/closed" in by_path
    answered = "/close-raises" in found["read"]
    yield "the span and the answer of a response whose `close()` raises", answered and "/close-raises" in by_path
    yield "`wsgi.file_wrapper` reaches the server (sendfile)", found["file"]
    yield "queries of a connection's own `execute()`, as sqlite3 has it", "SELECT 2" in queries
    yield "one span per query beside SQLAlchemy's own instrumentation", queries.count("SELECT 3") == 1
    agent = by_path["/secret"][0].attributes["user_agent.original"]
    (quoted,) = (span for span in receiver.spans if span.kind == "CLIENT" and query_text(span).startswith("ATTACH"))
    texts = repr([event.attributes for span in (quoted, by_path["/quoted"][0]) for event in span.events])
    assert "unable to open database" in texts
    yield "values that a database quotes in an error are masked", "topsecret" not in texts
    yield "long values from clients are cut", len(agent) < 10_000
    query = by_path["/secret"][0].attributes.get("url.query", "")
    yield "secrets in a query string are masked", "topsecret" not in query
    yield "the spans beside one that cannot be encoded", "/beside-the-surrogate" in by_path


SENDS = """
import json
import time

import mackerel_otel_server
from opentelemetry import trace

mackerel_otel_server.instrument()
tracer = trace.get_tracer("sends")
tracer.start_span("span").end()
FIRST
begin = time.monotonic()
mackerel_otel_server.shutdown()
print(json.dumps({"took": time.monotonic() - begin, **mackerel_otel_server.stats()}))
"""


def _far(
    parts: str,
    tmp_path: Path,
    far: FaultServer,
    first: str = "trace.get_tracer_provider().force_flush()",
    **variables: str,
) -> tuple[Any, str]:
    env = environment(
        None, MACKEREL_OTEL_ENDPOINT=far.url, MACKEREL_APIKEY="test-key", OTEL_SERVICE_NAME="shop", **variables
    )
    return _script(SENDS.replace("FIRST", first), tmp_path, env, parts)


def _of_sending(parts: str, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what becomes of spans at a far end that misbehaves."""
    with FaultServer(refused(400, "Invalid API Key")) as far:
        _, log = _far(parts, tmp_path, far)
    assert "test-key" not in log
    yield "the log explains a refusal, with what to type", "MACKEREL_APIKEY" in log
    with FaultServer(accepted(rejected=1, message="no")) as far:
        stats, _ = _far(parts, tmp_path, far)
    assert stats["finished"] == 1
    yield "spans that the endpoint rejects are counted as lost", stats["delivered"] == 0
    with FaultServer(Step(302, headers={"Location": "http://127.0.0.1:1/"})) as far:
        stats, _ = _far(parts, tmp_path, far)
    yield "no redirect is followed with the key, and its spans count as lost", stats["delivered"] == 0
    with FaultServer(Step(act=never)) as far:
        stats, _ = _far(parts, tmp_path, far, "", MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1")
    yield "a process leaves within `MACKEREL_OTEL_SHUTDOWN_TIMEOUT`", stats["took"] < 1.5 + LOADED


def _of_kills(parts: str, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what arrives of a request that Gunicorn kills."""
    with Receiver(api_key="test-key") as receiver:
        env = environment(receiver, MACKEREL_OTEL_PARTS=parts)
        with gunicorn(tmp_path, "--timeout", "2", env=env, app="stuck:application", workers=1) as server:
            with suppress(AssertionError):  # the connection is closed
                server.get("/sleep")
            wait_until(lambda: server_spans(receiver.spans), "the killed request", lambda: server.log)
            server.stop()
    spans = [span for span in server_spans(receiver.spans) if span.attributes["url.path"] == "/sleep"]
    assert "requests under way, which are reported as killed: 1" in server.log
    attributes = [event.attributes for span in spans for event in span.events]
    is_error = bool(spans) and spans[0].attributes.get("http.response.status_code") == 500
    yield "a request that the server kills arrives as an error", is_error
    where = any("time.sleep" in event.get("exception.stacktrace", "") for event in attributes)
    yield "the stack trace of a request that the server kills", where


def _of_sigkill(parts: str, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """Yield whether another worker sends what one that is killed with SIGKILL had queued."""
    with Receiver(api_key="test-key") as receiver:
        env = environment(receiver, MACKEREL_OTEL_PARTS=parts, OTEL_BSP_SCHEDULE_DELAY="2000")
        with gunicorn(tmp_path, env=env, workers=1) as server:
            pid = int(server.get("/pid").body)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.get("/pid").body != str(pid).encode(), "another worker", lambda: server.log)
            if parts == "own":
                wait_until(lambda: "that worker" in server.log, "the line about what was left", lambda: server.log)
            server.stop()
    pids = {span.resource["process.pid"] for span in server_spans(receiver.spans)}
    yield "the spans that a worker has queued when it is killed with SIGKILL", pid in pids


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, bool]]:
    """Return each row's first column, and whether it is true of our own parts and of the standard ones."""
    columns: list[dict[str, bool]] = []
    for parts in ("own", "standard"):
        column: dict[str, bool] = {}
        for look in (_of_requests, _of_sending, _of_kills, _of_sigkill):
            folder = tmp_path_factory.mktemp(parts)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MACKEREL_OTEL_SPOOL", str(folder / "spool"))
                column.update(look(parts, folder))
        columns.append(column)
    own, standard = columns
    assert list(own) == list(standard)
    return {row: (own[row], standard[row]) for row in own}


def _rows(page: str) -> list[tuple[str, bool, bool]]:
    found = re.findall(r"^\| (.+) \| ([✓–]) \| ([✓–]) \|$", page, re.MULTILINE)
    return [(row, own == "✓", standard == "✓") for row, own, standard in found]


def test_the_table_says_what_the_tests_find(facts: dict[str, tuple[bool, bool]]) -> None:
    english, japanese = (page.values[0] for page in both("docs/standard-parts"))  # type: ignore[attr-defined]
    assert _rows(english) == [(row, *columns) for row, columns in facts.items()]
    assert [columns for _, *columns in _rows(japanese)] == [list(columns) for columns in facts.values()]


def test_the_line_at_the_start_names_what_is_lost(facts: dict[str, tuple[bool, bool]]) -> None:
    lost = [row for row, (own, standard) in facts.items() if own and not standard]
    assert len(lost) == len(LOST_WITH_STANDARD_PARTS)


def test_own_parts_import_none_of_the_standard_ones(tmp_path: Path, receiver: Receiver) -> None:
    assert _compared("own", receiver, tmp_path)["modules"] == []
