"""uWSGI ends a busy worker at TERM without running code: how many spans that cost is said by the one that follows."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from servers import Server, environment, server_spans, uwsgi, uwsgi_environment, wait_until
from typing_extensions import Self

from mackerel_otel_server.cli.receiver.endpoint import Receiver

DOOR = "import = mackerel_otel_server.uwsgi\nenable-threads = true\ndisable-logging = true\n"
MODES = {
    "prefork": "",
    "lazy-apps": "lazy-apps = true\n",
    "threads": "threads = 3\n",
    "gevent": "gevent = 10\ngevent-monkey-patch = true\n",
}
RELOADS = 5
SAID = r"worker (\d+), whose place this one takes, lost (\d+) spans"


class Load:
    """Clients that ask one request after the other, and count the complete answers."""

    def __init__(self, server: Server, clients: int) -> None:
        self.answered = self.failed = 0
        self._server = server
        self._is_over = False
        self._count = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, number: int) -> None:
        """Wait until so many more requests have been answered."""
        enough = self.answered + number
        wait_until(lambda: self.answered >= enough, f"{number} more answers", lambda: self._server.log)

    def _ask(self) -> None:
        while not self._is_over:
            is_complete = False
            connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=20)
            try:
                # A tenth of a second, so that all workers are busy all the time.
                connection.request("GET", "/pid")
                is_complete = connection.getresponse().read().isdigit()
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
            finally:
                connection.close()
            with self._count:
                self.answered += is_complete
                self.failed += not is_complete


def said(server: Server) -> int:
    return sum(int(match[2]) for match in re.finditer(SAID, server.log))


@pytest.mark.parametrize("mode", MODES)
def test_what_brutal_reloads_under_load_cost_is_said(tmp_path: Path, receiver: Receiver, mode: str) -> None:
    # Sent at the end only, so that no batch is under way when a worker is ended, and nobody knows whether it arrived.
    env = uwsgi_environment(
        receiver,
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_BSP_MAX_QUEUE_SIZE="100000",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="100000",
    )
    with uwsgi(tmp_path, f"{DOOR}master = true\n{MODES[mode]}module = plain:application\n", env=env) as server:
        with Load(server, 8) as load:
            for reload in range(RELOADS):
                server.wait_for_log("sends traces as", 2 * (reload + 1))
                server.find_port()
                load.wait_for_answers(8)
                server.send(signal.SIGQUIT)
            server.wait_for_log("sends traces as", 2 * (RELOADS + 1))
        server.wait_until_asleep()
        server.stop()
        missing = load.answered - len(server_spans(receiver.spans))
        # A request whose answer did not arrive may have a span that is lost.
        assert missing <= said(server) <= missing + load.failed, server.log
    # Under gevent, requests that end at the last moment.
    assert missing or mode == "gevent", "nothing was lost that could have been said"


def test_reloads_that_wait_for_requests_cost_nothing_and_say_nothing(tmp_path: Path, receiver: Receiver) -> None:
    touch = tmp_path / "reload"
    touch.touch()
    ini = f"{DOOR}master = true\ntouch-reload = {touch}\nmodule = plain:application\n"
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver)) as server:
        with Load(server, 8) as load:
            for reload in range(RELOADS):
                server.wait_for_log("sends traces as", 2 * (reload + 1))
                server.find_port()
                load.wait_for_answers(8)
                # Newer than the last time by more than the second that uWSGI knows.
                os.utime(touch, (time.time() + 10 * (reload + 1),) * 2)
            server.wait_for_log("sends traces as", 2 * (RELOADS + 1))
        server.wait_until_asleep()
        server.stop()
        assert load.answered == len(server_spans(receiver.spans))
        assert not re.search(SAID, server.log), server.log


def test_what_a_killed_worker_had_not_sent_is_said(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    ini = f"{DOOR}master = true\nmodule = plain:application\n"
    with uwsgi(tmp_path, ini, env=env, processes=1) as server:
        for _ in range(3):
            server.get()
        pid = int(server.wait_for_log(r"worker (\d+) sends traces").group(1))
        os.kill(pid, signal.SIGKILL)
        match = server.wait_for_log(SAID)
        assert (int(match[1]), int(match[2])) == (pid, 3)
        # What it said once is not said again.
        os.kill(int(server.wait_for_log(r"worker (\d+) sends traces", 2).group(1)), signal.SIGKILL)
        server.wait_for_log("sends traces", 3)
        server.get()
        server.stop()
        assert len(re.findall(SAID, server.log)) == 1


def test_harakiri_sends_what_is_queued_and_nothing_is_said_to_be_lost(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000")
    ini = f"{DOOR}master = true\nharakiri = 2\nmodule = stuck:application\n"
    with uwsgi(tmp_path, ini, env=env, processes=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/sleep")
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()
        connection.close()
        server.wait_for_log("sends traces", 2)
        wait_until(lambda: server_spans(receiver.spans), "the killed request's span")
        server.stop()
        assert not re.search(SAID, server.log), server.log


@pytest.mark.parametrize("way", ["link", "open to others"])
def test_a_folder_that_is_not_this_users_alone_is_not_used(tmp_path: Path, receiver: Receiver, way: str) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    folder = temporary / f"mackerel_otel_server-{os.geteuid()}"
    if way == "link":
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    env = environment(receiver, TMPDIR=str(temporary))
    ini = f"import = uwsgi_no_shared_memory\n{DOOR}master = true\nmodule = plain:application\n"
    with uwsgi(tmp_path, ini, env=env) as server:
        server.get()
        server.wait_until_asleep()
        server.stop()
    assert not list(folder.iterdir())
    assert len(server_spans(receiver.spans)) == 1


def test_the_next_server_says_what_a_stop_under_load_cost_and_removes_the_files(
    tmp_path: Path, receiver: Receiver
) -> None:
    # Not in /dev/shm, where any other server that starts at this time says it first.
    ini = f"import = uwsgi_no_shared_memory\n{DOOR}master = true\nmodule = plain:application\n"
    folder = tmp_path / "tmp" / f"mackerel_otel_server-{os.geteuid()}"
    folder.parent.mkdir()
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000", TMPDIR=str(folder.parent))
    (tmp_path / "stopped").mkdir()
    with uwsgi(tmp_path / "stopped", ini, env=env) as stopped:
        with Load(stopped, 8) as load:
            wait_until(lambda: load.answered >= 16, "the workers answer", lambda: stopped.log)
            stopped.stop()
        missing = load.answered - len(server_spans(receiver.spans))
    assert missing
    own = set(folder.glob(f"{stopped.process.pid}.*"))
    # A worker that was not busy has sent what it had.
    assert own
    with uwsgi(tmp_path, ini, env=env) as server:
        server.wait_for_log("sends traces", 2)
        server.wait_until_asleep()
        files = {path.name for path in folder.glob(f"{server.process.pid}.*")}
        assert files == {f"{server.process.pid}.1", f"{server.process.pid}.2"}
        server.stop()
        lost = re.findall(r"worker (\d+) of a server that has ended lost (\d+) spans", server.log)
    assert missing <= sum(int(count) for _, count in lost) <= missing + load.failed, server.log
    assert len({pid for pid, _ in lost}) == len(lost) == len(own)
    assert not any(path.exists() for path in own)
    assert not list(folder.glob(f"{server.process.pid}.*"))


def test_files_of_a_server_that_runs_are_left_alone(tmp_path: Path, receiver: Receiver) -> None:
    # Not in /dev/shm, where any other server that starts at this time says it first.
    ini = f"import = uwsgi_no_shared_memory\n{DOOR}master = true\nmodule = plain:application\n"
    folder = tmp_path / "tmp" / f"mackerel_otel_server-{os.geteuid()}"
    folder.parent.mkdir()
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000", TMPDIR=str(folder.parent))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with uwsgi(tmp_path / "one", ini, env=env) as one:
        one.get()
        with uwsgi(tmp_path / "other", ini, env=env) as other:
            other.wait_for_log("sends traces", 2)
            other.wait_until_asleep()
            assert len(list(folder.glob(f"{one.process.pid}.*"))) == 2
            other.stop()
        one.wait_until_asleep()
        one.stop()
    assert "that has ended lost" not in one.log + other.log
