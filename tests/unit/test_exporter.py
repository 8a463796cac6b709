"""One batch becomes one answer, whatever the far end does."""

from __future__ import annotations

import base64
import logging
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import fault_server as far
import pytest
import trustme
from fault_server import FaultServer, Step, accepted, refused
from opentelemetry import context as otel_context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mackerel_otel_server import __version__
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.pipeline import connection as connection_module
from mackerel_otel_server.pipeline.answer import Answer, Cause
from mackerel_otel_server.pipeline.exporter import Complaints, Exporter
from mackerel_otel_server.process.log import to_host
from mackerel_otel_server.settings import SettingsError, read

KEY = "the-Secret-key-0123456789"
TIMEOUT = 0.4
SLACK = 1.5
"""Seconds that a loaded machine may take longer."""


def batch(spans: int = 3, padding: int = 0) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(spans):
        scope.spans.add(name="GET /", trace_id=os.urandom(16), trace_state=os.urandom(padding // 2).hex())
    return request.SerializeToString()


BATCH = batch()


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """The lines at info level and above; the key is in none of them, nor in those for debugging."""
    lines: list[str] = []
    everything: list[str] = []
    formatter = logging.Formatter()

    def write(record: logging.LogRecord) -> None:
        everything.append(formatter.format(record))
        if record.levelno >= logging.INFO:
            lines.append(f"{record.levelname} {record.getMessage()}")

    to_host(write)
    yield lines
    to_host(None)
    assert not [line for line in everything if KEY.lower() in line.lower()]
    assert not [line for line in lines if not line.isprintable()]


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Backoffs of no time; the list holds the longest that each could have been."""
    ceilings: list[float] = []

    def uniform(_: float, ceiling: float) -> float:
        ceilings.append(ceiling)
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)
    return ceilings


class Sender:
    """An exporter, and the time that its last batch took."""

    def __init__(self, url: str, **variables: str) -> None:
        environ = {
            "OTEL_SERVICE_NAME": "shop",
            "MACKEREL_APIKEY": KEY,
            "MACKEREL_OTEL_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": str(TIMEOUT),
        }
        self.exporter = Exporter(read({**environ, **variables}))
        self.took = 0.0

    def send(self, body: bytes = BATCH, spans: int = 3, within: float = 0.3) -> Answer:
        """Send a batch whose deadline allows one attempt, or retries that are answered at once."""
        began = time.monotonic()
        answer = self.exporter.export(body, spans, began + within)
        self.took = time.monotonic() - began
        assert self.took < min(within, TIMEOUT * (self.exporter.retried + 1)) + SLACK
        assert KEY not in str(answer)
        assert answer.accepted + answer.rejected <= spans
        return answer


@pytest.fixture
def sender() -> Iterator[Callable[..., Sender]]:
    made: list[Sender] = []

    def make(url: str, **variables: str) -> Sender:
        made.append(Sender(url, **variables))
        return made[-1]

    yield make
    for each in made:
        each.exporter.close()


Make = Callable[..., Sender]


# What is sent


def test_a_batch_arrives_as_gzip_protobuf_with_the_key(sender: Make, log: list[str]) -> None:
    with FaultServer() as server:
        made = sender(server.url)
        assert made.send() == Answer(accepted=3)
    (request,) = server.requests
    assert request.line == "POST /v1/traces HTTP/1.1"
    assert request.data == BATCH
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"mackerel-otel-server/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/x-protobuf",
        "content-encoding": "gzip",
        "content-length": str(len(request.body)),
        "mackerel-api-key": KEY,
    }
    assert (made.exporter.requests, made.exporter.retried) == (1, 0)
    assert made.exporter.bytes_sent == len(request.body)
    assert log == []


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_the_compression_is_the_one_that_the_settings_name(sender: Make, compression: str) -> None:
    import zlib

    with FaultServer() as server:
        assert sender(server.url, OTEL_EXPORTER_OTLP_COMPRESSION=compression).send().accepted == 3
    (request,) = server.requests
    body = zlib.decompress(request.body) if compression == "deflate" else request.body
    assert body == BATCH
    assert request.headers.get("content-encoding", "none") == compression


def test_a_collector_gets_the_headers_variable_and_no_key(sender: Make) -> None:
    with FaultServer() as server:
        made = sender(
            "",
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=server.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"x-tenant=%E3%81%82,user-agent=us,content-length=5,mackerel-api-key={KEY}",
        )
        made.exporter.set_api_key(KEY)
        assert made.send().accepted == 3
    (request,) = server.requests
    assert request.headers["x-tenant"] == "あ"
    assert request.headers["user-agent"] == "us"
    assert "mackerel-api-key" not in request.headers


def test_a_header_with_a_line_break_is_an_error_of_the_settings() -> None:
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_HEADERS: the value of 'a' holds a line break"):
        read({"MACKEREL_APIKEY": KEY, "OTEL_EXPORTER_OTLP_HEADERS": "a=b%0d%0aMackerel-Api-Key:%20x"})


def test_no_connection_is_made_before_the_first_batch(sender: Make) -> None:
    # Not their number: a thread of an earlier test may end meanwhile.
    threads = set(threading.enumerate())
    with FaultServer() as server:
        before = set(threading.enumerate())
        sender(server.url)
        assert not set(threading.enumerate()) - before
        assert server.connections == 0
    assert not set(threading.enumerate()) - threads


def test_batches_share_one_connection(sender: Make) -> None:
    with FaultServer() as server:
        made = sender(server.url)
        assert [made.send().accepted for _ in range(3)] == [3, 3, 3]
    assert server.connections == 1


def test_sending_is_not_traced_by_the_applications_instrumentations(
    sender: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    getaddrinfo = socket.getaddrinfo

    def look(*args: object, **kwargs: object) -> object:
        from opentelemetry.instrumentation.utils import is_instrumentation_enabled

        seen.append(is_instrumentation_enabled())
        return getaddrinfo(*args, **kwargs)  # type: ignore[arg-type]

    with FaultServer() as server:
        monkeypatch.setattr(socket, "getaddrinfo", look)
        before = otel_context.get_current()
        sender(server.url).send()
    assert seen == [False]
    assert otel_context.get_current() == before


def test_nothing_is_attempted_after_the_deadline(sender: Make, log: list[str]) -> None:
    with FaultServer() as server:
        made = sender(server.url)
        answer = made.send(within=-1)
    assert (answer.keep, answer.unconfirmed, answer.accepted) == (True, False, 0)
    assert server.connections == made.exporter.requests == 0
    assert log == []


def test_the_receiver_that_answers_as_mackerel_does_takes_a_batch_and_refuses_a_wrong_key(sender: Make) -> None:
    with Receiver(api_key=KEY) as receiver:
        assert sender(receiver.url).send(within=5) == Answer(accepted=3)
        assert len(receiver.spans) == 3
        refusal = sender(receiver.url, MACKEREL_APIKEY="wrong").send(within=5)
    assert (refusal.cause, refusal.pause) == (Cause.KEY, 60.0)
    assert "'Invalid API Key'" in refusal.seen


# No answer


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_far_end_that_is_down_keeps_the_spans(
    sender: Make, log: list[str], short_backoff: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1/traces"
    made = sender(url)
    monkeypatch.setattr(made.exporter._woken, "wait", lambda _: made.exporter.requests >= 6)  # noqa: SLF001
    answer = made.send(within=20)
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.REFUSED, True, False)
    assert (made.exporter.requests, made.exporter.retried) == (6, 5)
    assert short_backoff == [1, 2, 4, 8, 8, 8]
    assert log == [f"WARNING the endpoint takes no spans: {answer}"]
    assert str(answer).startswith(f"{url} did not answer ([Errno 111] Connection refused): the spans are kept")


def test_a_name_that_does_not_exist_is_told_as_such(sender: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    made = sender("https://collector.invalid/v1/traces")
    made.exporter.wake()
    answer = made.send(within=0.05)
    assert (answer.cause, answer.keep) == (Cause.DNS, True)
    assert "its name has no address" in answer.seen


@pytest.mark.parametrize("act", [far.never, far.drip])
def test_a_far_end_that_does_not_finish_its_head_is_left_after_the_timeout(
    sender: Make, log: list[str], act: Callable[[FaultServer, socket.socket], object]
) -> None:
    with FaultServer(Step(act=act)) as server:
        made = sender(server.url)
        answer = made.send(within=30)
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.TIMEOUT, False, True)
    assert made.took >= TIMEOUT
    assert "timed out): the spans may have arrived, so they are not sent again" in log[0]


def test_the_deadline_goes_before_the_timeout(sender: Make) -> None:
    with FaultServer(Step(act=far.never)) as server:
        made = sender(server.url, OTEL_EXPORTER_OTLP_TIMEOUT="60")
        made.exporter.export(BATCH, 3, time.monotonic() + 0.2)
        began = time.monotonic()
        assert made.exporter.export(BATCH, 3, time.monotonic() + 0.2).unconfirmed
        assert time.monotonic() - began < 0.2 + SLACK


def test_a_far_end_that_never_reads_is_left_after_the_timeout(sender: Make) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5) as listener:
        made = sender(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces", OTEL_EXPORTER_OTLP_COMPRESSION="none")
        answer = made.send(b"x" * 30_000_000, within=0.4)
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.TIMEOUT, True, False)


@pytest.mark.parametrize("act", [far.half_an_answer, far.reset])
def test_a_connection_that_breaks_in_the_middle_of_the_answer_is_unconfirmed_and_not_repeated(
    sender: Make, log: list[str], act: Callable[[FaultServer, socket.socket], object]
) -> None:
    with FaultServer(Step(act=act), accepted()) as server:
        answer = sender(server.url).send()
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.CLOSED, False, True)
    assert len(log) == 1


def test_what_is_no_http_is_told_as_such(sender: Make) -> None:
    with FaultServer(Step(act=far.no_http)) as server:
        answer = sender(server.url).send()
    assert answer.unconfirmed
    assert "what came is no HTTP: BadStatusLine 220 mail.example ESMTP" in answer.seen


def test_a_port_that_speaks_grpc_is_told_as_such_and_the_spans_are_kept(sender: Make) -> None:
    with FaultServer(Step(act=far.http2)) as server:
        answer = sender(server.url).send()
        assert len(server.requests) == 1  # a further attempt would not help
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.GRPC, True, False)
    assert "did not answer (what it speaks is HTTP/2, as gRPC does)" in answer.seen


def test_a_port_that_refuses_http_1_over_tls_is_one_that_speaks_grpc(sender: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65_536)
                # A fatal alert, no_application_protocol: https://www.rfc-editor.org/rfc/rfc7301#section-3.2
                sock.sendall(bytes.fromhex("15 0303 0002 02 78"))
                sock.recv(65_536)

        thread = threading.Thread(target=refuse)
        thread.start()
        # The far end answers at once: the time is for a loaded machine.
        made = sender(f"https://127.0.0.1:{listener.getsockname()[1]}/v1/traces", OTEL_EXPORTER_OTLP_TIMEOUT="5")
        answer = made.send(within=5)
        thread.join()
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.GRPC, True, False)


def test_a_connection_that_is_closed_before_the_request_was_sent_is_tried_again(sender: Make) -> None:
    body = batch(3, padding=6_000_000)  # more than the kernel's buffers hold
    with FaultServer(greet=lambda number: number == 1) as server:
        made = sender(server.url, OTEL_EXPORTER_OTLP_COMPRESSION="none", OTEL_EXPORTER_OTLP_TIMEOUT="10")
        assert made.send(body, within=10).accepted == 3
        assert (server.connections, len(server.requests)) == (2, 1)
    assert made.exporter.retried == 1


def test_an_idle_connection_that_the_far_end_closed_is_noticed_before_sending(sender: Make, log: list[str]) -> None:
    with FaultServer() as server:
        made = sender(server.url)
        made.send()
        server.close_connections()
        assert made.send() == Answer(accepted=3)
        assert (server.connections, len(server.requests)) == (2, 2)
    assert made.exporter.retried == 0
    assert log == []


def test_a_kept_connection_that_closes_unseen_is_replaced_once_when_the_request_was_not_sent(
    sender: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = batch(3, padding=6_000_000)
    with FaultServer() as server:
        made = sender(server.url, OTEL_EXPORTER_OTLP_COMPRESSION="none", OTEL_EXPORTER_OTLP_TIMEOUT="10")
        made.send()
        server.close_connections()
        monkeypatch.setattr(connection_module._Stream, "is_quiet", lambda _: True)  # noqa: SLF001
        assert made.send(body, within=10).accepted == 3
        assert (server.connections, len(server.requests)) == (2, 2)


def test_a_connection_that_was_idle_for_long_is_not_used_again(sender: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as server:
        made = sender(server.url)
        made.send()
        monkeypatch.setattr(connection_module, "_IDLE_SECONDS", -1.0)
        made.send()
    assert server.connections == 2


# Answers that say yes


@pytest.mark.parametrize("act", [far.drip_body, far.half_a_body, far.endless_body])
def test_a_200_counts_whatever_becomes_of_its_body(
    sender: Make, log: list[str], act: Callable[[FaultServer, socket.socket], object]
) -> None:
    with FaultServer(Step(act=act)) as server:
        made = sender(server.url)
        answer = made.send()
        assert len(server.requests) == 1
    assert (answer.accepted, answer.cause, answer.keep, answer.unconfirmed) == (3, Cause.NOT_OTLP, False, False)
    assert len(log[0]) < 800


@pytest.mark.parametrize("body", [b"<html>hello\x1b[31m</html>", b"\xff\xfe\x00garbage", b"\x0a\xff"])
def test_a_200_with_garbage_counts_and_is_told(sender: Make, log: list[str], body: bytes) -> None:
    with FaultServer(Step(200, body, {"Content-Type": "text/html"})) as server:
        answer = sender(server.url).send()
    assert (answer.accepted, answer.cause) == (3, Cause.NOT_OTLP)
    assert "answered 200 with something that is no OTLP answer" in log[0]
    assert "check that the endpoint's URL" in log[0]


@pytest.mark.parametrize(
    "step",
    [
        accepted(2, f"two are too old, {KEY}\n"),
        Step(200, b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "two are too old, ****"}}'),
    ],
)
def test_spans_that_a_partial_success_rejects_are_counted_and_told(sender: Make, log: list[str], step: Step) -> None:
    with FaultServer(step) as server:
        answer = sender(server.url).send()
    assert (answer.accepted, answer.rejected, answer.cause, answer.keep) == (1, 2, Cause.PARTIAL, False)
    assert "rejected 2 of 3 spans 'two are too old, ****'" in log[0]


def test_a_partial_success_that_rejects_more_than_was_sent_is_not_believed(sender: Make) -> None:
    with FaultServer(accepted(99, "many")) as server:
        answer = sender(server.url).send()
    assert (answer.accepted, answer.rejected) == (0, 3)


@pytest.mark.parametrize(
    "step",
    [
        *[
            Step(200, b'{"partialSuccess": {"rejectedSpans": %s, "errorMessage": "nonsense"}}' % number)
            for number in (b"1e999", b"-1e999", b"-1", b'"-1"', b"NaN", b'"two"', b'"1e999"', b"0.5", b"true", b"[1]")
        ],
        accepted(-1, "nonsense"),
        accepted(-(2**63), "nonsense"),
    ],
)
def test_a_partial_success_that_is_nonsense_is_one_message_and_the_spans_count_as_delivered(
    sender: Make, log: list[str], step: Step
) -> None:
    with FaultServer(step) as server:
        answer = sender(server.url).send()
    assert (answer.accepted, answer.rejected, answer.cause) == (3, 0, Cause.NOT_OTLP)
    (line,) = log
    assert "answered 200 with something that is no OTLP answer" in line
    assert "nonsense" in line


def test_a_remark_of_the_far_end_is_told(sender: Make, log: list[str]) -> None:
    with FaultServer(accepted(0, "use another path")) as server:
        assert sender(server.url).send().accepted == 3
    assert log == [f"WARNING {server.url} says: use another path"]


# Answers that say no


@pytest.mark.parametrize(
    ("step", "cause", "words"),
    [
        (refused(400, "Invalid API Key"), Cause.KEY, "answered 400 Bad Request 'Invalid API Key': spans are dropped"),
        (Step(400), Cause.KEY, "set MACKEREL_APIKEY"),
        (Step(401, b'{"error": "no such key"}'), Cause.KEY, "answered 401 Unauthorized 'no such key'"),
        (Step(403, b'{"error": {"message": "read only"}}'), Cause.KEY, "answered 403 Forbidden 'read only'"),
    ],
)
def test_a_refused_key_stops_sending_for_a_minute(
    sender: Make, log: list[str], step: Step, cause: Cause, words: str
) -> None:
    with FaultServer(step) as server:
        made = sender(server.url)
        answer = made.send()
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.pause, answer.accepted) == (cause, False, 60.0, 0)
    assert words in log[0]
    assert "write permission" in log[0]


def test_a_key_that_comes_later_is_used(sender: Make, log: list[str]) -> None:
    with FaultServer(refused(400, "Invalid API Key"), accepted()) as server:
        made = sender(server.url)
        made.send()
        made.exporter.set_api_key(None)
        made.exporter.set_api_key("another-key")
        assert made.send() == Answer(accepted=3)
    assert [request.headers["mackerel-api-key"] for request in server.requests] == [KEY, "another-key"]
    assert log[1:] == ["INFO the endpoint takes spans again"]


def test_credentials_that_a_collector_refuses_are_not_called_a_key(sender: Make) -> None:
    with FaultServer(Step(401)) as server:
        answer = sender("", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=server.url).send()
    assert (answer.cause, answer.pause) == (Cause.CREDENTIALS, 60.0)
    assert "OTEL_EXPORTER_OTLP_HEADERS" in str(answer)


@pytest.mark.parametrize(
    ("step", "cause", "words"),
    [
        (refused(413, "too big"), Cause.TOO_LARGE, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=128"),
        (Step(415), Cause.NOT_PROTOBUF, "as protobuf"),
        (refused(400, "Content-Type must be application/x-protobuf"), Cause.NOT_PROTOBUF, "as protobuf"),
        (refused(400, "the moon is full"), Cause.OTHER, "'the moon is full'"),
        (Step(404, b"nothing here"), Cause.NOT_FOUND, "answered 404 Not Found 'nothing here'"),
        (Step(418), Cause.OTHER, "answered 418"),
    ],
)
def test_spans_that_are_refused_for_good_are_lost_and_the_next_batch_is_sent(
    sender: Make, log: list[str], step: Step, cause: Cause, words: str
) -> None:
    with FaultServer(step, accepted()) as server:
        made = sender(server.url)
        answer = made.send()
        assert (answer.cause, answer.keep, answer.pause, answer.accepted) == (cause, False, 0.0, 0)
        assert made.send().accepted == 3
        assert (server.connections, len(server.requests)) == (1, 2)
    assert words in log[0]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(sender: Make, log: list[str], status: int) -> None:
    with FaultServer() as elsewhere, FaultServer(Step(status, headers={"Location": elsewhere.url})) as server:
        answer = sender(server.url).send()
        assert elsewhere.connections == 0
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.accepted) == (Cause.REDIRECT, False, 0)
    assert f"to {elsewhere.url!r}: redirects are not followed" in log[0]


@pytest.mark.parametrize("retry_after", [None, "0", "-5", formatdate(0, usegmt=True)])
def test_a_429_that_names_no_time_or_a_past_one_is_tried_again(sender: Make, retry_after: str | None) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    with FaultServer(Step(429, headers=headers), accepted()) as server:
        made = sender(server.url)
        assert made.send(within=5) == Answer(accepted=3)
        assert (server.connections, len(server.requests)) == (1, 2)
    assert (made.exporter.requests, made.exporter.retried) == (2, 1)


@pytest.mark.parametrize("retry_after", ["5", "60"])
def test_a_429_whose_time_does_not_fit_into_the_deadline_keeps_the_spans(
    sender: Make, log: list[str], retry_after: str
) -> None:
    with FaultServer(refused(429, "slow down", Retry_After=retry_after)) as server:
        answer = sender(server.url).send()
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.pause) == (Cause.RATE, True, float(retry_after))
    assert f"'slow down', to be asked again after {retry_after} s: the spans are kept" in log[0]


def test_a_date_in_retry_after_is_understood(sender: Make) -> None:
    with FaultServer(Step(429, headers={"Retry-After": formatdate(time.time() + 30, usegmt=True)})) as server:
        answer = sender(server.url).send()
    assert answer.keep
    assert 20 < answer.pause <= 30


@pytest.mark.parametrize("retry_after", ["99999", "9" * 400, formatdate(4_000_000_000, usegmt=True)])
def test_a_quota_that_is_used_up_stops_sending_for_a_minute(sender: Make, log: list[str], retry_after: str) -> None:
    with FaultServer(refused(429, "quota", Retry_After=retry_after)) as server:
        answer = sender(server.url).send(within=30)
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.pause) == (Cause.QUOTA, False, 60.0)
    assert "OTEL_TRACES_SAMPLER=parentbased_traceidratio" in log[0]


def test_a_500_keeps_the_spans_for_later(sender: Make, log: list[str]) -> None:
    with FaultServer(Step(500, b"boom\x1b[31m\nboom " + b"x" * 5000)) as server:
        answer = sender(server.url).send()
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.SERVER, True, False)
    assert r"answered 500 Internal Server Error 'boom\\x1b[31m boom xxx" in log[0]
    assert len(log[0]) < 600


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_passing_fault_is_tried_again_and_told_nobody(sender: Make, log: list[str], status: int) -> None:
    with FaultServer(Step(status), accepted()) as server:
        assert sender(server.url).send(within=5) == Answer(accepted=3)
        assert len(server.requests) == 2
    assert log == []


def test_a_long_retry_after_of_a_503_keeps_the_spans_and_pauses_a_minute(sender: Make) -> None:
    with FaultServer(Step(503, headers={"Retry-After": "3600"})) as server:
        answer = sender(server.url).send(within=30)
        assert len(server.requests) == 1
    assert (answer.cause, answer.keep, answer.pause) == (Cause.SERVER, True, 60.0)


def test_a_wait_for_the_next_attempt_can_be_ended(sender: Make) -> None:
    with FaultServer(Step(503, headers={"Retry-After": "20"})) as server:
        made = sender(server.url)
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(made.exporter.export(BATCH, 3, time.monotonic() + 60)))
        thread.start()
        while thread.is_alive():
            made.exporter.wake() if server.requests else None
            thread.join(0.02)
    assert answers[0].keep
    assert len(server.requests) == 1


def test_an_answer_that_comes_before_everything_was_read_is_heard(sender: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        # The far end answers at once: the time is for a loaded machine.
        variables = {"OTEL_EXPORTER_OTLP_COMPRESSION": "none", "OTEL_EXPORTER_OTLP_TIMEOUT": "5"}
        made = sender(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces", **variables)
        answer = made.exporter.export(b"x" * 30_000_000, 3, time.monotonic() + 5)
        thread.join(10)
    assert (answer.cause, answer.keep) == (Cause.TOO_LARGE, False)


# Words


def test_a_cause_is_told_once_a_minute_with_a_count(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    complaints = Complaints()
    for _ in range(3):
        complaints.complain(Cause.DNS, "no name")
    complaints.complain(Cause.TLS, "no trust")
    now += 60
    complaints.complain(Cause.DNS, "no name")
    assert log == [
        "WARNING no name",
        "WARNING no trust",
        "WARNING no name (and 2 times more since this was last said)",
    ]


def test_no_secret_is_repeated_whoever_says_it(sender: Make, log: list[str]) -> None:
    said = f"{KEY.upper()} and hunter22 and query-secret"
    with FaultServer(refused(400, said), Step(302, headers={"Location": f"http://x/?{KEY}"})) as server:
        url = server.url.replace("127.0.0.1", "me:hunter22@127.0.0.1") + "?query-secret"
        made = sender(url)
        made.send()
        made.send()
        assert "**** and **** and ****" in log[0]
        assert "'http://x/?****'" in log[1]
        assert not [line for line in log if "hunter22" in line or "query-secret" in line]
        assert server.requests[0].line == "POST /v1/traces?query-secret HTTP/1.1"
        assert server.requests[0].headers["authorization"] == "Basic bWU6aHVudGVyMjI="


BASIC = base64.b64encode(b"tok3n-of-me:pass/word+1").decode()
HEADERS = {
    "OTEL_EXPORTER_OTLP_HEADERS": (
        f"authorization=Basic%20{BASIC},x-token=Bearer%20abcd%2Fefgh%2B0123,x-odd=%22p%C3%A4ss"
    )
}
FORMS = {
    "the key": [
        KEY,
        KEY.upper(),
        KEY[:12] + "\r\n " + KEY[12:],
        KEY[:12] + "\\n" + KEY[12:],
        quote(KEY).replace("-", "%2d"),
    ],
    "a Basic value": [
        f"Basic {BASIC}",
        BASIC,
        quote(BASIC, safe=""),
        "tok3n-of-me:pass/word+1",
        "pass/word+1",
        "tok3n-of-me",
    ],
    "a Bearer value": [
        "abcd/efgh+0123",
        "abcd%2Fefgh%2B0123",
        "abcd%252fefgh%252b0123",
        "abcd\\/efgh+0123",
        "abcd&#x2F;efgh&#43;0123",
    ],
    "another header": ['"p\xe4ss', '\\"p\\u00e4ss', "&quot;p\xc3\xa4ss", "%22p%C3%A4ss"],
    "the URL's user": ["user-t0ken", base64.b64encode(b"user-t0ken:").decode()],
    "the query": [
        "t=query%2Fs3cret+1&u=an0ther1",
        "query%2fs3cret+1",
        "query%2 Fs3cret+1",
        "query/s3cret 1",
        "query/s3cret+1",
        "an0ther1",
    ],
    "the path": ["path-t0ken-1%2B", "path-t0ken-1+"],
}


@pytest.mark.parametrize("form", [form for forms in FORMS.values() for form in forms])
@pytest.mark.parametrize("where", ["a message", "a reason", "a remark"])
def test_what_a_far_end_quotes_is_masked_in_every_form_in_which_it_was_sent(
    sender: Make, log: list[str], form: str, where: str
) -> None:
    text = f"I got <{form}> of you"
    line = " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")
    steps = {
        "a message": refused(400, text),
        "a reason": Step(act=lambda _, sock: sock.sendall(f"HTTP/1.1 404 {line}\r\n\r\n".encode("latin-1"))),
        "a remark": accepted(0, text),
    }
    with FaultServer(steps[where]) as server:
        url = f"http://user-t0ken@127.0.0.1:{server.port}/v1/path-t0ken-1%2B/traces?t=query%2Fs3cret+1&u=an0ther1"
        # Each answer comes at once, and on a loaded machine that may be a second.
        sender(url, **HEADERS, OTEL_EXPORTER_OTLP_TIMEOUT="10").send(within=10)
    (said,) = log
    # A backslash before it and a plus sign after it may be left.
    assert re.search(r"I got <[\\]*\*\*\*\*(\+|%2B)?> of you", said)


@pytest.mark.parametrize("body", [f"no {KEY[:10]}", " " * 3990 + KEY, f"{KEY} " * 200], ids=["by it", "by us", "often"])
def test_a_secret_at_which_an_answer_is_cut_off_is_masked(sender: Make, log: list[str], body: str) -> None:
    with FaultServer(Step(400, body.encode())) as server:
        sender(server.url).send()
    assert KEY[:10] not in log[0]
    assert "****" in log[0]


def test_the_words_around_a_short_secret_are_left_alone(sender: Make, log: list[str]) -> None:
    with FaultServer(refused(400, "an us er of prod and of a product")) as server:
        sender(server.url, OTEL_EXPORTER_OTLP_HEADERS="a=user,b=ofprod").send()
    assert "'an us er of prod and of a product'" in log[0]


def test_the_exporter_never_raises(sender: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sender("http://127.0.0.1:9/v1/traces")

    def fail(*_: object) -> None:
        raise RuntimeError(f"broken {KEY}")

    monkeypatch.setattr(made.exporter, "_attempt", fail)
    answer = made.exporter.export(BATCH, 3, time.monotonic() + 1)
    assert (answer.cause, answer.keep, answer.accepted) == (Cause.OTHER, False, 0)
    assert "RuntimeError: broken ****" in answer.seen


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_context(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_a_far_end_whose_authority_is_named_is_trusted(
    sender: Make, authority: trustme.CA, authority_file: str
) -> None:
    with FaultServer(context=server_context(authority)) as server:
        made = sender(server.url, OTEL_EXPORTER_OTLP_CERTIFICATE=authority_file)
        assert [made.send(within=5), made.send(within=5)] == [Answer(accepted=3)] * 2
        assert server.connections == 1
        server.close_connections()
        assert made.send(within=5) == Answer(accepted=3)
        assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [
        ("localhost", False, "unable to get local issuer certificate"),
        ("elsewhere.example", True, "Hostname mismatch"),
    ],
)
def test_a_wrong_certificate_gets_nothing(  # noqa: PLR0913, PLR0917 - fixtures
    sender: Make, log: list[str], authority: trustme.CA, authority_file: str, name: str, trusted: bool, words: str
) -> None:
    # The far end answers at once: the time is for a loaded machine.
    variables = {"OTEL_EXPORTER_OTLP_TIMEOUT": "5"}
    variables |= {"OTEL_EXPORTER_OTLP_CERTIFICATE": authority_file} if trusted else {}
    with FaultServer(context=server_context(authority, name)) as server:
        answer = sender(server.url, **variables).send(within=5)
        assert server.connections == 1
        assert server.requests == []
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.TLS, True, False)
    assert words in log[0]
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in log[0]


def test_a_client_certificate_is_shown(
    sender: Make, authority: trustme.CA, authority_file: str, tmp_path: Path
) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    client = authority.issue_cert("worker@example.org")
    client.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    with FaultServer(context=context) as server:
        trust = {"OTEL_EXPORTER_OTLP_CERTIFICATE": authority_file}
        made = sender(
            server.url,
            **trust,
            OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(tmp_path / "cert.pem"),
            OTEL_EXPORTER_OTLP_CLIENT_KEY=str(tmp_path / "key.pem"),
        )
        assert made.send(within=5) == Answer(accepted=3)
        without = sender(server.url, **trust).send(within=5)
        assert without.cause in {Cause.TLS, Cause.CLOSED}
        assert len(server.requests) == 1


def test_certificate_files_that_are_none_are_told(sender: Make, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1/traces"
        answer = sender(url, OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "ca.pem")).send()
    assert answer.cause is Cause.TLS
    assert "the certificate files cannot be used" in answer.seen


def test_a_far_end_that_never_shakes_hands_is_left_after_the_timeout(sender: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = sender(f"https://127.0.0.1:{listener.getsockname()[1]}/v1/traces").send()
    assert (answer.cause, answer.keep, answer.unconfirmed) == (Cause.TIMEOUT, True, False)


# Proxies


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no name be looked up but the proxy's."""
    getaddrinfo = socket.getaddrinfo

    def look(host: str, *args: object, **kwargs: object) -> object:
        assert host in {"proxy.example", "127.0.0.1"}
        return getaddrinfo("127.0.0.1", *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look)


@pytest.mark.usefixtures("resolves")
def test_a_proxy_tunnels_https_and_never_sees_the_key(sender: Make, authority: trustme.CA, authority_file: str) -> None:
    with (
        FaultServer(context=server_context(authority, "mackerel.example")) as server,
        FaultServer(tunnel=lambda _: server.port) as proxy,
    ):
        made = sender(
            "https://mackerel.example/v1/traces",
            OTEL_EXPORTER_OTLP_CERTIFICATE=authority_file,
            HTTPS_PROXY=f"http://me:hunter%3222@proxy.example:{proxy.port}",
        )
        assert [made.send(within=5), made.send(within=5)] == [Answer(accepted=3)] * 2
        made.exporter.close()
        (connect,) = proxy.requests
        assert connect.line == "CONNECT mackerel.example:443 HTTP/1.1"
        assert connect.headers == {
            "host": "mackerel.example:443",
            "proxy-authorization": "Basic bWU6aHVudGVyMjIy",
        }
        assert [request.headers["host"] for request in server.requests] == ["mackerel.example"] * 2
        assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.usefixtures("resolves")
def test_a_proxy_that_refuses_is_told_as_such(sender: Make, log: list[str]) -> None:
    with FaultServer(tunnel=lambda _: 0) as proxy:
        made = sender("https://mackerel.example/v1/traces", HTTPS_PROXY=f"proxy.example:{proxy.port}")
        answer = made.send(within=5)
        assert proxy.connections == 1
    assert (answer.cause, answer.keep) == (Cause.PROXY, True)
    assert f"the proxy proxy.example:{proxy.port} refused the tunnel with 407 Proxy Authentication Required" in log[0]


@pytest.mark.usefixtures("resolves")
def test_a_proxy_is_asked_for_the_whole_url_of_a_plain_collector(sender: Make) -> None:
    with FaultServer() as proxy:
        made = sender(
            "",
            OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.example:4318",
            http_proxy=f"http://me:pw@proxy.example:{proxy.port}",
        )
        assert made.send(within=5) == Answer(accepted=3)
    (request,) = proxy.requests
    assert request.line == "POST http://collector.example:4318/v1/traces HTTP/1.1"
    assert request.headers["host"] == "collector.example:4318"
    assert request.headers["proxy-authorization"] == "Basic bWU6cHc="


@pytest.mark.parametrize(
    ("endpoint", "variables", "proxy"),
    [
        ("https://a.example/v1", {"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:2"}, "http://q:2"),
        ("https://a.example/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("https://a.example/v1", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://a.example/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b.example,.example"}, None),
        ("https://a.example/v1", {"HTTPS_PROXY": "http://p:1", "no_proxy": "a.example:443"}, None),
        ("https://a.example/v1", {"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}, None),
        ("https://a.example/v1", {"HTTPS_PROXY": "http://p:1", "no_proxy": "b.example"}, "http://p:1"),
        ("http://127.0.0.1:1/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("https://localhost:1/v1", {"HTTPS_PROXY": "http://p:1"}, None),
    ],
)
def test_the_usual_variables_name_the_proxy(endpoint: str, variables: dict[str, str], proxy: str | None) -> None:
    settings = read({"MACKEREL_APIKEY": KEY, "MACKEREL_OTEL_ENDPOINT": endpoint, **variables})
    assert settings.proxy == proxy
    assert "proxy" not in repr(settings)


@pytest.mark.parametrize(
    "value", ["http://[me:pw@p", "https://me:pw@p:1", "socks5://me:pw@p:1", "http://me:pw@p:x", "http://"]
)
def test_a_proxy_that_cannot_be_used_is_an_error_without_its_password(value: str) -> None:
    with pytest.raises(SettingsError) as error:
        read({"MACKEREL_APIKEY": KEY, "HTTPS_PROXY": value})
    (problem,) = error.value.problems
    assert problem.seen.startswith("HTTPS_PROXY does not name an http proxy")
    assert "pw" not in str(problem).replace("password", "")


# gevent


def test_under_gevent_it_delivers_over_https_though_urllib3_was_imported_before_the_patch(
    tmp_path: Path, authority: trustme.CA, authority_file: str, need: Callable[[str], None]
) -> None:
    need("gevent")
    script = tmp_path / "worker.py"
    script.write_text(
        "import urllib3\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "import os, threading, time, gevent\n"
        "from mackerel_otel_server.pipeline.exporter import Exporter\n"
        "from mackerel_otel_server.settings import read\n"
        "from mackerel_otel_server.process.log import to_stderr\n"
        "to_stderr()\n"
        "exporter = Exporter(read(os.environ))\n"
        "turns = []\n"
        "ticker = gevent.spawn(lambda: [turns.append(gevent.sleep(0.01)) for _ in range(1000)])\n"
        "answers = []\n"
        "def send():\n"
        "    for _ in range(3):\n"
        "        answers.append(exporter.export(b'', 1, time.monotonic() + 20))\n"
        "thread = threading.Thread(target=send); thread.start(); thread.join()\n"
        "print([a.accepted for a in answers], [a.unconfirmed for a in answers], len(turns) > 10)\n"
        "ticker.kill(); exporter.close()\n"
    )
    with FaultServer(accepted(), accepted(), Step(act=far.never), context=server_context(authority)) as server:
        environ = {
            "PATH": os.environ["PATH"],
            "OTEL_SERVICE_NAME": "shop",
            "MACKEREL_APIKEY": KEY,
            "MACKEREL_OTEL_ENDPOINT": server.url,
            "OTEL_EXPORTER_OTLP_CERTIFICATE": authority_file,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        }
        result = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.stdout == "[1, 1, 0] [False, False, True] True\n", result.stderr
        assert (server.connections, len(server.requests)) == (1, 3)
    assert KEY not in result.stderr
