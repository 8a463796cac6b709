"""The frameworks, each through a real server: what Mackerel needs to list a request, and to open an issue."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from routing import APPLICATIONS, Case, ask, check_all
from servers import DEADLINE, environment, gunicorn

from mackerel_otel_server.cli.receiver.endpoint import Receiver

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
from mackerel_otel_server.settings.http_options import HttpOptions
from mackerel_otel_server.tracing import frameworks, on_or_off
from mackerel_otel_server.tracing.requests import request

exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
on_or_off.active = True
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
