"""The far end: an OTLP/HTTP traces receiver on a real socket that answers as Mackerel does."""

from __future__ import annotations

import gzip
import hmac
import io
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from mackerel_otel_server.cli.receiver import addresses
from mackerel_otel_server.cli.receiver.http_server import MAX_BODY_BYTES, HttpRequest, RefusedError, Reply, Server
from mackerel_otel_server.cli.receiver.received_spans import decode
from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

API_KEY_HEADER = "Mackerel-Api-Key"
INVALID_KEY = "Invalid API Key"
CONTENT_TYPE = "application/x-protobuf"
_PART_BYTES = 65536

# google.rpc.Code: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_INVALID_ARGUMENT = 3
_RPC_CODES = {404: 5, 405: 12, 413: 8}


@dataclass(frozen=True)
class ReceivedRequest:
    """One request and what it was answered; ``headers`` stays out of the repr because it holds the API key."""

    method: str
    path: str
    headers: Message[str, str] = field(repr=False)
    status: int
    message: str
    """Why it was refused, otherwise empty."""
    spans: Sequence[ReceivedSpan] = field(repr=False)


class Receiver(Server):
    """Receive traces while the ``with`` block runs.

    Args:
        host: Address to listen on.
        port: Port to listen on, 0 for any free one.
        api_key: The only key that is accepted; empty: any key; None: none is needed.
        on_request: Called with each request, refused ones too, before it is answered, in the connection's thread.
        keep: False hands requests to the callback only, for a receiver that runs for days.
        longest_text: Characters of one text, beyond which it is cut, and all texts of a request are cut to what its
            size as sent allows; None keeps all.
    """

    def __init__(  # noqa: PLR0913 - keywords, each of its own
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        api_key: str | None = None,
        on_request: Callable[[ReceivedRequest], None] | None = None,
        keep: bool = True,
        longest_text: int | None = None,
    ) -> None:
        self._host = host
        self._api_key = api_key
        self._on_request = on_request
        self._keep = keep
        self._longest_text = longest_text
        self._requests: list[ReceivedRequest] = []
        self._arrived = threading.Condition()
        # Requests are unpacked one after the other, as each may need many times its size as sent meanwhile, and by one
        # thread: glibc keeps what was freed for each thread apart.
        self._unpacker = ThreadPoolExecutor(1, "unpacker")
        super().__init__(host, port)

    def __exit__(self, *raised: object) -> None:
        """Stop serving and close every connection."""
        super().__exit__(*raised)
        self._unpacker.shutdown(wait=False, cancel_futures=True)

    @property
    def url(self) -> str:
        """What an exporter on this machine is given, e.g. as MACKEREL_OTEL_ENDPOINT."""
        return addresses.url(addresses.local(self._host), self.port)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The spans so far, in the order of their arrival."""
        return [span for request in self.requests for span in request.spans]

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests so far, refused ones too."""
        with self._arrived:
            return list(self._requests)

    def wait_for(self, condition: Callable[[Receiver], bool], timeout: float) -> bool:
        """Return whether ``condition``, which is asked again after each request, held within ``timeout`` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: condition(self), timeout)

    def check(self, request: HttpRequest) -> None:
        """Refuse a request as Mackerel does, which needs no body for that."""
        if request.path.partition("?")[0] != addresses.PATH:
            raise RefusedError(404, f"only {addresses.PATH} is served")
        if request.method != "POST":
            raise RefusedError(405, "only POST is served")
        if self._api_key is not None:
            key = request.headers.get(API_KEY_HEADER, "").strip()
            # The time that it takes tells nobody how much of a key is right.
            if not key or (self._api_key and not hmac.compare_digest(key.encode(), self._api_key.encode())):
                # Mackerel answers 400 and this Status, not 401.
                raise RefusedError(400, INVALID_KEY)
        if request.headers.get_content_type() != CONTENT_TYPE:
            raise RefusedError(400, f"Content-Type must be {CONTENT_TYPE}")

    def answer(self, request: HttpRequest) -> Reply:
        """Unpack the spans, hand them on, and keep them."""
        headers = {"Content-Type": CONTENT_TYPE}
        status, message = 200, ""
        spans: list[ReceivedSpan] = []
        body = ExportTraceServiceResponse().SerializeToString()
        try:
            if request.refused:
                raise request.refused
            spans = self._unpacker.submit(self._unpack, request).result()
        except RefusedError as refused:
            status, message = refused.status, refused.message
            body = Status(code=_RPC_CODES.get(status, _INVALID_ARGUMENT), message=message).SerializeToString()
            if status == 405:  # noqa: PLR2004
                headers["Allow"] = "POST"
        received = ReceivedRequest(request.method, request.path, request.headers, status, message, spans)
        try:
            if self._on_request:
                self._on_request(received)
        except Exception as error:
            log.warning("the receiver's callback failed and the request is answered all the same: %r", error)
            log.debug("the callback's traceback", exc_info=True)
        with self._arrived:
            if self._keep:
                self._requests.append(received)
            self._arrived.notify_all()
        return Reply(status, headers, body)

    def _unpack(self, request: HttpRequest) -> list[ReceivedSpan]:
        body = _decompress(request.body, request.headers.get("Content-Encoding", ""))
        return decode(body, len(request.body), longest_text=self._longest_text)


def _decompress(body: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding != "gzip":
        raise RefusedError(400, "Content-Encoding must be gzip or none")
    data = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
            # In parts: read() takes as much memory as it is allowed to return, of a small body as of a large one.
            while part := stream.read(_PART_BYTES):
                data += part
                if len(data) > MAX_BODY_BYTES:
                    raise RefusedError(413, f"the request has more than {MAX_BODY_BYTES} bytes")
    except (OSError, EOFError, zlib.error):
        raise RefusedError(400, "the body is no gzip") from None
    return bytes(data)
