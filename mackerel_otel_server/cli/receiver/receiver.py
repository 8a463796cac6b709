"""The far end: an OTLP/HTTP traces receiver on a real socket that answers as Mackerel does."""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from mackerel_otel_server.cli.receiver import addresses
from mackerel_otel_server.cli.receiver.http_server import Answer, RefusedError, Request, Server
from mackerel_otel_server.cli.receiver.spans import ReceivedEvent, ReceivedSpan, TooManySpansError, decode
from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["API_KEY_HEADER", "MAX_BODY_BYTES", "ReceivedEvent", "ReceivedRequest", "ReceivedSpan", "Receiver"]

API_KEY_HEADER = "Mackerel-Api-Key"
CONTENT_TYPE = "application/x-protobuf"
# Mackerel refuses requests over "6 MB": the smaller reading, so that what fits here fits there.
MAX_BODY_BYTES = 6_000_000
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
    span_count: int
    content_encoding: str
    body_size: int


class Receiver:
    """Receive traces while the ``with`` block runs.

    Args:
        host: Address to listen on.
        port: Port to listen on, 0 for any free one.
        api_key: The only key that is accepted; with None every key is, and none.
        require_key: Refuse requests without a key also when ``api_key`` is None.
        on_spans: Called with each request's spans before it is answered, in the connection's thread.
        on_request: Called with each request, refused ones too, before it is answered.
        keep: False hands spans and requests to the callbacks only, for a receiver that runs for days.
        idle_timeout: Seconds after which a connection that says nothing is closed.
    """

    def __init__(  # noqa: PLR0913 - keywords, each of its own
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        api_key: str | None = None,
        require_key: bool = False,
        on_spans: Callable[[Sequence[ReceivedSpan]], None] | None = None,
        on_request: Callable[[ReceivedRequest], None] | None = None,
        keep: bool = True,
        idle_timeout: float = 60.0,
    ) -> None:
        """Remember the arguments; nothing is bound yet."""
        self._host = host
        self._port = port
        self._api_key = api_key
        self._require_key = require_key or api_key is not None
        self._on_spans = on_spans
        self._on_request = on_request
        self._keep = keep
        self._idle_timeout = idle_timeout
        self._spans: list[ReceivedSpan] = []
        self._requests: list[ReceivedRequest] = []
        self._arrived = threading.Condition()
        self._server: Server | None = None

    def __enter__(self) -> Self:
        """Bind and serve.

        Raises:
            OSError: The address cannot be had, e.g. because the port is taken.
        """
        self._server = Server(
            self._host, self._port, self._answer, max_body=MAX_BODY_BYTES, idle_timeout=self._idle_timeout
        )
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="receiver", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop serving and close every connection."""
        if self._server:
            self._server.stop()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._port

    @property
    def url(self) -> str:
        """What an exporter on this machine is given, e.g. as MACKEREL_OTEL_ENDPOINT."""
        return addresses.url(addresses.local(self._host), self._port)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The spans so far, in the order of their arrival."""
        with self._arrived:
            return list(self._spans)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests so far, refused ones too."""
        with self._arrived:
            return list(self._requests)

    def wait_for(self, condition: Callable[[Receiver], bool], timeout: float) -> bool:
        """Wait until ``condition`` holds, which is asked again after each request.

        Returns:
            Whether it held within ``timeout`` seconds.
        """
        with self._arrived:
            return self._arrived.wait_for(lambda: condition(self), timeout)

    def _answer(self, request: Request) -> Answer:
        spans: list[ReceivedSpan] = []
        try:
            spans = self._accept(request)
        except RefusedError as refused:
            code = _RPC_CODES.get(refused.status, _INVALID_ARGUMENT)
            body = Status(code=code, message=refused.message).SerializeToString()
            answer = Answer(refused.status, {"Content-Type": CONTENT_TYPE}, body)
            self._record(request, refused.status, refused.message, spans)
        else:
            answer = Answer(200, {"Content-Type": CONTENT_TYPE}, ExportTraceServiceResponse().SerializeToString())
            self._record(request, 200, "", spans)
        if answer.status == 405:  # noqa: PLR2004
            answer.headers["Allow"] = "POST"
        return answer

    def _accept(self, request: Request) -> list[ReceivedSpan]:
        if request.path.partition("?")[0] != addresses.PATH:
            raise RefusedError(404, f"only {addresses.PATH} is served")
        if request.method != "POST":
            raise RefusedError(405, "only POST is served")
        key = request.headers.get(API_KEY_HEADER, "").strip()
        if self._require_key and (not key or self._api_key not in {None, key}):
            # Mackerel answers 400 and this Status, not 401.
            raise RefusedError(400, "Invalid API Key")
        if request.headers.get_content_type() != CONTENT_TYPE:
            raise RefusedError(400, f"Content-Type must be {CONTENT_TYPE}")
        if request.unreadable:
            raise request.unreadable
        try:
            return decode(_decompress(request.body, request.headers.get("Content-Encoding", "identity")))
        except DecodeError:
            raise RefusedError(400, "the body is no ExportTraceServiceRequest") from None
        except TooManySpansError as error:
            raise RefusedError(413, str(error)) from None

    def _record(self, request: Request, status: int, message: str, spans: list[ReceivedSpan]) -> None:
        received = ReceivedRequest(
            method=request.method,
            path=request.path,
            headers=request.headers,
            status=status,
            message=message,
            span_count=len(spans),
            content_encoding=request.headers.get("Content-Encoding", ""),
            body_size=len(request.body),
        )
        if spans:
            _call(self._on_spans, spans)
        _call(self._on_request, received)
        with self._arrived:
            if self._keep:
                self._spans.extend(spans)
                self._requests.append(received)
            self._arrived.notify_all()


def _call(callback: Callable[[Any], None] | None, argument: Any) -> None:
    try:
        if callback:
            callback(argument)
    except Exception as error:
        log.warning("the receiver's callback failed and the request is answered all the same: %r", error)
        log.debug("the callback's traceback", exc_info=True)


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding.strip().lower() == "identity":
        return body
    if encoding.strip().lower() != "gzip":
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
