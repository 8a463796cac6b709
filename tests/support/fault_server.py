"""A far end on a real socket that misbehaves as a script says: one step per request."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from typing_extensions import Self

PROTOBUF = "application/x-protobuf"


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def data(self) -> bytes:
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body


@dataclass
class Step:
    """What happens with one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[FaultServer, socket.socket], object] | None = None
    """Instead of an answer; the connection is closed when it returns."""
    close: bool = False
    """Close the connection after the answer, without having said so."""


def accepted(rejected: int = 0, message: str = "") -> Step:
    answer = ExportTraceServiceResponse()
    if rejected or message:
        answer.partial_success.rejected_spans = rejected
        answer.partial_success.error_message = message
    return Step(200, answer.SerializeToString(), {"Content-Type": PROTOBUF})


def refused(status: int, message: str, **headers: str) -> Step:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Step(status, Status(message=message).SerializeToString(), {"Content-Type": PROTOBUF, **named})


def never(server: FaultServer, _: socket.socket) -> None:
    server.stopping.wait()


def drip(server: FaultServer, sock: socket.socket) -> None:
    """Send a byte now and then, for ever."""
    head = b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 100_000
    with suppress(OSError):
        for byte in head:
            sock.send(bytes([byte]))
            if server.stopping.wait(0.05):
                return


def drip_body(server: FaultServer, sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    drip(server, sock)


def endless_body(server: FaultServer, sock: socket.socket) -> None:
    with suppress(OSError):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while not server.stopping.is_set():
            sock.sendall(b"y" * 65536)


def half_an_answer(_: FaultServer, sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 O")


def half_a_body(_: FaultServer, sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")


def reset(_: FaultServer, sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def no_http(_: FaultServer, sock: socket.socket) -> None:
    sock.sendall(b"220 mail.example ESMTP\r\n")


def http2(_: FaultServer, sock: socket.socket) -> None:
    """Begin as grpc-go does: with a SETTINGS frame of one parameter."""
    sock.sendall(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x05\x00\x00\x40\x00")


class FaultServer:
    """Serve while the ``with`` block runs; before it, the port is taken and refuses connections.

    Args:
        steps: One per request; the last is repeated.
        context: Makes it speak TLS.
        greet: Called with each new connection before anything is read; True: it is closed at once.
        tunnel: Called with a CONNECT: the port that its tunnel leads to, 0 refuses it.
    """

    def __init__(
        self,
        *steps: Step,
        context: ssl.SSLContext | None = None,
        greet: Callable[[int], bool] = lambda _number: False,
        tunnel: Callable[[Request], int] | None = None,
    ) -> None:
        self.steps: Sequence[Step] = steps or (accepted(),)
        self.requests: list[Request] = []
        self.connections = 0
        self.stopping = threading.Event()
        self.changed = threading.Condition()
        self.closed_connections = 0
        self._context = context
        self._greet = greet
        self._tunnel = tunnel
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        scheme, host = ("https", "localhost") if self._context else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}/v1/traces"

    @property
    def span_ids(self) -> list[bytes]:
        """The spans of all requests that were read to their end, whatever was answered."""
        with self.changed:
            bodies = [request.data for request in self.requests]
        return [
            span.span_id
            for body in bodies
            for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def __enter__(self) -> Self:
        self._listener.listen()
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._shut(self._listener)
        self._listener.close()
        with self.changed:
            for sock in self._sockets:
                self._shut(sock)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def wait_for_closed(self, count: int) -> None:
        """Wait until so many connections have been closed at this end."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.closed_connections >= count, 10)

    def close_connections(self) -> None:
        """Close what is idle, as a restarted or impatient server does."""
        with self.changed:
            for sock in self._sockets:
                self._shut(sock)
            count = self.connections
        self.wait_for_closed(count)

    def _run(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _shut(self, sock: socket.socket) -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self.changed:
                self.connections += 1
                self._sockets.add(sock)
            self._run(self._serve, sock, self.connections)

    def _serve(self, raw: socket.socket, number: int) -> None:
        sock = raw
        try:
            if self._greet(number):
                return
            with suppress(OSError):
                if self._context:
                    sock = self._context.wrap_socket(raw, server_side=True)
                    with self.changed:
                        self._sockets.discard(raw)
                        self._sockets.add(sock)
                for request in _requests(sock, number):
                    if not self._answer(sock, request):
                        return
        finally:
            with self.changed:
                self._sockets -= {raw, sock}
            sock.close()
            with self.changed:
                self.closed_connections += 1
                self.changed.notify_all()

    def _answer(self, sock: socket.socket, request: Request) -> bool:
        with self.changed:
            self.requests.append(request)
            step = self.steps[min(len(self.requests), len(self.steps)) - 1]
        if self._tunnel and request.line.startswith("CONNECT"):
            self._forward(sock, self._tunnel(request))
            return False
        if step.act:
            step.act(self, sock)
            return False
        phrase = HTTPStatus(step.status).phrase
        fields = {**step.headers, "Content-Length": str(len(step.body))}
        head = f"HTTP/1.1 {step.status} {phrase}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        sock.sendall(head.encode() + step.body)
        return not step.close

    def _forward(self, sock: socket.socket, port: int) -> None:
        if not port:
            sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", port)) as far:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self._pump, args=(far, sock))
            back.start()
            self._pump(sock, far)
            back.join(10)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._shut(source)
        self._shut(target)


def _requests(sock: socket.socket, number: int) -> Iterator[Request]:
    # Closed here, so that the last reference to the socket is its owner's.
    with sock.makefile("rb") as stream:
        while line := stream.readline().decode().strip():
            headers: dict[str, str] = {}
            while header := stream.readline().decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", "0")))
            yield Request(line, headers, body, number)
