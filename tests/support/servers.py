"""Real servers for the tests: start one, ask it, signal it, read its log."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mackerel_otel_server.cli.receiver.endpoint import Receiver
    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

APPS = Path(__file__).parents[1] / "apps"
ASGI_CLASSES = [
    *(["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []),
    "uvicorn_worker.UvicornWorker",
]
"""Gunicorn's worker classes for ASGI; older releases have none of their own."""
DEADLINE = 40.0
"""Seconds for anything that a loaded machine may take long for. Nothing waits that long when all is well."""
LOADED = 1.0
"""Seconds that a machine may take longer with other tests' servers beside this one: each end of a process waits for its
turn. A sender that ignored its limit would take 10 s, the timeout of a request to the endpoint."""

PYUWSGI = str(Path(sys.executable).with_name("pyuwsgi"))
DEBIAN_UWSGI = "/usr/bin/uwsgi-core"
# Debian's uWSGI runs the interpreter that it was compiled for, and can use the packages of that version only.
IS_DEBIANS_PYTHON = Path("/usr/bin/python3").resolve().name == "python{}.{}".format(*sys.version_info)


class Shown(Protocol):
    """What the fixture ``shown`` returns."""

    def __call__(self, row: str, *columns: str, limit: str = "") -> None:
        """Let the test's result stand in the tables of docs/server-modes.md; ``limit``: a letter of their notes."""


@dataclass(frozen=True)
class Response:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def wait_until(condition: Callable[[], object], what: str, log: Callable[[], str] = str) -> None:
    """Wait for an event that shows itself only when asked for."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}\n{log()}"
        threading.Event().wait(0.02)


class Server:
    """A server process that logs into a file; it listens on a socket that it is given, or its port is found later."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path,
        env: Mapping[str, str],
        listener: socket.socket | None = None,
    ) -> None:
        self._log = log
        self.answered = 0
        """Requests that got a complete response."""
        self._count = threading.Lock()
        with log.open("wb") as output:
            # A session of its own, so that whatever it leaves behind can be found.
            self.process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[] if listener is None else [listener.fileno()],
            )
        self.port = 0 if listener is None else listener.getsockname()[1]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_log(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until a pattern stands in the log ``count`` times; return the last one."""
        compiled = re.compile(pattern)

        def found() -> bool:
            if len(list(compiled.finditer(self.log))) >= count:
                return True
            assert self.process.poll() is None, f"the server ended, {pattern!r} not in its log:\n{self.log}"
            return False

        wait_until(found, f"{count} × {pattern!r} in the log", lambda: self.log)
        return list(compiled.finditer(self.log))[-1]

    def get(self, path: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None) -> Response:
        """Send one request on a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            body = response.read()
        except OSError as error:
            raise AssertionError(f"{method} {path}: {error!r}\n{self.log}") from error
        finally:
            connection.close()
        with self._count:
            self.answered += 1
        return Response(response.status, response.reason, response.getheaders(), body)

    def ask_every_worker(self, workers: int, requests: int) -> set[str]:
        """Send at least ``requests`` requests to ``/pid``, and until every worker has answered; return their pids."""
        pids: set[str] = set()
        sent = 0
        deadline = time.monotonic() + DEADLINE
        with ThreadPoolExecutor(workers + 1) as pool:
            while sent < requests or len(pids) < workers:
                assert time.monotonic() < deadline, f"only {pids} of {workers} workers answer\n{self.log}"
                at_once = workers + 1
                # The slow route keeps one worker busy, so that the others get the next request.
                for response in pool.map(lambda _: self.get("/pid"), range(at_once)):
                    assert response.status == 200, self.log
                    pids.add(response.body.decode())
                sent += at_once
        return pids

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end:\n{self.log}") from None

    def find_port(self) -> None:
        """Read the port from uWSGI's log, which chooses another one when it executes itself again."""
        self.port = int(self.wait_for_log(r"bound to TCP address 127\.0\.0\.1:(\d+)").group(1))

    def wait_until_idle(self) -> None:
        """Wait until uWSGI's workers are done with what they answered.

        uWSGI ends a busy worker at TERM without running any code, and a worker is busy for a moment after its client
        has read the response.
        """
        self.wait_for_log(r"\|req: \d+/\d+\]", count=self.answered)
        self.wait_until_asleep()

    def wait_until_asleep(self) -> None:
        """Wait until no process of this server has had anything to do for a while."""
        quiet = iter(range(10))

        def idle() -> bool:
            nonlocal quiet
            if any(_state(pid) not in {"S", "Z"} for pid in _pids() if _session(pid) == self.process.pid):
                quiet = iter(range(10))
            return next(quiet, None) is None

        wait_until(idle, "the processes sleep", lambda: self.log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End the server and return its log."""
        self.send(number)
        self.wait()
        return self.log

    def wait_for_end_of_session(self) -> None:
        """Wait until no process of this server runs, whoever its parent is."""
        wait_until(lambda: not self.left_behind(), "the server's processes end", lambda: self.log)

    def left_behind(self) -> list[int]:
        """Return the processes of this server's session that still run."""
        return [pid for pid in _pids() if _session(pid) == self.process.pid]

    def kill(self) -> None:
        """End everything that this server started."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.left_behind():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _state(pid: int) -> str:
    """Return a process's state, as proc(5) abbreviates it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "S"


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def environment(receiver: Receiver | None = None, **variables: str) -> dict[str, str]:
    """Return what a server's process sees: nothing of OpenTelemetry but what is given, and the test applications."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MACKEREL_", "PYTEST_"))}
    env |= {"PYTHONPATH": str(APPS), "PYTHONUNBUFFERED": "1"}
    env["MACKEREL_OTEL_SPOOL"] = os.environ["MACKEREL_OTEL_SPOOL"]
    if receiver is not None:
        env |= {"MACKEREL_OTEL_ENDPOINT": receiver.url, "MACKEREL_APIKEY": "test-key", "OTEL_SERVICE_NAME": "shop"}
    # The fixture `parts` sets it.
    if parts := os.environ.get("TEST_PARTS"):
        env["MACKEREL_OTEL_PARTS"] = parts
    return env | variables


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """End a server, and complain about what it left behind."""
    try:
        yield server
        if server.process.poll() is None:
            server.stop()
        server.wait_for_end_of_session()
    finally:
        server.kill()


@contextmanager
def gunicorn(  # noqa: PLR0913 - keywords, each of its own
    tmp_path: Path,
    *options: str,
    env: Mapping[str, str],
    conf: str | None = "python:mackerel_otel_server.conf",
    app: str = "plain:application",
    workers: int = 2,
    program: Sequence[str] = (sys.executable, "-m", "gunicorn"),
    own_socket: bool = False,
) -> Iterator[Server]:
    """Run Gunicorn in ``tmp_path``; ``own_socket``: on one that it makes itself, which it can hand on at USR2."""
    configuration = ["-c", conf] if conf else []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind = "127.0.0.1:0" if own_socket else f"fd://{listener.fileno()}"
        server = Server(
            [*program, *configuration, "--workers", str(workers), "--bind", bind, *options, app],
            tmp_path / "gunicorn.log",
            cwd=tmp_path,
            # Newer releases of Gunicorn keep a control socket in HOME, the same for all servers of a user.
            env={**env, "HOME": str(tmp_path)},
            listener=None if own_socket else listener,
        )
    with running(server):
        if own_socket:
            server.port = int(server.wait_for_log(r"Listening at: http://127\.0\.0\.1:(\d+)").group(1))
        yield server


@contextmanager
def uvicorn(tmp_path: Path, *options: str, env: Mapping[str, str], app: str) -> Iterator[Server]:
    """Run uvicorn itself in ``tmp_path``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(
            [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno()), *options, app],
            tmp_path / "uvicorn.log",
            cwd=tmp_path,
            env=env,
            listener=listener,
        )
    with running(server):
        yield server


@contextmanager
def uwsgi(
    tmp_path: Path, ini: str, *, env: Mapping[str, str], program: Sequence[str] = (), processes: int = 2
) -> Iterator[Server]:
    """Run uWSGI in ``tmp_path`` with an ini file, to which the socket and the way to end are added."""
    file = tmp_path / "uwsgi.ini"
    file.write_text(
        f"[uwsgi]\nhttp-socket = 127.0.0.1:0\nprocesses = {processes}\nneed-app = true\ndie-on-term = true\n{ini}"
    )
    server = Server(
        [*(program or UWSGI_PROGRAM), "--ini", str(file)],
        tmp_path / "uwsgi.log",
        cwd=tmp_path,
        env=env,
    )
    with running(server):
        server.find_port()
        yield server


def debian_uwsgi() -> list[str] | None:
    """Return the command of Debian's uWSGI, if it is here and can run this interpreter's packages."""
    if shutil.which(DEBIAN_UWSGI) is None or not IS_DEBIANS_PYTHON:
        return None
    # Not --virtualenv: if another build of that Python has made the virtual environment, uWSGI would use that build's
    # standard library, too, whose extension modules need not fit. PYTHONPATH is used for the applications.
    command = [DEBIAN_UWSGI, "--plugin", "python3", "--pythonpath", sysconfig.get_path("purelib")]
    if Path("/usr/lib/uwsgi/plugins/gevent_python3_plugin.so").exists():
        command += ["--plugin", "gevent_python3"]
    return command


UWSGI_PROGRAM = (debian_uwsgi() if os.environ.get("TEST_UWSGI") == "debian" else None) or [PYUWSGI]
"""The uWSGI of the tests that name none: in the environments of scripts/test-debian Debian's, elsewhere the wheel's."""


def uwsgi_environment(receiver: Receiver | None = None, **variables: str) -> dict[str, str]:
    """Return an environment in which pyuwsgi can execute itself again: it does so with the venv's base Python."""
    env = environment(receiver, **variables)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], *packages])
    return env


def uwsgi_version(program: Sequence[str]) -> tuple[int, ...]:
    """Return (2, 0, 21) of ``2.0.21-debian``."""
    words = subprocess.run([program[0], "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", words)[:3]))


def server_spans(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    return [span for span in spans if span.kind == "SERVER"]


def server_span(receiver: Receiver, path: str) -> ReceivedSpan:
    """Return the one server span of a request to ``path``."""
    (span,) = (span for span in server_spans(receiver.spans) if span.attributes["url.path"] == path)
    return span


def query_text(span: ReceivedSpan) -> str:
    """Return the text of a query; older releases of OpenTelemetry's instrumentation know the old name only."""
    return str(span.attributes.get("db.query.text") or span.attributes["db.statement"])


def assert_one_server_span_per_request(receiver: Receiver, server: Server, pids: set[str]) -> None:
    """Check n requests = n server spans, from the pids that answered, each with one instance id of its own."""
    spans = server_spans(receiver.spans)
    # All that Mackerel would list as requests: a second wrapper around the application would make one below the first.
    requests = [span for span in receiver.spans if span.kind != "CLIENT" and "http.request.method" in span.attributes]
    assert len(requests) == len(spans) == server.answered, server.log
    assert len({span.span_id for span in spans}) == len(spans)
    by_pid = {str(span.resource["process.pid"]) for span in spans}
    assert by_pid == pids, server.log
    instances = {(span.resource["process.pid"], span.resource["service.instance.id"]) for span in receiver.spans}
    assert len(instances) == len({instance for _, instance in instances}) == len(pids)
