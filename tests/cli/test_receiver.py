from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import re
import socket
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus

from mackerel_otel_server.cli.receiver.endpoint import ReceivedRequest, Receiver
from mackerel_otel_server.cli.receiver.http_server import MAX_BODY_BYTES
from mackerel_otel_server.cli.receiver.received_spans import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOBUF = "application/x-protobuf"
TIMEOUT = 30.0


def export(*names: str, padding: int = 0) -> bytes:
    """Return an export request with one span per name, and an attribute of ``padding`` bytes."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    service = resource_spans.resource.attributes.add(key="service.name")
    service.value.string_value = "shop"
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "tests"
    for number, name in enumerate(names, 1):
        span = scope_spans.spans.add(name=name, kind=2, trace_id=b"\x01" * 16, span_id=bytes([number]) * 8)
        span.start_time_unix_nano, span.end_time_unix_nano = 1_000, 3_000
        if padding:
            span.attributes.add(key="padding").value.string_value = "x" * padding
    body: bytes = request.SerializeToString()
    return body


def post(
    receiver: Receiver, body: bytes, *, path: str = "/v1/traces", method: str = "POST", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=TIMEOUT)
    try:
        return ask(connection, body, path=path, method=method, **headers)
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection,
    body: bytes,
    *,
    path: str = "/v1/traces",
    method: str = "POST",
    **headers: str,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": PROTOBUF} | names)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def message(body: bytes) -> tuple[int, str]:
    status = Status.FromString(body)
    return status.code, status.message


def raw(receiver: Receiver, *parts: bytes) -> http.client.HTTPResponse:
    """Send bytes as they are and read the answer to its end."""
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT) as connection:
        for part in parts:
            connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.read()
        return response


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def head(*lines: str) -> bytes:
    first = ["POST /v1/traces HTTP/1.1", "Host: mackerel", f"Content-Type: {PROTOBUF}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def test_an_accepted_request_is_answered_with_200_and_an_export_response(receiver: Receiver) -> None:
    status, headers, body = post(receiver, export("GET /"))
    assert (status, headers["Content-Type"]) == (200, PROTOBUF)
    assert ExportTraceServiceResponse.FromString(body) == ExportTraceServiceResponse()


def test_a_span_arrives_with_everything_it_carries(receiver: Receiver) -> None:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="process.pid").value.int_value = 42
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "tests"
    span = scope_spans.spans.add(name="SELECT", kind=3, trace_id=b"\xab" * 16, span_id=b"\x01" * 8)
    span.parent_span_id = b"\x02" * 8
    span.start_time_unix_nano, span.end_time_unix_nano = 5, 9
    span.attributes.add(key="text").value.string_value = "x"
    span.attributes.add(key="flag").value.bool_value = True
    span.attributes.add(key="ratio").value.double_value = 0.5
    span.attributes.add(key="raw").value.bytes_value = b"\x00"
    span.attributes.add(key="nothing")
    span.attributes.add(key="list").value.array_value.values.add().int_value = 7
    pair = span.attributes.add(key="map").value.kvlist_value.values.add(key="inner")
    pair.value.string_value = "y"
    span.status.code, span.status.message = SpanStatus.STATUS_CODE_ERROR, "gone"
    event = span.events.add(name="exception", time_unix_nano=8)
    event.attributes.add(key="exception.type").value.string_value = "ValueError"

    assert post(receiver, request.SerializeToString())[0] == 200

    (got,) = receiver.spans
    assert (got.name, got.kind, got.scope) == ("SELECT", "CLIENT", "tests")
    assert (got.trace_id, got.span_id, got.parent_span_id) == ("ab" * 16, "01" * 8, "02" * 8)
    assert (got.start_time_unix_nano, got.end_time_unix_nano) == (5, 9)
    assert got.attributes == {
        "text": "x",
        "flag": True,
        "ratio": 0.5,
        "raw": b"\x00",
        "nothing": None,
        "list": [7],
        "map": {"inner": "y"},
    }
    assert got.resource == {"process.pid": 42}
    assert (got.status_code, got.status_message) == ("ERROR", "gone")
    assert [(event.name, event.attributes) for event in got.events] == [("exception", {"exception.type": "ValueError"})]


def test_a_span_without_parent_and_status_says_so(receiver: Receiver) -> None:
    post(receiver, export("GET /"))
    assert [(span.parent_span_id, span.status_code, span.kind) for span in receiver.spans] == [("", "UNSET", "SERVER")]


def test_a_gzipped_body_is_decoded(receiver: Receiver) -> None:
    body = gzip.compress(export("a", "b"))
    assert post(receiver, body, Content_Encoding="gzip")[0] == 200
    assert [span.name for span in receiver.spans] == ["a", "b"]
    (request,) = receiver.requests
    assert (request.headers["Content-Encoding"], len(request.spans)) == ("gzip", 2)


@pytest.mark.parametrize(
    "body",
    [b"no gzip at all", gzip.compress(export("a"))[:-9], gzip.compress(export("a"))[:-8] + b"\0" * 8],
    ids=["other bytes", "cut", "wrong checksum"],
)
def test_a_broken_gzip_is_refused_with_a_status(receiver: Receiver, body: bytes) -> None:
    status, headers, answer = post(receiver, body, Content_Encoding="gzip")
    assert (status, headers["Content-Type"], message(answer)) == (400, PROTOBUF, (3, "the body is no gzip"))
    assert receiver.spans == []


def test_another_encoding_than_gzip_is_refused(receiver: Receiver) -> None:
    assert post(receiver, export("a"), Content_Encoding="br")[0] == 400


def test_a_broken_protobuf_is_refused_with_a_status(receiver: Receiver) -> None:
    status, _, answer = post(receiver, b"\xff\xff\xff")
    assert (status, message(answer)) == (400, (3, "the body is no ExportTraceServiceRequest"))


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_json_and_other_content_types_are_refused(receiver: Receiver, content_type: str) -> None:
    status, _, answer = post(receiver, json.dumps({"resourceSpans": []}).encode(), Content_Type=content_type)
    assert (status, message(answer)) == (400, (3, f"Content-Type must be {PROTOBUF}"))


def test_parameters_and_case_of_the_content_type_do_not_matter(receiver: Receiver) -> None:
    assert post(receiver, export("a"), Content_Type="Application/X-Protobuf; v=1")[0] == 200


def test_without_an_api_key_every_key_and_none_is_accepted(receiver: Receiver) -> None:
    assert post(receiver, export("a"))[0] == 200
    assert post(receiver, export("b"), Mackerel_Api_Key="whatever")[0] == 200
    assert len(receiver.spans) == 2


@pytest.mark.parametrize("headers", [{}, {"Mackerel_Api_Key": "wrong"}, {"Mackerel_Api_Key": ""}])
def test_a_missing_or_wrong_key_is_refused_with_400_as_mackerel_does(headers: dict[str, str]) -> None:
    with Receiver(api_key="right") as receiver:
        status, answered, body = post(receiver, export("a"), **headers)
        assert (status, answered["Content-Type"]) == (400, PROTOBUF)
        assert message(body) == (3, "Invalid API Key")
        assert receiver.spans == []
        assert [(request.status, request.message) for request in receiver.requests] == [(400, "Invalid API Key")]


def test_the_right_key_is_accepted() -> None:
    with Receiver(api_key="right") as receiver:
        assert post(receiver, export("a"), Mackerel_Api_Key="right")[0] == 200


def test_any_key_can_be_required() -> None:
    with Receiver(api_key="") as receiver:
        assert post(receiver, export("a"))[0] == 400
        assert post(receiver, export("a"), Mackerel_Api_Key=" ")[0] == 400
        assert post(receiver, export("a"), Mackerel_Api_Key="one")[0] == 200


@pytest.mark.parametrize("path", ["/", "/v1/metrics", "/v1/traces/"])
def test_another_path_is_not_found(receiver: Receiver, path: str) -> None:
    assert post(receiver, export("a"), path=path)[0] == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_not_allowed(receiver: Receiver, method: str) -> None:
    status, headers, body = post(receiver, b"", method=method)
    assert (status, headers["Allow"], bool(body)) == (405, "POST", method != "HEAD")


def test_six_megabytes_are_accepted(receiver: Receiver) -> None:
    body = export("a", padding=MAX_BODY_BYTES - 200)
    assert MAX_BODY_BYTES - 200 < len(body) <= MAX_BODY_BYTES
    assert post(receiver, body)[0] == 200
    assert post(receiver, gzip.compress(body, 1), Content_Encoding="gzip")[0] == 200


def test_a_body_over_six_megabytes_is_refused_and_the_client_reads_the_answer(receiver: Receiver) -> None:
    status, headers, answer = post(receiver, export("a", padding=4 * MAX_BODY_BYTES))
    assert (status, headers["Connection"]) == (413, "close")
    assert message(answer) == (8, f"the request has more than {MAX_BODY_BYTES} bytes")
    assert receiver.spans == []


def test_a_body_that_unpacks_to_more_than_six_megabytes_is_refused(receiver: Receiver) -> None:
    body = gzip.compress(export("a", padding=10 * MAX_BODY_BYTES), 1)
    assert len(body) < MAX_BODY_BYTES
    status, _, answer = post(receiver, body, Content_Encoding="gzip")
    assert (status, message(answer)[1]) == (413, f"the request has more than {MAX_BODY_BYTES} bytes")


def test_a_body_that_only_claims_to_be_large_is_refused_before_it_comes(receiver: Receiver) -> None:
    assert raw(receiver, head("Content-Length: 999999999999")).status == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "one", "9" * 30])
def test_a_content_length_that_is_no_size_is_refused(receiver: Receiver, length: str) -> None:
    assert raw(receiver, head(f"Content-Length: {length}")).status == 400


def test_a_chunked_body_is_read(receiver: Receiver) -> None:
    body = export("a", "b")
    chunks = [b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in (body[:10], body[10:])]
    response = raw(
        receiver, head("Transfer-Encoding: chunked", "Connection: close"), *chunks, b"0\r\nTrailer: x\r\n\r\n"
    )
    assert response.status == 200
    assert [span.name for span in receiver.spans] == ["a", "b"]


def test_a_chunked_body_over_six_megabytes_is_refused(receiver: Receiver) -> None:
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    assert raw(receiver, head("Transfer-Encoding: chunked"), *[chunk] * 12).status == 413


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"2\r\nabcd\r\n", b"\r\n", b"123456789\r\n"])
def test_a_badly_framed_chunk_is_refused(receiver: Receiver, chunk: bytes) -> None:
    assert raw(receiver, head("Transfer-Encoding: chunked"), chunk).status == 400


def test_a_connection_is_kept_for_the_next_request(receiver: Receiver) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=TIMEOUT)
    connection.connect()
    address = connection.sock.getsockname()
    try:
        assert ask(connection, export("a"))[0] == 200
        assert ask(connection, b"{}", Content_Type="application/json")[0] == 400
        assert ask(connection, export("b"))[0] == 200
        assert connection.sock.getsockname() == address
    finally:
        connection.close()


def test_a_client_that_leaves_in_the_middle_stops_nobody(receiver: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT) as connection:
        connection.sendall(head("Content-Length: 100") + b"half")
    assert post(receiver, export("a"))[0] == 200
    assert [request.status for request in receiver.requests] == [200]


def test_many_silent_connections_stop_nobody(receiver: Receiver) -> None:
    silent = [socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT) for _ in range(100)]
    try:
        assert post(receiver, export("a"))[0] == 200
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/tr", head("Content-Length: 100") + b"half"])
def test_a_connection_that_says_nothing_more_is_closed(sent: bytes) -> None:
    with Receiver() as receiver:
        receiver.idle_timeout = 0.2
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT) as connection:
            connection.sendall(sent)
            assert is_closed(connection)


def test_leaving_the_block_closes_connections_that_clients_keep_open() -> None:
    with Receiver() as receiver:
        connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=TIMEOUT)
        assert ask(connection, export("a"))[0] == 200
        silent = socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT)
        before = time.monotonic()
    try:
        assert time.monotonic() - before < 1.5
        assert is_closed(connection.sock)
        assert is_closed(silent)
    finally:
        connection.close()
        silent.close()


def test_leaving_the_block_frees_the_port() -> None:
    with Receiver() as first:
        post(first, export("a"))
    with Receiver(port=first.port) as second:
        assert post(second, export("b"))[0] == 200


def test_a_port_that_is_taken_is_an_error(receiver: Receiver) -> None:
    with pytest.raises(OSError, match="in use"), Receiver(port=receiver.port):
        pass


def test_the_callback_gets_requests_and_their_spans_before_the_answer_is_sent() -> None:
    requests: list[ReceivedRequest] = []
    with Receiver(api_key="k", on_request=requests.append, keep=False) as receiver:
        post(receiver, export("a", "b"), Mackerel_Api_Key="k")
        post(receiver, export("c"))
        assert [[span.name for span in request.spans] for request in requests] == [["a", "b"], []]
        assert [request.status for request in requests] == [200, 400]
        assert (receiver.spans, receiver.requests) == ([], [])


def test_a_callback_that_raises_does_not_break_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise ValueError("not my day")

    with Receiver(on_request=fail) as receiver:
        assert post(receiver, export("a"))[0] == 200
        assert len(receiver.spans) == 1
    assert "not my day" in caplog.text


def test_a_request_is_recorded_and_its_key_is_in_no_repr(receiver: Receiver) -> None:
    post(receiver, export("a"), Mackerel_Api_Key="secret-key", path="/v1/traces?x=1")
    (request,) = receiver.requests
    assert (request.method, request.path, request.status) == ("POST", "/v1/traces?x=1", 200)
    assert request.headers["mackerel-api-KEY"] == "secret-key"
    assert "secret-key" not in repr(request)


def test_the_lists_are_snapshots(receiver: Receiver) -> None:
    receiver.spans.append(None)  # type: ignore[arg-type]
    receiver.requests.clear()
    post(receiver, export("a"))
    assert (len(receiver.spans), len(receiver.requests)) == (1, 1)


def test_one_can_wait_for_what_arrives(receiver: Receiver) -> None:
    assert not receiver.wait_for(lambda r: len(r.spans) == 1, 0.01)
    post(receiver, export("a"))
    assert receiver.wait_for(lambda r: len(r.spans) == 1, TIMEOUT)


def test_the_url_is_what_an_exporter_needs(receiver: Receiver) -> None:
    assert receiver.url == f"http://127.0.0.1:{receiver.port}/v1/traces"


def test_unpacking_takes_no_more_memory_than_what_comes_out_of_it(receiver: Receiver) -> None:
    body = gzip.compress(export("a"))
    assert post(receiver, body, Content_Encoding="gzip")[0] == 200  # what is made once is made now
    tracemalloc.start()
    try:
        assert post(receiver, body, Content_Encoding="gzip")[0] == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_BODY_BYTES / 4


def test_a_gzip_of_several_members_is_their_contents_one_after_the_other(receiver: Receiver) -> None:
    # RFC 1952, section 2.2; protobuf messages that are concatenated are merged.
    body = gzip.compress(export("a")) + gzip.compress(export("b"))
    assert post(receiver, body, Content_Encoding="gzip")[0] == 200
    assert [span.name for span in receiver.spans] == ["a", "b"]


@pytest.mark.parametrize("half", [MAX_BODY_BYTES // 2, MAX_BODY_BYTES])
def test_the_limit_holds_for_all_members_together(receiver: Receiver, half: int) -> None:
    body = 2 * gzip.compress(export("a", padding=half), 1)
    assert post(receiver, body, Content_Encoding="gzip")[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        gzip.compress(export("a"))[:-1],
        gzip.compress(export("a"))[:-8] + bytes(8),
        gzip.compress(export("a")) + b"rubbish",
        b"\x1f\x8b" + bytes(100),
    ],
    ids=["empty", "truncated", "checksum", "rubbish", "header"],
)
def test_what_is_no_gzip_is_refused(receiver: Receiver, body: bytes) -> None:
    status, _, answer = post(receiver, body, Content_Encoding="gzip")
    if body:
        assert (status, message(answer)[1]) == (400, "the body is no gzip")
    assert receiver.spans == []


def delimited(field: int, content: bytes) -> bytes:
    """Return a length-delimited field: https://protobuf.dev/programming-guides/encoding/."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


def of_spans(spans: bytes) -> bytes:
    return delimited(1, delimited(2, spans))


MILLIONS = 2_900_000
BOMBS = {
    "resources": lambda: delimited(1, b"") * MILLIONS,
    "resource attributes": lambda: delimited(1, delimited(1, delimited(1, b"") * MILLIONS)),
    "scopes": lambda: delimited(1, delimited(2, b"") * MILLIONS),
    "spans": lambda: of_spans(delimited(2, b"") * MILLIONS),
    "attributes": lambda: of_spans(delimited(2, delimited(9, b"") * MILLIONS)),
    "events": lambda: of_spans(delimited(2, delimited(11, b"") * MILLIONS)),
    "links": lambda: of_spans(delimited(2, delimited(13, b"") * MILLIONS)),
    "members": lambda: of_spans(
        delimited(2, delimited(9, delimited(2, delimited(5, delimited(1, b"") * MILLIONS))))
    ),
    "fields that nobody knows": lambda: b"\x78\x01" * MILLIONS,
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_body_that_holds_millions_of_parts_is_refused_before_they_are_made(
    receiver: Receiver, kind: str
) -> None:
    unpacked = BOMBS[kind]()
    body = gzip.compress(unpacked)
    assert len(body) < 10_000
    before = most_memory_anew()
    status, _, answer = post(receiver, body, Content_Encoding="gzip")
    most = 10_000 + 4 * len(body)
    assert (status, message(answer)) == (
        413,
        (8, f"the request has more than {most} spans, attributes, events and links"),
    )
    assert most_memory_anew() - before < 40_000_000
    assert receiver.spans == []


def most_memory_anew() -> int:
    """Return the most memory that this process has had, in bytes, since the last call."""
    status = Path("/proc/self/status").read_text()
    # proc_pid_clear_refs(5): 5 sets the peak to what is used now.
    Path("/proc/self/clear_refs").write_text("5")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024


def alike(number: int, **values: str) -> ExportTraceServiceRequest:
    """Return a request with spans that differ in nothing, and a resource with texts."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    for key, text in values.items():
        resource_spans.resource.attributes.add(key=key).value.string_value = text
    spans = resource_spans.scope_spans.add().spans
    for _ in range(number):
        spans.add(name="a", trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    return request


@pytest.mark.parametrize("more", [0, 10])
def test_spans_are_no_more_than_their_ids_need_bytes_when_packed(receiver: Receiver, more: int) -> None:
    # What is sent has to have a size that is known before: members without content make it larger.
    size = 10_000
    body = gzip.compress(alike(1_000 + size // 8 + more).SerializeToString())
    while len(body) < size:
        body += gzip.compress(b"")
    assert post(receiver, body, Content_Encoding="gzip")[0] == (413 if more else 200)


def test_a_resource_of_many_attributes_does_not_come_with_many_spans(receiver: Receiver) -> None:
    request = alike(1_000, **{f"k{n}": "v" for n in range(300)})
    status, _, answer = post(receiver, gzip.compress(request.SerializeToString()), Content_Encoding="gzip")
    assert (status, message(answer)[1]) == (413, "the request's spans have resources of too many attributes")
    del request.resource_spans[0].scope_spans[0].spans[100:]
    assert post(receiver, gzip.compress(request.SerializeToString()), Content_Encoding="gzip")[0] == 200


LONG = "x" * 3_000
CUT = f"{'x' * 1_000}... (2000 more characters)"


def test_every_text_is_cut_where_there_is_a_limit_and_says_by_how_much() -> None:
    request = alike(1, **{"service.name": LONG})
    resource_spans = request.resource_spans[0]
    resource_spans.scope_spans[0].scope.name = LONG
    (span,) = resource_spans.scope_spans[0].spans
    span.name = span.status.message = span.trace_state = LONG
    span.attributes.add(key=LONG).value.array_value.values.add().string_value = LONG
    span.attributes.add(key="data").value.bytes_value = b"\0" * 3_000
    span.attributes.add(key="map").value.kvlist_value.values.add(key=LONG).value.string_value = LONG
    span.events.add(name=LONG).attributes.add(key=LONG).value.string_value = LONG
    span.links.add(trace_id=b"\3" * 5_000, span_id=b"\4" * 5_000).attributes.add(key=LONG).value.string_value = LONG
    span.trace_id = span.span_id = span.parent_span_id = b"\5" * 5_000
    with Receiver(longest_text=1_000) as receiver:
        assert post(receiver, request.SerializeToString())[0] == 200
    (got,) = receiver.spans
    assert got.resource == {"service.name": CUT}
    assert (got.name, got.status_message, got.trace_state, got.scope) == (CUT, CUT, CUT, CUT)
    data = f"{base64.b64encode(bytes(1_000)).decode()}... (2000 more bytes)"
    assert got.attributes == {CUT: [CUT], "data": data, "map": {CUT: CUT}}
    (event,), (link,) = got.events, got.links
    assert (event.name, event.attributes, link.attributes) == (CUT, {CUT: CUT}, {CUT: CUT})
    ids = got.trace_id, got.span_id, got.parent_span_id, link.trace_id, link.span_id
    assert all(len(text) == 64 for text in ids)


def test_all_texts_of_a_request_are_what_its_size_as_sent_allows() -> None:
    request = alike(400, **{"service.name": "s" * 1_900_000})
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.attributes.add(key="k").value.string_value = "x" * 10_000
    body = gzip.compress(request.SerializeToString())
    with Receiver(longest_text=50_000) as receiver:
        assert post(receiver, body, Content_Encoding="gzip")[0] == 200
    texts = [span.attributes["k"] for span in receiver.spans]
    assert texts[0] == "x" * 10_000
    assert texts[-1] == f"{'x' * 100}... (9900 more characters)"
    assert sum(map(len, texts)) < 100_000 + 100 * len(body) + 400 * 150
    assert len(receiver.spans[0].resource["service.name"]) < 4_100
    assert len({id(span.resource) for span in receiver.spans}) == 1


def test_what_real_spans_say_is_not_cut() -> None:
    """A batch as one comes from a worker: long queries that are alike, ids that are not."""
    request = alike(512, **{"service.name": "shop", "host.name": "h" * 60, "process.command_args": "a" * 1_000})
    query = " ".join(f"SELECT column{n} FROM table{n} WHERE" for n in range(60))
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.trace_id, span.span_id = os.urandom(16), os.urandom(8)
        for number in range(12):
            span.attributes.add(key=f"attribute.{number}").value.string_value = f"value of the attribute {number}"
        span.attributes.add(key="db.query.text").value.string_value = query
    body = request.SerializeToString()
    with Receiver(longest_text=50_000) as cutting, Receiver() as whole:
        for receiver in (cutting, whole):
            assert post(receiver, gzip.compress(body), Content_Encoding="gzip")[0] == 200
    assert cutting.spans == whole.spans


def test_the_size_of_spans_is_about_what_they_take_in_memory() -> None:
    request = alike(1_000, **{"service.name": "shop"})
    for number, span in enumerate(request.resource_spans[0].scope_spans[0].spans):
        span.span_id = os.urandom(8)
        for attribute in range(10):
            span.attributes.add(key=f"key {attribute}").value.string_value = f"value {number} {attribute} " * 5
        span.events.add(name="event", time_unix_nano=1 << 60).attributes.add(key="鯖").value.string_value = "鯖" * 50
    body = request.SerializeToString()
    decode(body)  # what is made once is made now
    tracemalloc.start()
    try:
        spans = decode(body)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 < sum(span.size for span in spans) / taken < 1.4


def test_a_key_is_checked_before_a_large_body_is_read() -> None:
    with Receiver(api_key="right") as receiver:
        assert raw(receiver, head("Content-Length: 5000000")).status == 400
        assert raw(receiver, head("Transfer-Encoding: chunked"), b"100000\r\n").status == 400
        assert [request.message for request in receiver.requests] == 2 * ["Invalid API Key"]


def test_a_connection_with_a_wrong_key_and_a_small_body_is_kept() -> None:
    with Receiver(api_key="right") as receiver:
        connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=TIMEOUT)
        connection.connect()
        address = connection.sock.getsockname()
        try:
            assert ask(connection, export("a"), Mackerel_Api_Key="wrong")[0] == 400
            assert ask(connection, export("a"), Mackerel_Api_Key="right")[0] == 200
            assert connection.sock.getsockname() == address
        finally:
            connection.close()


@pytest.mark.parametrize(("length", "status"), [(600, 400), (700, 431)])
def test_headers_of_a_request_have_a_limit_together(receiver: Receiver, length: int, status: int) -> None:
    # The first line says too much: http.server takes a hundred headers of 65,536 bytes.
    fields = [f"X-{number}: {'x' * length}" for number in range(95)]
    assert raw(receiver, head("Content-Length: 1", *fields) + b"x").status == status


@pytest.mark.parametrize(("attributes", "status"), [(2_990, 200), (3_000, 413)])
def test_parts_are_counted_wherever_they_are(receiver: Receiver, attributes: int, status: int) -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    span.start_time_unix_nano, span.status.code = 1 << 60, SpanStatus.STATUS_CODE_ERROR
    value = KeyValue(key="k")
    value.value.int_value = 1 << 60
    span.attributes.extend([value] * attributes)
    span.events.add(name="e", attributes=[value])
    # Messages one after the other are merged: a hundred spans.
    assert post(receiver, request.SerializeToString() * 100)[0] == status
