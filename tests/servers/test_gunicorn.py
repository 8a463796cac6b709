"""The Gunicorn door, through real Gunicorn servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import (
    assert_one_server_span_per_request,
    environment,
    gunicorn,
    server_span,
    server_spans,
    wait_until,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver

LITERAL = "from mackerel_otel_server.gunicorn import install\n\ninstall(globals())\n"


@pytest.mark.parametrize(
    ("options", "worker_class"),
    [
        pytest.param([], "sync", id="sync"),
        pytest.param(["--preload"], "sync", id="preload"),
        pytest.param(["--threads", "2"], "gthread", id="gthread"),
        pytest.param(["-k", "gevent"], "gevent", id="gevent"),
        pytest.param(["-k", "gevent", "--preload"], "gevent", id="gevent-preload"),
    ],
)
@pytest.mark.parametrize("app", ["plain:application", "shop:app", "mysite.wsgi"])
def test_every_request_is_one_server_span_of_the_worker_that_answered(
    tmp_path: Path, receiver: Receiver, options: list[str], worker_class: str, app: str
) -> None:
    with gunicorn(tmp_path, *options, env=environment(receiver), app=app) as server:
        pids = server.ask_every_worker(2, 10)
        log = server.stop()
    if not (app == "mysite.wsgi" and "--preload" in options):  # this one's LOGGING switches Gunicorn's lines off
        assert f"Using worker: {worker_class}" in log
    assert_one_server_span_per_request(receiver, server, pids)
    # A plain callable has no routes.
    name = "GET" if app == "plain:application" else "GET /pid"
    assert {span.name for span in server_spans(receiver.spans)} == {name}


def test_the_file_that_init_writes_can_be_given_to_gunicorn_by_its_name(tmp_path: Path, receiver: Receiver) -> None:
    command = [sys.executable, "-m", "mackerel_otel_server", "init", "gunicorn"]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=60)
    with gunicorn(tmp_path, env=environment(receiver), conf="mackerel_otel_server.conf") as server:
        pids = server.ask_every_worker(2, 10)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_install_keeps_the_hooks_that_the_file_defines_and_runs_after_them(tmp_path: Path, receiver: Receiver) -> None:
    names = ("on_starting", "post_fork", "post_worker_init", "worker_exit")
    parameters = {"on_starting": "server", "post_worker_init": "worker"}
    hooks = "".join(
        f"def {name}({parameters.get(name, 'server, worker')}):\n    os.write(1, b'user hook {name}\\n')\n\n"
        for name in names
    )
    # In one step, line and end of line: two workers write here.
    (tmp_path / "gunicorn.conf.py").write_text(f"import os\n\nworkers = 1\n\n{hooks}{LITERAL}install(globals())\n")
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        pids = server.ask_every_worker(2, 4)
        log = server.stop()
    for name in names:
        assert log.count(f"user hook {name}\n") == (1 if name == "on_starting" else 2), log
    assert log.index("user hook post_fork") < log.index("sends traces as")
    assert log.index("user hook worker_exit") < log.index("requests, lost 0")
    assert_one_server_span_per_request(receiver, server, pids)


def test_a_hook_of_the_user_that_raises_does_what_it_does_without_us(tmp_path: Path, receiver: Receiver) -> None:
    hook = "def worker_exit(server, worker):\n    raise RuntimeError('hook of the user')\n\n"
    (tmp_path / "gunicorn.conf.py").write_text(hook + LITERAL)
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        pids = server.ask_every_worker(2, 4)
        log = server.stop()
    assert log.count("RuntimeError: hook of the user") == 2
    assert_one_server_span_per_request(receiver, server, pids)


def test_a_hook_of_the_wrong_arity_stops_the_start_as_without_us(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("def post_fork(server):\n    pass\n\n" + LITERAL)
    result = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "plain:application"],
        cwd=tmp_path,
        env=environment(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "Value must have an arity of: 2" in result.stderr


OWN_LOGGER = """
import os


class Log:
    def __init__(self, cfg):
        self.cfg = cfg

    def info(self, message, *args, **kwargs):
        # In one piece: two workers write at a time.
        os.write(1, f"OWN {message % args if args else message}\\n".encode())

    critical = error = warning = exception = info

    def debug(self, *args, **kwargs):
        pass

    setup = access = reopen_files = close_on_exec = debug

logger_class = Log
"""


def test_a_logger_class_of_the_user_gets_the_lines(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(OWN_LOGGER + LITERAL)
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        server.ask_every_worker(2, 4)
        log = server.stop()
    assert log.count("OWN mackerel_otel_server: worker") == 2, log
    assert log.count("OWN mackerel_otel_server: sent") == 2, log


def test_drivers_are_switched_off_by_raw_env_too(tmp_path: Path, receiver: Receiver) -> None:
    raw_env = "raw_env = ['OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=sqlite3']\n"
    (tmp_path / "gunicorn.conf.py").write_text(raw_env + LITERAL)
    with gunicorn(tmp_path, env=environment(receiver), conf=None, workers=1) as server:
        server.get("/query")
        server.stop()
    (span,) = receiver.spans
    assert (span.kind, span.attributes["url.path"]) == ("SERVER", "/query")


def test_a_configuration_file_in_the_folder_of_chdir_is_not_called_ignored(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "gunicorn.conf.py").write_text("")
    with gunicorn(tmp_path, "--chdir", "elsewhere", env=environment(receiver)) as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert "gunicorn.conf.py is ignored" not in log


def test_a_hook_given_as_a_dotted_path_keeps_running(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "hooks.py").write_text("def post_fork(server, worker):\n    print('dotted hook', flush=True)\n")
    (tmp_path / "gunicorn.conf.py").write_text("post_fork = 'hooks.post_fork'\n" + LITERAL)
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        pids = server.ask_every_worker(2, 4)
        log = server.stop()
    assert log.count("dotted hook") == 2
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_ends_the_server_loses_no_span(
    tmp_path: Path, receiver: Receiver, number: signal.Signals
) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    with gunicorn(tmp_path, env=env) as server:
        pids = server.ask_every_worker(2, 10)
        assert receiver.spans == []
        log = server.stop(number)
    assert_one_server_span_per_request(receiver, server, pids)
    assert log.count("lost 0") == 2, log


def test_sighup_replaces_the_workers_and_loses_no_span(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver)) as server:
        first = server.ask_every_worker(2, 10)
        server.send(signal.SIGHUP)
        server.wait_for_log("sent .* lost 0", count=2)
        server.wait_for_log("sends traces as", count=4)
        second = server.ask_every_worker(2, 10)
        log = server.stop()
    assert not first & second
    assert log.count("lost 0") == 4, log
    assert_one_server_span_per_request(receiver, server, first | second)


def test_a_worker_that_reaches_max_requests_loses_no_span(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    with gunicorn(tmp_path, "--max-requests", "5", env=env) as server:
        bodies = {server.get("/pid").body.decode() for _ in range(25)}
        bodies |= server.ask_every_worker(2, 2)
        server.stop()
    assert len(bodies) > 2
    assert_one_server_span_per_request(receiver, server, bodies)


def test_each_worker_logs_one_start_line_and_one_end_line(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 4)
        log = server.stop()
    for pid in pids:
        start = f"[{pid}] [INFO] mackerel_otel_server: worker {pid} sends traces as 'shop' to {receiver.url}"
        assert log.count(start) == 1, log
        assert log.count(f"[{pid}] [INFO] mackerel_otel_server: sent ") == 1, log


def test_the_lines_arrive_when_django_disables_existing_loggers(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver), app="mysite.wsgi") as server:
        pids = server.ask_every_worker(2, 4)
        log = server.stop()
    # That the case is what it claims to be: Gunicorn's own line has vanished.
    assert "Worker exiting" not in log
    for pid in pids:
        assert log.count(f"[{pid}] [INFO] mackerel_otel_server: sent ") == 1, log


def test_the_arbiter_says_once_that_a_configuration_file_is_ignored(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("workers = 7\n")
    with gunicorn(tmp_path, env=environment(receiver)) as server:
        server.ask_every_worker(2, 4)
        server.send(signal.SIGHUP)
        server.wait_for_log("sends traces as", count=4)
        log = server.stop()
    assert log.count("gunicorn.conf.py is ignored") == 1, log
    assert "\nfrom mackerel_otel_server.gunicorn import install\ninstall(globals())\n" in log


def test_a_configuration_file_that_gunicorn_reads_is_not_called_ignored(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(LITERAL)
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert "gunicorn.conf.py is ignored" not in log


def test_the_service_name_falls_back_to_the_applications_top_package(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_SERVICE_NAME="")
    with gunicorn(tmp_path, env=env, app="mysite.wsgi:application") as server:
        server.ask_every_worker(2, 4)
        log = server.stop()
    assert {span.resource["service.name"] for span in receiver.spans} == {"mysite"}
    assert log.count("no service name is set") == 1, log


@pytest.mark.parametrize("worker_class", ["sync", "gevent"])
def test_the_arbiter_has_no_pipeline_and_under_gevent_no_http_library(
    tmp_path: Path, receiver: Receiver, worker_class: str
) -> None:
    probe = (
        "def when_ready(server):\n"
        "    import sys, threading\n"
        "    from opentelemetry import trace\n"
        "    threads = [t.name for t in threading.enumerate() if 'mackerel' in t.name or 'Otel' in t.name]\n"
        "    proxy = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)\n"
        "    loaded = 'mackerel_otel_server.pipeline.connection' in sys.modules\n"
        "    print('arbiter', threads, proxy, loaded, flush=True)\n\n"
    )
    (tmp_path / "gunicorn.conf.py").write_text(probe + LITERAL)
    with gunicorn(tmp_path, "-k", worker_class, "--preload", env=environment(receiver), conf=None) as server:
        server.ask_every_worker(2, 4)
        log = server.stop()
    assert f"arbiter [] True {worker_class != 'gevent'}\n" in log, log


def test_a_flask_application_object_stays_what_it_is(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver), app="shop:app") as server:
        server.ask_every_worker(2, 2)
        response = server.get("/type")
        server.stop()
    assert (response.status, response.body) == (200, b"flask.app.Flask")


def test_own_spans_and_queries_are_children_of_the_requests_span(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver), workers=1) as server:
        server.get("/own")
        assert server.get("/query").body == b"42"
        server.stop()
    spans = {span.name: span for span in receiver.spans}
    assert spans["own"].parent_span_id == server_span(receiver, "/own").span_id
    assert spans["SELECT"].parent_span_id == server_span(receiver, "/query").span_id
    assert spans["SELECT"].kind == "CLIENT"
    assert spans["SELECT"].attributes["db.query.text"] == "SELECT 41 + ?"


def test_a_worker_that_another_tracer_provider_serves_stays_off(tmp_path: Path, receiver: Receiver) -> None:
    hook = (
        "def post_fork(server, worker):\n"
        "    from opentelemetry import trace\n"
        "    from opentelemetry.sdk.trace import TracerProvider\n"
        "    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))\n\n"
    )
    (tmp_path / "gunicorn.conf.py").write_text(hook + LITERAL)
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        server.ask_every_worker(2, 4)
        log = server.stop()
    assert receiver.spans == []
    assert log.count("another tracer provider is set (opentelemetry.sdk.trace)") == 2, log


def test_a_dead_process_is_replaced_and_the_others_go_on(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver, OTEL_BSP_SCHEDULE_DELAY="50")) as server:
        first = server.ask_every_worker(2, 4)
        wait_until(lambda: len(server_spans(receiver.spans)) == server.answered, "all spans", lambda: server.log)
        victim = min(first)
        os.kill(int(victim), signal.SIGKILL)
        server.wait_for_log("sends traces as", count=3)
        second = server.ask_every_worker(2, 4)
        server.stop()
    assert len(first | second) == 3
    assert_one_server_span_per_request(receiver, server, first | second)
