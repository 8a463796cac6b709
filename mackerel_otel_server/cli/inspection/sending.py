"""Send one real span through the real pipeline, and explain the answer."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.cli.inspection import probe
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mackerel_otel_server.settings import Settings

SPAN_NAME: Final = "mackerel-otel-server check"
_SPARE_SECONDS: Final = 5.0
"""For the child to start, and for a name server beyond the exporter's own limit."""
_FAR_OFF: Final = 30.0
"""Seconds between the clocks, from which on spans stand in the wrong place."""

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
    """From the first look at the endpoint's name to the end of its answer."""
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
    if "otlp" not in settings.exporters:
        shown = ", ".join(settings.exporters) or "none"
        cure = "unset OTEL_TRACES_EXPORTER, or type OTEL_TRACES_EXPORTER=otlp"
        return None, [Finding("FAIL", f"no span was sent: OTEL_TRACES_EXPORTER is {shown}", "nothing is sent", cure)]
    answer = probe.ask(
        "mackerel_otel_server.cli.inspection.sending",
        "send_here",
        {"application": application},
        env=environ,
        cwd=folder,
        seconds=settings.timeout + _SPARE_SECONDS,
        doing=f"sending one span to {settings.shown_endpoint}",
    )
    if isinstance(answer, probe.Silence):
        return None, [_no_answer(settings, answer)]
    sent = Sent(answer["trace_id"], answer["accepted"], answer["milliseconds"], settings.shown_endpoint)
    return sent, [_explain(sent, answer, _variable(environ)), *_clock(answer), *_sampler(settings)]


def send_here(application: str | None) -> dict[str, Any]:
    """Send one span from this process, which is a child made for it."""
    # What the pipeline needs is imported after that, as in a worker.
    from mackerel_otel_server import log, settings
    from mackerel_otel_server.pipeline import make_tracer_provider, processor
    from mackerel_otel_server.pipeline.answer import UNCONFIRMED, Answer
    from mackerel_otel_server.pipeline.exporter import Exporter

    log.to_host(lambda _record: None)
    result: dict[str, Any] = {}

    class Watched(Exporter):
        """The exporter, whose answer is wanted, and one attempt is enough."""

        def export(self, body: bytes, spans: int, deadline: float) -> Answer:
            began = time.monotonic()
            answer = super().export(body, spans, deadline)
            tail = UNCONFIRMED if answer.unconfirmed else answer.cause.value if answer.cause else ""
            result.update(
                accepted=answer.accepted > 0,
                cause=answer.cause.name if answer.cause else "",
                seen=answer.words.removesuffix(tail).removesuffix(": "),
                tail=tail,
                milliseconds=round((time.monotonic() - began) * 1000),
                date=self._connection.date,
                now=time.time(),
            )
            return answer

        def _backoff(self, _cause: object) -> float:
            return float("inf")

    processor.Exporter = Watched  # type: ignore[attr-defined] # where the pipeline looks for it
    effective = settings.read(os.environ, application=application)
    # A sampler may drop this one span; whether it does says nothing.
    effective = replace(effective, sampler="always_on", exporters=("otlp",))
    provider, spans = make_tracer_provider(effective, lambda _pipeline: None, lambda: None, lambda: None)
    span = provider.get_tracer("mackerel_otel_server.cli").start_span(SPAN_NAME)
    span.end()
    spans.pipeline().flush(effective.timeout + _SPARE_SECONDS)
    return {**result, "trace_id": f"{span.get_span_context().trace_id:032x}"}


def _no_answer(settings: Settings, silence: probe.Silence) -> Finding:
    if silence.seconds is None:
        return Finding("FAIL", "no span was sent: the process that should send it ended", "", "report it as a bug")
    return Finding(
        "FAIL",
        f"{settings.shown_endpoint} was not asked within {silence.seconds:.0f} s, most likely for want of an answer "
        "from the name server",
        "the spans are kept and sent later",
        "check this machine's resolver (/etc/resolv.conf)",
    )


def _explain(sent: Sent, answer: Mapping[str, Any], variable: str) -> Finding:
    follows, _, cure = answer["tail"].partition("; ")
    # The pipeline's own words are for batches, and do not know what was typed.
    if own := _CURES.get(answer["cause"]):
        cure = own.format(endpoint=variable, compression=catalogue.COMPRESSION.names[-1])
    if not sent.accepted:
        return Finding("FAIL", f"the endpoint takes no spans: {answer['seen']}", follows, cure)
    where = f"{sent.endpoint} accepted one span in {sent.milliseconds} ms"
    if answer["cause"]:
        return Finding("WARN", f"{where}, and {answer['seen']}", follows, cure)
    return Finding("OK", where, f"look for the trace {sent.trace_id}")


def _variable(environ: Mapping[str, str]) -> str:
    """Return the variable for a whole URL: the one that was typed, or that of its kind."""
    name, typed = Reader(environ).first(catalogue.ENDPOINT)
    mackerel, traces, _ = catalogue.ENDPOINT.names
    return mackerel if not typed or name == mackerel else traces


def _clock(answer: Mapping[str, Any]) -> list[Finding]:
    """Compare this machine's clock with the one that the answer tells, which knows whole seconds."""
    with suppress(ValueError, TypeError, OverflowError):
        ahead = answer["now"] - parsedate_to_datetime(answer["date"]).timestamp()
        if abs(ahead) >= _FAR_OFF:
            return [
                Finding(
                    "WARN",
                    f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of the "
                    "endpoint",
                    "spans stand at the wrong time, and beside those of other machines in the wrong order",
                    "timedatectl set-ntp true",
                )
            ]
        return [Finding("OK", "this machine's clock agrees with that of the endpoint")]
    return []


def _sampler(settings: Settings) -> list[Finding]:
    dropped = settings.sampler.endswith("always_off") or settings.sampler_ratio == 0.0
    if not dropped:
        return []
    return [
        Finding(
            "WARN",
            f"the span was sent although the sampler {settings.sampler} drops all of them",
            "the workers send nothing",
            "unset OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG",
        )
    ]
