"""Processes that the application forks by itself start clean: own pid, own instance, nothing sent twice."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from fault_server import FaultServer, Step, never
from servers import LOADED, Server, environment, gunicorn, running, server_spans

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

PARENT = """
import multiprocessing, os, sys
import mackerel_otel_server
mackerel_otel_server.instrument()
from opentelemetry import trace
tracer = trace.get_tracer("script")

with tracer.start_as_current_span("queued in the parent"):
    pass
with tracer.start_as_current_span("open in the parent"):
    {fork}
"""

CHILDREN = {
    "os.fork": """
    pid = os.fork()
    if pid == 0:
        with tracer.start_as_current_span("of the child"):
            pass
        sys.exit(0)
    os.waitpid(pid, 0)
""",
    "multiprocessing": """
    def work():
        with tracer.start_as_current_span("of the child"):
            pass
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
""",
}


def _one(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (span,) = [span for span in spans if span.name == name]
    return span


@pytest.mark.parametrize("fork", CHILDREN)
def test_a_forked_process_sends_its_own_spans_with_its_own_identity(
    tmp_path: Path, receiver: Receiver, fork: str
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(fork=CHILDREN[fork]))
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        # Python 3.12+ warns that a process with threads is forked; that is the case under test.
        env=environment(
            receiver,
            OTEL_BSP_SCHEDULE_DELAY="60000",
            PYTHONDEVMODE="",
            PYTHONWARNINGS="ignore::DeprecationWarning",
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    spans = list(receiver.spans)
    assert len(spans) == 3
    child, parent = _one(spans, "of the child"), _one(spans, "open in the parent")
    assert child.parent_span_id == parent.span_id
    for name in ("process.pid", "service.instance.id"):
        assert child.resource[name] != parent.resource[name]
        assert _one(spans, "queued in the parent").resource[name] == parent.resource[name]


@pytest.mark.parametrize("fork", CHILDREN)
def test_an_endpoint_that_never_answers_holds_up_the_end_of_a_forked_process_for_the_shutdown_timeout_at_most(
    tmp_path: Path, fork: str
) -> None:
    timed = PARENT.replace("import multiprocessing,", "import multiprocessing, time,")
    timed = timed.replace("    {fork}", "    began = time.monotonic()\n    {fork}\n    print(time.monotonic() - began)")
    (tmp_path / "parent.py").write_text(timed.format(fork=CHILDREN[fork]))
    with FaultServer(Step(act=never)) as far:
        env = environment(
            None,
            MACKEREL_OTEL_ENDPOINT=far.url,
            MACKEREL_APIKEY="test-key",
            MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1",
            OTEL_BSP_SCHEDULE_DELAY="60000",
            PYTHONDEVMODE="",
            PYTHONWARNINGS="ignore::DeprecationWarning",
        )
        result = subprocess.run(
            [sys.executable, "parent.py"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    # At least: it has tried.
    assert 1 <= float(result.stdout) < 1 + 0.5 + LOADED, result.stderr


def test_a_child_that_leaves_by_sys_exit_in_the_middle_of_a_request_sends_nothing_twice(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "forking.py").write_text(
        "import os, sys\n"
        "def application(environ, start_response):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        sys.exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    start_response('200 OK', [])\n"
        "    return [str(os.getpid()).encode()]\n"
    )
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    with gunicorn(tmp_path, "--pythonpath", str(tmp_path), env=env, app="forking:application", workers=1) as server:
        for number in range(4):
            # Whatever Gunicorn makes of the exit in the child: the response is the application's own affair.
            server.get(f"/{number}")
        server.stop()
        server.wait_for_end_of_session()
        log = server.log
    paths = sorted(span.attributes["url.path"] for span in server_spans(receiver.spans))
    assert paths == ["/0", "/1", "/2", "/3"], log


def test_celerys_prefork_workers_send_what_their_tasks_make(tmp_path: Path, receiver: Receiver, redis_url: str) -> None:
    (tmp_path / "tasks.py").write_text(
        "import os\nimport celery\nimport mackerel_otel_server\nfrom opentelemetry import trace\n\n"
        f"app = celery.Celery('shop', broker={redis_url!r}, backend={redis_url!r})\n"
        f"app.conf.task_default_queue = {uuid.uuid4().hex!r}\n"
        "mackerel_otel_server.instrument()\n\n\n@app.task\ndef work():\n"
        "    with trace.get_tracer('shop').start_as_current_span('work'):\n        return os.getpid()\n"
    )
    (tmp_path / "send.py").write_text(
        "import tasks\nsent = [tasks.work.delay() for _ in range(20)]\nprint(*[result.get(30) for result in sent])\n"
    )
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000", PYTHONPATH=str(tmp_path))
    options = ("-P", "prefork", "-c", "2", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info")
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", *options]
    with running(Server(command, tmp_path / "celery.log", cwd=tmp_path, env=env)) as server:
        server.wait_for_log("ready")
        sender = [sys.executable, "send.py"]
        result = subprocess.run(
            # The sender's own spans are another process's affair.
            sender,
            cwd=tmp_path,
            env=env | {"OTEL_SDK_DISABLED": "true"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        log = server.stop()
    pids = set(result.stdout.split())
    spans = [span for span in receiver.spans if span.name == "work"]
    assert len(spans) == len({span.span_id for span in spans}) == 20, log
    assert {str(span.resource["process.pid"]) for span in spans} == pids
    assert str(server.process.pid) not in pids
