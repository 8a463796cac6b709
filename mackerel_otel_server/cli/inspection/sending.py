"""Send one real span through the real pipeline, and explain the answer."""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.cli.inspection import in_a_child
from mackerel_otel_server.cli.inspection.findings import Finding, fail, ok, warn
from mackerel_otel_server.settings import catalogue, environment
from mackerel_otel_server.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.pipeline.answer import Answer
    from mackerel_otel_server.settings import Settings

SPAN_NAME: Final = "mackerel-otel-server check"
_SPARE_SECONDS: Final = 5.0
"""Time for the child to start, and for a slow name server, which the exporter's own limit does not cover."""
_FAR_OFF: Final = 30.0
"""If the clocks differ by as many seconds, spans stand at the wrong time."""

_CURES: Final = {
    "NOT_PROTOBUF": "give the URL of a receiver of OTLP over HTTP that takes protobuf in {endpoint}, such as a "
    "Collector's http://host:4318/v1/traces; if it is compressed bodies that it does not take, type {compression}=none",
    "TOO_LARGE": "this was one span, so smaller batches do not help: raise the limit for a request's body of what "
    "stands before the receiver (nginx: client_max_body_size), or give another URL in {endpoint}",
    "NOT_FOUND": "give the whole URL that takes traces in {endpoint}, usually one that ends in /v1/traces",
    "REDIRECT": "redirects are not followed, which could lead the key elsewhere: give the URL that takes the traces "
    "itself in {endpoint}, with https and the path",
    "GRPC": "give the URL of a port that takes OTLP over HTTP in {endpoint}, usually http://host:4318/v1/traces",
    "NOT_OTLP": "what answered is no receiver of traces: give the whole URL of one in {endpoint}, usually one that "
    "ends in /v1/traces",
}


@dataclass(frozen=True)
class Sent:
    """What became of the span."""

    trace_id: str
    accepted: bool
    milliseconds: int
    """Time from the look-up of the endpoint's name to the end of its answer."""
    endpoint: str


def send(
    settings: Settings, environ: Mapping[str, str], application: str | None, folder: str
) -> tuple[Sent | None, list[Finding]]:
    """Send one span as a worker would.

    Args:
        settings: Read from the same environment, without errors.
        environ: The environment of the workers.
        application: What the server serves, for the service name.
        folder: The server's working directory: a key file or certificate may have a relative path.
    """
    answer = in_a_child.ask(
        "mackerel_otel_server.cli.inspection.sending",
        "send_here",
        {"application": application},
        env=environ,
        cwd=folder,
        seconds=settings.timeout + _SPARE_SECONDS,
        doing=f"sending one span to {settings.shown_endpoint}",
    )
    if answer is None:
        return None, [fail("no span was sent: the process that should send it ended", "", "report it as a bug")]
    if isinstance(answer, float):
        seen = f"{settings.shown_endpoint} was not asked within {answer:.0f} s, most likely for want of an answer from "
        follows = "the spans are kept and sent later"
        return None, [fail(f"{seen}the name server", follows, "check this machine's resolver (/etc/resolv.conf)")]
    findings = [Finding(**one) for one in answer["findings"]]
    if settings.parts == "standard":
        findings.append(_of_standard_parts(settings))
    return Sent(**answer["sent"]), findings


def _of_standard_parts(settings: Settings) -> Finding:
    """Say that OpenTelemetry's exporter, which sends in the server, may trust other certificates than this command."""
    seen = "--send uses this package's own parts; with MACKEREL_OTEL_PARTS=standard, the server sends with "
    seen += "OpenTelemetry's exporter"
    if settings.certificate or not settings.endpoint.lower().startswith("https:"):
        return ok(seen)
    authorities = ssl.get_default_verify_paths().cafile or "FILE"
    return warn(
        f"{seen}, whose certificate authorities are those of the package certifi, not this system's",
        "a certificate that only this system's authorities vouch for is refused there, and the spans are lost",
        f"type {catalogue.CERTIFICATE.names[-1]}={authorities}",
    )


def send_here(application: str | None) -> dict[str, Any]:
    """Send one span from the process that calls this: send() starts a child for it."""
    # These imports are here because only the child needs the pipeline.
    from mackerel_otel_server import settings
    from mackerel_otel_server.pipeline import make_tracer_provider
    from mackerel_otel_server.pipeline.exporter import Exporter
    from mackerel_otel_server.process import log

    log.to_host(lambda _record: None)
    answers: list[tuple[Answer, float, str | None]] = []

    class Watched(Exporter):
        """An exporter that keeps the answer, and that makes one attempt only."""

        def export(self, body: bytes, spans: int, deadline: float) -> Answer:
            began = time.monotonic()
            answer = super().export(body, spans, deadline)
            answers.append((answer, time.monotonic() - began, self._connection.date))
            return answer

        def _backoff(self, _cause: object) -> float:
            return float("inf")

    environ = environment.variables()
    effective = settings.read(environ, application=application)
    # The user's sampler might drop this one span, so every span is recorded here. OpenTelemetry's own parts would not
    # tell what the endpoint has answered. A journal would let workers send this span later, and this process theirs.
    effective = replace(effective, sampler="always_on", exporters=("otlp",), parts="own", spool=None)
    provider, spans = make_tracer_provider(effective, lambda _pipeline: None, lambda: None, lambda: None, Watched)
    span = provider.get_tracer("mackerel_otel_server.cli").start_span(SPAN_NAME)
    span.end()
    spans.pipeline().flush(effective.timeout + _SPARE_SECONDS)
    answer, seconds, date = answers[-1]
    trace_id = f"{span.get_span_context().trace_id:032x}"
    sent = Sent(trace_id, answer.accepted > 0, round(seconds * 1000), effective.shown_endpoint)
    findings = [_explain(sent, answer, cure(answer, environ)), *_clock(date)]
    return {"sent": asdict(sent), "findings": list(map(asdict, findings))}


def cure(answer: Answer, environ: Mapping[str, str]) -> str:
    """Return what to type where the endpoint does not take spans; the variables are those of this process."""
    # The pipeline's own advice is about batches, and it does not know which variable was typed.
    if answer.cause and not answer.unconfirmed and (own := _CURES.get(answer.cause.name)):
        return own.format(endpoint=_variable(environ), compression=catalogue.COMPRESSION.names[-1])
    return answer.advice.cure


def _explain(sent: Sent, answer: Answer, what_to_type: str) -> Finding:
    follows = answer.advice.follows
    if not sent.accepted:
        return fail(f"the endpoint takes no spans: {answer.seen}", follows, what_to_type)
    where = f"{sent.endpoint} accepted one span in {sent.milliseconds} ms"
    if answer.cause:
        return warn(f"{where}, and {answer.seen}", follows, what_to_type)
    return ok(where, f"look for the trace {sent.trace_id}")


def _variable(environ: Mapping[str, str]) -> str:
    """Return the variable that a whole URL belongs in: the one that was typed, or the one of the same kind."""
    name, typed = Reader(environ).first(catalogue.ENDPOINT)
    mackerel, traces, _ = catalogue.ENDPOINT.names
    return mackerel if not typed or name == mackerel else traces


def _clock(date: str | None) -> Iterator[Finding]:
    """Compare this machine's clock with the Date header of the answer, which has whole seconds."""
    with suppress(ValueError, TypeError, OverflowError):
        ahead = time.time() - parsedate_to_datetime(date or "").timestamp()
        if abs(ahead) < _FAR_OFF:
            yield ok("this machine's clock agrees with that of the endpoint")
            return
        yield warn(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of the endpoint",
            "spans stand at the wrong time, and beside those of other machines in the wrong order",
            "timedatectl set-ntp true",
        )
