"""Gunicorn or uWSGI: untouched, with the guide's recipe, under opentelemetry-instrument, or with this package."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

APPS = Path(__file__).with_name("apps")
VARIANTS = ("untouched", "recipe", "opentelemetry-instrument", "standard", "ours")
"""``standard``: this package with OpenTelemetry's own parts, ``MACKEREL_OTEL_PARTS=standard``."""
STOCK_SPAN = "stock span"
"""A variant for server_span.py: OpenTelemetry's middleware makes the server span, this package sends it."""
CLASSES = {"sync": [], "gthread": ["--threads", "8"], "gevent": [], "asgi": []}
UVICORN = "uvicorn_worker.UvicornWorker"
TORNADO = "tornado"
UWSGI = {
    "uWSGI": [],
    "uWSGI lazy-apps": ["--lazy-apps"],
    "uWSGI threads": ["--threads", "8"],
    "uWSGI gevent": ["--gevent", "20"],
}
"""Modes of uWSGI, which may stand where a worker class of Gunicorn does."""
APPLICATIONS = {"generic": "generic WSGI callable", "flask": "Flask + one SQLite query"}
DEADLINE = 30.0
_KEY = "benchmark"
# The last one is the number of heaps that the threads of a process have: most differences of memory come from it.
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "MALLOC_ARENA_MAX")
_LOG_LINES = 15


class ServerError(Exception):
    """A server did not do what a measurement needs."""


@dataclass(frozen=True)
class Case:
    """What is served, by what; ``python`` may be the interpreter of another environment."""

    worker_class: str
    application: str
    variant: str
    python: str = sys.executable

    def __str__(self) -> str:
        """Return its names."""
        return ", ".join(filter(None, (self.worker_class, self.application, self.variant)))

    @property
    def spans_per_request(self) -> int:
        """How many spans a traced request makes."""
        if self.variant == "untouched":
            return 0
        return 2 if self.application == "flask" else 1

    def exists(self) -> bool:
        """Tell whether there is something to measure."""
        # The Flask application is a WSGI callable.
        return self.worker_class != "asgi" or self.application != "flask"

    def command(self, workers: int, listener: int) -> list[str]:
        """Return what starts the server; the application comes last."""
        scripts = Path(self.python).parent
        if self.worker_class in UWSGI:
            return [
                *(str(scripts / "pyuwsgi"), "--master", "--need-app", "--die-on-term", "--enable-threads"),
                # Gunicorn has no access log by default, either.
                *("--disable-logging", "--processes", str(workers), "--http-socket", f"fd://{listener}"),
                *UWSGI[self.worker_class],
                *(["--import", "mackerel_otel_server.uwsgi"] if self.variant in ("ours", "standard") else []),
                f"--module={self._target()}",
            ]
        return [
            *([str(scripts / self.variant)] if self.variant == "opentelemetry-instrument" else []),
            *(self.python, "-m", "gunicorn"),
            *self._configuration(),
            *("--worker-class", self.worker_class, *CLASSES.get(self.worker_class, ())),
            *("--workers", str(workers), "--keep-alive", "0", "--bind", f"fd://{listener}"),
            self._target(),
        ]

    def _configuration(self) -> list[str]:
        ours = "python:mackerel_otel_server.conf"
        files = {"recipe": "python:recipe", "standard": ours, "ours": ours, STOCK_SPAN: ours}
        return ["--config", files[self.variant]] if self.variant in files else []

    def _target(self) -> str:
        module = {"flask": "flask_sqlite"}.get(self.application, self.application)
        if self.worker_class in ("asgi", UVICORN):
            module = f"asgi_{module}"
        # The command instruments Flask and sqlite3 by itself; around a callable of no framework it puts nothing.
        by_hand = self.variant in ("recipe", STOCK_SPAN) or (
            self.variant == "opentelemetry-instrument" and module != "flask_sqlite"
        )
        return f"{module}:traced()" if by_hand else f"{module}:application"


def environment(variant: str, endpoint: str, folder: str, schedule_delay: int) -> dict[str, str]:
    """Return a server's whole environment.

    Args:
        variant: One of VARIANTS.
        endpoint: Where spans go.
        folder: Where the server may put files.
        schedule_delay: Milliseconds between two batches.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # Gunicorn 25.1+ has its control socket in one of these two folders, the same for all servers of a user.
    kept |= {"PYTHONPATH": str(APPS), "HOME": folder, "XDG_RUNTIME_DIR": folder}
    if variant == "untouched":
        return kept
    kept |= {"OTEL_BSP_SCHEDULE_DELAY": str(schedule_delay)}
    if variant == "recipe":
        return kept | {"BENCHMARK_ENDPOINT": endpoint, "BENCHMARK_KEY": _KEY}
    kept |= {"OTEL_SERVICE_NAME": "benchmark"}
    if variant in ("ours", "standard", STOCK_SPAN):
        path = os.pathsep.join([kept["PYTHONPATH"], _hide_instrumentation(folder)])
        kept |= {"MACKEREL_OTEL_PARTS": "standard"} if variant == "standard" else {}
        return kept | {"MACKEREL_OTEL_ENDPOINT": endpoint, "MACKEREL_APIKEY": _KEY, "PYTHONPATH": path}
    return kept | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": f"Mackerel-Api-Key={_KEY},Accept=*/*",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        # Traces only, as in the other cases.
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


def _hide_instrumentation(folder: str) -> str:
    """Return a path that hides the entry point of OpenTelemetry's instrumentation for sqlite3.

    It is installed for opentelemetry-instrument, and this package would use it instead of its own.
    """
    metadata = Path(folder, "hidden", "opentelemetry_instrumentation_sqlite3-0.dist-info", "METADATA")
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: opentelemetry-instrumentation-sqlite3\nVersion: 0\n")
    return str(metadata.parent.parent)


class Server:
    """Run a case while the ``with`` block runs, and wait for its first answer.

    Args:
        case: What is served.
        workers: How many workers serve it.
        endpoint: Where spans go.
        folder: Where the server may put files.
        schedule_delay: Milliseconds between two batches.
        wrapper: A command that runs the server.
        variables: Further variables of its environment.
        deadline: Seconds until its first answer.
    """

    def __init__(  # noqa: PLR0913 - all by name
        self,
        case: Case,
        workers: int,
        *,
        endpoint: str,
        folder: str,
        schedule_delay: int,
        wrapper: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        """Remember the arguments; nothing is started yet."""
        self._case = case
        self._count = workers
        self._wrapper = wrapper
        self._deadline = deadline
        self._environment = environment(case.variant, endpoint, folder, schedule_delay) | dict(variables or {})
        self._folder = folder
        self._log = Path(folder, "server.log")

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            ServerError: It does not answer.
        """
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, self._log.open("wb") as log:
            self.port: int = listener.getsockname()[1]
            begin = time.perf_counter()
            self._process = subprocess.Popen(
                [*self._wrapper, *self._case.command(self._count, listener.fileno())],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches only the benchmark, which ends the server in order.
                start_new_session=True,
                pass_fds=[listener.fileno()],
            )
        try:
            self._ask()
            self.seconds_to_first_answer = time.perf_counter() - begin
            self.workers = self._wait_for_workers()
            self.seconds_from_fork = processes.age_seconds(self.workers[0])
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, with KILL if need be."""
        try:
            if error is None:
                self.terminate()
                self._process.wait(2 * self._deadline)
        except subprocess.TimeoutExpired:
            raise self.failure("does not end") from None
        finally:
            self.kill()

    @property
    def process_id(self) -> int:
        """The arbiter's."""
        return self._process.pid

    def terminate(self) -> None:
        """Begin the graceful end."""
        self._process.terminate()

    def kill(self) -> None:
        """Leave no process of it behind."""
        with suppress(ProcessLookupError, PermissionError):
            # macOS answers EPERM for a group of zombies.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def failure(self, what: str) -> ServerError:
        """Make an error that shows the end of the log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return ServerError("\n".join([f"{self._case}: the server {what}; its log ends with:", *lines]))

    def _ask(self) -> None:
        """Send one request, which waits in the listener's queue until a worker is there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=self._deadline) as connection:
                connection.sendall(b"GET /fish/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                answer = connection.recv(65536)
        except OSError as error:
            raise self.failure(f"does not answer ({error!r})") from None
        if not answer.startswith(b"HTTP/1.1 200"):
            raise self.failure(f"answers {answer[:80]!r}")

    def _wait_for_workers(self) -> list[int]:
        deadline = time.monotonic() + self._deadline
        while len(workers := processes.children(self._process.pid)) != self._count:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise self.failure(f"has {len(workers)} workers instead of {self._count}")
            time.sleep(0.02)
        return workers
