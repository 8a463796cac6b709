"""A real Gunicorn under load against each fault of the far end: right answers, exact counts, right words, no key."""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any

import fault_server as far
import pytest
import trustme
from fault_server import FaultServer, Step, accepted, refused
from servers import DEADLINE, Server, environment, gunicorn

from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.sender import AFTER_FAILED_ATTEMPT

KEY = "the-Key-that-nobody-may-see-0123456789"
BATCH = 20
ROOM = 60
"""In the queue, so that a far end that takes nothing shows in the counts."""
PLENTY = 100_000
AT_ONCE = 4
LEFT = r", left (\d+) in the journal: another worker, or the next start, sends them"
MANY = 600
"""Requests at least."""


@dataclass(frozen=True)
class Outcome:
    """What the worker said at its end, and what the far end has seen."""

    finished: int
    sent: int
    lost: Mapping[str, int]
    left: int
    """In the journal, for another process."""
    arrived: int
    """Spans, each counted once."""
    arrived_again: int
    said: list[str]
    """The worker's lines but the first, in which it says that it traces, and the last, the counts."""


class Load:
    """Requests to a server with one worker, a look at its counts with every tenth."""

    def __init__(self, server: Server, room: int) -> None:
        self._server = server
        self._most_queued = room + BATCH  # one batch may be under way
        self.sent = 0

    def run(self, enough: Callable[[], object] = lambda: True) -> None:
        """Send many requests, and more until that is enough."""
        deadline = time.monotonic() + DEADLINE
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while self.sent < MANY or not enough():
                assert time.monotonic() < deadline, self._server.log
                list(pool.map(self._ask, range(self.sent, self.sent + MANY // 3)))
                self.sent += MANY // 3

    def _ask(self, number: int) -> None:
        path = "/stats" if number % 10 == 0 else f"/{number}"
        response = self._server.get(path)
        assert response.status == 200, self._server.log
        if path == "/stats":
            self._check(json.loads(response.body))
        else:
            assert response.body == f"hello {path}".encode(), self._server.log

    def _check(self, stats: dict[str, Any]) -> None:
        assert (
            stats["finished"] == stats["served"] == stats["delivered"] + sum(stats["lost"].values()) + stats["queued"]
        )
        assert 0 <= stats["queued"] <= self._most_queued


def lines(log: str) -> list[str]:
    return re.findall(r"\[(?:INFO|WARNING|ERROR)\] mackerel_otel_server: (.*)", log)


class Servers:
    """Gunicorn and the far end for one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def outcome(
        self,
        far_end: FaultServer,
        when: Callable[[], object],
        *,
        up_after: str = "",
        room: int = ROOM,
        spool: str | None = None,
    ) -> Outcome:
        """Load a server until ``when``; ``up_after``: the line after which the far end gets up, which is down first."""
        env = environment(
            OTEL_SERVICE_NAME="shop",
            MACKEREL_APIKEY=KEY,
            MACKEREL_OTEL_ENDPOINT=far_end.url,
            OTEL_BSP_SCHEDULE_DELAY="50",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE=str(BATCH),
            OTEL_BSP_MAX_QUEUE_SIZE=str(room),
            OTEL_EXPORTER_OTLP_TIMEOUT="0.5",
            MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1",
        )
        if spool:
            env["MACKEREL_OTEL_SPOOL"] = spool
        # The log for debugging, too, is for people who must not see the key.
        options = ["--log-level", "debug"]
        with gunicorn(self._folder, *options, env=env, app="counting:application", workers=1) as server:
            load = Load(server, room)
            if up_after:
                load.run(lambda: up_after in server.log)
                far_end.__enter__()
            load.run(lambda: when() and len(lines(server.log)) > 1)
            log = server.stop()
        assert KEY.lower() not in log.lower()
        first, *said, last = lines(log)
        assert first.endswith(f"sends traces as 'shop' to {far_end.url}")
        counts = re.fullmatch(rf"sent (\d+) spans in \d+ requests, lost (\d+)(?: \((.*?)\))?(?:{LEFT})?(; .*)?", last)
        assert counts, log
        sent, all_lost, left = int(counts[1]), int(counts[2]), int(counts[4] or 0)
        lost = {reason: int(count) for reason, count in re.findall(r"(\w[\w ]*) (\d+)(?:, |$)", counts[3] or "")}
        assert sum(lost.values()) == all_lost, last
        assert bool(counts[5]) == (AFTER_FAILED_ATTEMPT in lost), last
        assert sent + all_lost + left == load.sent, last
        files = Path(os.environ["MACKEREL_OTEL_SPOOL"]).glob("*")
        assert sum(len(journal_file.read(file.read_bytes())) for file in files) == left, last
        ids = far_end.span_ids
        arrived = len(set(ids))
        assert sent <= arrived <= load.sent, last
        assert {request.headers["mackerel-api-key"] for request in far_end.requests} <= {KEY}
        return Outcome(load.sent, sent, lost, left, arrived, len(ids) - arrived, said)


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


@pytest.fixture
def far_end() -> Iterator[Callable[..., FaultServer]]:
    """Return a function that makes a far end, which is down until it is entered."""
    with ExitStack() as stack:

        def make(*steps: Step, **options: Any) -> FaultServer:
            server = FaultServer(*steps, **options)
            stack.push(server)
            return server

        yield make


Make = Callable[..., FaultServer]
PAST = formatdate(0, usegmt=True)
KEPT = "the spans are kept and sent later"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step(500), f"answered 500 Internal Server Error: {KEPT}; the fault is at the far end"),
        (refused(429, "slow down"), f"answered 429 Too Many Requests 'slow down': {KEPT}; if this goes on, send fewer"),
        (refused(429, "", Retry_After="0"), f"to be asked again after 0 s: {KEPT}; if this goes on, send fewer"),
        (refused(429, "", Retry_After="5"), f"to be asked again after 5 s: {KEPT}; if this goes on, send fewer"),
        (refused(429, "", Retry_After=PAST), f"to be asked again after 0 s: {KEPT}; if this goes on, send fewer"),
    ],
    ids=["500", "429", "429 at once", "429 soon", "429 past"],
)
def test_a_far_end_that_may_recover_costs_what_the_queue_does_not_hold(
    servers: Servers, far_end: Make, step: Step, words: str
) -> None:
    with far_end(step) as server:
        assert_all_is_lost_or_left(servers.outcome(server, lambda: server.requests), words)


DOWN = f"did not answer ([Errno 111] Connection refused): {KEPT}; check that the far end runs"


def test_without_a_journal_a_far_end_that_is_down_costs_the_queue_too(servers: Servers, far_end: Make) -> None:
    outcome = servers.outcome(far_end(), lambda: True, spool="none")
    assert (outcome.sent, outcome.left, outcome.arrived) == (0, 0, 0)
    assert outcome.lost.keys() == {"queue full", AFTER_FAILED_ATTEMPT}
    assert ROOM <= outcome.lost[AFTER_FAILED_ATTEMPT] <= ROOM + BATCH
    (said,) = outcome.said
    assert DOWN in said


def test_a_far_end_that_is_down_costs_what_the_queue_does_not_hold(servers: Servers, far_end: Make) -> None:
    outcome = servers.outcome(far_end(), lambda: True)
    assert_all_is_lost_or_left(outcome, DOWN)
    assert outcome.arrived == 0


def test_a_wrong_certificate_costs_what_the_queue_does_not_hold(servers: Servers, far_end: Make) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with far_end(context=context) as server:
        outcome = servers.outcome(server, lambda: server.connections)
    assert_all_is_lost_or_left(
        outcome, f"did not answer (unable to get local issuer certificate): {KEPT}; for a certificate"
    )
    assert outcome.arrived == 0


def assert_all_is_lost_or_left(outcome: Outcome, words: str) -> None:
    assert outcome.sent == 0
    assert outcome.lost.keys() == {"queue full"}
    # The queue was full, and is kept for another process.
    assert ROOM <= outcome.left <= ROOM + BATCH
    (said,) = outcome.said
    assert said.startswith("the endpoint takes no spans: ")
    assert words in said


@pytest.mark.parametrize(
    ("step", "reason", "words"),
    [
        (refused(400, "Invalid API Key"), "API key refused", "answered 400 Bad Request 'Invalid API Key': spans are"),
        (Step(401, f"no key {KEY}".encode()), "API key refused", "answered 401 Unauthorized 'no key ****': spans are"),
        (Step(403), "API key refused", "answered 403 Forbidden: spans are dropped, one attempt is made a minute; set"),
        (refused(429, "", Retry_After="99999"), "quota", "after 99999 s: spans are dropped, one attempt is made a"),
    ],
    ids=["400", "401", "403", "429"],
)
def test_a_far_end_that_says_no_for_long_is_asked_once_and_every_span_is_counted(
    servers: Servers, far_end: Make, step: Step, reason: str, words: str
) -> None:
    with far_end(step) as server:
        # Room for all: on a loaded machine many requests end before the first answer has been read.
        outcome = servers.outcome(server, lambda: server.requests, room=MANY)
        assert len(server.requests) == 1
    assert (outcome.sent, outcome.lost) == (0, {reason: outcome.finished})
    (said,) = outcome.said
    assert words in said


def test_a_redirect_leads_nothing_to_another_host(servers: Servers, far_end: Make) -> None:
    with far_end() as elsewhere, far_end(Step(302, headers={"Location": f"{elsewhere.url}?{KEY}"})) as server:
        outcome = servers.outcome(server, lambda: len(server.requests) > 3)
        assert elsewhere.connections == 0
    assert_each_batch_is_lost(outcome, "redirect", "answered 302 Found to 'http://127.0.0.1:")


def test_a_far_end_that_finds_each_batch_too_large_gets_each_once(servers: Servers, far_end: Make) -> None:
    with far_end(Step(413)) as server:
        outcome = servers.outcome(server, lambda: len(server.requests) > 3)
    assert_each_batch_is_lost(outcome, "too large", f"answered 413 {HTTPStatus(413).phrase}: these spans are lost")


def assert_each_batch_is_lost(outcome: Outcome, reason: str, words: str) -> None:
    assert (outcome.sent, outcome.arrived_again) == (0, 0)
    assert outcome.lost[reason] == outcome.arrived
    # A loaded machine may leave no time for the rest, which is kept then.
    assert set(outcome.lost) <= {reason, "queue full"}
    assert outcome.left <= ROOM
    (said,) = outcome.said
    assert words in said


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (far.never, "timed out"),
        (far.drip, "timed out"),
        (far.half_an_answer, "closed in the middle of its answer"),
        (far.reset, ""),
    ],
)
def test_spans_without_an_answer_are_sent_once_and_count_as_unconfirmed(
    servers: Servers, far_end: Make, act: Callable[[FaultServer, Any], object], words: str
) -> None:
    with far_end(Step(act=act)) as server:
        outcome = servers.outcome(server, lambda: len(server.requests) > 2)
    assert (outcome.sent, outcome.arrived_again) == (0, 0)
    assert 0 < outcome.lost["unconfirmed"] <= outcome.arrived
    assert set(outcome.lost) <= {"unconfirmed", "queue full"}
    assert outcome.left <= ROOM
    (said,) = outcome.said
    assert f"{words}): the spans may have arrived, so they are not sent again" in said


@pytest.mark.parametrize(
    "step",
    [
        Step(200, b"<html>garbage \x1b[31m</html>"),
        Step(act=far.half_a_body),
        Step(act=far.endless_body),
    ],
    ids=["garbage", "half a body", "endless body"],
)
def test_a_200_delivers_whatever_comes_after_it(servers: Servers, far_end: Make, step: Step) -> None:
    with far_end(step) as server:
        outcome = servers.outcome(server, lambda: server.requests, room=PLENTY)
    assert (outcome.sent, outcome.lost, outcome.left, outcome.arrived_again) == (outcome.finished, {}, 0, 0)
    (said,) = outcome.said
    assert "answered 200 with something that is no OTLP answer" in said


def test_a_200_whose_body_drips_delivers_as_fast_as_its_limit_allows(servers: Servers, far_end: Make) -> None:
    with far_end(Step(act=far.drip_body)) as server:
        # Room for more than goes out between the last request and the end, which a busy machine makes longer.
        outcome = servers.outcome(server, lambda: len(server.requests) > 2, room=2 * ROOM)
    assert outcome.arrived - BATCH <= outcome.sent <= outcome.arrived
    assert outcome.arrived_again == 0
    # The batch whose answer drips when the worker leaves may have arrived.
    assert set(outcome.lost) - {"unconfirmed"} == {"queue full"}
    assert 0 < outcome.left <= 2 * ROOM
    assert outcome.lost.get("unconfirmed", 0) in (0, BATCH)
    (said,) = outcome.said
    assert "answered 200 with something that is no OTLP answer" in said


def test_what_a_partial_success_rejects_is_counted(servers: Servers, far_end: Make) -> None:
    with far_end(accepted(1, f"too old for {KEY}")) as server:
        outcome = servers.outcome(server, lambda: server.requests, room=PLENTY)
        assert outcome.lost == {"rejected by the endpoint": len(server.requests)}
    assert (outcome.arrived, outcome.arrived_again) == (outcome.finished, 0)
    (said,) = outcome.said
    assert re.search(r"rejected 1 of \d+ spans 'too old for \*\*\*\*': the rejected spans are lost", said)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Step(503), Step(503)], "answered 503 Service Unavailable"),
        ([refused(429, "slow down", Retry_After="1"), Step(429)], "'slow down', to be asked again after 1 s"),
    ],
    ids=["503", "429"],
)
def test_a_far_end_that_recovers_has_missed_nothing(
    servers: Servers, far_end: Make, steps: list[Step], words: str
) -> None:
    with far_end(*steps, accepted()) as server:
        outcome = servers.outcome(server, lambda: len(server.requests) > len(steps), room=PLENTY)
    assert_nothing_is_lost(outcome, words)


def test_a_far_end_that_was_down_has_missed_nothing(servers: Servers, far_end: Make) -> None:
    server = far_end()
    outcome = servers.outcome(server, lambda: server.requests, up_after="Connection refused", room=PLENTY)
    assert_nothing_is_lost(outcome, "Connection refused")


def assert_nothing_is_lost(outcome: Outcome, words: str) -> None:
    assert (outcome.sent, outcome.lost, outcome.left) == (outcome.finished, {}, 0)
    complaint, relief = outcome.said
    assert words in complaint
    assert relief == "the endpoint takes spans again"
