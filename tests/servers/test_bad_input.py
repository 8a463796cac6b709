"""Bad settings and bad far ends: one clear message, and the application answers exactly as without us."""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from servers import Response, Server, environment, gunicorn, server_spans, uwsgi

from mackerel_otel_server.cli.receiver.endpoint import Receiver

PATHS = ("/", "/own", "/query", "/stream", "/sendfile", "/missing", "/fail")
KEY = "test-key"


def _ask_all(server: Server) -> dict[str, Response]:
    answers = {}
    for method in ("GET", "HEAD", "POST"):
        for path in PATHS:
            response = server.get(path, method)
            headers = sorted((name, value) for name, value in response.headers if name != "Date")
            answers[f"{method} {path}"] = Response(response.status, response.reason, headers, response.body)
    return answers


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Response]:
    """Return every response of the application under a Gunicorn that knows nothing of us."""
    with gunicorn(tmp_path_factory.mktemp("untouched"), env=environment(), conf=None, workers=1) as server:
        return _ask_all(server)


def test_responses_are_those_of_the_untouched_server_while_tracing(
    tmp_path: Path, receiver: Receiver, untouched: dict[str, Response]
) -> None:
    with gunicorn(tmp_path, env=environment(receiver), workers=1) as server:
        assert _ask_all(server) == untouched
        server.stop()
    assert untouched["GET /fail"].status == 500


SETTINGS = [
    pytest.param({"MACKEREL_APIKEY": "", "MACKEREL_OTEL_ENDPOINT": ""}, "set MACKEREL_APIKEY to", id="no key"),
    pytest.param({"MACKEREL_APIKEY": "two words"}, "MACKEREL_APIKEY holds white space", id="key with a space"),
    pytest.param({"MACKEREL_APIKEY": "key\nmore"}, "MACKEREL_APIKEY holds white space", id="key with a line break"),
    pytest.param(
        {"MACKEREL_OTEL_ENDPOINT": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
        "OTEL_EXPORTER_OTLP_ENDPOINT='localhost:4318' has no scheme",
        id="no scheme",
    ),
    pytest.param(
        {"MACKEREL_OTEL_ENDPOINT": "http://traces.example.com/v1/traces"},
        "would send the API key unencrypted",
        id="key over http",
    ),
    pytest.param(
        {"MACKEREL_APIKEY": "", "MACKEREL_APIKEY_FILE": "missing-file"},
        "MACKEREL_APIKEY_FILE='missing-file' cannot be read (No such file or directory)",
        id="unreadable key file",
    ),
    pytest.param(
        {"OTEL_TRACES_SAMPLER": "allways_on"}, "OTEL_TRACES_SAMPLER='allways_on' is not known", id="wrong sampler"
    ),
    pytest.param(
        {"MACKEREL_OTEL_SHUTDOWN_TIMEOUT": "-1"},
        "MACKEREL_OTEL_SHUTDOWN_TIMEOUT='-1' is not a number of at least 0",
        id="shutdown timeout below zero",
    ),
    pytest.param(
        {"MACKEREL_OTEL_SHUTDOWN_TIMEOUT": "abc"},
        "MACKEREL_OTEL_SHUTDOWN_TIMEOUT='abc' is not a number of at least 0",
        id="shutdown timeout that is no number",
    ),
    pytest.param({"OTEL_PROPAGATORS": "w3c"}, "OTEL_PROPAGATORS='w3c': 'w3c' is not installed", id="propagator"),
]


@pytest.mark.parametrize(("variables", "message"), SETTINGS)
def test_a_wrong_setting_is_one_message_per_server_start_and_changes_no_response(
    tmp_path: Path, receiver: Receiver, untouched: dict[str, Response], variables: dict[str, str], message: str
) -> None:
    with gunicorn(tmp_path, env=environment(receiver, **variables), workers=2) as server:
        server.ask_every_worker(2, 2)
        assert _ask_all(server) == untouched
        log = server.stop()
    assert log.count(message) == 1, log
    assert log.count("tracing is off, the application serves without it") == 1, log
    assert receiver.requests == []
    assert "two words" not in log


NONE_IS_KNOWN = tuple(map(int, version("opentelemetry-api").split(".")[:2])) >= (1, 33)


@pytest.mark.parametrize(
    "propagators", ["baggage", "tracecontext,baggage", *(["none", "tracecontext,none"] if NONE_IS_KNOWN else [])]
)
def test_every_value_of_otel_propagators_that_is_accepted_traces(
    tmp_path: Path, receiver: Receiver, untouched: dict[str, Response], propagators: str
) -> None:
    with gunicorn(tmp_path, env=environment(receiver, OTEL_PROPAGATORS=propagators), workers=1) as server:
        assert _ask_all(server) == untouched
        server.stop()
    assert len(server_spans(receiver.spans)) == len(untouched)


def test_an_environ_that_makes_no_sense_is_answered_and_traced_all_the_same(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "odd.py").write_text(
        "from plain import application as plain\n"
        "import mackerel_otel_server\n"
        "traced = mackerel_otel_server.trace_wsgi(plain)\n"
        "def application(environ, start_response):\n"
        "    fresh = {name: value for name, value in environ.items() if not name.startswith('mackerel')}\n"
        "    return traced({**fresh, 'SERVER_PORT': 'odd'}, start_response)\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, workers=1, app="odd:application") as server:
        response = server.get("/")
        log = server.stop()
    assert (response.status, response.body) == (200, b"hello")
    (span,) = server_spans(receiver.spans)
    assert span.attributes["http.response.status_code"] == 200, log


def test_a_key_over_plain_http_takes_no_proxy(tmp_path: Path, receiver: Receiver) -> None:
    with Receiver() as proxy:
        address = proxy.url.removesuffix("/v1/traces")
        env = environment(receiver, HTTP_PROXY=address, http_proxy=address, NO_PROXY="", no_proxy="")
        with gunicorn(tmp_path, env=env, workers=1) as server:
            server.get()
            server.stop()
        assert proxy.requests == []
    assert len(receiver.spans) == 1


def test_secrets_in_the_headers_variable_and_in_urls_stay_out_of_the_log(tmp_path: Path, receiver: Receiver) -> None:
    headers = "Mackerel-Api-Key=s3cret%0Aleak,Authorization=Bearer s3cret%0A"
    with gunicorn(tmp_path, env=environment(receiver, OTEL_EXPORTER_OTLP_HEADERS=headers)) as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert "the value of 'Mackerel-Api-Key' holds a line break" in log
    url = receiver.url.replace("http://", "http://user:s3cret@")
    with gunicorn(tmp_path, env=environment(receiver, MACKEREL_OTEL_ENDPOINT=url)) as server:
        server.ask_every_worker(2, 2)
        log += server.stop()
    assert f"sends traces as 'shop' to {receiver.url}" in log
    assert "s3cret" not in log


def test_a_propagator_that_is_not_installed_is_reported_by_nobody_else(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver, OTEL_PROPAGATORS="jaeger")) as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert log.count("mackerel_otel_server:") == 1, log


def test_all_problems_are_reported_at_once_in_a_fixed_order(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_TRACES_SAMPLER="x", MACKEREL_OTEL_SHUTDOWN_TIMEOUT="abc", OTEL_SDK_DISABLED="yes")
    with gunicorn(tmp_path, env=env) as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    places = [log.index(name) for name in ("OTEL_SDK_DISABLED='yes'", "OTEL_TRACES_SAMPLER='x'", "TIMEOUT='abc'")]
    assert places == sorted(places), log
    assert log.count("tracing is off") == 1, log


def test_a_key_from_a_file_is_used_without_its_line_break(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    env = environment(receiver, MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=str(tmp_path / "key"))
    with gunicorn(tmp_path, env=env, workers=1) as server:
        server.get()
        server.stop()
    assert [request.status for request in receiver.requests] == [200]


def test_a_collector_gets_no_key_even_one_given_in_the_headers_variable(tmp_path: Path) -> None:
    with Receiver() as collector:
        env = environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url.removesuffix("/v1/traces"),
            OTEL_EXPORTER_OTLP_HEADERS=f"mackerel-api-key={KEY},x-tenant=a%20b",
            MACKEREL_APIKEY=KEY,
        )
        with gunicorn(tmp_path, env=env, workers=1) as server:
            server.get()
            server.stop()
        (request,) = collector.requests
    assert request.status == 200
    assert request.headers.get("Mackerel-Api-Key") is None
    assert request.headers.get("x-tenant") == "a b"


def test_what_is_sent_to_mackerel_is_gzip_protobuf_with_its_key(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver), workers=1) as server:
        server.get()
        log = server.stop()
    (request,) = receiver.requests
    assert request.headers.get("Content-Encoding") == "gzip"
    assert request.headers.get("Content-Type") == "application/x-protobuf"
    assert request.headers.get("Accept") == "*/*"
    assert request.headers.get("Mackerel-Api-Key") == KEY
    assert KEY not in log


@pytest.mark.parametrize(("exporter", "shown"), [("console", True), ("none", False)])
def test_other_exporters_need_no_key(tmp_path: Path, exporter: str, shown: bool) -> None:
    with gunicorn(tmp_path, env=environment(OTEL_TRACES_EXPORTER=exporter), workers=1) as server:
        server.get("/own")
        log = server.stop()
    assert ('"url.path": "/own"' in log) is shown, log
    assert "tracing is off" not in log


def test_a_disabled_sdk_says_nothing_and_sends_nothing(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver, OTEL_SDK_DISABLED="true"), workers=1) as server:
        server.get("/own")
        log = server.stop()
    assert "mackerel_otel_server" not in log
    assert receiver.requests == []


class _Answer(http.server.BaseHTTPRequestHandler):
    """A far end with one fixed answer."""

    status = 500
    location = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        if self.location:
            self.send_header("Location", self.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def _far_end(status: int, location: str = "") -> Iterator[str]:
    handler = type("Answer", (_Answer,), {"status": status, "location": location})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        server.shutdown()
        thread.join()


@contextmanager
def _silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces"


@contextmanager
def _down() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1/traces"


@contextmanager
def _refusing() -> Iterator[str]:
    with Receiver(api_key="another-key") as receiver:
        yield receiver.url


FAR_ENDS: dict[str, tuple[Callable[[], AbstractContextManager[str]], str]] = {
    "is down": (_down, "did not answer ([Errno 111] Connection refused)"),
    "refuses the key": (_refusing, "answered 400 Bad Request 'Invalid API Key': spans are dropped"),
    "answers 500": (lambda: _far_end(500), "answered 500 Internal Server Error"),
    "never answers": (_silent, ""),
}


@pytest.mark.parametrize("far_end", FAR_ENDS)
def test_a_far_end_that_fails_changes_no_response_and_holds_up_no_exit(
    tmp_path: Path, untouched: dict[str, Response], far_end: str
) -> None:
    far_end_at, message = FAR_ENDS[far_end]
    with far_end_at() as url:
        env = environment(
            MACKEREL_OTEL_ENDPOINT=url,
            MACKEREL_APIKEY=KEY,
            OTEL_BSP_SCHEDULE_DELAY="100",
            MACKEREL_OTEL_SHUTDOWN_TIMEOUT="2",
        )
        with gunicorn(tmp_path, env=env, workers=1) as server:
            assert _ask_all(server) == untouched
            began = time.monotonic()
            log = server.stop()
            took = time.monotonic() - began
    is_left = far_end in ("is down", "answers 500")
    end = r"0, left \d+ in the journal: " if is_left else r"\d+ \("
    assert re.search(f"sent 0 spans in 0 requests, lost {end}", log), log
    if message:
        assert log.count(f"the endpoint takes no spans: {url} {message}") == 1, log
    # Gunicorn itself takes up to 1.1 s; the rest is the shutdown timeout and the 0.5 s that are promised.
    assert took < 1.1 + 2 + 0.5, log
    assert KEY not in log


def test_a_far_end_that_never_answers_is_one_message_after_the_timeout(tmp_path: Path) -> None:
    with _silent() as url:
        env = environment(
            MACKEREL_OTEL_ENDPOINT=url,
            MACKEREL_APIKEY=KEY,
            OTEL_BSP_SCHEDULE_DELAY="100",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )
        # Django switches off the loggers of OpenTelemetry, too.
        with gunicorn(tmp_path, env=env, workers=1, app="mysite.wsgi") as server:
            server.get("/own")
            server.wait_for_log(rf"the endpoint takes no spans: {re.escape(url)} did not answer \(.*timed out")
            server.stop()


def test_the_key_file_is_read_before_the_worker_goes_on(tmp_path: Path, receiver: Receiver) -> None:
    # Gunicorn drops privileges between post_fork and post_worker_init, in which a gevent worker starts to trace.
    (tmp_path / "gunicorn.conf.py").write_text(
        "worker_class = 'gevent'\n"
        "def post_worker_init(worker):\n"
        "    import os\n"
        "    os.remove('key')\n"
        "from mackerel_otel_server.gunicorn import install\n"
        "install(globals())\n"
    )
    (tmp_path / "key").write_text(KEY)
    env = environment(receiver, MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE="key")
    with gunicorn(tmp_path, env=env, conf=None, workers=1) as server:
        server.get()
        server.stop()
    assert [request.status for request in receiver.requests] == [200]


def test_a_key_file_that_is_gone_at_sighup_is_reported_once(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "key").write_text(KEY)
    env = environment(receiver, MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE="key")
    with gunicorn(tmp_path, env=env) as server:
        first = server.ask_every_worker(2, 2)
        (tmp_path / "key").unlink()
        server.send(signal.SIGHUP)
        server.wait_for_log("requests, lost 0", count=2)
        assert not first & server.ask_every_worker(2, 2)
        log = server.stop()
    assert log.count("MACKEREL_APIKEY_FILE='key' cannot be read") == 1, log


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"MACKEREL_OTEL_SPOOL": "none"},
            "[WARNING] mackerel_otel_server: sent 0 spans in 0 requests, lost 1 (not sent",
        ),
        ({}, "[INFO] mackerel_otel_server: sent 0 spans in 0 requests, lost 0, left 1 in the journal: "),
    ],
    ids=["without the journal", "with the journal"],
)
def test_a_shutdown_timeout_of_zero_sends_nothing_more(
    tmp_path: Path, receiver: Receiver, variables: dict[str, str], words: str
) -> None:
    env = environment(receiver, MACKEREL_OTEL_SHUTDOWN_TIMEOUT="0", OTEL_BSP_SCHEDULE_DELAY="60000", **variables)
    with gunicorn(tmp_path, env=env, workers=1) as server:
        server.get()
        log = server.stop()
    assert words in log, log
    assert receiver.requests == []


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(tmp_path: Path) -> None:
    with Receiver() as elsewhere, _far_end(307, elsewhere.url) as url:
        env = environment(MACKEREL_OTEL_ENDPOINT=url, MACKEREL_APIKEY=KEY)
        with gunicorn(tmp_path, env=env, workers=1) as server:
            server.get()
            log = server.stop()
        assert elsewhere.requests == []
    assert "sent 0 spans in 0 requests, lost 1 (redirect 1)" in log, log


def test_under_uwsgi_a_silent_far_end_holds_up_no_exit(tmp_path: Path) -> None:
    ini = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\nmodule = plain\n"
    with _silent() as url:
        env = environment(MACKEREL_OTEL_ENDPOINT=url, MACKEREL_APIKEY=KEY, MACKEREL_OTEL_SHUTDOWN_TIMEOUT="2")
        with uwsgi(tmp_path, ini, env=env, processes=1) as server:
            server.get()
            server.wait_until_idle()
            began = time.monotonic()
            log = server.stop()
            took = time.monotonic() - began
    assert "sent 0 spans in 0 requests, lost 1 (" in log, log
    assert took < 1.1 + 2 + 0.5, log
