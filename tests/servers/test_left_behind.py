"""Whatever ends a process under load: each request that was answered arrives, at the latest after the next start.

The kernel's SIGKILL at a lack of memory is not among the tests: to bring it about for these servers alone takes a
memory cgroup, which only the owner of the machine can make. A limit of the address space raises MemoryError instead.
"""

from __future__ import annotations

import fcntl
import http.client
import itertools
import os
import random
import re
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
from fault_server import FaultServer
from servers import (
    ASGI_CLASSES,
    Server,
    Shown,
    environment,
    gunicorn,
    server_spans,
    uwsgi,
    uwsgi_environment,
    wait_until,
)
from typing_extensions import Self

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan, decode
from mackerel_otel_server.pipeline import journal_file

# Rows of the tables, with the worker class and further options.
GUNICORN: dict[str, Sequence[str]] = {
    "sync": ["sync"],
    "sync, preload_app": ["sync", "--preload"],
    "gthread": ["gthread", "--threads", "2"],
    "gevent": ["gevent"],
    "tornado": ["tornado"],
    **{worker_class: [worker_class] for worker_class in ASGI_CLASSES},
}
DOOR = "import = mackerel_otel_server.uwsgi\nenable-threads = true\ndisable-logging = true\n"
UWSGI = {
    "master": "master = true\n",
    "no master": "",
    "lazy-apps": "master = true\nlazy-apps = true\n",
    "threads": "master = true\nthreads = 4\n",
    "gevent = 20": "master = true\ngevent = 20\n",
    "gevent, lazy-apps": "master = true\nlazy-apps = true\ngevent = 20\n",
    "gevent, patched": "master = true\ngevent = 20\ngevent-monkey-patch = true\n",
}
WORKERS = 2
CLIENTS = 4
BATCH = 200
"""Spans of one request to the endpoint, at most."""
SETTINGS = {
    "OTEL_BSP_SCHEDULE_DELAY": "500",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH),
    # Room for all that is answered while the endpoint is down.
    "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
    # Seconds after which an attempt is given up.
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
}
PATHS = ("/", "/own")
TRACES = r"worker (\d+) sends traces as"

Spans = Callable[[], list[ReceivedSpan]]


class Load:
    """Clients that ask one request after the other, each with a number of its own, and note the complete answers."""

    def __init__(self, server: Server) -> None:
        self.answered: set[str] = set()
        self._server = server
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(client,)) for client in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, number: int) -> None:
        """Wait until so many more requests have been answered."""
        enough = len(self.answered) + number
        wait_until(lambda: len(self.answered) >= enough, f"{number} more answers", lambda: self._server.log)

    def wait_for_a_random_moment(self) -> None:
        """Wait until much was answered, and then until a moment that is another one in each run, when spans wait."""
        self.wait_for_answers(random.randint(150, 500))
        wait_until(unsent, "spans wait to be sent", lambda: self._server.log)

    def _ask(self, client: int) -> None:
        for number in itertools.count():
            if self._is_over.is_set():
                return
            name = f"{client}-{number}"
            connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
            try:
                connection.request("GET", f"{PATHS[number % len(PATHS)]}?n={name}")
                response = connection.getresponse()
                if (response.status, response.read()) == (200, b"hello"):
                    self.answered.add(name)
            except (OSError, http.client.HTTPException):
                self._is_over.wait(0.01)
            finally:
                connection.close()


class Host:
    """One mode of a server, and where its spans go."""

    def __init__(self, mode: str, folder: Path, env: dict[str, str]) -> None:
        self.mode = mode
        self._folder = folder
        self._env = env
        self._starts = itertools.count(1)
        self.logs: list[Callable[[], str]] = []

    @property
    def log(self) -> str:
        """What all starts have logged."""
        return "\n".join(log() for log in self.logs)

    @contextmanager
    def start(self) -> Iterator[Server]:
        """Start the server; stop it at the end, if it still runs."""
        folder = self._folder / f"start {next(self._starts)}"
        folder.mkdir()
        with self._server(folder) as server:
            self.logs.append(lambda: server.log)
            server.wait_for_log(TRACES, WORKERS)
            yield server
            self.stop(server)

    def _server(self, folder: Path) -> AbstractContextManager[Server]:
        if self.mode in GUNICORN:
            worker_class, *options = GUNICORN[self.mode]
            app = "asgi_plain:application" if worker_class in ASGI_CLASSES else "plain:application"
            return gunicorn(folder, "-k", worker_class, *options, env=self._env, app=app, workers=WORKERS)
        return uwsgi(folder, f"{DOOR}{UWSGI[self.mode]}module = plain\n", env=self._env, processes=WORKERS)

    def stop(self, server: Server, number: signal.Signals = signal.SIGTERM) -> None:
        """Tell a server to end, and wait until nothing of it is left."""
        if self.mode == "no master":
            # Nobody passes the signal on.
            for pid in server.left_behind():
                _kill(pid, number)
        elif server.process.poll() is None:
            server.send(number)
        server.wait()
        server.wait_for_end_of_session()

    def workers(self, server: Server) -> list[int]:
        """Return the workers that trace and still run."""
        alive = server.left_behind()
        return [pid for pid in map(int, re.findall(TRACES, server.log)) if pid in alive]


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_dead(pid: int) -> bool:
    try:
        # A zombie may wait for a parent that does not ask for it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def journals(names: Iterable[str | Path]) -> Iterator[journal_file.Contents]:
    """Yield what files of the folder hold, whoever owns them."""
    for name in names:
        with suppress(OSError, ValueError):
            yield journal_file.read((Path(os.environ["MACKEREL_OTEL_SPOOL"]) / name).read_bytes())


def unsent() -> int:
    """Return how many spans would be left if all processes died now."""
    return sum(map(len, journals(Path(os.environ["MACKEREL_OTEL_SPOOL"]).iterdir())))


def left_by(pids: Iterable[int]) -> int:
    """Return how many spans processes that have ended left in files that nobody owns at this moment."""
    wait_until(lambda: all(map(_is_dead, pids)), "the processes die")
    return sum(len(contents) for contents in journals(orphans()) if contents.about["pid"] in pids)


def delivered_for_others(log: str) -> int:
    return sum(map(int, re.findall(r"delivered (\d+) spans that worker \d+ left behind", log)))


def kill_all(server: Server) -> None:
    """Let nothing of a server live on, and none of it run any code."""
    _kill(server.process.pid)
    for pid in server.left_behind():
        _kill(pid)
    server.wait()
    server.wait_for_end_of_session()


def numbers(spans: Iterable[ReceivedSpan]) -> dict[str, set[str]]:
    """Return the spans of each request, by its number."""
    found = defaultdict(set)
    for span in server_spans(list(spans)):
        found[span.attributes["url.query"].removeprefix("n=")].add(span.span_id)
    return found


def orphans() -> list[str]:
    """Return the files that no process owns."""
    found = []
    for path in Path(os.environ["MACKEREL_OTEL_SPOOL"]).glob("*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(path.name)
    return found


def wait_for_all(host: Host, load: Load, spans: Spans) -> None:
    """Wait until there is a span of each answered request, and no file of a process that has ended."""

    def state() -> str:
        missing = load.answered - numbers(spans()).keys()
        return f"{len(missing)} of {len(load.answered)} missing: {sorted(missing)[:10]}; {orphans()}\n{host.log}"

    wait_until(lambda: load.answered <= numbers(spans()).keys(), "all spans arrive", state)
    wait_until(lambda: not orphans(), "no file is left", state)


def assert_each_answer_has_one_span(host: Host, load: Load, spans: list[ReceivedSpan], killed: Iterable[int]) -> None:
    """Check the spans of all requests, answered or not; only what a killed process had under way may come twice."""
    by_number = numbers(spans)
    assert load.answered <= by_number.keys(), host.log
    assert [number for number, ids in by_number.items() if len(ids) > 1] == [], host.log
    copies = Counter((span.resource["process.pid"], span.span_id) for span in spans)
    again: Counter[int] = Counter()
    for (pid, _), count in copies.items():
        if count > 1:
            again[pid] += count - 1
    assert again.keys() <= set(killed), (again, host.log)
    assert all(count <= BATCH for count in again.values()), (again, host.log)
    assert list(Path(os.environ["MACKEREL_OTEL_SPOOL"]).iterdir()) == []


@pytest.fixture
def make_host(tmp_path: Path) -> Callable[..., Host]:
    """Return a function that makes a host, which sends to an endpoint."""

    def make(mode: str, endpoint: str) -> Host:
        env = environment if mode in GUNICORN else uwsgi_environment
        variables = {"MACKEREL_OTEL_ENDPOINT": endpoint, "MACKEREL_APIKEY": "test-key", "OTEL_SERVICE_NAME": "shop"}
        return Host(mode, tmp_path, env(None, **variables, **SETTINGS))

    return make


MODES = [*GUNICORN, *UWSGI]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_workers_answers_are_sent_by_the_others(
    make_host: Callable[..., Host], receiver: Receiver, mode: str, shown: Shown
) -> None:
    shown(mode, "SIGKILL: a worker")
    host = make_host(mode, receiver.url)
    with host.start() as server:
        with Load(server) as load:
            load.wait_for_a_random_moment()
            pid = random.choice(host.workers(server))
            _kill(pid)
            left = left_by([pid])
            load.wait_for_answers(100)
        wait_for_all(host, load, lambda: receiver.spans)
        server.wait_until_asleep()
    assert_each_answer_has_one_span(host, load, receiver.spans, [pid])
    assert delivered_for_others(host.log) >= left, host.log


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "no master"])
def test_the_answers_of_workers_that_were_all_killed_are_sent_by_those_that_follow(
    make_host: Callable[..., Host], receiver: Receiver, mode: str, shown: Shown
) -> None:
    shown(mode, "SIGKILL: all workers")
    host = make_host(mode, receiver.url)
    with host.start() as server:
        with Load(server) as load:
            load.wait_for_a_random_moment()
            pids = host.workers(server)
            for pid in pids:
                _kill(pid)
            left = left_by(pids)
            load.wait_for_answers(100)
        wait_for_all(host, load, lambda: receiver.spans)
        server.wait_until_asleep()
    assert len(pids) == WORKERS
    assert_each_answer_has_one_span(host, load, receiver.spans, pids)
    assert delivered_for_others(host.log) >= left, host.log


@pytest.mark.parametrize("mode", MODES)
def test_the_answers_of_a_server_that_was_killed_are_sent_by_its_next_start(
    make_host: Callable[..., Host], receiver: Receiver, mode: str, shown: Shown
) -> None:
    shown(mode, "SIGKILL: the server")
    host = make_host(mode, receiver.url)
    with host.start() as server, Load(server) as load:
        load.wait_for_a_random_moment()
        pids = host.workers(server)
        kill_all(server)
        left = left_by(pids)
    assert len(pids) == WORKERS
    with host.start() as server:
        # No request comes.
        wait_for_all(host, load, lambda: receiver.spans)
        server.wait_until_asleep()
    assert_each_answer_has_one_span(host, load, receiver.spans, pids)
    assert delivered_for_others(host.log) == left > 0, host.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", UWSGI)
def test_what_uwsgi_s_busy_workers_answered_before_they_were_ended_is_sent_by_the_next_start(
    make_host: Callable[..., Host], receiver: Receiver, mode: str, number: signal.Signals, shown: Shown
) -> None:
    shown(mode, f"{number.name.removeprefix('SIG')}, busy")
    host = make_host(mode, receiver.url)
    with host.start() as server, Load(server) as load:
        load.wait_for_a_random_moment()
        pids = host.workers(server)
        host.stop(server, number)
    with host.start() as server:
        wait_for_all(host, load, lambda: receiver.spans)
        server.wait_until_asleep()
    assert_each_answer_has_one_span(host, load, receiver.spans, pids)


@pytest.mark.parametrize("mode", [mode for mode in UWSGI if mode != "no master"])
def test_what_uwsgi_s_busy_workers_answered_before_a_brutal_reload_is_sent_by_those_that_follow(
    make_host: Callable[..., Host], receiver: Receiver, mode: str, shown: Shown
) -> None:
    shown(mode, "QUIT, busy")
    host = make_host(mode, receiver.url)
    with host.start() as server:
        with Load(server) as load:
            load.wait_for_a_random_moment()
            pids = host.workers(server)
            # With die-on-term, TERM and QUIT have changed places.
            server.send(signal.SIGQUIT)
            server.wait_for_log(TRACES, 2 * WORKERS)
            server.find_port()
            load.wait_for_answers(100)
        wait_for_all(host, load, lambda: receiver.spans)
        server.wait_until_asleep()
    assert_each_answer_has_one_span(host, load, receiver.spans, pids)


def spans_of(endpoint: FaultServer) -> list[ReceivedSpan]:
    return [span for request in list(endpoint.requests) for span in decode(request.data)]


@pytest.mark.parametrize("mode", GUNICORN)
def test_what_was_answered_while_the_endpoint_was_down_outlives_a_reload(
    make_host: Callable[..., Host], mode: str, shown: Shown
) -> None:
    shown(mode, "HUP, endpoint down")
    endpoint = FaultServer()
    host = make_host(mode, endpoint.url)
    with host.start() as server:
        with Load(server) as load:
            load.wait_for_a_random_moment()
            pids = host.workers(server)
            server.send(signal.SIGHUP)
            wait_until(lambda: not set(pids) & set(server.left_behind()), "the workers end", lambda: server.log)
            assert re.search("left [0-9]+ in the journal", server.log), server.log
            load.wait_for_answers(100)
        with endpoint:
            wait_for_all(host, load, lambda: spans_of(endpoint))
            server.wait_until_asleep()
            host.stop(server)
    assert_each_answer_has_one_span(host, load, spans_of(endpoint), [])


@pytest.mark.parametrize("mode", MODES)
def test_what_was_answered_while_the_endpoint_was_down_is_sent_by_the_next_start(
    make_host: Callable[..., Host], mode: str, shown: Shown
) -> None:
    shown(mode, "TERM, endpoint down")
    endpoint = FaultServer()
    host = make_host(mode, endpoint.url)
    with host.start() as server:
        with Load(server) as load:
            load.wait_for_a_random_moment()
        server.wait_until_asleep()
    assert re.search("left [0-9]+ in the journal", host.log), host.log
    left = set(orphans())
    with host.start() as server:
        # No request comes, and what the workers try first fails.
        server.wait_for_log("the endpoint takes no spans")
        wait_until(lambda: left <= set(orphans()), "the workers give up", lambda: server.log)
        with endpoint:
            wait_for_all(host, load, lambda: spans_of(endpoint))
            server.wait_until_asleep()
            host.stop(server)
    assert_each_answer_has_one_span(host, load, spans_of(endpoint), [])
