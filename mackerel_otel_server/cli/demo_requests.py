"""The requests that the demo sends, through real HTTP."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor, wait

from mackerel_otel_server.cli.watch import TICK, Watch

PATHS = ("/", "/slow", "/fail", "/nothing")
# Rounds of requests after which a worker that has not answered yet is not waited for any longer.
MOST_ROUNDS = 10
REQUEST_SECONDS = 15.0
ROUND_SECONDS = 60.0


class UnansweredError(Exception):
    """The server did not answer a request."""


def ask(port: int, workers: int, watch: Watch) -> tuple[int, set[int]]:
    """Send rounds of requests until every worker has answered.

    Returns:
        How many requests were answered, and the pids of the workers that did.

    Raises:
        UnansweredError: One was not.
        KeyboardInterrupt: A signal came.
    """
    answered = 0
    pids: set[int] = set()
    executor = ThreadPoolExecutor(max_workers=2 * workers)
    try:
        for _ in range(MOST_ROUNDS):
            answers = _ask_once(executor, port, workers, watch)
            answered += len(answers)
            pids = pids.union(*answers)
            if len(pids) >= workers:
                break
    finally:
        # No wait: the requests end when the server is stopped.
        executor.shutdown(wait=False, cancel_futures=True)
    return answered, pids


def _ask_once(executor: ThreadPoolExecutor, port: int, workers: int, watch: Watch) -> list[set[int]]:
    """Send one request per path and worker, at the same time, and return who has answered."""
    futures = [executor.submit(_get, port, path) for path in PATHS for _ in range(workers)]

    def all_done() -> bool:
        return not wait(futures, TICK).not_done

    if not watch.until(all_done, ROUND_SECONDS, "waiting for the answers"):
        raise UnansweredError(f"no answer within {ROUND_SECONDS:.0f} s")
    for future in futures:
        if error := future.exception():
            raise UnansweredError(f"a request was not answered ({error!r})")
    return [future.result() for future in futures]


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
