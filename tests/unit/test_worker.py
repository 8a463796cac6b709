"""``worker``, asked as the servers ask it. Processes fork in Python, or as in C, where no at-fork handler runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fault_server import FaultServer, Step, never
from servers import environment

from mackerel_otel_server.cli.receiver.endpoint import Receiver

FORKS = {
    "in Python": "",
    # Whoever finds uWSGI's module asks for the pid each time.
    "in C": (
        "import os, sys, types\n"
        "os.register_at_fork = lambda **_: None\n"
        "sys.modules['uwsgi'] = types.ModuleType('uwsgi')\n"
    ),
}
BEGIN = """
import faulthandler, os, sys, threading
from mackerel_otel_server import worker
from mackerel_otel_server.process import log
from mackerel_otel_server.settings import Arguments
from opentelemetry import trace

def fork(work):
    pid = os.fork()
    if pid == 0:
        # A child that hangs says where, and ends.
        faulthandler.dump_traceback_later(40, exit=True)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def span(name):
    with trace.get_tracer("script").start_as_current_span(name):
        pass

log.to_stderr()
"""
STARTS = "sends traces as"
TRACED = BEGIN + "worker.register()\n"


def run(folder: Path, script: str, env: dict[str, str], *, status: int = 0) -> str:
    """Run a script; return what it wrote into the log."""
    (folder / "script.py").write_text(script)
    result = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        # Python 3.12+ warns that a process with threads is forked; that is the case under test.
        env=env | {"PYTHONDEVMODE": "", "PYTHONWARNINGS": "ignore::DeprecationWarning"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, "Traceback" in result.stderr) == (status, False), result.stderr
    return result.stderr


@pytest.mark.parametrize("forks", FORKS)
def test_each_process_starts_once_whichever_threads_ask_and_says_its_own_numbers(
    tmp_path: Path, receiver: Receiver, forks: str
) -> None:
    script = """
def ask_in_threads():
    threads = [threading.Thread(target=worker.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

def work():
    # Before this process has any record of its own.
    ask_in_threads()
    span("of the child")
    assert worker.stop() and worker.stop()
    assert worker.stats()["delivered"] == 1

ask_in_threads()
span("of the parent")
span("of the parent")
fork(work)
"""
    log = run(tmp_path, FORKS[forks] + TRACED + script, environment(receiver))
    assert log.count(STARTS) == 2, log
    assert log.count("sent 1 spans in 1 requests, lost 0") == log.count("sent 2 spans in") == 1, log
    pids = {(span.name, span.resource["process.pid"]) for span in receiver.spans}
    assert len(pids) == len({pid for _, pid in pids}) == 2


@pytest.mark.parametrize("forks", FORKS)
def test_a_process_starts_that_was_forked_while_another_thread_of_its_parent_started(
    tmp_path: Path, receiver: Receiver, forks: str
) -> None:
    script = """
from mackerel_otel_server import settings

inside, forked, read = threading.Event(), threading.Event(), settings.from_process

def wait(*arguments):
    if threading.current_thread() is starting:
        inside.set()
        assert forked.wait(30)
    return read(*arguments)

def work():
    assert worker.start()
    span("of the child")
    assert worker.stop()

settings.from_process = wait
starting = threading.Thread(target=worker.start)
starting.start()
assert inside.wait(30)
fork(work)
forked.set()
starting.join()
span("of the parent")
"""
    run(tmp_path, FORKS[forks] + TRACED + script, environment(receiver))
    assert {span.name for span in receiver.spans} == {"of the child", "of the parent"}


@pytest.mark.parametrize("forks", FORKS)
def test_a_process_that_is_forked_while_its_parent_sends_its_last_spans_is_not_stopping(
    tmp_path: Path, forks: str
) -> None:
    script = """
import signal

def work():
    assert not worker.is_stopping()
    assert worker.start()

def answer(number, frame):
    assert worker.is_stopping()
    fork(work)
    sys.exit(3)

assert worker.start()
span("one")
signal.signal(signal.SIGALRM, answer)
signal.setitimer(signal.ITIMER_REAL, 0.2)
worker.stop()
"""
    with FaultServer(Step(act=never)) as far:
        env = environment(
            MACKEREL_OTEL_ENDPOINT=far.url,
            MACKEREL_APIKEY="test-key",
            OTEL_SERVICE_NAME="shop",
            MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1",
            OTEL_BSP_SCHEDULE_DELAY="60000",
        )
        log = run(tmp_path, FORKS[forks] + TRACED + script, env, status=3)
    # The handler's exit waited for the end of what it had interrupted.
    assert log.count("sent 0 spans in 0 requests, lost 1 (") == 1, log


def test_each_span_that_ends_too_late_is_reported_once(tmp_path: Path, receiver: Receiver) -> None:
    script = """
assert worker.start()
first, second, third = (trace.get_tracer("script").start_span("late") for _ in range(3))
assert worker.stop()
first.end()
assert not worker.stop() and not worker.stop()
second.end()
third.end()
assert not worker.stop()
"""
    log = run(tmp_path, TRACED + script, environment(receiver, MACKEREL_OTEL_SPOOL="none"))
    assert log.count("sent 0 spans in 0 requests, lost 0") == 1, log
    assert log.count("spans that ended after shutdown") == 2, log
    assert log.count("lost 1 spans that ended") == log.count("lost 2 spans that ended") == 1, log


def test_what_threads_serve_after_the_stop_is_left_in_the_journal(tmp_path: Path, receiver: Receiver) -> None:
    script = """
assert worker.start()
span("one")
assert worker.stop(others_serve=True)
span("late")
assert not worker.stop()
assert (worker.stats()["left"], worker.stats()["lost"]) == (1, {})
"""
    log = run(tmp_path, TRACED + script, environment(receiver))
    assert "after shutdown" not in log, log


def test_what_threads_serve_after_the_stop_and_nothing_can_keep_is_reported_once(
    tmp_path: Path, receiver: Receiver
) -> None:
    script = """
assert worker.start()
assert worker.stop(others_serve=True)
span("late")
assert not worker.stop() and not worker.stop()
"""
    log = run(tmp_path, TRACED + script, environment(receiver, MACKEREL_OTEL_SPOOL="none"))
    assert log.count("lost 1 spans that ended after shutdown") == log.count("after shutdown") == 1, log


def test_a_process_that_never_started_has_nothing_to_stop_or_report(tmp_path: Path) -> None:
    script = """
from mackerel_otel_server.tracing.requests.killed import Killing

assert worker.stop() and worker.stop()
assert worker.report_killed(Killing("test.Killed", "killed")) == 0
assert (worker.stats(), worker.shutdown_timeout(), worker.is_stopping()) == ({}, 0.0, False)
"""
    assert run(tmp_path, TRACED + script, environment()) == ""


def test_problems_are_reported_once_again_for_an_operator_who_asks_and_anew_after_they_were_mended_in_any_process(
    tmp_path: Path, receiver: Receiver
) -> None:
    script = """
def says(expected, number, **arguments):
    before = len(lines)
    assert worker.check(preload=False, **arguments) is expected
    assert len(lines) - before == number, lines

def mend():
    os.environ["OTEL_TRACES_SAMPLER"] = "always_on"
    says(True, 0)

lines = []
log.to_host(lambda record: lines.append(record.getMessage()))
says(False, 1)
says(False, 0)
fork(lambda: says(False, 0))
says(False, 1, again=True)
fork(mend)
says(False, 1)
os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "soon"
says(False, 1)
os.environ["OTEL_TRACES_SAMPLER"] = "always_on"
says(False, 0)
del os.environ["OTEL_BSP_SCHEDULE_DELAY"]
says(True, 0)
"""
    run(tmp_path, TRACED + script, environment(receiver, OTEL_TRACES_SAMPLER="x"))


def test_a_warning_is_in_the_log_once_for_all_processes_that_are_forked(tmp_path: Path, receiver: Receiver) -> None:
    script = "assert worker.check(preload=True)\nfork(worker.start)\nworker.start()\n"
    log = run(tmp_path, TRACED + script, environment(receiver, OTEL_EXPORTER_OTLP_TIMEOUT="10000"))
    assert log.count("OTEL_EXPORTER_OTLP_TIMEOUT=10000 is taken as seconds") == 1, log


def test_the_first_arguments_of_instrument_count(tmp_path: Path, receiver: Receiver) -> None:
    script = """
worker.register(arguments=Arguments())
worker.register(arguments=Arguments(service_name="first"))
worker.register(arguments=Arguments(service_name="second"))
worker.register(arguments=Arguments())
assert worker.start()
worker.register(arguments=Arguments(service_name="first"))
span("one")
"""
    log = run(tmp_path, TRACED + script, environment(receiver))
    assert log.count("comes too late") == log.count("instrument(service_name='second') comes too late") == 1, log
    assert [span.resource["service.name"] for span in receiver.spans] == ["first"]


def test_who_leaves_reports_to_others_says_nothing_of_what_is_the_same_for_all(tmp_path: Path) -> None:
    script = """
worker.leave_reports_to_others(of_settings=True)
worker.register(arguments=Arguments(service_name="first"))
worker.register(arguments=Arguments(service_name="second"))
assert not worker.start()
"""
    assert run(tmp_path, TRACED + script, environment(OTEL_TRACES_SAMPLER="x")) == ""


@pytest.mark.parametrize("forks", FORKS)
def test_another_tracer_provider_leaves_us_off_and_one_line_of_each_process_says_so(
    tmp_path: Path, receiver: Receiver, forks: str
) -> None:
    script = """
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
assert not worker.start() and not worker.start()
fork(worker.start)
span("theirs")
"""
    log = run(tmp_path, FORKS[forks] + TRACED + script, environment(receiver))
    assert log.count("another tracer provider is set (opentelemetry.sdk.trace)") == 2, log
    assert list(receiver.spans) == []


def test_what_is_under_way_when_the_server_kills_is_sent_at_once_and_the_rest_goes_on(
    tmp_path: Path, receiver: Receiver
) -> None:
    script = """
from mackerel_otel_server.tracing.requests.killed import Killing
from mackerel_otel_server.tracing.requests.wsgi import trace_wsgi
from wsgiref.util import setup_testing_defaults

def application(environ, start_response):
    with trace.get_tracer("script").start_as_current_span("query"):
        assert worker.report_killed(Killing("test.Killed", "killed after 1 s")) == 1
        assert worker.stats()["delivered"] == 2
    start_response("200 OK", [])
    return [b"after all"]

environ = {}
setup_testing_defaults(environ)
assert worker.start()
response = trace_wsgi(application)(environ, lambda *_: None)
assert list(response) == [b"after all"]
assert worker.stats()["finished"] == 2
"""
    run(tmp_path, TRACED + script, environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000"))
    query, request = sorted(receiver.spans, key=lambda span: span.kind)
    assert (query.name, query.attributes) == ("query", {"error.type": "test.Killed"})
    assert request.attributes["http.response.status_code"] == 500
    assert request.attributes["error.type"] == "test.Killed"
