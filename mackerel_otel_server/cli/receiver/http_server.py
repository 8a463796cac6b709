"""A small HTTP/1.1 server that never reads more of a request than it may keep."""

from __future__ import annotations

import errno
import re
import resource
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MOST_TRAILERS = 100
_LINGER_SECONDS = 5.0
_STOP_SECONDS = 2.0
# More than the workers of one machine need: each of them keeps one. A thread each is what this server can afford.
MOST_CONNECTIONS = 256
_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}


class RefusedError(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        """Say with which HTTP status and why."""
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Request:
    """One request; ``unreadable`` instead of a body when that is too large or badly framed."""

    method: str
    path: str
    headers: Message[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    unreadable: RefusedError | None


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Server(ThreadingHTTPServer):
    """Serve each connection in a daemon thread of its own; ``stop`` ends them all.

    When there are too many, the one that has kept us waiting longest is closed: clients that say nothing stop nobody.
    """

    daemon_threads = True
    request_queue_size = 128
    # With it, a second receiver would start on a port that is taken.
    allow_reuse_port = False

    def __init__(
        self, host: str, port: int, answer: Callable[[Request], Answer], *, max_body: int, idle_timeout: float
    ) -> None:
        """Bind; ``answer`` is called for each request, in its connection's thread."""
        self.answer = answer
        self.max_body = max_body
        self.idle_timeout = idle_timeout
        # Half of what this process may open leaves enough for everything else.
        self.most_connections = max(1, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._connections: set[Any] = set()
        # Those whose client is to say or to read something; the first has kept us waiting longest.
        self._waiting: dict[Any, None] = {}
        self._changed = threading.Condition()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's getfqdn(), which asks the DNS and may wait for it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> Any:
        """Accept a connection; without a free file descriptor, get one back first."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                with self._changed:
                    self._close_longest_waiting()
                    # The connection is still to be accepted: without a pause this would be a busy loop.
                    self._changed.wait(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection and serve it in a thread."""
        with self._changed:
            if len(self._connections) >= self.most_connections:
                self._close_longest_waiting()
                if not self._changed.wait_for(lambda: len(self._connections) < self.most_connections, _STOP_SECONDS):
                    raise ConnectionAbortedError("every connection waits for an answer of ours")
            self._connections.add(request)
            self._waiting[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection and forget it."""
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._waiting.pop(request, None)
            self._changed.notify_all()

    def keep_while_answering(self, request: Any) -> None:
        """Do not close this connection for the sake of others: it waits for us."""
        with self._changed:
            self._waiting.pop(request, None)

    def wait_for_client(self, request: Any) -> None:
        """Close this connection for the sake of others when its client keeps us waiting."""
        with self._changed:
            self._waiting[request] = None

    def _close_longest_waiting(self) -> None:
        if connection := next(iter(self._waiting), None):
            del self._waiting[connection]
            # Its thread reads the end of the stream and closes it. Its client may have closed it already.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Keep a connection that broke at debug level: clients come and go."""
        log.debug("connection from %s broke", client_address, exc_info=True)

    def stop(self) -> None:
        """Stop listening, let the answers under way finish, and close every connection."""
        self.shutdown()
        self.server_close()
        # A thread that waits for the next request reads the end of the stream, one that answers can still write.
        self._shut(socket.SHUT_RD)
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, _STOP_SECONDS)
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with self._changed:
            for connection in self._connections:
                # Its client may have closed it already.
                with suppress(OSError):
                    connection.shutdown(how)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "mackerel-otel-server"
    sys_version = ""
    # Head and body are two small writes: without this the second waits for the client's delayed ACK, 40 ms.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.idle_timeout)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        log.debug(format, *args)

    def do_POST(self) -> None:
        body, unreadable = b"", None
        try:
            body = self._read_body()
        except RefusedError as refused:
            unreadable = refused
            self.close_connection = True
        self.server.keep_while_answering(self.connection)
        try:
            answer = self.server.answer(Request(self.command, self.path, self.headers, body, unreadable))
        finally:
            self.server.wait_for_client(self.connection)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        if unreadable:
            self._linger()

    do_GET = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815 - http.server's names

    def handle_expect_100(self) -> bool:
        # A client that asks before it sends is told at once, by the answer itself.
        length = self.headers.get("Content-Length", "").strip()
        too_large = re.fullmatch(r"[0-9]{1,18}", length) and int(length) > self.server.max_body
        return True if too_large else super().handle_expect_100()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            return self._read_chunks()
        length = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise RefusedError(400, "Content-Length is no number")
        self._check_size(int(length))
        return self._read_exactly(int(length))

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while size := self._chunk_size():
            self._check_size(len(body) + size)
            body += self._read_exactly(size)
            if self._read_exactly(2) != b"\r\n":
                raise RefusedError(400, "a chunk is longer than it says")
        for _ in range(_MOST_TRAILERS):
            if self.rfile.readline(1000) in {b"\r\n", b"\n", b""}:
                return bytes(body)
        raise RefusedError(400, "too many trailers")

    def _chunk_size(self) -> int:
        match = _CHUNK_SIZE.fullmatch(self.rfile.readline(1000))
        if not match:
            raise RefusedError(400, "a chunk's size cannot be read")
        return int(match[1], 16)

    def _check_size(self, size: int) -> None:
        if size > self.server.max_body:
            raise RefusedError(413, f"the request has more than {self.server.max_body} bytes")

    def _read_exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError("the client has left in the middle of a request")
        return data

    def _linger(self) -> None:
        # Closing a socket that holds unread bytes resets the connection, and a client that is still sending loses
        # the answer: RFC 9112, section 9.6. What comes is thrown away, for a limited time.
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1.0)
        deadline = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < deadline and self.connection.recv(65536):
            pass
