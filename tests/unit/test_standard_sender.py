"""BatchSpanProcessor and OTLPSpanExporter as one process's sender, against real sockets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fault_server import FaultServer, Step, accepted, never, refused
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from mackerel_otel_server.pipeline.sender import NOT_IN_TIME, TOO_LATE
from mackerel_otel_server.settings import read
from mackerel_otel_server.settings.http_options import GIVEN_WAY

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from mackerel_otel_server.pipeline.standard import StandardSender

DEADLINE = 20.0
SLACK = 1.5
"""Seconds that a loaded machine may take longer."""
KEY = "the-Secret-key-0123456789"


class Worker(SpanProcessor):
    """A tracer whose spans go to a sender, as in a server's worker."""

    def __init__(self, **variables: str) -> None:
        self.new_key: str | None = None
        variables = {"OTEL_SERVICE_NAME": "shop", "OTEL_BSP_SCHEDULE_DELAY": "60000", **variables}
        provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
        self.sender = StandardSender(read(variables), lambda: self.new_key)
        provider.add_span_processor(self)
        self.tracer = provider.get_tracer("test")

    def on_end(self, span: ReadableSpan) -> None:
        self.sender.put(span)

    def work(self, spans: int, **attributes: bool) -> None:
        for _ in range(spans):
            self.tracer.start_span("work", attributes=attributes).end()


Make = Callable[..., Worker]


@pytest.fixture
def worker(caplog: pytest.LogCaptureFixture) -> Iterator[Make]:
    made: list[Worker] = []

    def make(url: str = "", **variables: str) -> Worker:
        mackerel = {"MACKEREL_OTEL_ENDPOINT": url, "MACKEREL_APIKEY": KEY} if url else {}
        made.append(Worker(**mackerel, **variables))
        return made[-1]

    with caplog.at_level(logging.DEBUG):
        yield make
    for each in made:
        each.sender.stop(0)
    assert KEY not in caplog.text


def test_spans_arrive_with_the_key_compressed_and_are_counted(worker: Make) -> None:
    with FaultServer() as far:
        one = worker(far.url, OTEL_EXPORTER_OTLP_HEADERS="tenant=a")
        one.work(3)
        assert one.sender.stop(DEADLINE)
    assert len(far.span_ids) == 3
    (request,) = far.requests
    assert request.headers["mackerel-api-key"] == KEY
    assert (request.headers["content-encoding"], request.headers["tenant"]) == ("gzip", "a")
    counts = one.sender.counts()
    assert (counts.finished, counts.delivered, counts.lost, counts.requests, counts.attempts) == (3, 3, {}, 1, 1)
    assert (counts.queued, counts.unanswered, counts.retried) == (0, 0, 0)
    assert counts.bytes_sent == len(request.body)


def test_a_collector_gets_no_key_not_even_the_one_of_the_headers(worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = f"Mackerel-Api-Key={KEY},tenant=a"
    # OTLPSpanExporter reads the variable by itself.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    with FaultServer() as far:
        one = worker(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=far.url, OTEL_EXPORTER_OTLP_HEADERS=headers)
        one.work(1)
        assert one.sender.stop(DEADLINE)
    (request,) = far.requests
    assert "mackerel-api-key" not in request.headers
    assert request.headers["tenant"] == "a"


def test_neither_netrc_nor_the_proxies_of_requests_are_used(
    worker: Make, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("default login user password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with FaultServer() as far:
        one = worker(far.url)
        one.work(1)
        assert one.sender.stop(DEADLINE)
    assert "authorization" not in far.requests[0].headers


def test_a_refused_key_is_read_again(worker: Make) -> None:
    with FaultServer(refused(400, "Invalid API Key"), accepted()) as far:
        one = worker(far.url)
        one.new_key = "another-key"
        one.work(1)
        one.sender.flush(DEADLINE)
        one.work(1)
        assert not one.sender.stop(DEADLINE)
    assert [request.headers["mackerel-api-key"] for request in far.requests] == [KEY, "another-key"]
    counts = one.sender.counts()
    assert (counts.finished, counts.delivered, counts.queued) == (2, 1, 0)
    assert counts.lost == {"not taken by the endpoint": 1}


def test_a_redirect_is_not_followed_and_its_spans_are_lost(worker: Make) -> None:
    with FaultServer() as other, FaultServer(Step(307, headers={"Location": other.url})) as far:
        one = worker(far.url)
        one.work(2)
        assert not one.sender.stop(DEADLINE)
    assert other.requests == []
    assert one.sender.counts().lost == {"not taken by the endpoint": 2}


def test_of_a_full_queue_the_newest_spans_are_lost_and_counted(worker: Make) -> None:
    with FaultServer(Step(act=never)) as far:
        one = worker(far.url, OTEL_BSP_MAX_QUEUE_SIZE="4", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4")
        one.work(4)
        deadline = time.monotonic() + DEADLINE
        while one.sender.counts().unanswered < 4:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        one.work(6)
        counts = one.sender.counts()
    assert (counts.finished, counts.lost, counts.queued) == (10, {"queue full": 2}, 8)


def test_a_hanging_endpoint_holds_up_the_end_for_the_timeout_at_most(worker: Make) -> None:
    with FaultServer(Step(act=never)) as far:
        one = worker(far.url)
        one.work(3)
        begin = time.monotonic()
        assert not one.sender.stop(0.3)
        assert time.monotonic() - begin < 0.3 + SLACK
        counts = one.sender.counts()
        assert (counts.finished, counts.delivered, counts.queued) == (3, 0, 3)
        assert one.sender.why_unsent == NOT_IN_TIME


def test_stop_with_no_time_sends_nothing_and_a_second_stop_is_quick(worker: Make) -> None:
    with FaultServer() as far:
        one = worker(far.url)
        one.work(1)
        assert one.sender.counts().queued == 1
        assert not one.sender.stop(0)
        assert not one.sender.stop(0)
        assert far.requests == []
        # As the log says it.
        assert (one.sender.counts().queued, one.sender.counts().lost) == (0, {NOT_IN_TIME: 1})


def test_spans_that_end_after_the_end_are_counted(worker: Make) -> None:
    with FaultServer() as far:
        one = worker(far.url)
        assert one.sender.stop(DEADLINE)
        one.work(2)
    assert one.sender.too_late() == 2
    assert one.sender.counts().lost == {TOO_LATE: 2}


def test_a_span_that_has_given_way_is_neither_sent_nor_counted(worker: Make) -> None:
    with FaultServer() as far:
        one = worker(far.url)
        one.work(1, **{GIVEN_WAY: True})
        assert one.sender.stop(DEADLINE)
    assert far.requests == []
    assert one.sender.counts().finished == 0


def test_rescue_sends_what_is_queued(worker: Make) -> None:
    with FaultServer() as far:
        one = worker(far.url)
        one.work(2)
        one.sender.rescue(DEADLINE)
        assert len(far.span_ids) == 2


def test_spans_of_many_threads_are_all_counted(worker: Make) -> None:
    with FaultServer() as far:
        one = worker(far.url)
        threads = [threading.Thread(target=one.work, args=(100,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.sender.stop(DEADLINE)
    assert len(set(far.span_ids)) == one.sender.counts().delivered == 800
