"""The requests that the demo sends through real HTTP, and waiting that a signal ends."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.demo_server import FailedError
from mackerel_otel_server.cli.output import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from types import FrameType

PATHS = ("/", "/slow", "/fail", "/nothing")
# Rounds of requests after which a worker that has not answered yet is not waited for any longer.
MOST_ROUNDS = 10
REQUEST_SECONDS = 15.0
ROUND_SECONDS = 60.0
# Seconds after which a condition is asked again.
TICK = 0.05


@dataclass
class Watch:
    """Wait for things until a signal comes; its handler only makes a note, so that no cleanup is interrupted."""

    signals: list[int] = field(default_factory=list)

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.signals.append(number)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self.signals:
            raise KeyboardInterrupt

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> bool:
        """Return whether ``condition`` has come true in time; it is asked often and may itself wait a moment.

        A terminal shows ``what`` when that takes long. A signal raises KeyboardInterrupt.
        """
        deadline = time.monotonic() + seconds
        with waiting(what) as tick:
            while not condition():
                self.check()
                tick()
                if time.monotonic() > deadline:
                    return False
        return True

    def until_signal(self) -> None:
        """Wait for a signal."""
        while not self.signals:
            time.sleep(TICK)


def ask(port: int, workers: int, watch: Watch) -> tuple[int, set[int]]:
    """Send rounds of requests until every worker has answered.

    Return how many requests were answered, and the pids of the workers that did. Raise FailedError when one request was
    not answered, and KeyboardInterrupt when a signal came.
    """
    answered = 0
    pids: set[int] = set()
    executor = ThreadPoolExecutor(max_workers=2 * workers)
    try:
        for _ in range(MOST_ROUNDS):
            # One request per path and worker, at the same time.
            futures = [executor.submit(_get, port, path) for path in PATHS for _ in range(workers)]
            if not watch.until(partial(_are_done, futures), ROUND_SECONDS, "waiting for the answers"):
                raise FailedError(f"no answer within {ROUND_SECONDS:.0f} s")
            for future in futures:
                if error := future.exception():
                    raise FailedError(f"a request was not answered ({error!r})")
                pids |= future.result()
            answered += len(futures)
            if len(pids) >= workers:
                break
    finally:
        # No wait: the requests end when the server is stopped.
        executor.shutdown(wait=False, cancel_futures=True)
    return answered, pids


def _are_done(futures: Sequence[Future[set[int]]]) -> bool:
    return not wait(futures, TICK).not_done


def _get(port: int, path: str) -> set[int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
    except http.client.RemoteDisconnected:
        # uWSGI's whole answer to an exception in the application.
        if path == "/fail":
            return set()
        raise
    finally:
        connection.close()
    pid = response.getheader("Worker-Pid")
    return {int(pid)} if pid else set()
