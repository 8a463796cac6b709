"""One kept-alive HTTP connection with a single time limit for all steps, from connecting to the last byte.

http.client reads the answers, but its HTTPConnection is not used. Its limit holds for each read alone, so a far end
that sends one byte a second would hold it up for ever; and tracing libraries patch it, and would trace our own sending.
Functions of ``socket`` and ``ssl`` are looked up when they are used, so gevent may patch them at any time.
"""

from __future__ import annotations

# Looked up by Python at the first connection. By then, a worker may have another user, who may not read Python's files.
import encodings.idna  # noqa: F401
import http.client
import io
import re
import socket
import ssl
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast

from mackerel_otel_server.pipeline.answer import Cause, Fault, Response
from mackerel_otel_server.settings.masking import MARK, Secret
from mackerel_otel_server.settings.urls import basic, split, without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from urllib.parse import SplitResult

    from mackerel_otel_server.settings import Settings

_LARGEST_ANSWER: Final = 65_536
_BODY_SECONDS: Final = 2.0
"""Seconds for the body of an answer after its head: a slow far end must not hold up the next batch."""
_IDLE_SECONDS: Final = 30.0
"""Seconds for which a silent connection is kept. After more, a firewall may have forgotten it and drop what is sent."""
_PIECE: Final = 65_536
_SETTINGS: Final = re.compile("[\\0-\\xff]{3}\\x04\\0{5}")
"""The head of an HTTP/2 frame, as http.client has decoded it: its length, its type, no flags, and the stream 0."""


class Connection:
    """POST to one endpoint.

    Args:
        settings: Endpoint, proxy, certificates. Nothing is opened and no file is read yet.

    Attributes:
        awaits_answer: Whether a request was sent completely, and nobody has said yet what became of it. After an exit
            that a signal handler has raised, nobody knows it.
        date: What the last answer said the time is, as in its header field.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = split(settings.endpoint)
        self._tls = url.scheme == "https"
        self._host = url.hostname or ""
        self._port = url.port or (443 if self._tls else 80)
        self._target = Secret((url.path or "/") + (f"?{url.query}" if url.query else ""))
        self._authority = _authority(self._host, url.port)
        proxy = split(settings.proxy) if settings.proxy else None
        self._proxy = (proxy.hostname or "", proxy.port or 80) if proxy else None
        self._proxy_fields = _basic("Proxy-Authorization", proxy) if proxy else {}
        self._fields = {"Host": self._authority, **_basic("Authorization", url)}
        if proxy and not self._tls:
            self._target = Secret(f"http://{self._authority}{self._target}")
            self._fields |= self._proxy_fields
        self._context: ssl.SSLContext | None = None
        self._stream: _Stream | None = None
        self._idle_since = 0.0
        self.awaits_answer = False
        self.date: str | None = None

    def post(self, fields: Mapping[str, str], body: bytes, limit: float) -> Response:
        """Send a request and read its answer.

        Args:
            fields: Header fields; Host and authorizations are added.
            body: What to send.
            limit: time.monotonic() at which everything must be over. Only getaddrinfo() knows no limit: it may take as
                long as resolv.conf allows.

        Raises:
            Fault: No answer came.
        """
        head = _head(self._target, {**self._fields, **fields, "Content-Length": str(len(body))})
        request = memoryview(b"".join((head, body)))
        if stream := self._kept(limit):
            try:
                return self._exchange(stream, request)
            except Fault as fault:
                # The far end has closed the connection since we looked. The request was not sent completely, so it was
                # not processed: it is sent again on a new connection.
                if fault.sent or fault.cause is not Cause.CLOSED:
                    raise
        return self._exchange(self._open(limit), request)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._stream:
            self._stream.end()
            self._stream = None

    def _kept(self, limit: float) -> _Stream | None:
        if self._stream and (time.monotonic() - self._idle_since > _IDLE_SECONDS or not self._stream.is_quiet()):
            self.close()
        if self._stream:
            self._stream.limit = limit
        return self._stream

    def _open(self, limit: float) -> _Stream:
        self.close()
        with _faults(self._proxy_words()):
            stream = self._stream = _Stream(_connect(self._proxy or (self._host, self._port), limit), limit)
        try:
            if self._tls and self._proxy:
                with _faults(self._proxy_words()):
                    self._tunnel(stream)
            if self._tls:
                with _faults(""):
                    self._start_tls(stream)
        except Fault as fault:
            self.close()
            if fault.cause is Cause.TLS:
                # The certificate files are read again next time, because somebody may have replaced them.
                self._context = None
            raise
        return stream

    def _tunnel(self, stream: _Stream) -> None:
        authority = _authority(self._host, self._port)
        stream.sendall(_head(authority, {"Host": authority, **self._proxy_fields}, method="CONNECT"))
        response = _begin(stream, "CONNECT")
        status = response.status
        response.close()
        if not 200 <= status < 300:  # noqa: PLR2004 - the class of success
            seen = f"{self._proxy_words()}refused the tunnel with {status} {response.reason}"
            # With a 5xx the proxy says that it could not reach the far end.
            raise Fault(Cause.PROXY, seen, again=status >= 500)  # noqa: PLR2004

    def _start_tls(self, stream: _Stream) -> None:
        if self._context is None:
            try:
                self._context = tls_context(self._settings)
            except (OSError, ValueError) as error:
                raise Fault(Cause.TLS, f"the certificate files cannot be used: {error}", again=False) from None
        stream.start_tls(self._context, self._host)

    def _exchange(self, stream: _Stream, request: memoryview) -> Response:
        sent = False
        keep = False
        self.awaits_answer = False
        try:
            with _faults(""):
                try:
                    stream.sendall(request)
                    sent = self.awaits_answer = True
                    response = _begin(stream)
                except (ConnectionError, ssl.SSLEOFError):
                    if sent:
                        raise
                    # The far end may have answered before it had read everything, such as with 413.
                    response = _begin(stream)
            read, whole = _body(response, stream)
            keep = whole and sent and not response.will_close
            self.date = response.headers.get("Date")
            return Response(response.status, response.reason, cast("Mapping[str, str]", response.headers), read, whole)
        except Fault as fault:
            fault.sent = sent and not fault.unread
            raise
        finally:
            self._idle_since = time.monotonic()
            if not keep:
                self.close()

    def _proxy_words(self) -> str:
        if not self._proxy:
            return ""
        # Where nothing of the proxy's URL may be shown, its host and port may be parts of a password.
        is_cloaked = MARK in without_credentials(self._settings.proxy or "")
        return f"the proxy {MARK} " if is_cloaked else "the proxy {}:{} ".format(*self._proxy)


class _Stream(io.RawIOBase):
    """A socket with one time limit: each step may take what is left of it."""

    def __init__(self, sock: socket.socket, limit: float) -> None:
        super().__init__()
        self._socket = sock
        self.limit = limit
        self.ended = False

    def sendall(self, data: memoryview) -> None:
        rest = data
        while rest:
            self._socket.settimeout(_left(self.limit))
            rest = rest[self._socket.send(rest[:_PIECE]) :]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self.limit))
        count = self._socket.recv_into(buffer)
        self.ended = not count
        return count

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Give http.client what it reads an answer from, and closes after each."""
        return io.BufferedReader(self)

    def close(self) -> None:
        """Leave the connection open: this is the end of one answer."""

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        self._socket.settimeout(_left(self.limit))
        self._socket = context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
        self._socket.settimeout(_left(self.limit))
        self._socket.do_handshake()

    def is_quiet(self) -> bool:
        """Tell whether the connection is open and the far end has sent nothing that no request asked for."""
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def end(self) -> None:
        with suppress(OSError):
            self._socket.close()


@contextmanager
def _faults(who: str) -> Iterator[None]:
    """Turn what sockets, ssl and http.client raise into a Fault, of the proxy if ``who`` names it."""
    try:
        yield
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        fault = _explain(error)
        if who:
            fault.cause, fault.seen = Cause.PROXY, who + fault.seen
        raise fault from None


def _explain(error: BaseException) -> Fault:  # noqa: PLR0911 - a table
    seen = str(error) or type(error).__name__
    if isinstance(error, socket.gaierror | UnicodeError):
        return Fault(Cause.DNS, f"its name has no address: {seen}")
    if isinstance(error, TimeoutError):
        return Fault(Cause.TIMEOUT, f"timed out: {seen}" if "timed out" not in seen else seen)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Fault(Cause.CLOSED, seen)
    if _speaks_http2(error):
        return Fault(Cause.GRPC, "what it speaks is HTTP/2, as gRPC does", again=False, unread=True)
    if isinstance(error, ssl.SSLError):
        # A far end that refuses a client certificate says so by an alert. With TLS 1.3 the alert comes after the
        # request was sent, and the far end has read nothing of the request.
        is_alert = "alert" in seen.lower()
        return Fault(Cause.TLS, getattr(error, "verify_message", "") or seen, again=False, unread=is_alert)
    if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
        return Fault(Cause.CLOSED, seen)
    if isinstance(error, OSError):
        return Fault(Cause.REFUSED, seen)  # or no route, network unreachable
    return Fault(Cause.CLOSED, f"what came is no HTTP: {type(error).__name__} {seen}")


def _speaks_http2(error: BaseException) -> bool:
    """Tell whether the far end takes only HTTP/2: it sends a SETTINGS frame first, or refuses HTTP/1.1 over TLS.

    https://www.rfc-editor.org/rfc/rfc9113#section-3.4
    """
    if isinstance(error, http.client.BadStatusLine):
        return _SETTINGS.match(str(error)) is not None
    return isinstance(error, ssl.SSLError) and "alert no application protocol" in str(error)


def _left(limit: float) -> float:
    left = limit - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _connect(address: tuple[str, int], limit: float) -> socket.socket:
    """Try each address of a name. An address that does not answer leaves time for the others."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    for index, (family, kind, protocol, _, where) in enumerate(found, 1):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(limit) / (len(found) + 1 - index))
            sock.connect(where)
            # Head and body are one write; this is for the pieces of large ones.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()
            if index == len(found):
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise socket.gaierror(socket.EAI_NONAME, "no address")


def _begin(stream: _Stream, method: str = "POST") -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(cast("socket.socket", stream), method=method)
    try:
        response.begin()
    except BaseException:
        response.close()
        raise
    if stream.ended:
        # http.client takes a head that was cut off for a whole one, even "HTTP/1.1 200 O".
        response.close()
        raise ConnectionResetError("closed in the middle of its answer")
    return response


def _body(response: http.client.HTTPResponse, stream: _Stream) -> tuple[bytes, bool]:
    """Read the body of an answer, as far as it comes in time and is not too long."""
    stream.limit = min(stream.limit, time.monotonic() + _BODY_SECONDS)
    parts: list[bytes] = []
    room = _LARGEST_ANSWER
    whole = False
    try:
        while room > 0 and (part := response.read1(room)):
            parts.append(part)
            room -= len(part)
        whole = room > 0 and not response.length
    except (OSError, http.client.HTTPException):
        pass  # The part that came is enough for the log.
    response.close()
    return b"".join(parts), whole


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Read the certificates.

    Raises:
        OSError, ValueError: They cannot be used.
    """
    authorities = settings.certificate
    paths = ssl.get_default_verify_paths()
    if not authorities and not (paths.cafile or paths.capath):
        # This machine has no certificate authorities, as a container made from scratch; certifi is often installed.
        with suppress(ImportError):
            import certifi

            authorities = certifi.where()
    context = ssl.create_default_context(cafile=authorities)
    context.set_alpn_protocols(["http/1.1"])
    if settings.client_certificate:
        # Without this argument, OpenSSL would ask for a password at the terminal.
        context.load_cert_chain(settings.client_certificate, settings.client_key, password="")
    return context


def _head(target: str, fields: Mapping[str, str], method: str = "POST") -> memoryview:
    """Return a request's head, whose repr shows none of its secrets."""
    lines = (f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", "")
    text = Secret("\r\n".join(lines))
    del lines
    if text.count("\r") != len(fields) + 2 or text.count("\n") != len(fields) + 2 or "\0" in text:
        raise Fault(Cause.OTHER, "a header field or the URL holds a line break", again=False)
    # UTF-8, so that what the variable for headers percent-encodes is sent as the same bytes.
    return memoryview(text.encode("utf-8", "surrogateescape"))


def _authority(host: str, port: int | None) -> str:
    with suppress(UnicodeError):
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _basic(name: str, url: SplitResult) -> dict[str, str]:
    if url.username is None:
        return {}
    return {name: Secret(f"Basic {basic(url.username, url.password or '')}")}
