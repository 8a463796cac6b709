"""The end of tracing in a process, whoever brings it about: no longer than promised, and true to the counts."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fault_server import FaultServer, Step, never
from servers import LOADED, Server, Shown, environment, gunicorn, server_spans, uwsgi, wait_until

from mackerel_otel_server.cli.receiver.endpoint import Receiver

UVICORN = "uvicorn_worker.UvicornWorker"
# Gunicorn has an ASGI worker class of its own since release 25.
NATIVE = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []
WORKER_CLASSES = ["sync", "gthread", "gevent", *NATIVE, UVICORN]
UWSGI = {
    "uwsgi": "",
    "uwsgi lazy-apps": "lazy-apps = true\n",
    "uwsgi gevent": "gevent = 20\n",
    "uwsgi gevent, patched": "gevent = 20\ngevent-monkey-patch = true\n",
}
HOSTS = [*WORKER_CLASSES, *UWSGI]
QUICK = 0.5
"""Seconds: what promise 1 of the documents allows."""


def serve(host: str, folder: Path, env: dict[str, str]) -> AbstractContextManager[Server]:
    """Run the applications of ``leaving`` with one worker."""
    folder.mkdir(exist_ok=True)
    if host in UWSGI:
        ini = f"import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\n{UWSGI[host]}"
        return uwsgi(folder, f"{ini}module = leaving\n", env=env, processes=1)
    app = "leaving:asgi" if host in ("asgi", UVICORN) else "leaving:application"
    options = ["-k", host, *(["--threads", "2"] if host == "gthread" else [])]
    return gunicorn(folder, *options, env=env, app=app, workers=1)


def wait_until_idle(host: str, server: Server) -> None:
    if host in UWSGI:
        server.wait_until_idle()


@pytest.mark.parametrize("host", HOSTS)
def test_what_the_application_flushes_and_shuts_down_at_exit_returns_at_once(tmp_path: Path, host: str) -> None:
    took = {}
    with FaultServer(Step(act=never)) as endpoint:
        for traced in (False, True):
            env = environment(
                MACKEREL_OTEL_ENDPOINT=endpoint.url,
                MACKEREL_APIKEY="test-key",
                OTEL_SERVICE_NAME="shop",
                OTEL_SDK_DISABLED="" if traced else "true",
                MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1",
                OTEL_BSP_SCHEDULE_DELAY="60000",
            )
            with serve(host, tmp_path / str(traced), env) as server:
                server.get()
                wait_until_idle(host, server)
                began = time.monotonic()
                log = server.stop()
                took[traced] = time.monotonic() - began
    assert "lost 2 (" in log, log
    # Python's atexit does not run where uvicorn raises the signal again, nor under uWSGI's gevent plugin.
    acts = re.findall(r"at exit, (\w+) took (\d+\.\d+) s", log)
    expected = [] if host == UVICORN or host.startswith("uwsgi gevent") else ["flush", "shutdown", "provider"]
    assert [act for act, _ in acts] == expected, log
    assert all(float(seconds) < QUICK for _, seconds in acts), log
    assert took[True] < took[False] + 1 + QUICK + LOADED, (took, log)


@pytest.mark.parametrize("way", ["HUP", "TTOU", "max_requests"])
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_worker_that_leaves_while_its_server_goes_on_waits_for_a_hanging_endpoint_half_a_second_at_most(
    tmp_path: Path, worker_class: str, way: str, shown: Shown
) -> None:
    shown(worker_class, "hanging endpoint", way)
    took = {}
    options = ["-k", worker_class, *(["--threads", "2"] if worker_class == "gthread" else [])]
    workers = 1 if way == "max_requests" else 2
    if way == "max_requests":
        options += ["--max-requests", "2"]
    with FaultServer(Step(act=never)) as endpoint:
        for traced in (False, True):
            # The timeout is five seconds.
            env = environment(
                MACKEREL_OTEL_ENDPOINT=endpoint.url,
                MACKEREL_APIKEY="test-key",
                OTEL_SERVICE_NAME="shop",
                OTEL_SDK_DISABLED="" if traced else "true",
                OTEL_BSP_SCHEDULE_DELAY="60000",
            )
            app = "asgi_plain:application" if worker_class in ("asgi", UVICORN) else "plain:application"
            (folder := tmp_path / str(traced)).mkdir()
            with gunicorn(folder, *options, env=env, app=app, workers=workers) as server:
                pids = set(map(int, server.ask_every_worker(workers, 2)))
                began = time.monotonic()
                if way != "max_requests":
                    server.send(signal.Signals[f"SIG{way}"])
                leaving = 1 if way == "TTOU" else workers
                wait_until(
                    lambda: len(pids & set(server.left_behind())) == len(pids) - leaving,  # noqa: B023
                    "workers leave",
                    lambda: server.log,
                )
                took[traced] = time.monotonic() - began
                log = server.log
                # What stays is not what this test is about.
                server.kill()
    # Some classes look once a second whether they are to leave.
    assert took[True] < max(took[False], 1.1) + QUICK + LOADED, (took, log)
    # Nobody knows whether what was sent has arrived. Half a second may be too short on a loaded machine.
    ends = re.findall(
        r"sent 0 spans in 0 requests, lost (?:\d+ \(unconfirmed \d+\)|0, left \d+ in the journal: .*)\n", log
    )
    assert len(ends) == leaving, log


@pytest.mark.parametrize("act", ["shutdown", "provider"])
@pytest.mark.parametrize("host", HOSTS)
def test_requests_after_the_applications_own_shutdown_are_served_untraced(
    tmp_path: Path, receiver: Receiver, host: str, act: str
) -> None:
    with serve(host, tmp_path, environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")) as server:
        server.get("/query")
        at_shutdown = json.loads(server.get(f"/{act}").body)
        for _ in range(3):
            after = json.loads(server.get("/query").body)
        assert json.loads(server.get("/instrument").body)["finished"] == after["finished"]
        server.get("/flush")
        wait_until_idle(host, server)
        log = server.stop()
    assert at_shutdown["queued"] == 0, at_shutdown
    # The span of the request that has ended tracing was under way, and is in the journal.
    assert (after["finished"], after["queued"]) == (after["delivered"] + 1, 0), after
    assert (after["lost"], after["left"]) == ({}, 1), after
    assert len(server_spans(receiver.spans)) == 1
    # The query's, the application's own and the request's.
    assert len(receiver.spans) == after["delivered"] == 3
    assert len(re.findall(rf"sent {after['delivered']} spans in 1 requests, lost 0", log)) == 1, log
    assert "spans that ended after shutdown" not in log, log
    assert log.count("instrument() has no effect after shutdown") == 1, log
    with serve(host, tmp_path / "next start", environment(receiver, OTEL_BSP_SCHEDULE_DELAY="100")) as server:
        server.wait_for_log(r"delivered 1 spans that worker \d+ left behind")
        server.wait_until_asleep()
    (of_next_start,) = server_spans(receiver.spans)[1:]
    assert of_next_start.attributes["url.path"] == f"/{act}"


@pytest.mark.parametrize("host", HOSTS)
def test_without_a_journal_a_request_that_is_under_way_at_the_applications_own_shutdown_is_lost_and_counted(
    tmp_path: Path, receiver: Receiver, host: str
) -> None:
    with serve(host, tmp_path, environment(receiver, MACKEREL_OTEL_SPOOL="none")) as server:
        server.get("/shutdown")
        after = json.loads(server.get("/query").body)
        wait_until_idle(host, server)
        log = server.stop()
    assert (after["finished"], after["lost"], after["left"]) == (1, {"ended after shutdown": 1}, 0), after
    assert receiver.spans == []
    assert log.count("lost 1 spans that ended after shutdown") == 1, log


def test_force_flush_sends_what_is_queued(tmp_path: Path, receiver: Receiver) -> None:
    with serve("sync", tmp_path, environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")) as server:
        server.get("/query")
        server.get("/flush")
        assert len(server_spans(receiver.spans)) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_a_pipeline_whose_stop_raises_holds_up_no_exit(tmp_path: Path, receiver: Receiver, host: str) -> None:
    took = {}
    for traced in (False, True):
        env = environment(receiver, OTEL_SDK_DISABLED="" if traced else "true", STOP_FAILS="1")
        with serve(host, tmp_path / str(traced), env) as server:
            server.get()
            wait_until_idle(host, server)
            began = time.monotonic()
            log = server.stop()
            took[traced] = time.monotonic() - began
    assert log.count("spans may be lost: the pipeline did not stop") >= 1, log
    assert took[True] < took[False] + QUICK + LOADED, (took, log)


def test_a_worker_whose_pipeline_did_not_stop_and_that_waits_for_a_thread_still_obeys_term(
    tmp_path: Path, receiver: Receiver
) -> None:
    env = environment(receiver, STOP_FAILS="1")
    options = ["-k", UVICORN, "--max-requests", "2"]
    with gunicorn(tmp_path, *options, env=env, app="leaving:asgi", workers=1) as server:
        server.get("/thread")
        server.get()
        # It leaves because of its limit, and Python waits for the thread.
        server.wait_for_log("the pipeline did not stop")
        server.wait_until_asleep()
        began = time.monotonic()
        server.stop()
        # Far below Gunicorn's graceful_timeout of 30 s, at whose end it would be killed.
        assert time.monotonic() - began < 10, server.log


SCRIPTS: dict[str, tuple[list[str], str]] = {
    "shutdown before the first span": (
        [],
        """
assert mackerel_otel_server.shutdown()
with tracer.start_as_current_span('after') as span:
    assert not span.is_recording()
assert trace.get_tracer_provider().force_flush()
assert mackerel_otel_server.stats() == {}
""",
    ),
    "a process that is forked after the shutdown": (
        ["before", "of the child"],
        """
with tracer.start_as_current_span('before'):
    pass
assert mackerel_otel_server.shutdown()
if os.fork() == 0:
    # Nothing is there to be flushed, in a process that has no pipeline.
    assert trace.get_tracer_provider().force_flush()
    with tracer.start_as_current_span('of the child') as span:
        assert span.is_recording()
    assert trace.get_tracer_provider().force_flush()
    sys.exit(0)
assert os.wait()[1] == 0
with tracer.start_as_current_span('after') as span:
    assert not span.is_recording()
""",
    ),
    "a span that is open at the shutdown": (
        [],
        """
with tracer.start_as_current_span('open'):
    assert mackerel_otel_server.shutdown()
stats = mackerel_otel_server.stats()
assert (stats['lost'], stats['left'], stats['queued']) == ({}, 1, 0)
assert not mackerel_otel_server.shutdown()
""",
    ),
    "a second shutdown, and one of the provider": (
        ["one"],
        """
with tracer.start_as_current_span('one'):
    pass
assert mackerel_otel_server.shutdown()
assert mackerel_otel_server.shutdown()
trace.get_tracer_provider().shutdown()
assert mackerel_otel_server.stats()['delivered'] == 1
""",
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_shutdown_ends_tracing_in_the_process_that_calls_it(tmp_path: Path, receiver: Receiver, script: str) -> None:
    arrived, body = SCRIPTS[script]
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "import mackerel_otel_server\n"
        "mackerel_otel_server.instrument()\n"
        "from opentelemetry import trace\n"
        "tracer = trace.get_tracer('script')\n" + body
    )
    result = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        # Python 3.12+ warns that a process with threads is forked; that is the case under test.
        env=environment(
            receiver, OTEL_BSP_SCHEDULE_DELAY="60000", PYTHONDEVMODE="", PYTHONWARNINGS="ignore::DeprecationWarning"
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, "Error" in result.stderr) == (0, False), result.stderr
    assert sorted(span.name for span in receiver.spans) == arrived
