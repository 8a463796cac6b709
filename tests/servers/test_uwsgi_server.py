"""The uWSGI door, through real uWSGI servers: the newest wheel's, and Debian's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from servers import (
    IS_DEBIANS_PYTHON,
    PYUWSGI,
    assert_one_server_span_per_request,
    debian_uwsgi,
    environment,
    server_spans,
    uwsgi,
    uwsgi_version,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver

DOOR = "import = mackerel_otel_server.uwsgi\nenable-threads = true\n"
"""The second line is needed before uWSGI 2.0.27, and harms no other."""


NEWEST = [PYUWSGI]


def debian() -> Sequence[str]:
    command = debian_uwsgi()
    if command is None:
        missing = "Debian's uWSGI is not installed: apt-get install uwsgi-core uwsgi-plugin-python3"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return command


PROGRAMS = ["newest", "debian"] if IS_DEBIANS_PYTHON else ["newest"]


def has_no_threads() -> bool:
    """Return whether Debian's uWSGI, or the one that is missing here, runs no threads unless it is told to."""
    return "debian" in PROGRAMS and (debian_uwsgi() is None or uwsgi_version(debian()) < (2, 0, 27))


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Sequence[str]:
    """The uWSGI to run."""
    return NEWEST if request.param == "newest" else debian()


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("master = true\n", id="prefork"),
        pytest.param("master = true\nlazy-apps = true\n", id="lazy-apps"),
        pytest.param("", id="no-master"),
        pytest.param("master = true\nthreads = 2\n", id="threads"),
    ],
)
def test_every_request_is_one_server_span_of_the_worker_that_answered(
    tmp_path: Path, receiver: Receiver, program: Sequence[str], mode: str
) -> None:
    processes = 1 if mode == "" else 2  # without a master, ending the first process leaves the others
    ini = DOOR + mode + "module = plain:application\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), program=program, processes=processes) as server:
        pids = server.ask_every_worker(processes, 10)
        server.wait_until_idle()
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_several_processes_without_a_master_are_traced(tmp_path: Path, receiver: Receiver) -> None:
    with uwsgi(tmp_path, DOOR + "module = plain\n", env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 10)
        server.wait_until_idle()
        for pid in pids:
            os.kill(int(pid), signal.SIGINT)
        server.wait()
        server.wait_for_end_of_session()
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.parametrize(
    "load",
    [
        "module = plain",
        "module = plain:application",
        "module = plain\ncallable = application",
        "wsgi = plain:application",
        "module = plain:make_application()",
        "module = classes:Application",
        "module = mysite.wsgi:application",
        "module = shop:app",
        "module = django.core.wsgi:get_wsgi_application()",
    ],
)
@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_the_callable_of_module_and_wsgi_is_traced(tmp_path: Path, receiver: Receiver, load: str, mode: str) -> None:
    env = environment(receiver, DJANGO_SETTINGS_MODULE="mysite.settings")
    with uwsgi(tmp_path, f"{DOOR}master = true\n{mode}{load}\n", env=env) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_a_flask_application_object_stays_what_it_is(tmp_path: Path, receiver: Receiver) -> None:
    with uwsgi(tmp_path, f"{DOOR}master = true\nmodule = shop:app\n", env=environment(receiver)) as server:
        server.ask_every_worker(2, 2)
        response = server.get("/type")
        server.wait_until_idle()
        server.stop()
    assert (response.status, response.body) == (200, b"flask.app.Flask")


def test_each_worker_logs_one_start_line_and_one_end_line(
    tmp_path: Path, receiver: Receiver, program: Sequence[str]
) -> None:
    ini = f"{DOOR}master = true\nmodule = mysite.wsgi:application\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), program=program) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    for pid in pids:
        assert log.count(f"[{pid}] info: worker {pid} sends traces as 'shop' to {receiver.url}") == 1, log
        assert log.count(f"[{pid}] info: sent ") == 1, log


def test_a_reload_loses_no_span(tmp_path: Path, receiver: Receiver, program: Sequence[str]) -> None:
    # pyuwsgi cannot execute itself again, so its way is the chained reload of lazy-apps.
    mode, command = ("lazy-apps = true\n", "c") if program is NEWEST else ("", "r")
    fifo = tmp_path / "fifo"
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    ini = f"{DOOR}master = true\n{mode}master-fifo = {fifo}\nmodule = plain\n"
    with uwsgi(tmp_path, ini, env=env, program=program) as server:
        first = server.ask_every_worker(2, 10)
        server.wait_until_idle()
        fifo.write_text(command)
        server.wait_for_log("sends traces as", count=4)
        server.find_port()
        second = server.ask_every_worker(2, 10)
        server.wait_until_idle()
        log = server.stop()
    if program is NEWEST:
        assert not first & second
    assert log.count("lost 0") == 4, log
    assert_one_server_span_per_request(receiver, server, first | second)


def test_a_worker_that_reaches_max_requests_loses_no_span(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    ini = f"{DOOR}master = true\nmax-requests = 5\nmin-worker-lifetime = 0\nmodule = plain\n"
    with uwsgi(tmp_path, ini, env=env, processes=1) as server:
        pids = {server.get("/pid").body.decode() for _ in range(15)}
        server.wait_for_log("requests, lost 0", count=3)
        server.wait_for_log("sends traces as", count=4)
        server.wait_until_idle()
        server.stop()
    assert len(pids) == 3
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.parametrize("exits", ["skip-atexit-teardown = true\n", ""])
def test_queued_spans_are_flushed_once_by_whichever_exit_hook_runs(
    tmp_path: Path, receiver: Receiver, exits: str
) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    with uwsgi(tmp_path, f"{DOOR}{exits}master = true\nmodule = plain\n", env=env) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    assert log.count("requests, lost 0") == 2, log
    assert_one_server_span_per_request(receiver, server, pids)


def test_hooks_that_the_application_set_keep_running(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "hooked.py").write_text(
        "import uwsgi\n"
        "uwsgi.atexit = lambda: print('atexit of the application', flush=True)\n"
        "from uwsgidecorators import postfork\n"
        "@postfork\n"
        "def hook():\n"
        "    print('postfork of the application', flush=True)\n"
        "from plain import application\n"
    )
    ini = f"{DOOR}master = true\npythonpath = {tmp_path}\nmodule = hooked\n"
    with uwsgi(tmp_path, ini, env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    assert log.count("postfork of the application") == 2, log
    assert log.count("atexit of the application") >= 2, log
    assert_one_server_span_per_request(receiver, server, pids)


OWN_HOOKS = {
    "atexit": "uwsgi.atexit = at_exit\n",
    "atexit after the fork": (
        "from uwsgidecorators import postfork\n@postfork\ndef hook():\n    uwsgi.atexit = at_exit\n"
    ),
    "post_fork_hook": "uwsgi.atexit = at_exit\nuwsgi.post_fork_hook = lambda: None\n",
}


@pytest.mark.parametrize("own", OWN_HOOKS)
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("master = true\n", id="prefork"),
        pytest.param("master = true\nskip-atexit-teardown = true\n", id="prefork-no-teardown"),
        pytest.param("master = true\nlazy-apps = true\n", id="lazy-apps"),
        pytest.param("master = true\nlazy-apps = true\nskip-atexit-teardown = true\n", id="lazy-apps-no-teardown"),
    ],
)
def test_hooks_that_the_application_sets_in_place_of_ours_lose_nothing(
    tmp_path: Path, receiver: Receiver, program: Sequence[str], mode: str, own: str
) -> None:
    (tmp_path / "hooked.py").write_text(
        "import uwsgi\n"
        "from plain import application\n"
        "def at_exit():\n"
        "    print('atexit of the application', flush=True)\n"
        f"{OWN_HOOKS[own]}"
    )
    ini = f"{DOOR}{mode}pythonpath = {tmp_path}\nmodule = hooked\n"
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    with uwsgi(tmp_path, ini, env=env, program=program) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    if "lazy-apps" not in mode or own != "atexit after the fork":  # under lazy-apps @postfork comes too late
        assert log.count("atexit of the application") >= 2, log  # pyuwsgi's master runs it, too
    assert log.count("requests, lost 0") == 2, log
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_holds_up_no_exit(
    tmp_path: Path, receiver: Receiver, number: signal.Signals
) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    with uwsgi(tmp_path, f"{DOOR}master = true\nmodule = plain\n", env=env) as server:
        server.ask_every_worker(2, 6)
        server.wait_until_idle()
        began = time.monotonic()
        os.killpg(server.process.pid, number)
        server.wait()
        assert time.monotonic() - began < 10, server.log  # it was 60 s, uWSGI's mercy
    # A worker gets the signal twice, from the group and from the master. The second may end it before Python's code
    # for the exit has begun, so that spans can be lost; none arrives twice.
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) <= server.answered


def test_mules_and_the_spooler_stay_quiet(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "spool").mkdir()
    ini = f"{DOOR}master = true\nmule = true\nspooler = {tmp_path / 'spool'}\nmodule = plain\n"
    with uwsgi(tmp_path, ini, env=environment(receiver)) as server:
        server.wait_for_log("spawned uWSGI mule")
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    assert log.count("sends traces as") == 2, log
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.skipif(not has_no_threads(), reason="uWSGI runs threads by default since 2.0.27; Debian 12's is older")
@pytest.mark.parametrize("requests", [4, 0])
@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_without_threads_one_error_names_the_line_to_add_and_the_application_serves(
    tmp_path: Path, receiver: Receiver, mode: str, requests: int
) -> None:
    ini = f"import = mackerel_otel_server.uwsgi\nmaster = true\n{mode}module = plain\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), program=debian()) as server:
        server.wait_for_log("enable-threads = true")
        if requests:
            server.ask_every_worker(2, requests)
            server.wait_until_idle()
        else:
            server.wait_until_asleep()
        log = server.stop()
    assert log.count("enable-threads = true") == 1, log
    assert receiver.spans == []


@pytest.mark.skipif(not has_no_threads(), reason="uWSGI runs threads by default since 2.0.27; Debian 12's is older")
@pytest.mark.parametrize("door", ["import = mackerel_otel_server.uwsgi\n", ""], ids=["door", "no-door"])
@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
@pytest.mark.parametrize(
    "application",
    [
        "import flask\napplication = flask.Flask(__name__)\napplication.route('/sdk')(sdk)\n",
        (
            "def application(environ, start_response):\n"
            "    start_response('200 OK', [])\n"
            "    return [sdk().encode()]\n"
            "application = mackerel_otel_server.trace_wsgi(application)\n"
        ),
    ],
    ids=["flask", "trace_wsgi"],
)
def test_without_threads_nothing_exists_that_makes_spans(
    tmp_path: Path, receiver: Receiver, application: str, mode: str, door: str
) -> None:
    (tmp_path / "asked.py").write_text(
        "import sys\n"
        "from opentelemetry import trace\n"
        "import mackerel_otel_server\n"
        "mackerel_otel_server.instrument()\n"
        "def sdk():\n"
        "    provider = type(trace.get_tracer_provider()).__name__\n"
        "    recording = trace.get_current_span().is_recording()\n"
        "    ours = sorted(name for name in sys.modules if name.startswith('mackerel_otel_server.pipeline'))\n"
        "    return f'{provider}, {recording}, {ours}'\n"
        f"{application}"
    )
    ini = f"{door}master = true\n{mode}pythonpath = {tmp_path}\nmodule = asked\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), program=debian(), processes=1) as server:
        assert [server.get("/sdk").body for _ in range(3)] == [b"ProxyTracerProvider, False, []"] * 3
        server.wait_until_idle()
        log = server.stop()
    assert log.count("enable-threads = true") == 1, log
    assert receiver.spans == []


@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_a_wrong_setting_is_reported_once_per_server_start(tmp_path: Path, receiver: Receiver, mode: str) -> None:
    env = environment(receiver, OTEL_TRACES_SAMPLER="allways_on")
    with uwsgi(tmp_path, f"{DOOR}master = true\n{mode}module = plain\n", env=env) as server:
        server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    assert log.count("OTEL_TRACES_SAMPLER='allways_on' is not known") == 1, log
    assert receiver.spans == []


def test_the_service_name_falls_back_to_the_module_or_the_folder_of_the_file(
    tmp_path: Path, receiver: Receiver
) -> None:
    env = environment(receiver, OTEL_SERVICE_NAME="")
    with uwsgi(tmp_path, f"{DOOR}master = true\nmodule = mysite.wsgi:application\n", env=env) as server:
        server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    assert {span.resource["service.name"] for span in server_spans(receiver.spans)} == {"mysite"}
    assert log.count("no service name is set") == 1, log


def test_outside_uwsgi_the_module_says_where_it_belongs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import mackerel_otel_server.uwsgi"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "put `import = mackerel_otel_server.uwsgi` into its ini file" in result.stderr
