"""Queue, batches, deadlines and accounting of one process, against real sockets."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, Step, accepted, never, refused, reset
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, Status, StatusCode, set_span_in_context

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.pipeline import answer, connection, journal_file, oversized_spans
from mackerel_otel_server.pipeline.encoder import Encoder
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.pipeline.fingerprint import Destination
from mackerel_otel_server.pipeline.journal import Journal
from mackerel_otel_server.pipeline.sender import (
    AFTER_A_FAILURE,
    AFTER_FAILED_ATTEMPT,
    BATCH_BYTES,
    NOT_IN_TIME,
    QUEUE_BYTES,
    TOO_LATE,
    Sender,
)
from mackerel_otel_server.pipeline.spool import Spool
from mackerel_otel_server.process.log import log
from mackerel_otel_server.settings import read

DEADLINE = 20.0


class Worker(SpanProcessor):
    """A tracer whose spans go to a sender, as in a server's worker."""

    def __init__(self, url: str, key: str = "the-key", folder: Path | None = None, **variables: str) -> None:
        self.new_key: str | None = None
        settings = read(
            {
                "MACKEREL_OTEL_ENDPOINT": url,
                "MACKEREL_APIKEY": key,
                "OTEL_SERVICE_NAME": "shop",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
                **variables,
            }
        )
        provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
        encoder, exporter = Encoder(provider.resource), Exporter(settings)
        self.folder = folder
        self.journal = Journal(Spool(str(folder)), encoder, exporter.destination, 1) if folder else None
        self.sender = Sender(settings, encoder, exporter, lambda: self.new_key, self.journal)
        provider.add_span_processor(self)
        self.tracer = provider.get_tracer("test")

    def on_end(self, span: ReadableSpan) -> None:
        self.sender.put(span)

    def work(self, spans: int, **attributes: str) -> None:
        for _ in range(spans):
            self.tracer.start_span("work", attributes=attributes).end()

    def in_journal(self) -> int:
        """Return how many spans another process would send if this one ended now."""
        assert self.folder is not None
        return sum(len(journal_file.read(path.read_bytes())) for path in self.folder.iterdir())

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.sender.counts()
            threading.Event().wait(0.01)


Make = Callable[..., Worker]


@pytest.fixture
def worker() -> Iterator[Make]:
    made: list[Worker] = []

    def make(url: str, key: str = "the-key", **variables: str) -> Worker:
        made.append(Worker(url, key, None, **variables))
        return made[-1]

    yield make
    for each in made:
        each.sender.stop(0)


@pytest.fixture
def journalled(tmp_path: Path) -> Iterator[Make]:
    """Likewise, with a journal, and a thread that sends when it is told to."""
    made: list[Worker] = []

    def make(url: str, key: str = "the-key", **variables: str) -> Worker:
        variables.setdefault("OTEL_BSP_SCHEDULE_DELAY", "60000")
        made.append(Worker(url, key, tmp_path / "spool", **variables))
        return made[-1]

    yield make
    for each in made:
        each.sender.stop(0)
        each.sender.leave_journal_to_parent()


@pytest.fixture
def connecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Two events: a thread begins to connect; and it may go on."""
    begun, go_on = threading.Event(), threading.Event()
    connect = connection._connect  # noqa: SLF001 - as a name server that answers late

    def waits(address: tuple[str, int], limit: float) -> socket.socket:
        begun.set()
        go_on.wait(DEADLINE)
        return connect(address, limit)

    monkeypatch.setattr(connection, "_connect", waits)
    yield begun, go_on
    go_on.set()


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mackerel_otel_server.pipeline.exporter._FIRST_BACKOFF", 0.02)
    monkeypatch.setattr("mackerel_otel_server.pipeline.exporter._LONGEST_BACKOFF", 0.05)


def spans_in(data: bytes) -> list[bytes]:
    request = ExportTraceServiceRequest.FromString(data)
    return [s.span_id for resource in request.resource_spans for scope in resource.scope_spans for s in scope.spans]


def attributes_in(data: bytes) -> list[dict[str, str]]:
    request = ExportTraceServiceRequest.FromString(data)
    found = [s for resource in request.resource_spans for scope in resource.scope_spans for s in scope.spans]
    return [{one.key: one.value.string_value for one in span.attributes} for span in found]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_spans_are_sent_after_the_schedule_delay(worker: Make) -> None:
    with Receiver(api_key="the-key") as receiver:
        process = worker(receiver.url)
        process.work(7)
        process.wait_until(lambda: process.sender.counts().delivered == 7)
        assert len(receiver.requests) == 1
    counts = process.sender.counts()
    assert (counts.finished, counts.lost, counts.queued, counts.requests) == (7, {}, 0, 1)


def test_a_full_batch_does_not_wait_for_the_schedule_delay(worker: Make) -> None:
    with Receiver(api_key="the-key") as receiver:
        process = worker(receiver.url, OTEL_BSP_SCHEDULE_DELAY="60000", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10")
        process.work(25)
        process.wait_until(lambda: process.sender.counts().delivered == 20)
        assert [len(request.spans) for request in receiver.requests] == [10, 10]
        assert process.sender.counts().queued == 5
        assert process.sender.flush(DEADLINE)
        assert len(receiver.spans) == 25


def test_a_batch_is_bounded_in_bytes(worker: Make) -> None:
    with FaultServer() as server:
        process = worker(server.url, OTEL_BSP_SCHEDULE_DELAY="60000")
        process.work(5, text="x" * 1_500_000)
        assert process.sender.stop(DEADLINE), process.sender.counts()
        sizes = [len(request.data) for request in server.requests]
    assert len(sizes) == 3
    assert max(sizes) <= BATCH_BYTES + 10_000


def test_a_span_that_no_request_can_hold_is_cut_and_said_once(worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "warning", lambda words, *values: said.append(words % values))
    with FaultServer() as server:
        process = worker(server.url)
        process.work(2, text="x" * (BATCH_BYTES + 1), other="y")
        assert process.sender.stop(DEADLINE), process.sender.counts()
        arrived = [attributes for request in server.requests for attributes in attributes_in(request.data)]
        assert len({span for request in server.requests for span in spans_in(request.data)}) == 2
    assert all(attributes == {"text": "x" * 1024 + "...", "other": "y"} for attributes in arrived)
    # Whether the connection lasted is another matter.
    said = [line for line in said if "more than a request may have" in line]
    assert len(said) == 1
    assert said[0].startswith(f"the span 'work' has {BATCH_BYTES + 103} bytes, more than a request may have")


@pytest.mark.parametrize(
    "attributes",
    [
        {f"{number}": "\U0001f41f" * 100_000 for number in range(128)},
        {f"{number}": ["\U0001f41f" * 1000] * 100_000 for number in range(128)},
        {f"{number}": list(range(100_000)) for number in range(128)},
        {"\U0001f41f" * 100_000 + f"{number}": number for number in range(128)},
    ],
    ids=["texts", "lists of texts", "numbers", "names"],
)
def test_what_is_cut_is_never_too_large(attributes: dict[str, Any]) -> None:
    span = oversized_spans.cut(
        ReadableSpan(
            "\U0001f41f" * 5_000_000,
            SpanContext(1, 1, is_remote=False),
            attributes=attributes,
            events=[Event("\U0001f41f" * 10_000, attributes)] * 128,
            status=Status(StatusCode.ERROR, "\U0001f41f" * 5_000_000),
        )
    )
    assert len(Encoder(Resource({})).encode(span)[1]) < BATCH_BYTES


def test_a_full_queue_drops_the_newest_and_counts_them(worker: Make, closed_port: int) -> None:
    process = worker(f"http://127.0.0.1:{closed_port}/v1/traces", OTEL_BSP_MAX_QUEUE_SIZE="20")
    process.work(50)
    counts = process.sender.counts()
    assert counts.finished == 50
    # A batch that is under way at this moment makes room for as many.
    assert 30 - 20 <= counts.lost["queue full"] <= 30
    assert counts.queued == 50 - counts.lost["queue full"]


def test_a_remainder_in_the_count_of_bytes_does_not_shut_the_queue(worker: Make) -> None:
    with Receiver(api_key="the-key") as receiver:
        process = worker(receiver.url)
        process.sender._queued_bytes = QUEUE_BYTES  # noqa: SLF001 - threads that meet can leave this, a test cannot
        process.work(1)
        process.wait_until(lambda: process.sender.counts().lost == {"queue full": 1})
        while not process.sender.counts().delivered:
            process.work(1)
            assert process.sender.flush(DEADLINE)


def test_a_dead_endpoint_never_costs_more_memory_than_the_bound(worker: Make, closed_port: int) -> None:
    process = worker(f"http://127.0.0.1:{closed_port}/v1/traces", OTEL_BSP_SCHEDULE_DELAY="10")

    def has_attempted(number: int) -> bool:
        return process.sender.counts().attempts >= number

    for attempts in range(1, 31):
        # Between two attempts, each of which takes a batch from the queue and puts it back.
        process.work(1, text="x" * 1_000_000)
        process.wait_until(partial(has_attempted, attempts))
    process.work(10, text="x" * 1_000_000)
    counts = process.sender.counts()
    # A batch of three that is under way at this moment makes room for as many.
    assert QUEUE_BYTES // 1_000_000 <= counts.queued <= QUEUE_BYTES // 1_000_000 + 4
    assert counts.lost == {"queue full": 40 - counts.queued}


def test_a_far_end_that_comes_back_gets_every_span_once(worker: Make) -> None:
    with FaultServer(refused(503, ""), refused(500, ""), refused(429, "", Retry_After="0"), accepted()) as server:
        process = worker(server.url, OTEL_EXPORTER_OTLP_TIMEOUT="1")
        process.work(30)
        process.wait_until(lambda: process.sender.counts().delivered == 30)
        assert len(set(spans_in(server.requests[-1].data))) == 30
    counts = process.sender.counts()
    assert (counts.lost, counts.requests, counts.attempts) == ({}, 1, 4)


def test_a_refused_key_drops_and_counts_until_a_probe_with_the_key_read_again(
    worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "PROBE_SECONDS", 0.3)
    with Receiver(api_key="new-key") as receiver:
        process = worker(receiver.url, key="old-key")
        process.work(5)
        process.wait_until(lambda: process.sender.counts().lost)
        assert process.sender.counts().lost == {"API key refused": 5}
        process.work(3)
        assert process.sender.counts().lost == {"API key refused": 8}
        process.new_key = "new-key"
        # This probe is refused, and has the key read again; the next one delivers.
        while not process.sender.counts().delivered:
            process.work(1)
            assert process.sender.flush(DEADLINE)
        counts = process.sender.counts()
        assert counts.finished == counts.delivered + counts.all_lost + counts.queued
        assert counts.requests == 1


def test_what_a_partial_success_rejects_is_lost_and_the_rest_delivered(worker: Make) -> None:
    with FaultServer(accepted(rejected=2, message="too old")) as server:
        process = worker(server.url)
        process.work(5)
        assert not process.sender.stop(DEADLINE)
    counts = process.sender.counts()
    assert (counts.delivered, counts.lost) == (3, {"rejected by the endpoint": 2})


def test_a_partial_success_that_rejects_more_than_was_sent_counts_what_was_sent_once(worker: Make) -> None:
    with FaultServer(accepted(rejected=99, message="many")) as server:
        process = worker(server.url)
        process.work(5)
        assert process.sender.flush(DEADLINE)
        process.work(3)
        assert not process.sender.stop(DEADLINE)
    counts = process.sender.counts()
    assert (counts.finished, counts.delivered, counts.queued) == (8, 0, 0)
    assert counts.lost == {"rejected by the endpoint": 8}
    assert len(server.span_ids) == len(set(server.span_ids)) == 8


def test_stop_returns_at_its_deadline_with_the_spans_counted(worker: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = worker(server.url, OTEL_BSP_SCHEDULE_DELAY="60000")
        process.work(5)
        began = time.monotonic()
        assert not process.sender.stop(0.3)
        assert time.monotonic() - began < 0.3 + 0.5
        process.wait_until(lambda: not process.sender.counts().queued)
    assert process.sender.counts().lost == {"unconfirmed": 5}


def test_what_ends_while_the_last_batch_is_under_way_is_delivered_too(worker: Make) -> None:
    go_on = threading.Event()

    def waits(server: FaultServer, sock: socket.socket) -> None:
        go_on.wait(DEADLINE)
        go_on.clear()
        body = accepted().body
        sock.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with FaultServer(Step(act=waits)) as far:
        traced = worker(far.url, OTEL_BSP_SCHEDULE_DELAY="60000")
        results: list[bool] = []
        stopping = threading.Thread(target=lambda: results.append(traced.sender.stop(DEADLINE)))
        traced.work(1)
        stopping.start()
        # What it takes when it is told to stop; what has come meanwhile; and after that.
        for sent in (1, 2, 3):
            traced.wait_until(lambda sent=sent: len(far.requests) >= sent)  # type: ignore[misc]
            if sent < 3:
                traced.work(1)
            go_on.set()
        stopping.join(DEADLINE)
        assert len(set(far.span_ids)) == len(far.span_ids) == 3
    assert results == [True]
    assert traced.sender.counts().delivered == 3


def test_stop_is_short_where_the_last_attempt_has_failed(worker: Make, closed_port: int) -> None:
    process = worker(f"http://127.0.0.1:{closed_port}/v1/traces")
    process.work(5)
    # The second attempt: an attempt is counted before it has failed.
    process.wait_until(lambda: process.sender.counts().attempts >= 2)
    began = time.monotonic()
    assert not process.sender.stop(10)
    assert time.monotonic() - began < 0.5 + 0.5
    assert process.sender.counts().lost == {AFTER_FAILED_ATTEMPT: 5}


def late(server: FaultServer, sock: socket.socket) -> None:
    server.stopping.wait(2 * AFTER_A_FAILURE)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_an_answer_that_took_spans_and_said_more_makes_no_stop_short(worker: Make) -> None:
    with FaultServer(accepted(1, "too old"), Step(act=late)) as server:
        process = worker(server.url)
        process.work(2)
        process.wait_until(lambda: not process.sender.counts().queued)
        process.work(5)
        process.sender.stop(DEADLINE)
        counts = process.sender.counts()
    assert (counts.delivered, counts.lost) == (6, {"rejected by the endpoint": 1})


def test_the_counts_add_up_at_any_moment_whatever_the_far_end_does(worker: Make) -> None:
    chance = random.Random(4)
    faults = [
        accepted(),
        accepted(),
        accepted(rejected=1, message="no"),
        refused(503, ""),
        refused(500, ""),
        refused(429, "", Retry_After="0"),
        refused(413, ""),
        Step(act=reset),
        Step(200, b"garbage"),
        Step(200, close=True),
    ]
    steps = [chance.choice(faults) for _ in range(200)]
    with FaultServer(*steps, accepted()) as server:
        process = worker(
            server.url,
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="20",
            OTEL_BSP_SCHEDULE_DELAY="10",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )
        threads = [threading.Thread(target=process.work, args=(500,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            counts = process.sender.counts()
            assert counts.queued >= 0, counts
        for thread in threads:
            thread.join()
        process.sender.stop(DEADLINE)
        counts = process.sender.counts()
        distinct = {span for request in server.requests for span in spans_in(request.data)}
    assert counts.finished == 2000 == counts.delivered + counts.all_lost + counts.queued
    assert counts.delivered <= len(distinct) <= counts.finished


def test_a_signal_handler_may_end_spans_in_the_middle_of_the_end_of_a_span(worker: Make) -> None:
    with Receiver(api_key="the-key") as receiver:
        # The receiver answers at once: the time is for a loaded machine.
        variables = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10", "OTEL_EXPORTER_OTLP_TIMEOUT": "20"}
        process = worker(receiver.url, OTEL_BSP_MAX_QUEUE_SIZE="100000", **variables)
        spans = [process.tracer.start_span("interrupting") for _ in range(2000)]
        ended = iter(spans)

        def end_one(_number: int, _frame: object) -> None:
            if (span := next(ended, None)) is not None:
                span.end()

        before = signal.signal(signal.SIGUSR1, end_one)
        done = threading.Event()

        def interrupt() -> None:
            while not done.wait(0.0002):
                os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            interrupted = 0
            deadline = time.monotonic() + DEADLINE
            while next(ended, None) is None or time.monotonic() < deadline:
                process.work(50)
                interrupted += 50
                if interrupted > 10_000:
                    break
        finally:
            done.set()
            thread.join()
            signal.signal(signal.SIGUSR1, before)
        # A thousand requests, which take a loaded machine long.
        assert process.sender.stop(3 * DEADLINE), process.sender.counts()
        assert len(receiver.spans) == process.sender.counts().finished > 10_000


def test_what_was_sent_and_has_no_answer_is_told_apart_from_what_was_not_sent(worker: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = worker(server.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3", OTEL_BSP_SCHEDULE_DELAY="60000")
        process.work(3)
        process.wait_until(lambda: process.sender.counts().unanswered == 3)
        process.work(2)
        assert not process.sender.stop(0.2)
        counts = process.sender.counts()
    assert (counts.finished, counts.delivered, counts.queued, counts.unanswered) == (5, 0, 3, 3)
    assert counts.lost == {NOT_IN_TIME: 2}


def test_flush_returns_at_once_when_the_sender_has_stopped(worker: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = worker(server.url)
        process.work(1)
        process.wait_until(lambda: process.sender.counts().unanswered)
        process.sender.stop(0.1)
        began = time.monotonic()
        # The spans that have no answer are not delivered.
        assert not process.sender.flush(DEADLINE)
        assert time.monotonic() - began < 1
    assert worker(server.url).sender.stop(DEADLINE)


def test_flush_returns_at_once_after_a_stop_that_has_raised(worker: Make) -> None:
    made = worker("http://127.0.0.1:9/v1/traces")

    def fail() -> None:
        raise RuntimeError("of our own")

    with pytest.MonkeyPatch.context() as patch:
        # Nothing else makes it fail.
        patch.setattr(made.sender._book.exporter, "wake", fail)  # noqa: SLF001
        with pytest.raises(RuntimeError, match="of our own"):
            made.sender.stop(float("inf"))
    began = time.monotonic()
    made.sender.flush(30)
    assert time.monotonic() - began < 5


def test_an_exit_that_is_raised_as_soon_as_the_thread_has_ended_makes_no_stop_wait(
    worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as server:
        process = worker(server.url)
        running = process.sender._running  # noqa: SLF001 - the moment is one step of the interpreter

        class Interrupted:
            release = staticmethod(running.release)

            def acquire(self, timeout: float) -> bool:
                assert running.acquire(timeout=timeout)
                raise KeyboardInterrupt

        process.work(1)
        with monkeypatch.context() as patch:
            patch.setattr(process.sender, "_running", Interrupted())
            with pytest.raises(KeyboardInterrupt):
                process.sender.stop(DEADLINE)
        began = time.monotonic()
        assert process.sender.stop(DEADLINE)
        assert time.monotonic() - began < 1


def test_stop_ends_a_flush_in_another_thread(worker: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = worker(server.url)
        process.work(1)
        process.wait_until(lambda: process.sender.counts().unanswered)
        flushing = threading.Thread(target=process.sender.flush, args=(DEADLINE,))
        flushing.start()
        process.wait_until(lambda: process.sender._flushes)  # noqa: SLF001 - nothing else tells
        process.sender.stop(0.1)
        flushing.join(DEADLINE / 2)
        assert not flushing.is_alive()


def test_a_flush_by_a_signal_handler_that_interrupts_stop_makes_it_no_longer(worker: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = worker(server.url)
        process.work(1)
        process.wait_until(lambda: process.sender.counts().unanswered)
        flushed: list[bool] = []
        before = signal.signal(signal.SIGALRM, lambda *_: flushed.append(process.sender.flush(DEADLINE)))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            began = time.monotonic()
            process.sender.stop(0.5)
            assert time.monotonic() - began < 0.5 + 0.5
        finally:
            signal.signal(signal.SIGALRM, before)
    assert flushed == [False]


def test_flush_says_false_while_spans_that_were_sent_have_no_answer(worker: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = worker(server.url)
        process.work(1)
        process.wait_until(lambda: process.sender.counts().unanswered)
        assert not process.sender.flush(0.1)


def test_what_ends_after_the_stop_is_lost_and_counted(worker: Make) -> None:
    with Receiver(api_key="the-key") as receiver:
        process = worker(receiver.url)
        process.work(3)
        assert process.sender.stop(DEADLINE)
        process.work(100)
        assert not process.sender.stop(DEADLINE)
        counts = process.sender.counts()
        assert len(receiver.spans) == 3
    assert (counts.finished, counts.delivered, counts.queued, counts.lost) == (103, 3, 0, {TOO_LATE: 100})


def test_spans_that_a_failing_endpoint_gives_back_after_the_stop_are_lost(worker: Make) -> None:
    def refuses(server: FaultServer, sock: socket.socket) -> None:
        stopped.wait(DEADLINE)
        sock.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    stopped = threading.Event()
    with FaultServer(Step(act=refuses)) as server:
        process = worker(server.url)
        process.work(4)
        process.wait_until(lambda: process.sender.counts().unanswered == 4)
        process.sender.stop(0.1)
        stopped.set()
        process.wait_until(lambda: not process.sender.counts().queued)
        counts = process.sender.counts()
    assert (counts.finished, counts.delivered, counts.all_lost, counts.lost) == (4, 0, 4, {"server": 4})


def test_the_counts_can_be_read_while_new_reasons_are_noted(worker: Make, closed_port: int) -> None:
    process = worker(f"http://127.0.0.1:{closed_port}/v1/traces")
    reasons = process.sender._book.lost  # noqa: SLF001 - faster than any far end makes them
    done = threading.Event()

    def note() -> None:
        while not done.is_set():
            reasons.update({f"reason {number}": 1 for number in range(500)})
            reasons.clear()

    before = sys.getswitchinterval()
    thread = threading.Thread(target=note)
    try:
        sys.setswitchinterval(1e-6)
        thread.start()
        for _ in range(500):
            process.sender.counts()
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)


def test_what_was_being_connected_for_at_the_stop_and_is_taken_later_is_not_sent_again(
    journalled: Make, connecting: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = connecting
    with FaultServer() as server:
        process = journalled(server.url, OTEL_BSP_SCHEDULE_DELAY="50")
        process.work(3)
        assert begun.wait(DEADLINE)
        assert not process.sender.stop(0)
        assert (process.sender.counts().left, process.in_journal()) == (3, 3)
        go_on.set()
        process.wait_until(lambda: process.sender._has_ended)  # noqa: SLF001 - nothing else tells
        assert len(server.span_ids) == 3
        assert process.in_journal() == 0
    assert process.sender.counts().left == 3


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_stop_that_is_too_short_for_an_answer_leaves_the_spans_to_others(
    worker: Make, journalled: Make, has_journal: bool
) -> None:
    """Sent, they would have no answer in time, and nobody would know whether they were taken."""

    def late(_: FaultServer, sock: socket.socket) -> None:
        threading.Event().wait(0.5)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")

    with FaultServer(Step(act=late)) as server:
        process = (journalled if has_journal else worker)(server.url, OTEL_BSP_SCHEDULE_DELAY="60000")
        process.work(2)
        assert process.sender.flush(DEADLINE)
        process.work(3)
        began = time.monotonic()
        assert not process.sender.stop(0.3)
        assert time.monotonic() - began < (0.2 if has_journal else 0.3 + 0.5)
        counts = process.sender.counts()
        if has_journal:
            assert (counts.delivered, counts.left, counts.lost, process.in_journal()) == (2, 3, {}, 3)
        else:
            assert (counts.delivered, counts.left, len(server.span_ids)) == (2, 0, 5)


def test_what_is_answered_while_stop_gives_up_is_booked_as_the_answer_says(
    journalled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has the answer, and has not counted it yet."""
    answered, go_on = threading.Event(), threading.Event()
    export = Exporter.export

    def waits(exporter: Exporter, body: bytes, spans: int, deadline: float) -> answer.Answer:
        result = export(exporter, body, spans, deadline)
        answered.set()
        go_on.wait(DEADLINE)
        return result

    monkeypatch.setattr(Exporter, "export", waits)
    with FaultServer() as server:
        process = journalled(server.url, OTEL_BSP_SCHEDULE_DELAY="50")
        process.work(3)
        assert answered.wait(DEADLINE)
        process.sender.stop(0)
        assert process.in_journal() == 0
        assert (process.sender.counts().unanswered, process.sender.counts().left) == (3, 0)
        go_on.set()
        process.wait_until(lambda: process.sender.counts().delivered == 3)
        assert process.sender.counts().queued == 0


def test_a_batch_that_is_in_the_journal_in_part_is_left_in_part(
    journalled: Make, connecting: tuple[threading.Event, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, _ = connecting
    process = journalled("http://127.0.0.1:9/v1/traces", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
    process.work(1)
    with monkeypatch.context() as patch:
        patch.setattr(process.journal, "write", lambda *_: None)
        process.work(1)
    process.work(1)
    assert begun.wait(DEADLINE)
    process.sender.stop(0)
    counts = process.sender.counts()
    assert (counts.left, counts.lost, counts.queued, process.in_journal()) == (2, {NOT_IN_TIME: 1}, 0, 2)


def test_a_batch_that_is_in_the_journal_in_part_and_has_no_answer_is_not_sent_again(
    journalled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer(Step(act=never)) as server:
        process = journalled(server.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
        process.work(1)
        with monkeypatch.context() as patch:
            patch.setattr(process.journal, "write", lambda *_: None)
            process.work(1)
        process.work(1)
        process.wait_until(lambda: process.sender.counts().unanswered)
        process.sender.stop(0)
        counts = process.sender.counts()
        assert (counts.unanswered, counts.queued, counts.left, counts.lost) == (3, 3, 0, {})
        assert process.in_journal() == 0


@pytest.fixture
def interrupted_rescue(journalled: Make) -> Iterator[tuple[Worker, FaultServer]]:
    """A worker that has sent three spans with rescue(), which an exit has ended before the answer came."""

    def interrupts(server: FaultServer, _sock: socket.socket) -> None:
        process.wait_until(lambda: process.sender.counts().unanswered)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)
        server.stopping.wait()

    def leave(_number: int, _frame: object) -> None:
        process.work(1)
        sys.exit(0)

    with FaultServer(Step(act=interrupts), accepted()) as server:
        process = journalled(server.url)
        process.work(3)
        before = signal.signal(signal.SIGUSR1, leave)
        try:
            with pytest.raises(SystemExit):
                process.sender.rescue(DEADLINE)
        finally:
            signal.signal(signal.SIGUSR1, before)
        yield process, server


def test_what_a_rescue_had_sent_when_an_exit_ended_it_is_not_sent_again(
    interrupted_rescue: tuple[Worker, FaultServer],
) -> None:
    process, server = interrupted_rescue
    assert not process.sender.stop(DEADLINE)
    counts = process.sender.counts()
    assert (counts.finished, counts.delivered, counts.unanswered, counts.queued, counts.left) == (4, 1, 3, 3, 0)
    assert process.in_journal() == 0
    assert len(set(server.span_ids)) == len(server.span_ids) == 4


def test_a_rescue_after_one_that_an_exit_has_ended_counts_its_spans_as_unconfirmed(
    interrupted_rescue: tuple[Worker, FaultServer],
) -> None:
    process, server = interrupted_rescue
    process.sender.rescue(DEADLINE)
    assert not process.sender.stop(DEADLINE)
    counts = process.sender.counts()
    assert (counts.finished, counts.delivered, counts.queued, counts.left) == (4, 1, 0, 0)
    assert counts.lost == {"unconfirmed": 3}
    assert process.in_journal() == 0
    assert len(set(server.span_ids)) == len(server.span_ids) == 4


def test_after_a_new_key_was_read_the_next_record_is_in_a_file_for_the_new_key(
    journalled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "PROBE_SECONDS", 0.05)
    with Receiver(api_key="new-key") as receiver:
        process = journalled(receiver.url, key="old-key")
        process.new_key = "new-key"
        while not process.sender.counts().delivered:
            process.work(1)
            assert process.sender.flush(DEADLINE)
        process.work(3)
        assert process.folder is not None
        found = [journal_file.read(path.read_bytes()) for path in process.folder.iterdir()]
        settings = read({"MACKEREL_OTEL_ENDPOINT": receiver.url, "MACKEREL_APIKEY": "any", "OTEL_SERVICE_NAME": "shop"})
        new = Destination(settings, "new-key")
        assert [(len(contents), new.is_of(contents.about)) for contents in found if contents.spans] == [(3, True)]


@pytest.mark.parametrize("interrupted", ["encode", "encode_known"])
def test_an_exit_while_a_request_ends_loses_neither_its_span_nor_its_children(
    journalled: Make, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    def leave(_span: ReadableSpan) -> None:
        raise SystemExit

    with FaultServer() as server:
        process = journalled(server.url)
        request = process.tracer.start_span("request")
        for _ in range(3):
            process.tracer.start_span("child", context=set_span_in_context(request)).end()
        with monkeypatch.context() as patch:
            patch.setattr(process.sender._encoder, interrupted, leave)  # noqa: SLF001 - a handler may do so there
            with pytest.raises(SystemExit):
                request.end()
        assert process.sender.stop(DEADLINE), process.sender.counts()
        assert len(set(server.span_ids)) == len(server.span_ids) == 4


def test_an_exit_in_the_last_step_of_stop_leaves_every_span_in_the_counts(
    journalled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(deque[Any]):
        def popleft(self) -> Any:
            """Raise an exit when three of five spans are left."""
            if len(self) == 3 and not raised:
                raised.append(True)
                raise SystemExit
            return super().popleft()

    raised: list[bool] = []
    process = journalled("http://127.0.0.1:9/v1/traces")
    process.work(5)
    # The thread ends meanwhile, as far as it wants.
    monkeypatch.setattr(process.sender, "_queue", Interrupted(process.sender._queue))  # noqa: SLF001 - one step of it
    with pytest.raises(SystemExit):
        process.sender.stop(0)
    process.sender.stop(0)
    counts = process.sender.counts()
    assert (counts.finished, counts.left, counts.queued, counts.lost) == (5, 5, 0, {})
    assert process.in_journal() == 5


def test_a_span_that_is_left_while_the_counts_are_read_makes_none_of_them_negative(
    journalled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = journalled("http://127.0.0.1:9/v1/traces")
    process.sender.stop(0)
    finished = process.sender._finished  # noqa: SLF001 - between two steps of counts()
    value = finished.value

    def ends_meanwhile() -> int:
        number = value()
        monkeypatch.undo()
        process.work(1)
        return number

    monkeypatch.setattr(finished, "value", ends_meanwhile)
    assert process.sender.counts().queued == 0
    counts = process.sender.counts()
    assert (counts.finished, counts.left, counts.queued) == (1, 1, 0)


def test_a_record_has_no_more_spans_than_a_batch_and_is_settled_as_a_whole(journalled: Make) -> None:
    with FaultServer(Step(act=never)) as server:
        process = journalled(server.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4")
        request = process.tracer.start_span("request")
        spans = [process.tracer.start_span("child", context=set_span_in_context(request)) for _ in range(9)]
        ended = process.sender._ended  # noqa: SLF001 - threads that meet can leave so many, a test cannot
        for span in spans[:8]:
            ended.append(span)  # type: ignore[arg-type]
            process.sender._finished.add()  # noqa: SLF001 - likewise
        flushing = threading.Thread(target=process.sender.flush, args=(DEADLINE,))
        flushing.start()
        process.wait_until(lambda: process.sender.counts().unanswered)
        process.sender.stop(0)
        flushing.join(DEADLINE)
        counts = process.sender.counts()
        assert (counts.unanswered, counts.left, process.in_journal()) == (4, 4, 4)


def test_spans_that_only_the_slower_encoder_knows_wake_the_thread_too(
    journalled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_span: ReadableSpan) -> None:
        raise AttributeError

    with FaultServer() as server:
        process = journalled(server.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10")
        monkeypatch.setattr(process.sender._encoder, "encode_known", fail)  # noqa: SLF001 - as with an unknown SDK
        process.work(10)
        process.wait_until(lambda: process.sender.counts().delivered == 10)


INTERRUPTED_GREENLET = """
from gevent import monkey
monkey.patch_all()
import sys, time
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_sender import Worker
process = Worker("http://127.0.0.1:9/v1/traces", folder=Path(sys.argv[2]))
sender = process.sender
take = sender._take_together
def interrupted(size):
    sender._take_together = take
    process.work(1)
    sender.rescue(0.3)
    print("the handler has returned", flush=True)
    return take(size)
sender._take_together = interrupted
process.work(1)
deadline = time.monotonic() + 20
while sender._take_together is interrupted and time.monotonic() < deadline:
    time.sleep(0.01)
sender.stop(0)
print(sender.counts().left)
"""


def test_a_rescue_by_a_signal_handler_that_has_interrupted_the_senders_greenlet_ends(
    tmp_path: Path, need: Callable[[str], None]
) -> None:
    need("gevent")
    support = Path(__file__).parents[1] / "support"
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_GREENLET, f"{Path(__file__).parent}:{support}", tmp_path / "spool"],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    assert result.stdout == "the handler has returned\n2\n", result.stderr
