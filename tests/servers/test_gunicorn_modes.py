"""Every worker class in every mode of Gunicorn, and every way in which workers leave: no span lost, none twice."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from fault_server import FaultServer, Step, accepted
from servers import (
    DEADLINE,
    LOADED,
    Server,
    Shown,
    assert_one_server_span_per_request,
    environment,
    gunicorn,
    server_spans,
    wait_until,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import decode
from mackerel_otel_server.pipeline import journal_file

UVICORN = "uvicorn_worker.UvicornWorker"
# Gunicorn has an ASGI worker class of its own since release 25.
NATIVE = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []
WORKER_CLASSES = ["sync", "gthread", "gevent", "tornado", *NATIVE, UVICORN]
INSTALL = "from mackerel_otel_server.gunicorn import install\n\ninstall(globals())\n"
LATE = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""Nothing arrives before a worker leaves."""
HANGS = "a"
"""The note for a worker that the arbiter has to kill after graceful_timeout, with and without us."""
MAY_HANG_AT_INT = [(UVICORN, "arbiter"), ("gthread", "group")]


def _options(worker_class: str) -> list[str]:
    return ["-k", worker_class, *(["--threads", "2"] if worker_class == "gthread" else [])]


def _app(worker_class: str) -> str:
    return "asgi_plain:application" if worker_class in ("asgi", UVICORN) else "plain:application"


def _booted(log: str) -> list[str]:
    return re.findall(r"Booting worker with pid: (\d+)", log)


def _starts(log: str) -> list[str]:
    return re.findall(r"\[INFO\] mackerel_otel_server: worker (\d+) sends traces as 'shop' to ", log)


def _ends(log: str) -> dict[str, int]:
    """Return how many spans each worker says to have sent; no worker says so twice."""
    lines = re.findall(r"\[(\d+)\] \[INFO\] mackerel_otel_server: sent (\d+) spans in \d+ requests, lost 0\n", log)
    assert log.count("mackerel_otel_server: sent ") == len(lines) == len(dict(lines)), log
    return {pid: int(count) for pid, count in lines}


def _assert_one_start_line_and_one_end_line_per_worker(server: Server) -> None:
    log = server.log
    assert Counter(_starts(log)) == Counter(_booted(log)), log
    assert set(_ends(log)) == set(_booted(log)), log
    assert sum(_ends(log).values()) == server.answered, log


def _wait_for_ends(server: Server, count: int) -> None:
    wait_until(lambda: len(_ends(server.log)) >= count, f"{count} workers say what they sent", lambda: server.log)


def _is_running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _running_with(argument: str) -> list[int]:
    """Return the processes that have an argument on their command line, whatever session and parent they have."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and argument.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


@contextmanager
def _daemon(tmp_path: Path, *options: str, receiver: Receiver, app: str) -> Iterator[tuple[Server, int]]:
    """Run Gunicorn as a daemon; give the server and its arbiter's pid, and leave nothing behind."""
    pidfile = tmp_path / "gunicorn.pid"
    options = (*options, "--daemon", "--pid", str(pidfile), "--log-file", str(tmp_path / "gunicorn.log"))
    with gunicorn(tmp_path, *options, env=environment(receiver, **LATE), app=app) as server:
        try:
            wait_until(
                lambda: pidfile.exists() and pidfile.read_text().strip(), "there is a pid file", lambda: server.log
            )
            yield server, int(pidfile.read_text())
            wait_until(lambda: not _running_with(str(pidfile)), "the daemon's processes end", lambda: server.log)
        finally:
            for pid in _running_with(str(pidfile)):
                os.kill(pid, signal.SIGKILL)


# Ways to stop


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_nothing_is_lost_at_hup_ttou_winch_and_term(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "start", "HUP", "TTOU", "WINCH", "TERM")
    # As a daemon: otherwise Gunicorn ignores WINCH.
    app = _app(worker_class)
    with _daemon(tmp_path, *_options(worker_class), receiver=receiver, app=app) as (server, arbiter):
        first = server.ask_every_worker(2, 6)
        assert receiver.spans == []
        os.kill(arbiter, signal.SIGHUP)
        _wait_for_ends(server, 2)
        second = server.ask_every_worker(2, 6)
        assert not first & second
        os.kill(arbiter, signal.SIGTTOU)
        _wait_for_ends(server, 3)
        assert server.ask_every_worker(1, 2) < second
        os.kill(arbiter, signal.SIGWINCH)
        _wait_for_ends(server, 4)
        os.kill(arbiter, signal.SIGHUP)
        third = server.ask_every_worker(2, 2)
        assert not (first | second) & third
        os.kill(arbiter, signal.SIGTERM)
        wait_until(lambda: not _is_running(arbiter), "the arbiter ends", lambda: server.log)
    assert_one_server_span_per_request(receiver, server, first | second | third)
    _assert_one_start_line_and_one_end_line_per_worker(server)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_what_is_answered_while_workers_are_replaced_is_traced_once(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "HUP")
    replaced = threading.Event()

    def ask_until_replaced(server: Server) -> int:
        sent = 0
        while not replaced.is_set():
            # A class may close a connection that it has accepted before it reads from it.
            with suppress(AssertionError):
                sent += 1
                server.get("/pid")
        return sent

    options, env = _options(worker_class), environment(receiver, **LATE)
    with gunicorn(tmp_path, *options, env=env, app=_app(worker_class)) as server:
        server.ask_every_worker(2, 2)
        before = server.answered
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask_until_replaced, server) for _ in range(4)]
            try:
                server.send(signal.SIGHUP)
                _wait_for_ends(server, 2)
            finally:
                replaced.set()
            sent = before + sum(each.result() for each in asking)
        broken = sent - server.answered
        server.ask_every_worker(2, 2)
        server.stop()
    spans = server_spans(receiver.spans)
    assert len({span.span_id for span in spans}) == len(spans)
    assert server.answered <= len(spans) <= server.answered + broken, server.log
    assert broken < server.answered
    assert set(_ends(server.log)) == set(_booted(server.log))


TELL_LIMIT = (
    "def post_worker_init(worker):\n"
    "    print(f'worker {worker.pid} leaves after {worker.max_requests} requests', flush=True)\n\n"
)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_nothing_is_lost_at_max_requests_with_jitter_and_at_quit(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "max_requests")
    shown(worker_class, "QUIT", limit=HANGS if worker_class == UVICORN else "")
    (tmp_path / "gunicorn.conf.py").write_text(TELL_LIMIT + INSTALL)
    options = (*_options(worker_class), "--max-requests", "3", "--max-requests-jitter", "3", "--graceful-timeout", "2")
    env, app = environment(receiver, **LATE), _app(worker_class)
    answered: Counter[str] = Counter()
    with gunicorn(tmp_path, *options, env=env, app=app, conf=None, workers=1) as server:
        for leaving in (1, 2):
            while len(_ends(server.log)) < leaving:
                pid = server.get("/pid").body.decode()
                answered[pid] += 1
                limit = int(server.wait_for_log(rf"worker {pid} leaves after (\d+) requests").group(1))
                assert 3 <= limit <= 6
                if answered[pid] == limit:
                    _wait_for_ends(server, leaving)
        answered[server.get("/pid").body.decode()] += 1
        assert len(answered) == 3
        # At QUIT, one of gthread hangs for ever, with or without us, if its main thread is still submitting a request.
        server.wait_until_asleep()
        server.stop(signal.SIGQUIT)
    assert_one_server_span_per_request(receiver, server, set(answered))
    if worker_class == UVICORN:
        # It does not leave at QUIT, with or without us: the arbiter kills it after graceful_timeout.
        assert len(_ends(server.log)) == 2
    else:
        _assert_one_start_line_and_one_end_line_per_worker(server)
        assert _ends(server.log) == answered


@pytest.mark.parametrize("to", ["arbiter", "group"])
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_nothing_is_lost_at_int(tmp_path: Path, receiver: Receiver, worker_class: str, to: str, shown: Shown) -> None:
    shown(worker_class, "INT", limit=HANGS if (worker_class, to) in MAY_HANG_AT_INT else "")
    options = (*_options(worker_class), "--graceful-timeout", "2")
    with gunicorn(tmp_path, *options, env=environment(receiver, **LATE), app=_app(worker_class)) as server:
        pids = server.ask_every_worker(2, 6)
        assert receiver.spans == []
        server.wait_until_asleep()
        if to == "arbiter":
            server.send(signal.SIGINT)
        else:
            # As Ctrl-C in a terminal does it; the arbiter signals its workers, too.
            os.killpg(server.process.pid, signal.SIGINT)
        server.wait()
    assert_one_server_span_per_request(receiver, server, pids)
    if (worker_class, to) == (UVICORN, "arbiter"):
        # It does not leave at the QUIT that the arbiter sends.
        assert _ends(server.log) == {}
    elif (worker_class, to) == ("gthread", "group"):
        _assert_lines_but_of_workers_that_two_signals_make_hang(server)
    else:
        _assert_one_start_line_and_one_end_line_per_worker(server)


def _assert_lines_but_of_workers_that_two_signals_make_hang(server: Server) -> None:
    # The handler of class gthread waits for the lock of its thread pool, with or without us, which its first run may
    # hold: the arbiter kills it after graceful_timeout.
    log = server.log
    assert Counter(_starts(log)) == Counter(_booted(log)), log
    assert set(_ends(log)) <= set(_booted(log)), log


def _slowly(server: FaultServer, sock: socket.socket) -> None:
    server.stopping.wait(0.7)
    body = accepted().body
    sock.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_second_ctrl_c_while_spans_are_on_their_way_loses_none(
    tmp_path: Path, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "INT")

    with FaultServer(Step(act=_slowly)) as far:
        env = environment(
            None, MACKEREL_OTEL_ENDPOINT=far.url, MACKEREL_APIKEY="test-key", OTEL_SERVICE_NAME="shop", **LATE
        )
        options = (*_options(worker_class), "--graceful-timeout", "4")
        with gunicorn(tmp_path, *options, env=env, app=_app(worker_class), workers=1) as server:
            server.ask_every_worker(1, 2)
            server.wait_until_asleep()
            os.killpg(server.process.pid, signal.SIGINT)
            wait_until(lambda: far.requests, "the worker sends", lambda: server.log)
            os.killpg(server.process.pid, signal.SIGINT)
            server.wait()
        assert len(set(far.span_ids)) == len(far.span_ids) == server.answered
    if worker_class in ("gthread", "tornado"):
        # tornado: before Gunicorn 22.
        _assert_lines_but_of_workers_that_two_signals_make_hang(server)
    else:
        _assert_one_start_line_and_one_end_line_per_worker(server)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_term_that_comes_when_max_requests_has_ended_a_worker_loses_no_span(
    tmp_path: Path, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "max_requests")
    with FaultServer(Step(act=_slowly)) as far:
        env = environment(
            None, MACKEREL_OTEL_ENDPOINT=far.url, MACKEREL_APIKEY="test-key", OTEL_SERVICE_NAME="shop", **LATE
        )
        options = (*_options(worker_class), "--max-requests", "2")
        with gunicorn(tmp_path, *options, env=env, app=_app(worker_class), workers=1) as server:
            (pid,) = {server.get("/pid").body.decode() for _ in range(2)}
            wait_until(lambda: far.requests, "the worker sends", lambda: server.log)
            # As at a reload in the same moment.
            os.kill(int(pid), signal.SIGTERM)
            # The server goes on, so the worker has waited for an answer that took longer for half a second only.
            server.wait_for_log(
                rf"\[{pid}\] .* mackerel_otel_server: sent 0 spans in 0 requests, lost 2 \(unconfirmed 2\)\n"
            )
            server.ask_every_worker(1, 1)
            server.stop()
        assert len(set(far.span_ids)) == len(far.span_ids) == server.answered
    log = server.log
    assert Counter(_starts(log)) == Counter(_booted(log)), log
    assert log.count("mackerel_otel_server: sent ") == len(_booted(log)), log


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_an_endpoint_that_never_answers_holds_up_term_for_the_shutdown_timeout_at_most(
    tmp_path: Path, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "hanging endpoint")

    def stop(server: Server) -> float:
        began = time.monotonic()
        server.stop()
        return time.monotonic() - began

    app, options = _app(worker_class), _options(worker_class)
    folders = tmp_path / "untouched", tmp_path / "traced"
    for folder in folders:
        folder.mkdir()
    with gunicorn(folders[0], *options, env=environment(), conf=None, app=app, workers=1) as server:
        server.get("/pid")
        # Some classes look once a second whether they are to leave, the arbiter ten times a second whether they have.
        untouched = max(stop(server), 1.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        env = environment(
            MACKEREL_OTEL_ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces",
            MACKEREL_APIKEY="test-key",
            MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1",
            OTEL_BSP_SCHEDULE_DELAY="100",
        )
        with gunicorn(folders[1], *options, env=env, app=app, workers=1) as server:
            server.get("/pid")
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1)
                # One more, which waits behind the one that is under way.
                server.get("/pid")
                took = stop(server)
    assert "sent 0 spans in 0 requests, lost 1 (unconfirmed 1), left 1 in the journal: " in server.log, server.log
    (file,) = Path(os.environ["MACKEREL_OTEL_SPOOL"]).iterdir()
    assert len(journal_file.read(file.read_bytes())) == 1
    assert took < untouched + 1 + 0.5 + LOADED, server.log


# Modes


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


CALLS_OUT = """
import os
import requests

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        status = requests.get(os.environ["FAR_URL"], verify=os.environ["FAR_CA"], timeout=20).status_code
    except RecursionError as error:
        status = type(error).__name__
    return [str(status).encode()]
"""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-k", "sync", "--preload"], id="sync-preload"),
        pytest.param(["-k", "gthread", "--threads", "2"], id="gthread"),
        pytest.param(["-k", "tornado"], id="tornado"),
        pytest.param(["-k", "gevent"], id="gevent"),
        pytest.param(["-k", "gevent", "--preload"], id="gevent-preload"),
    ],
)
def test_an_application_that_speaks_https_is_answered_as_untouched_and_its_spans_arrive_over_https(
    tmp_path: Path, authority: trustme.CA, options: list[str], shown: Shown
) -> None:
    shown("https", options[1])
    (tmp_path / "calls_out.py").write_text(CALLS_OUT)
    authority_file = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(authority_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FaultServer(context=context) as called, FaultServer(context=context) as far:
        shared = {"FAR_URL": called.url, "FAR_CA": authority_file}
        untouched = b"200"
        if options == ["-k", "gevent", "--preload"]:
            # gevent patches after the preload, and what urllib3 has made of ssl by then works no longer, with or
            # without us.
            untouched = b"RecursionError"
            env = environment(None, **shared)
            with gunicorn(tmp_path, *options, env=env, conf=None, app="calls_out:application", workers=1) as server:
                assert server.get().body == untouched
                server.stop()
        env = environment(
            None,
            MACKEREL_OTEL_ENDPOINT=far.url,
            MACKEREL_APIKEY="test-key",
            OTEL_SERVICE_NAME="shop",
            OTEL_EXPORTER_OTLP_CERTIFICATE=authority_file,
            **shared,
        )
        with gunicorn(tmp_path, *options, env=env, app="calls_out:application", workers=1) as server:
            assert [server.get().body for _ in range(6)] == [untouched] * 6
            server.stop()
        spans = [span for request in far.requests for span in decode(request.data)]
    assert len(server_spans(spans)) == server.answered
    assert len({span.span_id for span in spans}) == len(spans)
    assert sum(_ends(server.log).values()) == len(spans)


@pytest.mark.parametrize("worker_class", [*NATIVE, UVICORN])
def test_spans_of_an_asgi_application_arrive_over_https(
    tmp_path: Path, authority: trustme.CA, worker_class: str, shown: Shown
) -> None:
    shown("https", worker_class)
    authority_file = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(authority_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FaultServer(context=context) as far:
        env = environment(
            None,
            MACKEREL_OTEL_ENDPOINT=far.url,
            MACKEREL_APIKEY="test-key",
            OTEL_SERVICE_NAME="shop",
            OTEL_EXPORTER_OTLP_CERTIFICATE=authority_file,
        )
        with gunicorn(tmp_path, *_options(worker_class), env=env, app=_app(worker_class)) as server:
            server.ask_every_worker(2, 6)
            server.stop()
    assert len(far.span_ids) == len(set(far.span_ids)) == server.answered == sum(_ends(server.log).values())


DIRTY = "from gunicorn.dirty import DirtyApp\n\nclass Dirty(DirtyApp):\n    pass\n"


@pytest.mark.skipif(not NATIVE, reason="Gunicorn has dirty workers since release 25; the other environments check them")
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_beside_dirty_workers_every_request_is_traced_and_they_stay_quiet(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown("dirty_workers", worker_class)
    (tmp_path / "dirty.py").write_text(DIRTY)
    # A name: an arbiter ends the dirty workers of another server of the same name, as if they were its own of before.
    name = ("--name", uuid.uuid4().hex)
    options = (*_options(worker_class), *name, "--dirty-app", "dirty:Dirty", "--dirty-workers", "1")
    env = environment(receiver, **LATE)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, *options, env=env, app=_app(worker_class)) as server:
        dirty = server.wait_for_log(r"Spawned dirty worker \(pid: (\d+)\)").group(1)
        pids = server.ask_every_worker(2, 6)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert set(_starts(server.log)) == set(_ends(server.log)) == pids
    assert dirty not in pids


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_reload_to_an_application_that_cannot_be_loaded_ends_the_server_as_without_us_and_loses_nothing(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown(worker_class, "boot failure")
    module = _app(worker_class).partition(":")[0]
    changing = tmp_path / "changing.py"
    statuses = []
    for env, conf in (
        (environment(), None),
        (environment(receiver, **LATE), "python:mackerel_otel_server.conf"),
    ):
        changing.write_text(f"from {module} import application\n")
        with gunicorn(tmp_path, *_options(worker_class), env=env, conf=conf, app="changing:application") as server:
            pids = server.ask_every_worker(2, 6)
            changing.write_text("raise RuntimeError('not today')  # and longer than before\n")
            server.send(signal.SIGHUP)
            statuses.append(server.wait())
            assert "RuntimeError: not today" in server.log
    # 3, or 1 when the second of the new workers fails while the arbiter stops the others.
    assert set(statuses) <= {1, 3}
    assert_one_server_span_per_request(receiver, server, pids)
    assert not re.search(r"\[(WARNING|ERROR)\] mackerel_otel_server", server.log), server.log


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_processes_that_the_application_forks_send_nothing_twice(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown("os.fork, multiprocessing", worker_class)
    # Python 3.12+ warns that a process with threads is forked; that is the case under test.
    env = environment(receiver, PYTHONDEVMODE="", PYTHONWARNINGS="ignore::DeprecationWarning", **LATE)
    # A child of gthread's that leaves by sys.exit has but the one thread, which goes on waiting for work, with or
    # without us.
    exits = [] if worker_class == "gthread" else ["/exit"]
    answers: Counter[tuple[str, str]] = Counter()
    with gunicorn(tmp_path, *_options(worker_class), env=env, app="forking:application", workers=1) as server:
        for path in ("/first", *exits, "/multiprocessing", *exits, "/last"):
            # Whatever Gunicorn makes of the exit in the child: the response is the application's own affair. In class
            # sync the child may even serve the next request before it sees that it is no worker.
            with suppress(AssertionError):
                answers[path, server.get(path).body.decode()] += path != "/exit"
        log = server.stop()
        server.wait_for_end_of_session()
    spans = server_spans(receiver.spans)
    served = Counter((str(span.attributes["url.path"]), str(span.resource["process.pid"])) for span in spans)
    assert sum(count for (path, _), count in served.items() if path == "/exit") == 2 * len(exits), (served, log)
    assert {key: count for key, count in served.items() if key[0] != "/exit"} == dict(+answers), log
    # None of the children speaks, nor waits, for what its parent had queued; one has a span of its own.
    (other,) = [span for span in receiver.spans if span.kind != "SERVER"]
    assert _ends(log).pop(str(other.resource["process.pid"])) == 1
    assert sum(_ends(log).values()) == len(receiver.spans), log


@pytest.mark.parametrize(
    "app", ["tornado_app:make()", "plain:application"], ids=["a tornado application", "a WSGI callable"]
)
def test_under_the_worker_class_tornado_the_application_serves_and_one_line_says_what_is_not_traced(
    tmp_path: Path, receiver: Receiver, app: str
) -> None:
    (tmp_path / "tornado_app.py").write_text(
        "import tornado.web\n\n"
        "class Hello(tornado.web.RequestHandler):\n"
        "    def get(self):\n"
        "        self.write('hello')\n\n"
        "def make():\n"
        "    return tornado.web.Application([('/', Hello)])\n"
    )
    with gunicorn(tmp_path, "-k", "tornado", env=environment(receiver), app=app, workers=1) as server:
        response = server.get()
        log = server.stop()
    assert (response.status, response.body) == (200, b"hello")
    assert log.count("TornadoWorker does not serve a WSGI application: requests make no server spans") == (
        app != "plain:application"
    ), log
    assert len(server_spans(receiver.spans)) == (app == "plain:application")
    assert len(_starts(log)) == len(_ends(log)) == 1, log


# UvicornWorker says that it reloads, and does not, untouched as well.
@pytest.mark.parametrize("worker_class", [worker_class for worker_class in WORKER_CLASSES if worker_class != UVICORN])
def test_with_reload_a_changed_application_replaces_the_workers_and_loses_no_span(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown("--reload", worker_class)
    application = tmp_path / "changing.py"
    application.write_text(f"from {_app(worker_class).partition(':')[0]} import application\n")
    options = (*_options(worker_class), "--reload", "--reload-engine", "poll")
    with gunicorn(tmp_path, *options, env=environment(receiver, **LATE), app="changing:application") as server:
        first = server.ask_every_worker(2, 6)
        # Later than what the reloader has seen, whatever the file system's clock can tell apart.
        later = time.time() + 10
        os.utime(application, (later, later))
        _wait_for_ends(server, 2)
        second = server.ask_every_worker(2, 6)
        server.stop()
    assert not first & second
    assert_one_server_span_per_request(receiver, server, first | second)
    _assert_one_start_line_and_one_end_line_per_worker(server)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_after_usr2_the_new_arbiters_workers_trace_and_the_old_ones_lose_nothing(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown("USR2", worker_class)
    # Not "-m gunicorn": executed again, that looks for modules among Gunicorn's own.
    (tmp_path / "serve.py").write_text("from gunicorn.app.wsgiapp import run\n\nrun()\n")
    program = [sys.executable, str(tmp_path / "serve.py")]
    options, env, app = _options(worker_class), environment(receiver, **LATE), _app(worker_class)
    with gunicorn(tmp_path, *options, env=env, app=app, program=program, own_socket=True) as server:
        old = server.ask_every_worker(2, 6)
        server.send(signal.SIGUSR2)
        both = server.ask_every_worker(4, 4)
        assert old < both
        assert receiver.spans == []
        server.stop()
        _wait_for_ends(server, 2)
        assert set(_ends(server.log)) == old
        assert server.ask_every_worker(2, 6) == both - old
        (new_arbiter,) = set(re.findall(r"\[(\d+)\] \[INFO\] Listening at", server.log)) - {str(server.process.pid)}
        os.kill(int(new_arbiter), signal.SIGTERM)
        server.wait_for_end_of_session()
    assert_one_server_span_per_request(receiver, server, both)
    _assert_one_start_line_and_one_end_line_per_worker(server)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_the_configuration_may_be_named_in_gunicorn_cmd_args(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown("GUNICORN_CMD_ARGS", worker_class)
    shown("preload_app", worker_class)
    env = environment(receiver, GUNICORN_CMD_ARGS="-c python:mackerel_otel_server.conf")
    options = (*_options(worker_class), "--preload")
    with gunicorn(tmp_path, *options, env=env, conf=None, app=_app(worker_class)) as server:
        pids = server.ask_every_worker(2, 6)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    _assert_one_start_line_and_one_end_line_per_worker(server)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_the_variables_may_stand_in_raw_env_and_change_at_hup(
    tmp_path: Path, receiver: Receiver, worker_class: str, shown: Shown
) -> None:
    shown("raw_env", worker_class)

    def configure(service: str) -> None:
        variables = {
            "MACKEREL_OTEL_ENDPOINT": receiver.url,
            "MACKEREL_APIKEY": "test-key",
            "OTEL_SERVICE_NAME": service,
        }
        raw_env = [f"{name}={value}" for name, value in variables.items()]
        (tmp_path / "gunicorn.conf.py").write_text(f"raw_env = {raw_env}\n{INSTALL}")

    configure("first")
    options, app = _options(worker_class), _app(worker_class)
    with gunicorn(tmp_path, *options, env=environment(), conf=None, app=app) as server:
        first = server.ask_every_worker(2, 4)
        configure("second")
        server.send(signal.SIGHUP)
        _wait_for_ends(server, 2)
        second = server.ask_every_worker(2, 4)
        server.stop()
    assert_one_server_span_per_request(receiver, server, first | second)
    names = {(span.resource["service.name"], str(span.resource["process.pid"]) in first) for span in receiver.spans}
    assert names == {("first", True), ("second", False)}
    assert len(_ends(server.log)) == 4


# Configuration files that do odd things


@pytest.mark.parametrize("hook", ["on_starting(server)", "post_fork(server, worker)", "post_worker_init(worker)"])
def test_a_hook_of_the_user_that_raises_ends_the_server_as_without_us(tmp_path: Path, hook: str) -> None:
    text = f"def {hook}:\n    raise RuntimeError('hook of the user')\n\n"
    results = []
    for ours in ("", INSTALL):
        (tmp_path / "gunicorn.conf.py").write_text(text + ours)
        result = subprocess.run(
            [sys.executable, "-m", "gunicorn", "-w", "1", "-b", "127.0.0.1:0", "plain:application"],
            cwd=tmp_path,
            env=environment(HOME=str(tmp_path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        results.append((result.returncode, result.stderr.count("hook of the user\n")))
    assert results[0] == results[1]
    assert min(results[0]) > 0


BY_HAND = {
    # Each once more, and Gunicorn calls the file's own, too.
    "twice in the worker": (
        "def post_fork(server, worker):\n"
        "    ours.post_fork(server, worker)\n"
        "    ours.post_fork(server, worker)\n\n"
        "def post_worker_init(worker):\n"
        "    ours.post_worker_init(worker)\n"
        "    ours.post_worker_init(worker)\n\n"
        "def worker_exit(server, worker):\n"
        "    ours.worker_exit(server, worker)\n"
        "    ours.worker_exit(server, worker)\n\n"
    ),
    # As Gunicorn does with the last one when it signals a worker that is gone.
    "in the arbiter": (
        "def when_ready(server):\n"
        "    worker = server.worker_class(1, server.pid, [], server.app, 1.0, server.cfg, server.log)\n"
        "    ours.on_starting(server)\n"
        "    ours.on_reload(server)\n"
        "    ours.worker_abort(worker)\n"
        "    ours.worker_exit(server, worker)\n"
        "    ours.worker_exit(server, worker)\n\n"
    ),
    "with nonsense": (
        "def when_ready(server):\n"
        "    ours.on_starting(None)\n"
        "    ours.on_reload(None)\n"
        "    ours.worker_abort(None)\n"
        "    ours.worker_exit(None, None)\n\n"
    ),
}


@pytest.mark.parametrize("worker_class", ["sync", "gevent"])
@pytest.mark.parametrize("how", BY_HAND)
def test_hooks_that_are_called_by_hand_change_nothing(
    tmp_path: Path, receiver: Receiver, how: str, worker_class: str
) -> None:
    text = "from mackerel_otel_server import gunicorn as ours\n\n" + BY_HAND[how]
    (tmp_path / "gunicorn.conf.py").write_text(text + INSTALL)
    with gunicorn(tmp_path, "-k", worker_class, env=environment(receiver, **LATE), conf=None) as server:
        pids = server.ask_every_worker(2, 6)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    _assert_one_start_line_and_one_end_line_per_worker(server)


def test_an_arbiter_that_was_made_to_trace_keeps_its_workers_tracing(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "def when_ready(server):\n"
        "    from mackerel_otel_server import gunicorn as ours\n"
        "    worker = server.worker_class(1, server.pid, [], server.app, 1.0, server.cfg, server.log)\n"
        "    ours.post_fork(server, worker)\n"
        "    ours.post_worker_init(worker)\n\n" + INSTALL
    )
    with gunicorn(tmp_path, env=environment(receiver, **LATE), conf=None) as server:
        pids = server.ask_every_worker(2, 6)
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert set(_starts(log)) == {str(server.process.pid), *_booted(log)}
    assert _ends(log).pop(str(server.process.pid), 0) == 0
    assert sum(_ends(log).values()) == server.answered


def test_worker_exit_in_the_arbiter_says_nothing_when_a_worker_is_gone_before_its_signal(
    tmp_path: Path, receiver: Receiver
) -> None:
    # Gunicorn's own way to that call: the worker has been reaped by somebody else.
    (tmp_path / "gunicorn.conf.py").write_text(
        "def on_exit(server):\n"
        "    print('on_exit', flush=True)\n\n"
        "def when_ready(server):\n"
        "    def kill_worker(pid, number, original=server.kill_worker):\n"
        "        import os, signal\n"
        "        os.kill(pid, signal.SIGTERM)\n"
        "        os.waitpid(pid, 0)\n"
        "        original(pid, number)\n"
        "    server.kill_worker = kill_worker\n\n" + INSTALL
    )
    with gunicorn(tmp_path, env=environment(receiver, **LATE), conf=None) as server:
        pids = server.ask_every_worker(2, 6)
        log = server.stop()
    assert "on_exit\n" in log
    assert "mackerel_otel_server/gunicorn.py" not in log, log
    assert_one_server_span_per_request(receiver, server, pids)
    _assert_one_start_line_and_one_end_line_per_worker(server)
