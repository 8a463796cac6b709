"""Requests that end in unusual ways, through real servers: untouched for the client, and one true span each."""

from __future__ import annotations

import http.client
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from calling_wsgi import environ, tracing
from packaging.version import Version
from servers import (
    ASGI_CLASSES,
    DEADLINE,
    Server,
    environment,
    gunicorn,
    running,
    server_span,
    server_spans,
    uwsgi,
    wait_until,
)

from mackerel_otel_server import trace_wsgi
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

CLASSES = [["-k", "sync"], ["-k", "gthread", "--threads", "2"], ["-k", "gevent"]]


def _all_bytes(server: Server, request: bytes) -> bytes:
    """Return what the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.lower().startswith(b"date:"))


def _get(path: str, more: str = "") -> Callable[[Server], bytes]:
    request = f"GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{more}\r\n".encode()
    return lambda server: _all_bytes(server, request)


def _upgrade(path: str) -> Callable[[Server], bytes]:
    return lambda server: _all_bytes(
        server, f"GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n".encode()
    )


def _leave(path: str, *, length: int = 0) -> Callable[[Server], bytes]:
    """Return a client that leaves after its request's head, with a reset."""

    def ask(server: Server) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n".encode())
            if not length:
                connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return b"left"

    return ask


def _ask_by_socket(server: Server, path: Path) -> None:
    wait_until(path.exists, "the socket", lambda: server.log)
    connection = http.client.HTTPConnection("shop.example.com", timeout=DEADLINE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/on-a-unix-socket")
    assert connection.getresponse().read()
    connection.close()


def _both(
    tmp_path: Path, receiver: Receiver, options: list[str], *asks: Callable[[Server], bytes], app: str = "endings"
) -> None:
    """Check that Gunicorn's clients get the same with us as without."""
    answers = []
    for name, conf in ("untouched", None), ("ours", "python:mackerel_otel_server.conf"):
        folder = tmp_path / name
        folder.mkdir()
        with gunicorn(folder, *options, env=environment(receiver), conf=conf, app=app, workers=1) as server:
            server.wait_for_log("Booting worker")
            answers.append([ask(server) for ask in asks])
    assert answers[0] == answers[1]


def _late(receiver: Receiver, span: ReceivedSpan) -> ReceivedSpan:
    (late,) = (other for other in receiver.spans if other.parent_span_id == span.span_id)
    assert (late.kind, late.status_code) == ("INTERNAL", "ERROR")
    return late


@pytest.mark.parametrize("options", CLASSES, ids=lambda options: options[1])
def test_a_normal_end_is_no_error(tmp_path: Path, receiver: Receiver, options: list[str]) -> None:
    taken_over = ["/stop_iteration", "/headers_sent", *(["/already_handled"] if "gevent" in options else [])]
    _both(
        tmp_path,
        receiver,
        options,
        *(_upgrade(path) for path in taken_over),
        _leave("/write"),
        _leave("/read", length=10),
        _get("/"),
    )
    for path in taken_over:
        span = server_span(receiver, path)
        assert (span.status_code, span.events) == ("UNSET", ()), path
        assert span.attributes["http.response.status_code"] == 101
    for path in ("/write", "/read", "/"):
        span = server_span(receiver, path)
        assert (span.status_code, span.events, span.attributes.get("error.type")) == ("UNSET", (), None), path


@pytest.mark.parametrize("options", CLASSES, ids=lambda options: options[1])
def test_a_connection_of_the_applications_own_that_is_reset_is_an_error(
    tmp_path: Path, receiver: Receiver, options: list[str]
) -> None:
    _both(tmp_path, receiver, options, _get("/database_is_gone"))
    span = server_span(receiver, "/database_is_gone")
    assert (span.status_code, span.attributes["error.type"]) == ("ERROR", "ConnectionResetError")
    assert [event.attributes["exception.message"] for event in span.events] == ["[Errno 104] the database"]
    assert "exception.escaped" not in span.events[0].attributes


@pytest.mark.parametrize("options", CLASSES, ids=lambda options: options[1])
def test_an_application_reaches_gunicorns_response_by_start_response(
    tmp_path: Path, receiver: Receiver, options: list[str]
) -> None:
    _both(tmp_path, receiver, options, _get("/response"), _get("/force_close"))
    assert server_span(receiver, "/response").attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("options", CLASSES, ids=lambda options: options[1])
def test_what_fails_in_close_is_a_span_of_its_own_below_the_requests(
    tmp_path: Path, receiver: Receiver, options: list[str]
) -> None:
    _both(tmp_path, receiver, options, _get("/close"), _get("/close_list"), _get("/"))
    for path in "/close", "/close_list":
        span = server_span(receiver, path)
        assert (span.status_code, span.events) == ("UNSET", ()), path
        (event,) = _late(receiver, span).events
        assert (event.attributes["exception.type"], event.attributes["exception.message"]) == (
            "ValueError",
            "in close()",
        )


UWSGI = (
    "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\nmodule = endings\nmax-requests = 100\n"
)


def test_a_client_that_leaves_uwsgi_is_no_error(tmp_path: Path, receiver: Receiver) -> None:
    with uwsgi(tmp_path, UWSGI, env=environment(receiver), processes=1) as server:
        _leave("/write")(server)
        _leave("/read", length=10)(server)
        _get("/database_is_gone")(server)
        _get("/close")(server)
        wait_until(lambda: len([s for s in receiver.spans if s.kind == "SERVER"]) == 4, "4 spans", lambda: server.log)
    for path in "/write", "/read":
        span = server_span(receiver, path)
        assert (span.status_code, span.events, span.attributes.get("error.type")) == ("UNSET", (), None), path
    assert server_span(receiver, "/database_is_gone").attributes["error.type"] == "ConnectionResetError"
    assert _late(receiver, server_span(receiver, "/close")).events


@pytest.mark.parametrize(
    "options", [*CLASSES, *(["-k", worker_class] for worker_class in ASGI_CLASSES)], ids=lambda o: o[1]
)
def test_a_unix_domain_socket_has_no_port(tmp_path: Path, receiver: Receiver, options: list[str]) -> None:
    app = "endings" if options in CLASSES else "asgi_plain"
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "gunicorn", "-c", "python:mackerel_otel_server.conf", "--bind", f"unix:{path}"]
    env = environment(receiver, HOME=str(tmp_path))
    with running(Server([*command, *options, f"{app}:application"], tmp_path / "log", cwd=tmp_path, env=env)) as server:
        server.wait_for_log("worker \\d+ sends traces")
        _ask_by_socket(server, path)
    attributes = server_span(receiver, "/on-a-unix-socket").attributes
    assert attributes["server.address"] == "shop.example.com"
    assert "server.port" not in attributes


def test_a_unix_domain_socket_of_uwsgi_has_no_port(tmp_path: Path, receiver: Receiver) -> None:
    path = tmp_path / "socket"
    with uwsgi(tmp_path, f"{UWSGI}http-socket = {path}\n", env=environment(receiver), processes=1) as server:
        _ask_by_socket(server, path)
        server.answered += 1
        server.wait_until_idle()
    attributes = server_span(receiver, "/on-a-unix-socket").attributes
    assert attributes["server.address"] == "shop.example.com"
    assert not {"server.port", "client.address"} & set(attributes)


@pytest.mark.parametrize("name", ["flask", "bottle", "falcon", "django", "pyramid", "fastapi"])
def test_requests_that_an_application_makes_of_itself_do_not_rename_the_clients(
    tmp_path: Path, receiver: Receiver, name: str
) -> None:
    options = ["-k", ASGI_CLASSES[0]] if name == "fastapi" else []
    with gunicorn(tmp_path, *options, env=environment(receiver), app=f"batches:{name}_app", workers=1) as server:
        response = server.get("/batch")
        assert (response.status, b"inner" in response.body) == (200, True), server.log
        assert server.get("/inner").status == 200
    assert sorted(span.name for span in receiver.spans) == ["GET /batch", "GET /inner"]


@pytest.mark.skipif(
    Version(metadata.version("fastapi")) < Version("0.118"),
    reason="FastAPI ends dependencies after the response since 0.118; the other environments check it",
)
@pytest.mark.parametrize("worker_class", ASGI_CLASSES)
@pytest.mark.parametrize("name", ["application", "behind_middleware"])
def test_what_fails_after_the_last_part_of_a_response_is_a_span_of_its_own(
    tmp_path: Path, receiver: Receiver, worker_class: str, name: str
) -> None:
    with gunicorn(
        tmp_path, "-k", worker_class, env=environment(receiver), app=f"asgi_late:{name}", workers=1
    ) as server:
        for path in "/background", "/teardown", "/wrong":
            _all_bytes(server, f"GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
        with suppress(OSError):
            _all_bytes(server, b"GET /midstream HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        log = server.stop()
    events = {
        str(span.attributes["url.path"]): (
            [event.attributes["exception.message"] for event in span.events],
            [
                (other.kind, other.status_code, other.events[0].attributes["exception.message"])
                for other in receiver.spans
                if other.parent_span_id == span.span_id
            ],
        )
        for span in server_spans(receiver.spans)
    }
    late = ("INTERNAL", "ERROR")
    assert events["/background"] == ([], [(*late, "background")]), (events, log)
    assert events["/teardown"] == ([], [(*late, "teardown")]), log
    assert events["/wrong"] == (["wrong"], []), log
    # The middleware ends the response before it passes the exception on.
    assert events["/midstream"] == (([], [(*late, "midstream")]) if "behind" in name else (["midstream"], [])), log


def test_an_error_that_only_looks_like_a_client_that_left_stays_one() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", [])
        with suppress(OSError):
            write(b"x")
        raise OSError(environ["errno"], "upstream refused")

    def start_response(*_args: Any) -> Any:
        def write(_data: bytes) -> None:
            raise BrokenPipeError

        return write

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        for number in 5, None:
            with tracing() as spans:
                made = environ(errno=number, **{"gunicorn.socket": ours})
                with pytest.raises(OSError, match="upstream refused"):
                    trace_wsgi(application)(made, start_response)
                assert spans.errors == ["OSError"], number
