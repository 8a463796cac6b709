"""What a process that has ended left in its journal is sent by another one, against real sockets."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_server import FaultServer, Step, accepted, never, refused
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mackerel_otel_server.pipeline import connection
from mackerel_otel_server.pipeline.adoption import Adopter, LeftBehind
from mackerel_otel_server.pipeline.encoder import Encoder
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.pipeline.fingerprint import Destination
from mackerel_otel_server.pipeline.journal import Journal
from mackerel_otel_server.pipeline.sender import Sender
from mackerel_otel_server.pipeline.spool import DAY, Spool
from mackerel_otel_server.pipeline.wire import delimited
from mackerel_otel_server.settings import Settings, read

DEADLINE = 20.0
SCOPES = [InstrumentationScope(f"scope {number}", "1") for number in range(2)]
ids = (number.to_bytes(8, "big") for number in itertools.count(1))


def understood(url: str, key: str = "the-key", **variables: str) -> Settings:
    return read(
        {
            "MACKEREL_OTEL_ENDPOINT": url,
            "MACKEREL_APIKEY": key,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_BSP_SCHEDULE_DELAY": "30",
            **variables,
        }
    )


class Process(SpanProcessor):
    """The sending part of a worker, which adopts as well."""

    def __init__(self, folder: Path, url: str, key: str = "the-key", **variables: str) -> None:
        settings = understood(url, key, **variables)
        provider = TracerProvider(resource=Resource({"process.pid": 1}), shutdown_on_exit=False)
        encoder, exporter = Encoder(provider.resource), Exporter(settings)
        spool = Spool(str(folder))
        journal = Journal(spool, encoder, exporter.destination, 1)
        self.sender = Sender(settings, encoder, exporter, lambda: None, journal, Adopter(spool, exporter.destination))
        provider.add_span_processor(self)
        self.tracer = provider.get_tracer("test")

    def on_end(self, span: ReadableSpan) -> None:
        self.sender.put(span)

    def work(self) -> bytes:
        """End a span; return its id."""
        span = self.tracer.start_span("own")
        span.end()
        return span.get_span_context().span_id.to_bytes(8, "big")


Make = Callable[..., Process]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def process(folder: Path) -> Iterator[Make]:
    made: list[Process] = []

    def make(url: str, key: str = "the-key", **variables: str) -> Process:
        made.append(Process(folder, url, key, **variables))
        return made[-1]

    yield make
    for each in made:
        each.sender.stop(0)


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mackerel_otel_server.pipeline.exporter._FIRST_BACKOFF", 0.02)
    monkeypatch.setattr("mackerel_otel_server.pipeline.exporter._LONGEST_BACKOFF", 0.05)
    monkeypatch.setattr("mackerel_otel_server.pipeline.sender.PROBE_SECONDS", 0.2)
    monkeypatch.setattr("mackerel_otel_server.pipeline.adoption.PROBE_SECONDS", 0.2)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def leave_behind(  # noqa: PLR0913 - keywords, each of its own
    folder: Path, settings: Settings, *, spans: int = 3, records: int = 1, pid: int = 4711, age: float = 0.0
) -> list[bytes]:
    """Leave a file, as a killed process does; return the ids of its spans in their order."""
    spool = Spool(str(folder))
    encoder = Encoder(Resource({"process.pid": pid}))
    journal = Journal(spool, encoder, lambda: Destination(settings, settings.api_key), pid)
    made = []
    before = set(folder.glob("*"))
    for _ in range(records):
        record = []
        for number in range(spans):
            span_id = next(ids)
            span = Span(trace_id=span_id * 2, span_id=span_id, name=f"of {pid}")
            record.append((SCOPES[number % 2], b"\x12" + delimited(span.SerializeToString())))
            made.append(span_id)
        assert journal.write(*record[0], record[1:]) is not None
    # The kernel ends the locks of a process that has ended in this way, too.
    spool.leave_to_parent()
    for path in set(folder.glob("*")) - before:
        os.utime(path, (time.time() - age,) * 2)
    return made


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_it_is_sent_once_with_the_resource_of_the_process_that_has_ended(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer() as far_end, caplog.at_level("INFO"):
        left = leave_behind(folder, understood(far_end.url), spans=5)
        adopter = process(far_end.url)
        wait_until(lambda: is_empty(folder))
        own = adopter.work()
        wait_until(lambda: adopter.sender.counts().delivered == 1)
        assert far_end.span_ids == [*left[::2], *left[1::2], own]
        (resource_spans,) = ExportTraceServiceRequest.FromString(far_end.requests[0].data).resource_spans
        assert [(one.key, one.value.int_value) for one in resource_spans.resource.attributes] == [("process.pid", 4711)]
        assert [spans.scope.name for spans in resource_spans.scope_spans] == ["scope 0", "scope 1"]
        # They are no spans of the process that has sent them.
        assert adopter.sender.counts().finished == 1
    assert "delivered 5 spans that worker 4711 left behind" in caplog.messages


def test_the_first_look_comes_at_once(process: Make, folder: Path) -> None:
    """A script that runs each minute has ended long before the schedule delay is over."""
    with FaultServer() as far_end:
        left = leave_behind(folder, understood(far_end.url), records=2)
        process(far_end.url, OTEL_BSP_SCHEDULE_DELAY="3600000", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
        wait_until(lambda: is_empty(folder))
        assert sorted(far_end.span_ids) == sorted(left)


@pytest.mark.parametrize(
    "other",
    [
        {"MACKEREL_APIKEY": "another-key"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=2"},
        {"MACKEREL_OTEL_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
    ],
    ids=["key", "headers", "endpoint"],
)
def test_what_goes_elsewhere_stays(process: Make, folder: Path, other: dict[str, str]) -> None:
    """Two organizations, two tenants, or a key that was changed in between."""
    with FaultServer() as far_end:
        variables = {"MACKEREL_OTEL_ENDPOINT": far_end.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=1"}
        leave_behind(folder, understood("", **{**variables, **other}))
        mine = leave_behind(folder, understood("", **variables))
        adopter = process("", **variables)
        wait_until(lambda: len(list(folder.iterdir())) == 1)
        for _ in range(5):
            mine.append(adopter.work())
            wait_until(lambda: mine[-1] in far_end.span_ids)
        assert sorted(far_end.span_ids) == sorted(mine)
        assert {request.headers["x-tenant"] for request in far_end.requests} == {"1"}
        adopter.sender.stop(5)
        assert len(list(folder.iterdir())) == 1


def test_two_organizations_get_their_own(process: Make, folder: Path) -> None:
    with FaultServer() as far_end:
        left = {
            key: [span for _ in range(5) for span in leave_behind(folder, understood(far_end.url, key))]
            for key in ("key-one", "key-two")
        }
        for key in left:
            process(far_end.url, key)
        wait_until(lambda: is_empty(folder))
        for key, expected in left.items():
            of_key = [request.data for request in far_end.requests if request.headers["mackerel-api-key"] == key]
            found = [
                span.span_id
                for data in of_key
                for resource_spans in ExportTraceServiceRequest.FromString(data).resource_spans
                for scope_spans in resource_spans.scope_spans
                for span in scope_spans.spans
            ]
            assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("key", ["the-key", "another-key"])
def test_what_is_older_than_a_day_is_deleted_with_a_line(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    with FaultServer() as far_end:
        leave_behind(folder, understood(far_end.url, key), age=DAY + 60)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert far_end.span_ids == []
    (line,) = [record.getMessage() for record in caplog.records if record.name == "mackerel_otel_server"]
    assert "deleted 3 spans that worker 4711 left behind" in line
    assert "because the file is older than a day" in line


def test_a_clock_that_was_set_back_deletes_nothing_that_can_be_sent(process: Make, folder: Path) -> None:
    with FaultServer() as far_end:
        left = leave_behind(folder, understood(far_end.url), age=-50 * 365 * DAY)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert sorted(far_end.span_ids) == left


def test_a_far_end_that_is_down_gets_it_when_it_is_up_again(process: Make, folder: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1/traces"
        leave_behind(folder, understood(url))
        adopter = process(url, OTEL_EXPORTER_OTLP_TIMEOUT="1")
        wait_until(lambda: adopter.sender.counts().attempts > 2)
        assert len(list(folder.iterdir())) == 1
        adopter.sender.stop(0)
    with FaultServer() as far_end:
        # Under another URL it would be another destination.
        left = leave_behind(folder, understood(far_end.url))
        process(far_end.url)
        wait_until(lambda: len(list(folder.iterdir())) == 1)
        assert sorted(far_end.span_ids) == left


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_far_end_that_fails_at_first_gets_it_later_and_once(process: Make, folder: Path, status: int) -> None:
    with FaultServer(refused(status, "not now"), refused(status, "not now"), accepted()) as far_end:
        left = leave_behind(folder, understood(far_end.url))
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        # The first two attempts were read, and refused.
        assert Counter(far_end.span_ids) == dict.fromkeys(left, 3)


def test_a_far_end_that_hangs_does_not_get_it_twice(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer(Step(act=never), accepted()) as far_end:
        left = leave_behind(folder, understood(far_end.url), records=2)
        process(far_end.url, OTEL_EXPORTER_OTLP_TIMEOUT="0.3", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
        wait_until(lambda: is_empty(folder))
        assert Counter(far_end.span_ids) == dict.fromkeys(left, 1)
    assert "lost 3 spans that worker 4711 left behind (unconfirmed 3)" in caplog.messages


def test_a_key_that_is_refused_leaves_the_files_where_they_are(process: Make, folder: Path) -> None:
    with FaultServer(refused(401, "no such key")) as far_end:
        leave_behind(folder, understood(far_end.url))
        before = [path.read_bytes() for path in folder.iterdir()]
        process(far_end.url)
        wait_until(lambda: len(far_end.requests) > 1)
        assert [path.read_bytes() for path in folder.iterdir()] == before


@pytest.mark.parametrize("status", [302, 400, 404])
def test_files_outlive_what_stands_before_the_far_end_for_a_while(process: Make, folder: Path, status: int) -> None:
    """A proxy answers 404 during a deployment, say, and no worker may give up what others have left for that."""
    with FaultServer(Step(status), Step(status), accepted()) as far_end:
        first = leave_behind(folder, understood(far_end.url), pid=1111, age=10)
        second = leave_behind(folder, understood(far_end.url), pid=2222)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert set(far_end.span_ids) == {*first, *second}
        # Two were refused, and each file was taken once.
        assert len(far_end.requests) == 4


def test_what_the_far_end_rejects_is_lost_and_counted(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer(accepted(rejected=2, message="too old")) as far_end, caplog.at_level("INFO"):
        leave_behind(folder, understood(far_end.url), spans=5)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert len(far_end.requests) == 1
        # The lines come after the end of the file.
        wait_until(lambda: "delivered 3 spans that worker 4711 left behind" in caplog.messages)
        wait_until(lambda: "lost 2 spans that worker 4711 left behind (rejected by the endpoint 2)" in caplog.messages)


def test_what_is_too_large_is_lost_and_does_not_hold_up_the_rest(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mackerel_otel_server.pipeline.sender.PROBE_SECONDS", 60)
    with FaultServer(refused(413, "too large"), accepted()) as far_end:
        first = leave_behind(folder, understood(far_end.url), pid=1111, age=10)
        second = leave_behind(folder, understood(far_end.url), pid=2222)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert Counter(far_end.span_ids) == dict.fromkeys(first + second, 1)
    assert "lost 3 spans that worker 1111 left behind (too large 3)" in caplog.messages


def test_a_record_is_never_split_and_a_batch_has_no_more_than_its_size(process: Make, folder: Path) -> None:
    with FaultServer() as far_end:
        left = leave_behind(folder, understood(far_end.url), spans=3, records=7)
        process(far_end.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8")
        wait_until(lambda: is_empty(folder))
        assert sorted(far_end.span_ids) == left
        assert len(far_end.requests) == 4


KILLED = """
import sys, time
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_adoption import Process
process = Process(Path(sys.argv[2]), sys.argv[3], OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
sys.stdin.read()
"""


def test_what_an_adopter_that_is_killed_has_not_sent_is_sent_by_the_next(process: Make, folder: Path) -> None:
    """Only the batch that was under way comes twice."""
    with FaultServer(accepted(), accepted(), Step(act=never), accepted()) as far_end:
        left = leave_behind(folder, understood(far_end.url), records=5)
        support = Path(__file__).parents[1] / "support"
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, f"{Path(__file__).parent}:{support}", folder, far_end.url],
            stdin=subprocess.PIPE,
        ) as killed:
            wait_until(lambda: len(far_end.requests) == 3)
            # Another process does not touch the file as long as its owner lives.
            other = process(far_end.url)
            other.work()
            wait_until(lambda: other.sender.counts().delivered == 1)
            assert len(far_end.requests) == 4
            killed.send_signal(signal.SIGKILL)
        wait_until(lambda: all(far_end.span_ids.count(span) for span in left))
        other.sender.stop(5)
        assert is_empty(folder)
        times = Counter(far_end.span_ids)
        assert [times[span] for span in left] == [1] * 6 + [2] * 3 + [1] * 6


def test_two_hundred_files_are_sent_within_seconds_and_own_spans_are_not_held_up(process: Make, folder: Path) -> None:
    with FaultServer() as far_end:
        left = [
            span
            for number in range(200)
            for span in leave_behind(folder, understood(far_end.url), spans=2, pid=number, age=300 - number)
        ]
        began = time.monotonic()
        adopter = process(far_end.url)
        longest = 0.0
        own = []
        while len(list(folder.iterdir())) > 1:
            ended = time.monotonic()
            own.append(adopter.work())
            wait_until(lambda: adopter.sender.counts().delivered == len(own))
            longest = max(longest, time.monotonic() - ended)
        assert time.monotonic() - began < 15
        assert longest < 1.5
        assert Counter(far_end.span_ids) == dict.fromkeys(left + own, 1)
        # The oldest first.
        theirs = [span for span in far_end.span_ids if span in set(left)]
        assert theirs == left


def test_two_processes_send_each_file_once(process: Make, folder: Path) -> None:
    with FaultServer() as far_end:
        left = [span for _ in range(40) for span in leave_behind(folder, understood(far_end.url))]
        for _ in range(3):
            process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert Counter(far_end.span_ids) == dict.fromkeys(left, 1)


def test_files_wait_while_own_spans_cannot_be_sent(process: Make, folder: Path) -> None:
    with FaultServer(refused(503, "not now")) as far_end:
        adopter = process(far_end.url)
        own = adopter.work()
        wait_until(lambda: len(far_end.requests) > 1)
        left = leave_behind(folder, understood(far_end.url))
        count = len(far_end.requests)
        wait_until(lambda: len(far_end.requests) > count + 3)
        assert set(far_end.span_ids) == {own}
        far_end.steps = (accepted(),)
        wait_until(lambda: len(list(folder.iterdir())) == 1)
        assert set(far_end.span_ids) == {own, *left}


def test_an_end_in_the_middle_of_it_waits_no_longer_and_loses_no_own_span(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer(accepted(), Step(act=never), accepted()) as far_end, caplog.at_level("INFO"):
        left = leave_behind(folder, understood(far_end.url), records=3)
        adopter = process(far_end.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
        wait_until(lambda: len(far_end.requests) == 2)
        own = [adopter.work() for _ in range(7)]
        began = time.monotonic()
        adopter.sender.stop(1.5)
        assert time.monotonic() - began < 2.5
        assert set(own) <= set(far_end.span_ids)
        assert adopter.sender.counts().delivered == 7
        assert "lost 3 spans that worker 4711 left behind (unconfirmed 3)" in caplog.messages
        # The rest, which was not sent, is sent by the next.
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert Counter(far_end.span_ids) == dict.fromkeys(left + own, 1)
    # The thread that still waited for the answer finds that the file is not its own any more.
    adopter.sender.stop(5)
    assert caplog.messages.count("lost 3 spans that worker 4711 left behind (unconfirmed 3)") == 1


def test_an_end_before_it_was_sent_leaves_it_to_the_next(process: Make, folder: Path) -> None:
    """A far end that does not take the connection has not got anything."""
    with FaultServer(Step(503, headers={"Retry-After": "30"})) as far_end:
        left = leave_behind(folder, understood(far_end.url))
        adopter = process(far_end.url)
        wait_until(lambda: len(far_end.requests) == 1)
        began = time.monotonic()
        adopter.sender.stop(5)
        assert time.monotonic() - began < 2
        far_end.steps = (accepted(),)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert Counter(far_end.span_ids) == dict.fromkeys(left, 2)


def test_what_others_left_and_has_no_answer_is_no_loss_of_this_process(process: Make, folder: Path) -> None:
    with FaultServer(Step(act=never)) as far_end:
        leave_behind(folder, understood(far_end.url))
        adopter = process(far_end.url)
        wait_until(lambda: adopter.sender._book.exporter.unanswered == 3)  # noqa: SLF001 - nothing else tells
        assert adopter.sender.counts().unanswered == 0
        adopter.sender.stop(0)
        counts = adopter.sender.counts()
    assert (counts.finished, counts.unanswered, counts.queued, counts.lost) == (0, 0, 0, {})


def test_what_others_left_and_is_sent_during_the_stop_is_not_sent_again(
    process: Make, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    connect = connection._connect  # noqa: SLF001 - as a name server that answers late

    def waits(address: tuple[str, int], limit: float) -> socket.socket:
        begun.set()
        go_on.wait(DEADLINE)
        return connect(address, limit)

    def goes_on(_timeout: float) -> None:
        go_on.set()
        wait_until(lambda: sender._book.exporter.unanswered)  # noqa: SLF001 - nothing else tells

    monkeypatch.setattr(connection, "_connect", waits)
    with FaultServer(Step(act=never)) as far_end:
        leave_behind(folder, understood(far_end.url))
        sender = process(far_end.url).sender
        assert begun.wait(DEADLINE)
        # What stop() does first after its look at what is being sent.
        with monkeypatch.context() as patch:
            patch.setattr(sender, "rescue", goes_on)
            sender.stop(0.1)
        assert is_empty(folder)
        assert len(far_end.span_ids) == 3
    assert "lost 3 spans that worker 4711 left behind (unconfirmed 3)" in caplog.messages


def test_what_is_found_during_the_stop_stays_and_holds_no_own_span_up(
    process: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, go_on = threading.Event(), threading.Event()
    find = Adopter.next

    def finds(adopter: Adopter) -> LeftBehind | None:
        looking.set()
        go_on.wait(DEADLINE)
        return find(adopter)

    monkeypatch.setattr(Adopter, "next", finds)
    with FaultServer() as far_end:
        left = leave_behind(folder, understood(far_end.url))
        adopter = process(far_end.url)
        assert looking.wait(DEADLINE)
        own = adopter.work()
        # stop() calls this when it has said that it is the end.
        monkeypatch.setattr(adopter.sender._book.exporter, "wake", go_on.set)  # noqa: SLF001 - in the middle of stop()
        assert adopter.sender.stop(DEADLINE)
        assert far_end.span_ids == [own]
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        assert Counter(far_end.span_ids) == dict.fromkeys([own, *left], 1)


def test_a_root_span_is_in_the_journal_when_its_end_returns_whatever_other_threads_do(
    process: Make, folder: Path
) -> None:
    """Another thread that had taken the span along might still be encoding it."""
    missing: list[bytes] = []
    interval = sys.getswitchinterval()
    with FaultServer(Step(act=never)) as far_end:
        worker = process(far_end.url, OTEL_BSP_SCHEDULE_DELAY="60000", OTEL_BSP_MAX_QUEUE_SIZE="20000")

        def serve() -> None:
            for number in range(60):
                with worker.tracer.start_as_current_span("root") as root:
                    for _ in range(number % 5):
                        worker.tracer.start_span("child").end()
                span_id = root.get_span_context().span_id.to_bytes(8, "big")
                if not any(span_id in path.read_bytes() for path in folder.iterdir()):
                    missing.append(span_id)

        threads = [threading.Thread(target=serve) for _ in range(6)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert missing == []


def test_a_fork_in_the_middle_of_it_keeps_no_file(process: Make, folder: Path) -> None:
    with FaultServer(Step(act=never), accepted()) as far_end:
        leave_behind(folder, understood(far_end.url), records=2)
        adopter = process(far_end.url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3")
        wait_until(lambda: len(far_end.requests) == 1)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            adopter.sender.leave_journal_to_parent()
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        adopter.sender.stop(0.2)
        process(far_end.url)
        wait_until(lambda: is_empty(folder))
        os.close(writer)
        os.waitpid(pid, 0)
