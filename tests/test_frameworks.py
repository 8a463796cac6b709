"""The frameworks, each through a real server: what Mackerel needs to list a request, and to open an issue."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers import DEADLINE, Server, environment, gunicorn

from mackerel_otel_server.cli.receiver.receiver import ReceivedSpan, Receiver


@dataclass(frozen=True)
class Case:
    """One request, and what is to be seen of it."""

    path: str
    status: int
    route: str | None
    error: str | None = None
    """The type of the exception that makes an issue."""
    method: str = "GET"


DJANGO = (
    Case("/", 200, "/"),
    Case("/items/7/", 200, "/items/<int:item>/"),
    Case("/items/7", 301, None),  # APPEND_SLASH
    Case("/old/2024/", 200, "/old/(?P<year>[0-9]{4})/"),
    Case("/mixed/12/", 200, "/mixed/(?P<id>[0-9]+)/"),
    Case("/nested/1999/party/", 200, "/nested/<int:year>/<slug:slug>/"),
    Case("/ja/greet/taro/", 200, "/ja/greet/<name>/"),
    Case("/nowhere", 404, None),
    Case("/fail/404", 404, "/fail/<kind>"),
    Case("/fail/denied", 403, "/fail/<kind>"),
    Case("/fail/suspicious", 400, "/fail/<kind>"),
    Case("/fail/503", 503, "/fail/<kind>"),
    Case("/fail/redirect", 302, "/fail/<kind>"),
    Case("/fail/value", 500, "/fail/<kind>", "ValueError"),
    Case("/file", 200, "/file"),
    Case("/stream", 200, "/stream"),
    Case("/api/", 200, "/api/"),
    Case("/api/users/", 200, "/api/users/"),
    Case("/api/users/", 400, "/api/users/", method="POST"),  # ValidationError
    Case("/api/users/5/", 200, "/api/users/(?P<pk>[^/.]+)/"),
    Case("/api/users/404/", 404, "/api/users/(?P<pk>[^/.]+)/"),
    Case("/api/users/denied/", 403, "/api/users/(?P<pk>[^/.]+)/"),
    Case("/api/users/broken/", 500, "/api/users/(?P<pk>[^/.]+)/", "ValueError"),
    Case("/api/users/5/friends/", 200, "/api/users/(?P<pk>[^/.]+)/friends/"),
    Case("/api/users/5/", 405, "/api/users/(?P<pk>[^/.]+)/", method="DELETE"),
)
FLASK = (
    Case("/items/7", 200, "/items/<int:item>"),
    Case("/items/x", 404, None),
    Case("/items/7", 405, None, method="POST"),
    Case("/items/7", 200, "/items/<int:item>", method="HEAD"),
    Case("/with-slash", 308, None),
    Case("/fail/handled", 409, "/fail/<kind>"),
    Case("/fail/abort", 403, "/fail/<kind>"),
    Case("/fail/503", 503, "/fail/<kind>"),
    Case("/fail/redirect", 302, "/fail/<kind>"),
    Case("/fail/teapot", 500, "/fail/<kind>", "web_flask.AnotherTeapotError"),
    Case("/things/a/b", 200, "/things/<path:thing>"),
    Case("/things/a/b", 200, "/things/<path:thing>", method="PUT"),
    Case("/outer/ja/inner/12345678-1234-5678-1234-567812345678", 200, "/outer/<lang>/inner/<uuid:id>"),
    Case("/file", 200, "/file"),
    Case("/memory", 200, "/memory"),
    Case("/stream", 200, "/stream"),
)
FALCON = (
    Case("/items/7", 200, "/items/{item:int}"),
    Case("/items/7", 405, "/items/{item:int}", method="POST"),
    Case("/items/x", 404, None),
    Case("/complete", 200, None),
    Case("/fail/handled", 409, "/fail/{kind}"),
    Case("/fail/404", 404, "/fail/{kind}"),
    Case("/fail/503", 503, "/fail/{kind}"),
    Case("/fail/redirect", 302, "/fail/{kind}"),
    Case("/fail/value", 500, "/fail/{kind}", "ValueError"),
    Case("/sink/any/thing", 200, None),
    Case("/static/web_falcon.py", 200, None),
)
BOTTLE = (
    Case("/items/7", 200, "/items/<item:int>"),
    Case("/items/7", 405, None, method="POST"),
    Case("/items/x", 404, None),
    Case("/fail/404", 404, "/fail/<kind>"),
    Case("/fail/503", 503, "/fail/<kind>"),
    Case("/fail/redirect", 303, "/fail/<kind>"),
    Case("/fail/value", 500, "/fail/<kind>", "ValueError"),
    Case("/fail/stream", 500, "/fail/<kind>", "ValueError"),
    Case("/static/web_bottle.py", 200, "/static/<name>"),
    Case("/mounted/hello/taro", 200, "/mounted/hello/<name>"),
    Case("/wrapped/deep/hello/taro", 200, "/wrapped/deep/hello/<name>"),
    Case("/wrapped/deep/none", 404, "/wrapped/deep/<:re:.*>"),
    Case("/wrapped/none", 404, "/wrapped/<:re:.*>"),
    Case("/wrapped/flask/items/7", 200, "/wrapped/flask/items/<int:item>"),
    Case("/plain/any/thing", 200, "/plain/<:re:.*>"),
    Case("/flask/items/7", 200, "/flask/items/<int:item>"),
)
PYRAMID = (
    Case("/items/7", 200, "/items/{item}"),
    Case("/items/7", 404, "/items/{item}", method="POST"),
    Case("/fail/handled", 409, "/fail/{kind}"),
    Case("/fail/403", 403, "/fail/{kind}"),
    Case("/fail/503", 503, "/fail/{kind}"),
    Case("/fail/redirect", 302, "/fail/{kind}"),
    Case("/fail/value", 500, "/fail/{kind}", "ValueError"),
    Case("/part/x/7", 200, "/part/x/{item}"),
    Case("/place", 200, None),
    Case("/nowhere", 404, None),
)
APPLICATIONS = {
    "web_django.wsgi:application": DJANGO,
    "web_flask:app": FLASK,
    "web_falcon:app": FALCON,
    "web_bottle:app": BOTTLE,
    "web_pyramid:app": PYRAMID,
}


def check(span: ReceivedSpan, case: Case, prefix: str = "") -> None:
    """Compare a span with what Mackerel needs of the request."""
    assert span.kind == "SERVER"
    method, route = case.method, None if case.route is None else prefix + case.route
    assert span.name == (method if route is None else f"{method} {route}"), case
    assert span.attributes.get("http.route") == route, case
    assert span.attributes["http.request.method"] == method
    assert span.attributes["url.path"] == prefix + case.path
    assert span.attributes["http.response.status_code"] == case.status, case
    failed = case.status >= 500
    assert span.status_code == ("ERROR" if failed else "UNSET"), case
    assert span.attributes.get("error.type") == ((case.error or str(case.status)) if failed else None)
    assert [event.name for event in span.events] == (["exception"] if case.error else []), (case, span.events)
    for event in span.events:
        assert event.attributes["exception.type"] == case.error
        assert event.attributes["exception.message"] in (case.path.rstrip("/").rpartition("/")[2], "no text")
        stacktrace = str(event.attributes["exception.stacktrace"])
        assert stacktrace.startswith("Traceback"), stacktrace
        assert "/apps/web_" in stacktrace, stacktrace


# Static mounts belong in the route. A tenant's name, of which there is no end, does not.
MOUNTS = (
    Case("/flask/items/7", 200, "/flask/items/<int:item>"),
    Case("/flask/fail/value", 500, "/flask/fail/<kind>", "web_flask.AnotherTeapotError"),
    Case("/flask/falcon/items/7", 404, None),
    Case("/deep/falcon/items/7", 200, "/deep/falcon/items/{item:int}"),
    Case("/deep/django/items/7/", 200, "/deep/django/items/<int:item>/"),
    Case("/tenants/acme/items/7", 200, "/tenants/items/<int:item>"),
    Case("/none", 404, None),
)


def ask(server: Server, cases: Sequence[Case], prefix: str = "") -> None:
    for case in cases:
        assert server.get(prefix + case.path, case.method).status == case.status, (case, server.log)


def check_all(receiver: Receiver, cases: Sequence[Case], log: str, prefix: str = "") -> None:
    spans = [span for span in receiver.spans if span.kind != "CLIENT"]
    assert len(spans) == len(cases), log
    for span, case in zip(sorted(spans, key=lambda span: span.start_time_unix_nano), cases, strict=True):
        check(span, case, prefix)
    assert " is not traced" not in log, log


@pytest.mark.parametrize("app", APPLICATIONS)
def test_a_span_says_route_method_status_and_the_exception_that_nobody_handled(
    tmp_path: Path, receiver: Receiver, app: str
) -> None:
    with gunicorn(tmp_path, env=environment(receiver), app=app, workers=1) as server:
        ask(server, APPLICATIONS[app])
        log = server.stop()
    check_all(receiver, APPLICATIONS[app], log)


def test_static_mounts_are_part_of_the_route_and_tenants_are_not(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver, SCRIPT_NAME="/site"), app="web_mounts", workers=1) as server:
        ask(server, MOUNTS, "/site")
        log = server.stop()
    check_all(receiver, MOUNTS, log, "/site")


def test_a_prefix_that_a_request_brings_along_in_a_header_is_no_part_of_the_route(
    tmp_path: Path, receiver: Receiver
) -> None:
    case = Case("/acme/items/7", 200, "/items/<int:item>")
    # Gunicorn takes this header from a proxy that it trusts, and a proxy may pass on what a client sends.
    with gunicorn(tmp_path, env=environment(receiver), app="web_flask:app", workers=1) as server:
        assert server.get(case.path, headers={"SCRIPT_NAME": "/acme"}).status == case.status
        log = server.stop()
    check_all(receiver, [case], log)


def test_a_middleware_between_the_server_and_the_framework_adds_nothing_to_the_route(
    tmp_path: Path, receiver: Receiver
) -> None:
    case = Case("/acme/items/7", 200, "/items/<int:item>")
    with gunicorn(tmp_path, env=environment(receiver), app="web_mounts:by_tenant", workers=1) as server:
        ask(server, [case])
        log = server.stop()
    check_all(receiver, [case], log)


PROPAGATING = """
import json, os, sys
from wsgiref.util import setup_testing_defaults
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mackerel_otel_server.http_options import HttpOptions
from mackerel_otel_server.tracing import frameworks, gate, request

exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
gate.active = True
request.prepare(HttpOptions(), "0")
frameworks.register()

from web_bottle import app as bottle
from web_django.wsgi import application as django
from web_flask import app as flask
from web_pyramid import app as pyramid
from django.conf import settings

bottle.catchall = False
flask.config["PROPAGATE_EXCEPTIONS"] = True
settings.DEBUG_PROPAGATE_EXCEPTIONS = True
for application in (bottle, django, flask, pyramid):
    exporter.clear()
    environ = {"PATH_INFO": "/fail/value"}
    setup_testing_defaults(environ)
    try:
        application(environ, lambda *args: None)
    except Exception as error:
        raised = type(error).__name__
    (span,) = exporter.get_finished_spans()
    events = [event.attributes["exception.type"] for event in span.events]
    print(json.dumps([raised, span.name, span.attributes["http.response.status_code"], events]))
"""


def test_an_exception_that_a_framework_notes_and_passes_on_is_one_event(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROPAGATING]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 0, result.stderr
    bottle, django, flask, pyramid = map(json.loads, result.stdout.splitlines())
    assert bottle == ["ValueError", "GET /fail/<kind>", 500, ["ValueError"]]
    assert django == ["ValueError", "GET /fail/<kind>", 500, ["ValueError"]]
    assert flask == ["AnotherTeapotError", "GET /fail/<kind>", 500, ["web_flask.AnotherTeapotError"]]
    assert pyramid == ["ValueError", "GET /fail/{kind}", 500, ["ValueError"]]


# As Flask-RESTX does: an extension answers for its views itself, and sends Flask's signal.
EXTENSION = """
from flask import Flask, abort, current_app, got_request_exception

class Application(Flask):
    def dispatch_request(self, *args):
        return super().dispatch_request(*args)

    def handle_exception(self, *args):
        return super().handle_exception(*args)

app = Application(__name__)

def answer(error):
    got_request_exception.send(current_app._get_current_object(), exception=error)
    return "answered", getattr(error, "code", 500)

app.handle_user_exception = answer

@app.get("/fail/<kind>")
def fail(kind):
    if kind == "404":
        abort(404)
    raise ValueError(kind)
"""


def test_an_exception_that_an_extension_of_flask_answers_and_signals_is_an_event(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "web_extension.py").write_text(EXTENSION)
    # Before Flask 2.3 there are no signals without blinker.
    signalled = "ValueError" if importlib.util.find_spec("blinker") else None
    cases = [Case("/fail/404", 404, "/fail/<kind>"), Case("/fail/value", 500, "/fail/<kind>", signalled)]
    with gunicorn(tmp_path, env=environment(receiver), app="web_extension:app", workers=1) as server:
        ask(server, cases)
        log = server.stop()
    spans = sorted(receiver.spans, key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in spans] == ["GET /fail/<kind>"] * 2, log
    assert [span.attributes["http.response.status_code"] for span in spans] == [404, 500]
    assert [span.status_code for span in spans] == ["UNSET", "ERROR"]
    types = [[event.attributes["exception.type"] for event in span.events] for span in spans]
    assert types == [[], [signalled] if signalled else []]


def test_the_oldest_flask_is_tested_without_blinker() -> None:
    version = importlib.metadata.version("flask")
    # Newer ones need it. The older one of the environment "floors" shows above that routes and exceptions are found.
    assert (importlib.util.find_spec("blinker") is None) == version.startswith("2.0.")


def test_the_log_and_check_name_a_framework_that_is_older_than_the_oldest_tested_release_once(
    tmp_path: Path, receiver: Receiver
) -> None:
    info = tmp_path / "flask-1.1.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Flask\nVersion: 1.1.4\n")
    env = environment(receiver)
    env["PYTHONPATH"] += f":{tmp_path}"
    with gunicorn(tmp_path, env=env, app="web_flask:app", workers=2) as server:
        assert server.get("/items/7").status == 200
        log = server.stop()
    named = "flask 1.1.4 is older than 2.0, the oldest release that this package is tested with"
    assert log.count(named) == 1, log
    assert "pip install 'flask>=2.0'" in log
    command = [str(Path(sys.executable).parent / "mackerel-otel-server"), "check"]
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert named in " ".join(result.stdout.split()), result
