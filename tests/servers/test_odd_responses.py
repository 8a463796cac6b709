"""What no application should do: the bytes of the response are those of the server without us, and the span knows."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from servers import APPS, DEADLINE, Server, environment, gunicorn, server_spans, uwsgi

from mackerel_otel_server.cli.receiver.endpoint import Receiver

PATHS = sorted(
    f"/{name}" for name in re.findall(r"^def (\w+)\(environ", (APPS / "misbehaving.py").read_text(), re.MULTILINE)
)
PATHS.remove("/application")

# The status of the span where it is no error, and what went wrong where it is one.
ERRORS: dict[str, tuple[int, str | None]] = {
    "/raises_in_close": (200, None),
    "/raises_in_close_of_nothing": (204, None),
    "/raises_before_the_first_chunk": (500, "ValueError"),
    "/raises_after_a_chunk": (200, "ValueError"),
    "/starts_twice": (500, "ValueError"),
    "/starts_again_too_late": (200, "ValueError"),
    "/raises_after_writing": (200, "ValueError"),
    "/raises": (500, "ValueError"),
    "/a_number": (500, "TypeError"),
    "/starts_late": (201, None),
    "/no_content": (204, None),
    "/not_modified": (304, None),
}
# Where the servers differ, or the error is found by the server itself.
OF_SERVER = {
    "/raises_after_an_empty_chunk",
    "/starts_twice_without_exc_info",
    "/never_starts",
    "/no_status",
    "/bad_header",
    "/keywords",
    "/in_bytes",
    "/in_a_kind_of_bytes",
    "/in_a_bytearray",
    "/in_a_memoryview",
    "/in_an_array",
    "/buffers_in_a_list",
    "/buffers_one_by_one",
    "/undecided_chunks",
    "/writes_undecided_chunks",
    "/nothing",
    "/no_reason",
}


# What fails after the response.
LATE = {"/raises_in_close": "ValueError", "/raises_in_close_of_nothing": "ValueError"}


def _bytes(server: Server, path: str, method: str) -> bytes:
    """Return all that a server sends, but the date."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            received += b"<reset>"
    server.answered += 1
    return re.sub(rb"Date: [^\r]*", b"", received)


def _ask_all(server: Server) -> dict[str, bytes]:
    # The server logs errors for the most part, and goes on.
    return {f"{method} {path}": _bytes(server, path, method) for path in PATHS for method in ("GET", "HEAD")}


def _check(receiver: Receiver, log: str) -> None:
    spans = server_spans(receiver.spans)
    found = sorted((str(span.attributes["url.path"]), str(span.attributes["http.request.method"])) for span in spans)
    assert found == sorted((path, method) for path in PATHS for method in ("GET", "HEAD")), log
    for span in spans:
        path = str(span.attributes["url.path"])
        if path in OF_SERVER:
            continue
        status, error = ERRORS.get(path, (200, None))
        if not (path == "/a_number" and span.attributes["http.request.method"] == "HEAD"):
            assert span.attributes["http.response.status_code"] == status, span
            types = [event.attributes["exception.type"] for event in span.events]
            if path == "/starts_again_too_late" and types[1:] == ["OSError"]:
                types.pop()  # uWSGI's own: headers already sent
            assert types == ([error] if error else []), span
        assert (span.status_code == "ERROR") is (error is not None), span
        late = [other for other in receiver.spans if other.parent_span_id == span.span_id]
        found_late = [(other.kind, other.status_code, other.events[0].attributes["exception.type"]) for other in late]
        assert found_late == [("INTERNAL", "ERROR", LATE[path])] if path in LATE else not late, late
    assert "is not traced" not in log


def test_under_gunicorn(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "untouched").mkdir()
    with gunicorn(tmp_path / "untouched", env=environment(), conf=None, workers=1, app="misbehaving") as server:
        untouched = _ask_all(server)
    with gunicorn(tmp_path, env=environment(receiver), workers=1, app="misbehaving") as server:
        traced = _ask_all(server)
        log = server.stop()
    assert traced == untouched
    assert untouched["GET /writes"].endswith(b"returned\r\n0\r\n\r\n")
    _check(receiver, log)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("", id="plain"),
        pytest.param("wsgi-accept-buffer = true\n", id="buffers"),
        pytest.param("wsgi-accept-buffer = true\nwsgi-strict = true\n", id="strict"),
    ],
)
def test_under_uwsgi(tmp_path: Path, receiver: Receiver, more: str) -> None:
    (tmp_path / "untouched").mkdir()
    ini = f"master = true\nmodule = misbehaving\nenable-threads = true\n{more}"
    with uwsgi(tmp_path / "untouched", ini, env=environment(), processes=1) as server:
        untouched = _ask_all(server)
    with uwsgi(
        tmp_path, f"import = mackerel_otel_server.uwsgi\n{ini}", env=environment(receiver), processes=1
    ) as server:
        traced = _ask_all(server)
        server.wait_until_idle()
        log = server.stop()
    assert traced == untouched
    body = {request: response.partition(b"\r\n\r\n")[2] for request, response in untouched.items()}
    if "strict" not in more:
        assert (body["GET /in_bytes"], body["GET /in_a_kind_of_bytes"]) == (b"bytes", b"kind of bytes")
    if more == "wsgi-accept-buffer = true\n":
        assert body["GET /in_a_bytearray"] == b"bytearray"
        assert body["GET /buffers_one_by_one"] == b"kind of bytes bytearray memoryview array"
    _check(receiver, log)
