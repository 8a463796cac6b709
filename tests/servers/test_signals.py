"""A signal that comes while this package's code runs arrives, as it would have without the package."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from servers import DEADLINE, UWSGI_PROGRAM, Server, environment, gunicorn, server_spans, uwsgi

from mackerel_otel_server.cli.receiver.endpoint import Receiver

NATIVE = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []
CLASSES = ["sync", "gthread", "gevent", *NATIVE, "uvicorn_worker.UvicornWorker"]
CALLS = [4, 5, 10, 20, 40, 80, 160, 320]
"""Of functions of the package, counted in a new worker. The first three lead to what makes signals wait."""
LAZY_CALLS = [number + 5 for number in CALLS]
"""Where the package is imported in the worker."""
GUNICORN_CONFIGURATION = """
import interrupting
from mackerel_otel_server.gunicorn import install

def post_fork(server, worker):
    interrupting.arm()

install(globals())
"""
DOORS = "import = interrupting\nimport = mackerel_otel_server.uwsgi\nenable-threads = true\n"
UWSGI = {"prefork": "", "lazy-apps": "lazy-apps = true\n", "threads": "threads = 2\n", "gevent": "gevent = 10\n"}


def _environment(folder: Path, receiver: Receiver, number: signal.Signals, calls: Sequence[int]) -> dict[str, str]:
    folder.mkdir()
    at = ",".join(map(str, calls))
    return environment(receiver, INTERRUPT_WITH=number.name, INTERRUPT_FOLDER=str(folder), INTERRUPT_AT=at)


def _assert_each_worker_ends(server: Server, folder: Path, calls: Sequence[int], started: str) -> None:
    """Ask until each call has been met by a worker, which then left, and one serves that nothing interrupts."""
    server.wait_for_log(started)
    deadline = time.monotonic() + 2 * DEADLINE
    while len(re.findall(started, server.log)) <= len(calls):
        claimed = max((int(file.name) for file in folder.iterdir()), default=0)
        assert time.monotonic() < deadline, f"the signal at call {claimed} of {calls} ended nobody\n{server.log}"
        # A worker that leaves in the middle of a request does not answer.
        with suppress(AssertionError):
            server.get()
    assert server.get().status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_gunicorn_worker_ends_at_whatever_call_a_signal_comes(
    tmp_path: Path, receiver: Receiver, worker_class: str, number: signal.Signals
) -> None:
    folder = tmp_path / "claimed"
    env = _environment(folder, receiver, number, CALLS)
    configuration = tmp_path / "interrupted.conf.py"
    configuration.write_text(GUNICORN_CONFIGURATION)
    app = "asgi_plain:application" if worker_class in ("asgi", "uvicorn_worker.UvicornWorker") else "plain:application"
    with gunicorn(tmp_path, "-k", worker_class, env=env, conf=str(configuration), app=app, workers=1) as server:
        _assert_each_worker_ends(server, folder, CALLS, r"Booting worker with pid")
        server.stop()
    assert server_spans(receiver.spans)


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        *((mode, signal.SIGINT) for mode in UWSGI),
        ("prefork", signal.SIGTERM),
        ("lazy-apps", signal.SIGHUP),
    ],
)
def test_a_uwsgi_worker_ends_at_whatever_call_its_master_tells_it_to(
    tmp_path: Path, receiver: Receiver, mode: str, number: signal.Signals
) -> None:
    folder = tmp_path / "claimed"
    calls = LAZY_CALLS if mode == "lazy-apps" else CALLS
    env = _environment(folder, receiver, number, calls)
    ini = f"{DOORS}{UWSGI[mode]}master = true\nmodule = plain:application\ndisable-logging = true\n"
    with uwsgi(tmp_path, ini, env=env, processes=1) as server:
        _assert_each_worker_ends(server, folder, calls, r"(?i)spawned uWSGI worker 1 ")
        # What it logs about requests is switched off.
        server.wait_until_asleep()
        server.stop()
    assert server_spans(receiver.spans)


@pytest.mark.parametrize("call", [LAZY_CALLS[0], 50, 500])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("mode", ["master = true\n", ""], ids=["prefork", "no-master"])
def test_uwsgi_ends_when_it_is_told_to_while_it_imports_the_package(
    tmp_path: Path, receiver: Receiver, mode: str, number: signal.Signals, call: int
) -> None:
    env = _environment(tmp_path / "claimed", receiver, number, [call])
    file = tmp_path / "uwsgi.ini"
    file.write_text(f"[uwsgi]\nhttp-socket = 127.0.0.1:0\ndie-on-term = true\n{DOORS}{mode}module = plain\n")
    result = subprocess.run(
        [*UWSGI_PROGRAM, "--ini", str(file)],
        cwd=tmp_path,
        env={**env, "INTERRUPT_AT_BOOT": "true"},
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    # As when it serves.
    assert result.returncode == (0 if mode else 30), result.stderr
    assert b"WSGI app 0" not in result.stderr
