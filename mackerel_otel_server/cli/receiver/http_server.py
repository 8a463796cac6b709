"""A small HTTP/1.1 server that never reads more of a request than it may keep."""

from __future__ import annotations

import errno
import http.client
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

from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message

    from typing_extensions import Self

# Mackerel refuses requests over "6 MB": the smaller reading, so that what fits here fits there.
MAX_BODY_BYTES = 6_000_000
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MOST_TRAILERS = 100
# Bytes of all headers together. http.server takes 65,536 for each of a hundred headers.
_MOST_HEAD = 65_536
# A body that is refused is read all the same when it is small, so that its connection can be kept.
_SMALL_BODY = 65_536
# So many large bodies are held at the same time at most.
_MOST_LARGE_BODIES = 8
# Seconds after which a client that is still sending its large body makes room for one that waits.
_LARGE_BODY_SECONDS = 5.0
_LINGER_SECONDS = 5.0
_STOP_SECONDS = 2.0


class RefusedError(Exception):
    """A request is answered with an error: with which HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class HttpRequest:
    """One request; ``refused`` says why its body was not read, or not to its end."""

    method: str
    path: str
    headers: Message[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    refused: RefusedError | None = None


@dataclass(frozen=True)
class Reply:
    """What a request is answered."""

    status: int
    headers: dict[str, str]
    body: bytes


class Server(ThreadingHTTPServer):
    """Listen from the beginning, and serve each connection in a thread of its own while the ``with`` block runs.

    When there are too many connections, the one that has kept us waiting longest is closed: clients that say nothing
    stop nobody. When the address cannot be had, the OSError's ``strerror`` names the address and the reason.
    """

    max_body = MAX_BODY_BYTES
    idle_timeout = 60.0
    """Seconds after which a connection that says nothing is closed."""
    # More than the workers of one machine need, each of which keeps one open.
    most_connections = 256
    daemon_threads = True
    request_queue_size = 128
    # With it, a second receiver would start on a port that is taken.
    allow_reuse_port = False

    def __init__(self, host: str, port: int) -> None:
        # Half of the files that this process may open are left for everything else.
        self._most_connections = max(1, min(self.most_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._connections: set[Any] = set()
        # The connections whose client is to say or to read something; the first has kept us waiting longest.
        self._waiting: dict[Any, None] = {}
        # The connections with a large body, and since when.
        self._large: dict[Any, float] = {}
        self._changed = threading.Condition()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            why = error.strerror or str(error)
            raise OSError(error.errno, f"cannot listen on {host} port {port} ({why})") from None

    def check(self, request: HttpRequest) -> None:
        """Look at a request before its body is read, and raise RefusedError if it will not be taken."""
        raise NotImplementedError

    def answer(self, request: HttpRequest) -> Reply:
        """Answer a request; ``request.refused`` is what check() raised, or what was wrong with the body."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Serve."""
        threading.Thread(target=self.serve_forever, args=(0.1,), name=type(self).__name__, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening, let the answers under way finish, and close every connection."""
        self.shutdown()
        self.server_close()
        # A thread that waits for the next request reads the end of the stream, one that answers can still write.
        self._close(self._connections, socket.SHUT_RD)
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, _STOP_SECONDS)
        self._close(self._connections)

    def server_bind(self) -> None:
        """Bind without HTTPServer's getfqdn(), which asks the DNS and may wait for it."""
        TCPServer.server_bind(self)
        self.port = int(self.server_address[1])

    def get_request(self) -> Any:
        """Accept a connection; without a free file descriptor, get one back first."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                with self._changed:
                    self._close([*self._waiting][:1])
                    # The connection is still to be accepted: without a pause this would be a busy loop.
                    self._changed.wait(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection and serve it in a thread."""
        with self._changed:
            if len(self._connections) >= self._most_connections:
                self._close([*self._waiting][:1])
                if not self._changed.wait_for(lambda: len(self._connections) < self._most_connections, _STOP_SECONDS):
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
            if self._large.pop(request, None):
                self._changed.notify_all()

    def begin_large(self, request: Any) -> None:
        """Wait until there is room for one large body more, which lasts until it has been answered."""
        with self._changed:
            if request in self._large:
                return
            self._waiting.pop(request, None)
            while len(self._large) >= _MOST_LARGE_BODIES:
                slow = time.monotonic() - _LARGE_BODY_SECONDS
                self._close([one for one, since in self._large.items() if since < slow and one in self._waiting][:1])
                self._changed.wait(0.1)
            self._large[request] = time.monotonic()
            self._waiting[request] = None

    def _close(self, connections: Iterable[Any], how: int = socket.SHUT_RDWR) -> None:
        with self._changed:
            for connection in connections:
                self._waiting.pop(connection, None)
                # Its thread reads the end of the stream and closes it. Its client may have closed it already.
                with suppress(OSError):
                    connection.shutdown(how)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Keep a connection that broke at debug level: clients come and go."""
        log.debug("connection from %s broke", client_address, exc_info=True)


class _Head:
    """A stream from which the request line and the headers are read, and no more bytes than they may have together."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = _MOST_HEAD

    def readline(self, size: int) -> bytes:
        line: bytes = self._stream.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            # http.server answers 431.
            raise http.client.LineTooLong("header")
        return line


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

    def parse_request(self) -> bool:
        stream, self.rfile = self.rfile, _Head(self.rfile)  # type: ignore[assignment]
        try:
            return super().parse_request()
        finally:
            self.rfile = stream

    def do_POST(self) -> None:
        answer, unread = self._answer()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        if unread:
            self._linger()

    do_GET = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815 - http.server's names

    def _answer(self) -> tuple[Reply, bool]:
        """Return the answer, and whether the body was not read to its end."""
        request, unread = HttpRequest(self.command, self.path, self.headers), False
        most = self.server.max_body
        try:
            self.server.check(request)
        except RefusedError as refused:
            request.refused = refused
            most = min(most, _SMALL_BODY)
        try:
            try:
                request.body = self._read_body(most)
            except RefusedError as refused:
                request.refused = request.refused or refused
                self.close_connection = unread = True
            self.server.keep_while_answering(self.connection)
            return self.server.answer(request), unread
        finally:
            self.server.wait_for_client(self.connection)

    def handle_expect_100(self) -> bool:
        # A client that asks before it sends is told at once, by the answer itself.
        length = self.headers.get("Content-Length", "").strip()
        too_large = re.fullmatch(r"[0-9]{1,18}", length) and int(length) > self.server.max_body
        return True if too_large else super().handle_expect_100()

    def _read_body(self, most: int) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            return self._read_chunks(most)
        length = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise RefusedError(400, "Content-Length is no number")
        self._make_room(int(length), most)
        return self._read_exactly(int(length))

    def _read_chunks(self, most: int) -> bytes:
        body = bytearray()
        while True:
            match = _CHUNK_SIZE.fullmatch(self.rfile.readline(1000))
            if not match:
                raise RefusedError(400, "a chunk's size cannot be read")
            size = int(match[1], 16)
            if not size:
                break
            self._make_room(len(body) + size, most)
            body += self._read_exactly(size)
            if self._read_exactly(2) != b"\r\n":
                raise RefusedError(400, "a chunk is longer than it says")
        for _ in range(_MOST_TRAILERS):
            if self.rfile.readline(1000) in {b"\r\n", b"\n", b""}:
                return bytes(body)
        raise RefusedError(400, "too many trailers")

    def _make_room(self, size: int, most: int) -> None:
        if size > most:
            raise RefusedError(413, f"the request has more than {most} bytes")
        if size > _SMALL_BODY:
            self.server.begin_large(self.connection)

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
