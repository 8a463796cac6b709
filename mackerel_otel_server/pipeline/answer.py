"""What the far end said, or why it said nothing: what was seen, what follows, and what to do."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mackerel_otel_server.settings.masking import Mask
from mackerel_otel_server.settings.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROBE_SECONDS: Final = 60.0
"""After this time, one more attempt is made with a key that was refused, or a quota that was used up."""

# https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_ABOUT_FORMAT: Final = re.compile("protobuf|content.?type|media type|unmarshal|decode|parse|ExportTrace", re.IGNORECASE)
_ABOUT_KEY: Final = re.compile(r"key|auth|token|permission|credential", re.IGNORECASE)
_LONGEST_WAIT: Final = 1e9
_MOST_CHARACTERS: Final = 200
_MOST_READ: Final = 4000


class Advice(NamedTuple):
    """What follows, and what to do."""

    follows: str
    cure: str


_PROBED: Final = "spans are dropped, one attempt is made a minute"
_KEPT: Final = "the spans are kept and sent later"
_LOST: Final = "these spans are lost"
UNCONFIRMED: Final = Advice(
    "the spans may have arrived, so they are not sent again, and count as unconfirmed",
    "if this goes on, check the far end, or give it more time with OTEL_EXPORTER_OTLP_TIMEOUT (seconds)",
)
"""Where spans were sent completely and no answer came."""


class Cause(Enum):
    """Why spans were not taken."""

    KEY = Advice(
        _PROBED,
        "set MACKEREL_APIKEY (or write into the file that MACKEREL_APIKEY_FILE names) an API key that has write "
        "permission; a change of permission takes about a minute",
    )
    CREDENTIALS = Advice(_PROBED, "give the endpoint's credentials in OTEL_EXPORTER_OTLP_HEADERS")
    RATE = Advice(
        _KEPT,
        "if this goes on, send fewer: OTEL_TRACES_SAMPLER=parentbased_traceidratio with OTEL_TRACES_SAMPLER_ARG=0.1",
    )
    QUOTA = Advice(
        _PROBED,
        "see the plan's limits in Mackerel, or send fewer: OTEL_TRACES_SAMPLER=parentbased_traceidratio with "
        "OTEL_TRACES_SAMPLER_ARG=0.1",
    )
    TOO_LARGE = Advice(_LOST, "make the batches smaller: OTEL_BSP_MAX_EXPORT_BATCH_SIZE=128")
    NOT_PROTOBUF = Advice(
        _LOST,
        "the endpoint must take OTLP over HTTP as protobuf: give the URL of such a receiver, usually one that ends in "
        "/v1/traces",
    )
    NOT_FOUND = Advice(_LOST, "give the whole URL that takes traces, usually one that ends in /v1/traces")
    REDIRECT = Advice(
        "redirects are not followed and these spans are lost", "give the URL that takes the traces itself"
    )
    GRPC = Advice(
        _KEPT,
        "they are sent over HTTP/1.1: give the URL of a port that takes OTLP over HTTP, usually "
        "http://host:4318/v1/traces",
    )
    TLS = Advice(
        _KEPT,
        "for a certificate authority of your own set OTEL_EXPORTER_OTLP_CERTIFICATE to its PEM file, for a client "
        "certificate OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY",
    )
    DNS = Advice(_KEPT, "check the host in the endpoint's URL and this machine's resolver")
    REFUSED = Advice(_KEPT, "check that the far end runs, its host and port, and the firewall")
    TIMEOUT = Advice(_KEPT, "check the network, the firewall and whether a proxy must be named in HTTPS_PROXY")
    CLOSED = Advice(_KEPT, "check the far end and what stands before it")
    PROXY = Advice(_KEPT, "check HTTPS_PROXY and its user:password@, or name the host in NO_PROXY")
    SERVER = Advice(_KEPT, "the fault is at the far end: see its log or status page")
    PARTIAL = Advice("the rejected spans are lost, sending them again would not help", "the message says why")
    NOT_OTLP = Advice(
        "the spans count as delivered because the status says so",
        "check that the endpoint's URL is one that takes traces",
    )
    OTHER = Advice(_LOST, "check the endpoint's URL and the far end's log")


@dataclass(frozen=True)
class Answer:
    """What became of one batch.

    Attributes:
        accepted: Spans that the far end took.
        rejected: Spans that the far end refused although it took the batch (``partial_success``).
        cause: Why not all is well, None when it is.
        seen: What the far end said or did, without any secret.
        keep: The spans may be sent again later.
        unconfirmed: The spans were sent completely, and no answer came.
        pause: Seconds for which nothing should be sent.
        again: The exporter may make a further attempt at once.
    """

    accepted: int = 0
    rejected: int = 0
    cause: Cause | None = None
    seen: str = ""
    keep: bool = False
    unconfirmed: bool = False
    pause: float = 0.0
    again: bool = False

    @property
    def reason(self) -> str:
        """Why spans are lost, for the line of the log that counts them; empty where all is well."""
        if self.unconfirmed:
            return "unconfirmed"
        if self.cause is None:
            return ""
        return "API key refused" if self.cause is Cause.KEY else self.cause.name.lower().replace("_", " ")

    @property
    def advice(self) -> Advice:
        """What follows, and what to do; both are empty where all is well."""
        return UNCONFIRMED if self.unconfirmed else self.cause.value if self.cause else Advice("", "")

    def __str__(self) -> str:
        """Word the answer for the log."""
        follows, cure = self.advice
        return f"{self.seen}: {follows}; {cure}" if follows else self.seen


class Fault(Exception):  # noqa: N818 - it is what happened to a connection, and never leaves the pipeline
    """No answer came.

    Attributes:
        cause: What kind of fault.
        seen: What happened.
        unread: The far end has refused the connection in a way that shows it has read no request.
        sent: The request had been handed over completely, so the far end may have taken it.
        again: A further attempt may help at once.
    """

    def __init__(self, cause: Cause, seen: str, *, again: bool = True, unread: bool = False) -> None:
        super().__init__(seen)
        self.cause = cause
        self.seen = seen
        self.unread = unread
        self.sent = False
        self.again = again


@dataclass(frozen=True)
class Response:
    """An HTTP answer as it was read. It is not ``whole`` where its body was cut off."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    whole: bool


class Explainer:
    """Turn responses and faults into an Answer.

    Args:
        where: The endpoint as the log may show it.
        has_key: Whether an API key is sent, i.e. whether the far end is Mackerel.
        secrets: What must not be shown.
    """

    def __init__(self, where: str, *, has_key: bool, secrets: Iterable[str | None]) -> None:
        self._where = where
        self._has_key = has_key
        self.set_secrets(secrets)

    def set_secrets(self, secrets: Iterable[str | None]) -> None:
        """Take what must not be shown from now on."""
        self._mask = Mask(secrets)

    def of_fault(self, fault: Fault) -> Answer:
        """Say why no answer came. A batch that was sent completely is never sent again by itself."""
        return Answer(
            cause=fault.cause,
            seen=f"{self._where} did not answer ({self.shown(fault.seen)})",
            keep=not fault.sent,
            unconfirmed=fault.sent,
            again=fault.again and not fault.sent,
        )

    def of_response(self, response: Response, spans: int) -> Answer:
        """Read an answer to a batch of so many spans."""
        if 200 <= response.status < 300:  # noqa: PLR2004 - the class of success
            return self._of_success(response, spans)
        message = _message(response)
        retry_after = _retry_after(response.headers.get("Retry-After"))
        cause = self._cause(response.status, message, retry_after)
        seen = f"{self._where} answered {response.status} {self.shown(response.reason)}".rstrip()
        if message:
            seen += f" {self.shown(message)!r}"
        if retry_after is not None:
            seen += f", to be asked again after {retry_after:.0f} s"
        if cause is Cause.REDIRECT:
            location = without_credentials(response.headers.get("Location", ""))
            seen += f" to {self.shown(location or 'nowhere')!r}"
        keep = cause in {Cause.SERVER, Cause.RATE, Cause.PROXY}
        stop = cause in {Cause.KEY, Cause.CREDENTIALS, Cause.QUOTA}
        return Answer(
            cause=cause,
            seen=seen,
            keep=keep,
            pause=PROBE_SECONDS if stop else min(retry_after or 0.0, PROBE_SECONDS) if keep else 0.0,
            again=keep and response.status in _RETRYABLE,
        )

    def _of_success(self, response: Response, spans: int) -> Answer:
        # The status confirms the spans (OTLP: 200 "if the request is processed successfully"). The body can only add
        # that some were rejected. So spans count as accepted also where the body is cut off or no OTLP, and are logged.
        try:
            rejected, message = _rejected(response)
        except Exception:
            rejected, message = -1, ""
        if rejected < 0:
            seen = f"{self._where} answered {response.status} with something that is no OTLP answer"
            if message := _text(response.body):
                seen += f" ({self.shown(message)!r})"
            return Answer(spans, cause=Cause.NOT_OTLP, seen=seen)
        rejected = min(rejected, spans)
        if not rejected:
            return Answer(spans, seen=f"{self._where} says: {self.shown(message)}" if message else "")
        seen = f"{self._where} rejected {rejected} of {spans} spans {self.shown(message)!r}"
        return Answer(spans - rejected, rejected, cause=Cause.PARTIAL, seen=seen)

    def _cause(self, status: int, message: str, retry_after: float | None) -> Cause:
        refused = Cause.KEY if self._has_key else Cause.CREDENTIALS
        if 300 <= status < 400:  # noqa: PLR2004 - the class of redirects
            return Cause.REDIRECT
        if status >= 500:  # noqa: PLR2004 - the class of server faults
            return Cause.SERVER
        if status == 429:  # noqa: PLR2004
            return Cause.QUOTA if (retry_after or 0.0) > PROBE_SECONDS else Cause.RATE
        if status == 400:  # noqa: PLR2004 - what Mackerel answers to a wrong key, and to other things
            if _ABOUT_FORMAT.search(message):
                return Cause.NOT_PROTOBUF
            if _ABOUT_KEY.search(message) or (self._has_key and not message):
                return refused
        table = {
            401: refused, 403: refused, 404: Cause.NOT_FOUND, 405: Cause.NOT_FOUND, 407: Cause.PROXY,
            413: Cause.TOO_LARGE, 415: Cause.NOT_PROTOBUF,
        }  # fmt: skip
        return table.get(status, Cause.OTHER)

    def shown(self, said: str) -> str:
        """Return words of others as a log can take them: without secrets and control characters, and not too long."""
        said = " ".join(self._mask(said[:_MOST_READ], is_cut=True).split())
        said = said if len(said) <= _MOST_CHARACTERS else said[:_MOST_CHARACTERS] + "…"
        return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in said)


def _retry_after(value: str | None) -> float | None:
    """Read seconds or an HTTP date (RFC 9110, 10.2.3): 0 for a time in the past, None for any other text."""
    if value is None:
        return None
    if re.fullmatch(r"\s*-?[0-9]+\s*", value, re.ASCII):
        return min(max(float(value), 0.0), _LONGEST_WAIT)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _message(response: Response) -> str:
    """Return what an error's body says: a google.rpc.Status, JSON, or text."""
    if "protobuf" in response.headers.get("Content-Type", ""):
        from google.rpc.status_pb2 import Status

        try:
            return str(Status.FromString(response.body).message)
        except Exception:
            return _text(response.body)
    found = _json(response.body)
    for name in ("message", "error", "error_description", "detail"):
        value = found.get(name)
        value = value.get("message") if isinstance(value, dict) else value
        if value and isinstance(value, str):
            return value
    return _text(response.body)


def _rejected(response: Response) -> tuple[int, str]:
    """Return the number of rejected spans and the message.

    Raises:
        Exception: The body is no OTLP answer.
    """
    if not response.body and response.whole:
        return 0, ""
    if found := _json(response.body):
        partial = found.get("partialSuccess") or {}
        # An int64 is text in JSON, and may be a number: https://protobuf.dev/programming-guides/json/
        return int(str(partial.get("rejectedSpans") or 0)), str(partial.get("errorMessage") or "")
    if response.body.strip() == b"{}":
        return 0, ""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    if not response.whole:
        raise ValueError("cut off")
    answer = ExportTraceServiceResponse.FromString(response.body)
    # A text may happen to be protobuf that has unknown fields only.
    if not answer.HasField("partial_success") and "protobuf" not in response.headers.get("Content-Type", ""):
        raise ValueError("no OTLP")
    return answer.partial_success.rejected_spans, answer.partial_success.error_message


def _json(body: bytes) -> dict[str, Any]:
    if not body.lstrip().startswith(b"{"):
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(body: bytes) -> str:
    return body[:_MOST_READ].decode("utf-8", "backslashreplace").strip()
