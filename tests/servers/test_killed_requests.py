"""The slowest request is visible: what the server kills arrives, once, with where it was."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from gunicorn import version_info as gunicorn_version
from servers import (
    UWSGI_PROGRAM,
    Server,
    Shown,
    debian_uwsgi,
    environment,
    gunicorn,
    server_span,
    server_spans,
    uwsgi,
    uwsgi_version,
    wait_until,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

THRESHOLD = (2, 0, 22)
"""The uWSGI that brought harakiri-graceful-timeout."""
WSGI, ASGI = "stuck:application", "asgi_stuck:application"
UVICORN = "uvicorn_worker.UvicornWorker"
NATIVE = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []
CLASSES = ["sync", "gthread", "gevent", "tornado", *NATIVE, UVICORN]
UWSGI = "import = mackerel_otel_server.uwsgi\nmaster = true\nenable-threads = true\n"
# Where the stack trace of each must lead.
FUNCTIONS = {
    "/sleep": "sleep",
    "/spin": "spin",
    "/read": "read",
    "/hash": "hash_",
    "/native": "native_sleep",
    "/lock": "lock",
}
KILLABLE = ("/sleep", "/spin", "/hash")


@contextmanager
def asking(server: Server, path: str) -> Iterator[None]:
    """Send a request whose answer, if there is one, nobody waits for."""

    def ask() -> None:
        with suppress(AssertionError):
            server.get(path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        server.kill()
        thread.join()


def _wait_for_heartbeat(server: Server) -> None:
    """Wait until the arbiter counts the time of its worker: of class tornado, a second after the start."""
    (pid,) = re.findall(r"Booting worker with pid: (\d+)", server.log)

    def beats() -> bool:
        # Since release 22, the file in which Gunicorn keeps them has their time; the wall clock's before the first one.
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                if "/wgunicorn-" in str(file.readlink()):
                    return file.stat().st_mtime <= time.monotonic()
        return False

    if gunicorn_version >= (22,):
        wait_until(beats, "the worker's first heartbeat", lambda: server.log)


def assert_killed(span: ReceivedSpan, kind: str, message: str, function: str) -> None:
    assert span.status_code == "ERROR"
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == kind
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == kind
    assert event.attributes["exception.message"] == message
    stacktrace = event.attributes["exception.stacktrace"]
    assert stacktrace.startswith("Traceback (most recent call last):\n")
    assert stacktrace.endswith(f"{kind}: {message}\n")
    assert re.search(rf'stuck\.py", line \d+, in {function}\n', stacktrace), stacktrace
    # The application's part, not the server's nor ours.
    assert "gunicorn/" not in stacktrace
    assert "mackerel_otel_server/" not in stacktrace


def assert_children(receiver: Receiver, parent: ReceivedSpan, kind: str, open_one: str = "stuck") -> None:
    spans = {span.name: span for span in receiver.spans if span.trace_id == parent.trace_id and span != parent}
    assert all(span.parent_span_id == parent.span_id for span in spans.values())
    assert spans.pop(open_one).attributes == {"error.type": kind}
    assert {(span.name, span.status_code) for span in spans.values()} <= {("before", "UNSET")}


@pytest.mark.parametrize(
    ("worker_class", "path"),
    [
        *(("sync", path) for path in FUNCTIONS),
        *(("gevent", path) for path in ("/spin", "/hash", "/native")),
        *(("tornado", path) for path in KILLABLE),
        *((worker_class, path) for worker_class in NATIVE for path in FUNCTIONS),
        *((UVICORN, path) for path in KILLABLE),
    ],
)
def test_a_request_that_gunicorns_timeout_kills_arrives_with_where_it_was(
    tmp_path: Path, receiver: Receiver, worker_class: str, path: str, shown: Shown
) -> None:
    shown(worker_class, "timeout")
    app = ASGI if worker_class in ("asgi", UVICORN) else WSGI
    options = ("-k", worker_class, "--timeout", "2")
    with gunicorn(tmp_path, *options, env=environment(receiver), app=app, workers=1) as server:
        server.get("/quick")
        _wait_for_heartbeat(server)
        with asking(server, path):
            server.wait_for_log("WORKER TIMEOUT")
            # The next worker, after SIGKILL.
            server.wait_for_log("sends traces as", count=2)
            log = server.stop()
    span = server_span(receiver, path)
    assert_killed(span, "gunicorn.WorkerTimeout", "gunicorn worker timeout after 2 s", FUNCTIONS[path])
    assert_children(receiver, span, "gunicorn.WorkerTimeout")
    # Nothing twice, and what was queued as well.
    assert sorted(span.attributes.get("url.path", span.name) for span in receiver.spans) == sorted(
        ["/quick", path, "before", "stuck"]
    )
    assert "gunicorn worker timeout after 2 s: requests under way, which are reported as killed: 1" in log


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_request_that_is_under_way_at_the_end_of_graceful_timeout_arrives(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "graceful_timeout")
    path, function = ("/wait", "wait") if worker_class in ("asgi", UVICORN) else ("/sleep", "sleep")
    app = ASGI if path == "/wait" else WSGI
    options = ("-k", worker_class, "--graceful-timeout", "2", "--threads", "4" if worker_class == "gthread" else "1")
    with gunicorn(tmp_path, *options, env=environment(receiver), app=app, workers=1) as server:
        server.get("/quick")
        with asking(server, path):
            server.wait_for_log(f"under way: {path}")
            server.send(signal.SIGTERM)
            server.wait()
    span = server_span(receiver, path)
    kind = "gunicorn.GracefulTimeout"
    assert_killed(span, kind, "gunicorn graceful_timeout of 2 s is over", function)
    assert_children(receiver, span, kind, "waiting" if path == "/wait" else "stuck")
    assert len(server_spans(receiver.spans)) == 2


# Tornado collects a WSGI response before it sends any of it.
@pytest.mark.parametrize("worker_class", [worker_class for worker_class in CLASSES if worker_class != "tornado"])
def test_a_stream_that_is_under_way_at_the_end_of_graceful_timeout_is_no_error(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "graceful_timeout")
    app = ASGI if worker_class in ("asgi", UVICORN) else WSGI
    options = ("-k", worker_class, "--graceful-timeout", "2", "--threads", "4" if worker_class == "gthread" else "1")
    with (
        gunicorn(tmp_path, *options, env=environment(receiver), app=app, workers=1) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as client,
    ):
        client.sendall(b"GET /stream?60 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1)
        server.stop()
    (span,) = server_spans(receiver.spans)
    assert (span.attributes["http.response.status_code"], span.status_code, span.events) == (200, "UNSET", ())


def test_a_request_that_ends_after_all_is_sent_once_and_stays_marked(tmp_path: Path, receiver: Receiver) -> None:
    options = ("--timeout", "10")
    with gunicorn(tmp_path, *options, env=environment(receiver), app=WSGI, workers=1) as server:
        assert server.get("/late?9.5").body == b"ok\n"
        log = server.stop()
    assert_killed(
        server_span(receiver, "/late"), "gunicorn.WorkerTimeout", "gunicorn worker timeout after 10 s", "application"
    )
    assert len(receiver.spans) == 1
    assert "a request that was reported as killed has ended after all: GET" in log
    assert "WORKER TIMEOUT" not in log


GEVENT = "gevent = 20\n"
ROWS = {
    "": "master",
    "threads = 4\n": "threads",
    "lazy-apps = true\n": "lazy-apps",
    GEVENT: "gevent = 20",
    f"{GEVENT}gevent-monkey-patch = true\n": "gevent, patched",
}
"""Options, and what the table of server modes calls them."""


@pytest.mark.parametrize(
    ("ini", "path"),
    [
        *((ini, path) for ini in ("", "threads = 4\n", "harakiri-graceful-timeout = 1\n") for path in KILLABLE),
        ("lazy-apps = true\n", "/sleep"),
        # Each blocks the hub.
        *((GEVENT, path) for path in ("/native", "/sleep", "/hash")),
        # The hub runs, and the request alone is stuck.
        (f"{GEVENT}gevent-monkey-patch = true\n", "/sleep"),
        (f"{GEVENT}gevent-monkey-patch = true\n", "/native"),
    ],
)
def test_a_request_that_harakiri_kills_arrives_with_where_it_was(
    tmp_path: Path, receiver: Receiver, ini: str, path: str, shown: Shown
) -> None:
    if ini in ROWS:
        shown(ROWS[ini], "harakiri")
    ini = f"{UWSGI}module = {WSGI}\nharakiri = 2\n{ini}"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        server.get("/quick")
        # Its end would stop the clock of the next one.
        server.wait_until_idle()
        with asking(server, path):
            server.wait_for_log("HARAKIRI")
            server.wait_for_log("sends traces as", count=2)
            # A TERM that the next worker met while it starts would be lost.
            server.get("/quick")
            server.wait_until_idle()
            log = server.stop()
    span = server_span(receiver, path)
    assert_killed(span, "uwsgi.Harakiri", "uWSGI harakiri after 2 s", FUNCTIONS[path])
    assert_children(receiver, span, "uwsgi.Harakiri")
    assert len(receiver.spans) == 5
    assert "uWSGI harakiri after 2 s: requests under way, which are reported as killed: 1" in log


def test_a_request_whose_clock_another_thread_has_stopped_is_not_reported(tmp_path: Path, receiver: Receiver) -> None:
    # Which uWSGI does not kill either: its clock belongs to the worker.
    ini = f"{UWSGI}module = {WSGI}\nharakiri = 2\nthreads = 4\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(server.get, "/late?5")
            server.wait_for_log("under way: /late")
            server.get("/quick")
            assert slow.result().status == 200
        server.wait_until_idle()
        log = server.stop()
    assert {span.status_code for span in receiver.spans} == {"UNSET"}
    assert len(receiver.spans) == 2
    assert "HARAKIRI" not in log


SPARING = "harakiri-queue-threshold = 50\n"
USER_LIMIT = (
    "import uwsgi\nimport stuck\n\n\ndef application(environ, start_response):\n"
    "    uwsgi.set_user_harakiri(2)\n    return stuck.application(environ, start_response)\n"
)


@pytest.mark.skipif(uwsgi_version(UWSGI_PROGRAM) < THRESHOLD, reason="no such option; the other environments check")
@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
@pytest.mark.parametrize("by", ["harakiri", "set_user_harakiri"])
def test_a_request_that_the_master_spares_while_nobody_waits_is_not_reported(
    tmp_path: Path, receiver: Receiver, mode: str, by: str
) -> None:
    (tmp_path / "limited.py").write_text(USER_LIMIT)
    limit = f"module = {WSGI}\nharakiri = 2\n" if by == "harakiri" else "module = limited:application\npythonpath = .\n"
    with uwsgi(tmp_path, UWSGI + mode + limit + SPARING, env=environment(receiver), processes=1) as server:
        assert server.get("/late?5").status == 200
        server.wait_until_idle()
        log = server.stop()
    (span,) = server_spans(receiver.spans)
    assert (span.status_code, span.attributes["http.response.status_code"], span.events) == ("UNSET", 200, ())
    assert "Skipping harakiri on worker 1" in log
    assert "killed" not in log


@pytest.mark.skipif(
    uwsgi_version(debian_uwsgi() or UWSGI_PROGRAM) >= THRESHOLD,
    reason="Debian 12's uWSGI and the oldest wheel are older than the option",
)
def test_an_older_master_that_does_not_know_the_threshold_kills_and_that_is_reported(
    tmp_path: Path, receiver: Receiver
) -> None:
    ini = f"{UWSGI}module = {WSGI}\nharakiri = 2\n{SPARING}"
    program = debian_uwsgi() or UWSGI_PROGRAM
    with (
        uwsgi(tmp_path, ini, env=environment(receiver), processes=1, program=program) as server,
        asking(server, "/sleep"),
    ):
        server.wait_for_log("HARAKIRI")
        wait_until(lambda: server_spans(receiver.spans), "the span arrives", lambda: server.log)
    assert_killed(server_span(receiver, "/sleep"), "uwsgi.Harakiri", "uWSGI harakiri after 2 s", "sleep")


@pytest.mark.parametrize("ini", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_a_request_that_set_user_harakiri_kills_arrives(
    tmp_path: Path, receiver: Receiver, ini: str, shown: Shown
) -> None:
    shown(ROWS[ini], "set_user_harakiri")
    (tmp_path / "limited.py").write_text(USER_LIMIT)
    ini = f"{UWSGI}{ini}module = limited:application\npythonpath = .\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        server.get("/quick")
        with asking(server, "/sleep"):
            server.wait_for_log("sends traces as", count=2)
            server.get("/quick")
            server.wait_until_idle()
            server.stop()
    span = server_span(receiver, "/sleep")
    assert_killed(span, "uwsgi.Harakiri", "uWSGI user harakiri after 2 s", "sleep")
    assert len(server_spans(receiver.spans)) == 3


# The last one ends a worker of class gevent, which older releases of Gunicorn let serve requests after its exit hook.
RAISED = ["SystemExit", "greenlet.GreenletExit", "KeyboardInterrupt"]


# Before release 22 nobody answers such a request to class gthread, with or without us.
@pytest.mark.parametrize("host", ["sync", *(["gthread"] if gunicorn_version >= (22,) else []), "gevent", "uWSGI"])
def test_what_is_raised_to_end_a_worker_or_a_greenlet_is_recorded_and_does_what_it_does_untouched(
    tmp_path: Path, receiver: Receiver, host: str
) -> None:
    def outcome(server: Server, path: str) -> int | None:
        try:
            status = server.get(path).status
        except AssertionError:
            # No answer: the connection was closed.
            status = None
        if path != "/quick":
            # A worker that is about to end may take the next connection along.
            wait_until(lambda: outcome(server, "/quick") == 200, "a worker answers", lambda: server.log)
        return status

    outcomes: list[list[int | None]] = []
    log = ""
    for env, conf in ((environment(), None), (environment(receiver), "python:mackerel_otel_server.conf")):
        folder = tmp_path / str(len(outcomes))
        folder.mkdir()
        with (
            uwsgi(folder, f"{UWSGI if conf else 'master = true'}\nmodule = {WSGI}\n", env=env, processes=1)
            if host == "uWSGI"
            else gunicorn(folder, "-k", host, env=env, conf=conf, app=WSGI, workers=1)
        ) as server:
            outcomes.append([outcome(server, f"/raise?{kind}") for kind in RAISED])
            if host == "uWSGI":
                server.wait_until_asleep()
            log = server.stop()
    assert outcomes[0] == outcomes[1]
    for kind in RAISED:
        found = [span for span in server_spans(receiver.spans) if span.attributes.get("url.query") == kind]
        assert len(found) == 1, (kind, outcomes, log)
        (span,) = found
        assert (span.status_code, span.attributes["http.response.status_code"]) == ("ERROR", 500)
        assert span.attributes["error.type"] == kind
        assert [event.attributes["exception.type"] for event in span.events] == [kind]
    # The last worker of an older gevent class answers once more when its exit hook has run.
    others = len(server_spans(receiver.spans)) - len(RAISED)
    assert others == len(RAISED) or (host == "gevent" and gunicorn_version < (22,) and others == len(RAISED) - 1)


def test_nothing_is_reported_where_nothing_is_killed(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, "--timeout", "2", env=environment(receiver), app=WSGI, workers=1) as server:
        server.get("/late?1.5")
        # Idle for longer than the timeout.
        wait_until(lambda: len(receiver.spans) == 1, "the span arrives", lambda: server.log)
        threading.Event().wait(3)
        server.get("/quick")
        log = server.stop()
    assert {span.status_code for span in receiver.spans} == {"UNSET"}
    assert "killed" not in log


@pytest.mark.skipif(
    gunicorn_version < (22,), reason="Older releases count from the start; the other environments check"
)
def test_nothing_is_reported_before_gunicorn_counts(tmp_path: Path, receiver: Receiver) -> None:
    # The first heartbeat of class tornado comes a second after the start, and a request that is quicker holds it up.
    with gunicorn(
        tmp_path, "-k", "tornado", "--timeout", "2", env=environment(receiver), app=WSGI, workers=1
    ) as server:
        assert server.get("/late?4").status == 200
        log = server.stop()
    assert {span.status_code for span in receiver.spans} == {"UNSET"}
    assert "killed" not in log
    assert "WORKER TIMEOUT" not in log


def test_a_signal_handler_may_report_requests_wherever_it_interrupts(tmp_path: Path, receiver: Receiver) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=environment(receiver, OTEL_BSP_MAX_QUEUE_SIZE="100000"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    requests, longest, finished = result.stdout.split()
    spans = server_spans(receiver.spans)
    assert len(spans) == len({span.span_id for span in spans}) == int(requests)
    assert len(receiver.spans) == len({span.span_id for span in receiver.spans}) == int(finished)
    # Never as long as the handler would wait at most: no lock was waited for.
    assert float(longest) < 5
    # A thousandth of them is enough to see that requests were interrupted, not only what is between them.
    assert len([span for span in spans if span.status_code == "ERROR"]) > 100
