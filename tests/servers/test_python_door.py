"""The Python door: instrument() in wsgi.py and manage.py, under every server, with and without the server's hooks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from servers import (
    APPS,
    Server,
    assert_one_server_span_per_request,
    environment,
    gunicorn,
    running,
    server_spans,
    uvicorn,
    uwsgi,
    wait_until,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver

UWSGI = "master = true\nenable-threads = true\n"


@pytest.mark.parametrize("conf", [None, "python:mackerel_otel_server.conf"], ids=["alone", "beside-conf"])
@pytest.mark.parametrize("options", [[], ["--preload"], ["-k", "gevent"], ["--threads", "2", "--preload"]], ids=str)
def test_instrument_in_wsgi_py_makes_one_server_span_per_request_under_gunicorn(
    tmp_path: Path, receiver: Receiver, conf: str | None, options: list[str]
) -> None:
    with gunicorn(tmp_path, *options, env=environment(receiver), conf=conf, app="mysite.traced_wsgi") as server:
        pids = server.ask_every_worker(2, 10)
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert log.count("sends traces as 'shop'") == 2, log
    assert log.count("requests, lost 0") == 2, log


@pytest.mark.parametrize("door", ["", "import = mackerel_otel_server.uwsgi\n"], ids=["alone", "beside-import"])
@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_instrument_in_wsgi_py_makes_one_server_span_per_request_under_uwsgi(
    tmp_path: Path, receiver: Receiver, door: str, mode: str
) -> None:
    with uwsgi(tmp_path, f"{UWSGI}{mode}{door}module = mysite.traced_wsgi\n", env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 10)
        server.wait_until_idle()
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert log.count("sends traces as 'shop'") == 2, log


def test_after_a_sighup_has_removed_the_hooks_new_workers_start_their_own_pipeline(
    tmp_path: Path, receiver: Receiver
) -> None:
    env = environment(receiver)
    with gunicorn(tmp_path, "--preload", env=env, conf=None, app="mysite.traced_wsgi") as server:
        first = server.ask_every_worker(2, 4)
        server.send(signal.SIGHUP)
        server.wait_for_log("sent .* lost 0", count=2)
        second = server.ask_every_worker(2, 4)
        log = server.stop()
    assert not first & second
    assert log.count("requests, lost 0") == 4, log
    assert_one_server_span_per_request(receiver, server, first | second)


def test_instrument_in_the_application_traces_a_plain_callable_under_gunicorn(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "instrumented.py").write_text(
        "import mackerel_otel_server\nmackerel_otel_server.instrument()\nfrom plain import application\n"
    )
    env = environment(receiver, OTEL_SERVICE_NAME="")
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, conf=None, app="instrumented:application") as server:
        pids = server.ask_every_worker(2, 4)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert {span.resource["service.name"] for span in receiver.spans} == {"instrumented"}


def test_a_worker_without_any_hook_of_ours_starts_its_own_pipeline(tmp_path: Path, receiver: Receiver) -> None:
    # The application overwrites the one hook that uWSGI has: what is left is that the pid is new.
    (tmp_path / "unhooked.py").write_text(
        "from mysite.traced_wsgi import application\nimport uwsgi\nuwsgi.post_fork_hook = lambda: None\n"
    )
    ini = f"{UWSGI}pythonpath = {tmp_path}\nmodule = unhooked\n"
    with uwsgi(tmp_path, ini, env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 10)
        server.wait_until_idle()
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.parametrize("reloader", [True, False], ids=["reloader", "noreload"])
def test_instrument_in_manage_py_traces_runserver(tmp_path: Path, receiver: Receiver, reloader: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [] if reloader else ["--noreload"]
    command = [sys.executable, str(APPS / "manage.py"), "runserver", f"127.0.0.1:{port}", *options]
    server = Server(command, tmp_path / "runserver.log", cwd=tmp_path, env=environment(receiver))
    server.port = port
    with running(server):
        server.wait_for_log("Starting (WSGI )?development server")
        wait_until(lambda: _listens(port), "the server listens", lambda: server.log)
        pids = {server.get("/pid").body.decode() for _ in range(5)}
        os.killpg(server.process.pid, signal.SIGINT)  # as Ctrl-C does
        server.wait()
        server.wait_for_end_of_session()
        log = server.log
    assert len(pids) == 1
    assert (str(server.process.pid) in pids) is not reloader
    assert_one_server_span_per_request(receiver, server, pids)
    assert log.count("sends traces as 'shop'") == 1, log


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


LOG_CONFIG = {
    "version": 1,
    "formatters": {"own": {"format": "<%(name)s %(levelname)s> %(message)s"}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "loggers": {
        "uvicorn": {"handlers": ["own"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "INFO"},
    },
}
ROOT_TOO = "logging.basicConfig(level=logging.INFO)\n"
SWITCHED_OFF = "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True})\n"


@pytest.mark.parametrize(
    ("options", "logging", "begin"),
    [
        ((), "", "INFO:     "),
        (("--workers", "2"), "", "INFO:     "),
        ((), ROOT_TOO, "INFO:     "),
        ((), SWITCHED_OFF, "INFO:     "),
        (("--log-config", "log.json"), "", "<mackerel_otel_server INFO> "),
        (("--log-config", "log.json"), ROOT_TOO, "<mackerel_otel_server INFO> "),
        (("--log-level", "warning"), "", None),
    ],
    ids=str,
)
def test_under_uvicorn_both_lines_are_in_its_log_once_a_worker(
    tmp_path: Path, receiver: Receiver, options: tuple[str, ...], logging: str, begin: str | None
) -> None:
    (tmp_path / "log.json").write_text(json.dumps(LOG_CONFIG))
    (tmp_path / "logs.py").write_text(
        f"import logging.config\n{logging}import mackerel_otel_server\nmackerel_otel_server.instrument()\n"
        "from asgi_starlette import application\n"
    )
    workers = 2 if "--workers" in options else 1
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with uvicorn(tmp_path, *options, env=env, app="logs:application") as server:
        pids = server.ask_every_worker(workers, 10)
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    lines = [line for line in log.splitlines() if "mackerel_otel_server" in line]
    if begin is None:
        assert lines == []
        return
    for words in (r"worker (\d+) sends traces as 'shop' to ", r"sent \d+ spans in \d+ requests, lost 0"):
        expected = rf"{re.escape(begin)}mackerel_otel_server: {words}"
        assert len([line for line in lines if re.match(expected, line)]) == workers, log
    assert len(lines) == 2 * workers, log


def test_under_uvicorn_s_run_in_a_script_both_lines_are_in_its_log(tmp_path: Path, receiver: Receiver) -> None:
    # The application comes first here, and uvicorn sets its log up after that.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (tmp_path / "serve.py").write_text(
            "import mackerel_otel_server\nmackerel_otel_server.instrument()\n"
            "import uvicorn\nfrom asgi_starlette import application\n"
            f"uvicorn.run(application, fd={listener.fileno()})\n"
        )
        command = [sys.executable, "serve.py"]
        server = Server(command, tmp_path / "log", cwd=tmp_path, env=environment(receiver), listener=listener)
    with running(server):
        server.get("/")
        log = server.stop()
    assert len(re.findall("^INFO:     mackerel_otel_server: (?:worker|sent) ", log, re.MULTILINE)) == 2, log


def test_under_flask_run_both_lines_are_in_werkzeug_s_log(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "app.py").write_text(
        "import mackerel_otel_server\nmackerel_otel_server.instrument()\n"
        "from flask import Flask\napp = Flask(__name__)\napp.route('/')(lambda: 'x')\n"
    )
    command = [sys.executable, "-m", "flask", "run", "--port", "0"]
    server = Server(command, tmp_path / "log", cwd=tmp_path, env=environment(receiver, PYTHONSAFEPATH=""))
    with running(server):
        server.port = int(server.wait_for_log(r"Running on http://127\.0\.0\.1:(\d+)").group(1))
        assert server.get("/").status == 200
        log = server.stop(signal.SIGINT)
    assert len(re.findall("^mackerel_otel_server: (?:worker|sent) ", log, re.MULTILINE)) == 2, log


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_a_script_says_both_lines_where_it_has_python_s_logging_show_them(
    tmp_path: Path, receiver: Receiver, level: str
) -> None:
    script = f"import logging\nlogging.basicConfig(level=logging.{level})\n" + SCRIPT.format(arguments="", end="")
    result = _run(tmp_path, receiver, script)
    begins = [line[:30] for line in result.stderr.splitlines()]
    assert begins == (["INFO:mackerel_otel_server:work", "INFO:mackerel_otel_server:sent"] if level == "INFO" else [])


def test_a_management_command_that_only_queries_sends_nothing(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, SQLITE_FILE=str(tmp_path / "db.sqlite3"))
    command = [sys.executable, str(APPS / "manage.py"), "migrate"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert receiver.requests == []
    assert "Traceback" not in result.stderr


SCRIPT = """
import mackerel_otel_server
mackerel_otel_server.instrument({arguments})
from opentelemetry import trace
with trace.get_tracer("script").start_as_current_span("work"):
    pass
{end}
"""


def _run(tmp_path: Path, receiver: Receiver, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "batch.py"
    file.write_text(script)
    return subprocess.run(
        [sys.executable, str(file)],
        cwd=tmp_path,
        env=environment(receiver, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_own_spans_of_a_script_arrive_at_its_exit(tmp_path: Path, receiver: Receiver) -> None:
    result = _run(tmp_path, receiver, SCRIPT.format(arguments="", end=""))
    assert (result.returncode, result.stderr) == (0, "")
    assert [span.name for span in receiver.spans] == ["work"]


def test_a_client_span_without_a_parent_is_not_sent(tmp_path: Path, receiver: Receiver) -> None:
    # As the instrumentation that was installed for a driver makes them, of start-up queries and migrations.
    end = "trace.get_tracer('driver').start_span('SELECT', kind=trace.SpanKind.CLIENT).end()"
    result = _run(tmp_path, receiver, SCRIPT.format(arguments="", end=end))
    assert (result.returncode, result.stderr) == (0, "")
    assert [span.name for span in receiver.spans] == ["work"]


def test_shutdown_tells_whether_everything_was_delivered(tmp_path: Path, receiver: Receiver) -> None:
    script = SCRIPT.format(arguments="", end="print(mackerel_otel_server.shutdown())")
    assert _run(tmp_path, receiver, script).stdout == "True\n"
    result = _run(tmp_path, receiver, script, MACKEREL_APIKEY="wrong-key")
    assert result.stdout == "False\n"
    assert "sent 0 spans in 0 requests, lost 1 (API key refused 1)" in result.stderr


def test_arguments_win_over_the_environment(tmp_path: Path, receiver: Receiver) -> None:
    arguments = (
        "service_name='cart', service_version='2.1', environment='staging', "
        "resource_attributes={'service.namespace': 'acme', 'team.size': 4, 'process.pid': 1}"
    )
    result = _run(
        tmp_path,
        receiver,
        SCRIPT.format(arguments=arguments, end=""),
        OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="process",
        OTEL_RESOURCE_ATTRIBUTES="service.version=1,deployment.environment.name=production,rack=a%2Cb",
    )
    assert result.stderr == ""
    (span,) = receiver.spans
    expected = {
        "service.name": "cart",
        "service.version": "2.1",
        "deployment.environment.name": "staging",
        "service.namespace": "acme",
        "team.size": 4,
        "rack": "a,b",
        "host.name": socket.gethostname(),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.distro.name": "mackerel-otel-server",
        "process.runtime.name": "cpython",
    }
    assert {name: span.resource.get(name) for name in expected} == expected
    assert not [name for name in span.resource if name.startswith("process.command")]
    # One for all processes would not tell them apart.
    assert span.resource["process.pid"] != 1


def test_later_arguments_that_differ_are_named_with_the_variable_to_set(tmp_path: Path, receiver: Receiver) -> None:
    end = (
        "mackerel_otel_server.instrument(service_name='shop')\n"
        "mackerel_otel_server.instrument()\n"
        "mackerel_otel_server.instrument(service_name='cart', environment='staging')\n"
    )
    result = _run(tmp_path, receiver, SCRIPT.format(arguments="", end=end))
    (line,) = result.stderr.splitlines()
    assert "instrument(service_name='cart', environment='staging') comes too late" in line
    assert "set OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=" in line


def test_what_only_one_worker_need_say_is_said_once(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "late.py").write_text(
        "import mackerel_otel_server\n"
        "mackerel_otel_server.instrument(service_version='9', environment='')\n"
        "from plain import application\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="late:application") as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert log.count("instrument(service_version='9') comes too late") == 1, log
    with gunicorn(tmp_path, env={**env, "OTEL_TRACES_SAMPLER": "x"}, conf=None, app="late:application") as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert log.count("OTEL_TRACES_SAMPLER='x' is not known") == 1, log


def test_the_first_span_may_be_begun_by_a_handler_of_the_log(tmp_path: Path, receiver: Receiver) -> None:
    script = """
import logging
import mackerel_otel_server
from opentelemetry import trace

class Handler(logging.Handler):
    def emit(self, record):
        with trace.get_tracer("log").start_as_current_span("logging"):
            pass

logging.basicConfig(level=logging.INFO, handlers=[Handler()])
mackerel_otel_server.instrument()
with trace.get_tracer("script").start_as_current_span("work"):
    print("went on")
"""
    result = _run(tmp_path, receiver, script)
    assert (result.returncode, result.stdout) == (0, "went on\n")
    assert "work" in {span.name for span in receiver.spans}


def test_a_first_span_while_the_interpreter_exits_does_no_harm(tmp_path: Path, receiver: Receiver) -> None:
    script = """
import atexit
import mackerel_otel_server
mackerel_otel_server.instrument()
from opentelemetry import trace

@atexit.register
def last():
    with trace.get_tracer("script").start_as_current_span("work"):
        print("went on")
"""
    result = _run(tmp_path, receiver, script)
    assert (result.returncode, result.stdout) == (0, "went on\n")
    assert "Traceback" not in result.stderr


def test_an_argument_of_the_wrong_type_is_an_error_in_the_log_and_nothing_else(
    tmp_path: Path, receiver: Receiver
) -> None:
    result = _run(tmp_path, receiver, SCRIPT.format(arguments="service_name=['shop']", end="print('went on')"))
    assert (result.returncode, result.stdout) == (0, "went on\n")
    assert "instrument() was given 'service.name'=['shop']" in result.stderr
    assert receiver.requests == []


def test_trace_wsgi_traces_a_callable_by_hand(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "by_hand.py").write_text(
        "import mackerel_otel_server\n"
        "from plain import application as plain\n"
        "mackerel_otel_server.instrument()\n"
        "plain.attribute = 'kept'\n"
        "application = mackerel_otel_server.trace_wsgi(mackerel_otel_server.trace_wsgi(plain))\n"
        "assert application.attribute == 'kept' and application.__name__ == 'application'\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, conf=None, app="by_hand:application") as server:
        pids = server.ask_every_worker(2, 10)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_a_span_of_its_own_code_is_a_child_of_the_requests_span(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver), conf=None, app="mysite.traced_wsgi", workers=1) as server:
        server.get("/own")
        server.stop()
    own = next(span for span in receiver.spans if span.name == "own")
    assert own.parent_span_id == server_spans(receiver.spans)[0].span_id


def test_a_response_that_has_just_arrived_has_its_span_also_where_the_server_does_not_wait_for_its_threads(
    tmp_path: Path, receiver: Receiver
) -> None:
    # The client has all of the response when the server still has the end of the request before it.
    (tmp_path / "threaded.py").write_text(
        "import os, signal, threading, time, urllib.request\n"
        "import mackerel_otel_server\n"
        "from werkzeug.serving import make_server\n\n"
        "mackerel_otel_server.instrument()\n\n\n"
        "class Body(list):\n    def close(self):\n        time.sleep(0.02)\n\n\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '2')])\n    return Body([b'ok'])\n\n\n"
        "application = mackerel_otel_server.trace_wsgi(application)\n"
        "server = make_server('127.0.0.1', 0, application, threaded=True)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "print(urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/').read())\n"
    )
    result = subprocess.run(
        [sys.executable, "threaded.py"],
        cwd=tmp_path,
        env=environment(receiver, PYTHONDEVMODE="", OTEL_BSP_SCHEDULE_DELAY="60000"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == "b'ok'\n"
    assert len(server_spans(receiver.spans)) == 1, result.stderr
