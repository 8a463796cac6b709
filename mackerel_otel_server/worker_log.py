"""What a process writes into the log about its tracing: what is wrong, once; a line at its start; a line at its end."""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.log import log
from mackerel_otel_server.settings import worded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mackerel_otel_server.pipeline.processor import Pipeline
    from mackerel_otel_server.settings import Arguments, Problem, Settings

_VARIABLES: Final = {
    "service_name": "OTEL_SERVICE_NAME",
    "service_version": "OTEL_RESOURCE_ATTRIBUTES=service.version=…",
    "environment": "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=…",
    "resource_attributes": "OTEL_RESOURCE_ATTRIBUTES",
}
"""The variable to set instead of each argument of ``instrument()``."""


@dataclass(slots=True)
class Reports:
    """What is in the log already. A forked process takes it over, so that workers do not repeat the arbiter."""

    others_report_settings: bool = False
    others_report_arguments: bool = False
    """Whether another worker writes to the log what is the same for all workers. Where this package runs in the parent
    process, too, the parent writes it."""
    _known: set[Problem] = field(default_factory=set)
    """Problems and warnings that are in the log."""
    _mended: mmap.mmap | None = None
    """One byte that a process shares with those it forks, from its first problem on. It becomes 1 when one of them
    reads settings without a problem: if the same problem comes again after that, it is news."""

    def forget(self) -> None:
        """Report also what is in the log already, if it is still wrong."""
        self._known.clear()

    def report_problems(self, problems: tuple[Problem, ...]) -> None:
        """Log the problems of the settings, unless all of them are in the log."""
        if self._mended is None:
            self._mended = mmap.mmap(-1, 1)
        elif self._mended[0]:
            self._mended[0] = 0
            self._known.clear()
        self._known.intersection_update(problems)
        if self.others_report_settings or self._known.issuperset(problems):
            return
        self._known.update(problems)
        log.error("%s", worded(problems))

    def report_warnings(self, warnings: tuple[Problem, ...]) -> None:
        """Log the warnings of settings that have no problem, unless they are in the log."""
        if self._mended is not None:
            self._mended[0] = 1
        # A warning that has gone is reported again if it comes back.
        self._known.intersection_update(warnings)
        for warning in warnings:
            if warning not in self._known and not self.others_report_settings:
                self._known.add(warning)
                log.warning("%s", warning)

    def report_late_arguments(self, late: Arguments, first: Arguments, in_force: Mapping[str, Any]) -> None:
        """Log which arguments of a later ``instrument()`` have no effect.

        Args:
            late: The arguments of the later call.
            first: The arguments that count.
            in_force: The resource attributes that the spans have; nothing is logged where ``late`` asks for the same.
        """
        given = late.as_resource_attributes()
        if self.others_report_arguments or all(in_force.get(name) == value for name, value in given.items()):
            return
        different = [name for name in _VARIABLES if getattr(late, name) and getattr(late, name) != getattr(first, name)]
        log.warning(
            "instrument(%s) comes too late: tracing was set up before with other values, which stay; set %s instead",
            ", ".join(f"{name}={getattr(late, name)!r}" for name in different),
            " and ".join(_VARIABLES[name] for name in different),
        )


def report_start(pipeline: Pipeline, settings: Settings) -> None:
    """Log that this process traces, as whom and to where."""
    shown = {"otlp": settings.shown_endpoint, "console": "the console"}
    log.info(
        "worker %d sends traces as %r to %s",
        pipeline.pid,
        settings.service_name,
        " and ".join(shown[name] for name in settings.exporters) or "nowhere (OTEL_TRACES_EXPORTER=none)",
    )


LOST_WITH_STANDARD_PARTS: Final = (
    "routes",
    "exceptions that a framework answers with its 500 page",
    "requests that end by SystemExit",
    "responses that are closed unread",
    "responses whose close() raises",
    "sendfile",
    "queries by a connection's own execute()",
    "masks for values in errors of databases",
    "limits for long values from clients",
    "masks for secrets in query strings",
    "the spans beside one that cannot be encoded",
    "explained refusals",
    "counts of rejected spans",
    "stack traces of killed requests",
    "what is queued at SIGKILL",
)
"""What OpenTelemetry's own parts do not do; tests/servers/test_standard_parts.py finds out."""


def report_standard_parts() -> None:
    """Log what spans lack because OpenTelemetry's own parts make and send them."""
    log.info(
        "MACKEREL_OTEL_PARTS=standard: OpenTelemetry's own parts make and send the spans, without: %s",
        ", ".join(LOST_WITH_STANDARD_PARTS),
    )


def report_end(pipeline: Pipeline, *, delivered: bool) -> None:
    """Log what became of the spans of this process. Spans that are still under way count as lost.

    Args:
        pipeline: The pipeline, which has stopped.
        delivered: Whether it has delivered everything.
    """
    counts = pipeline.counts()
    lost = Counter({"unconfirmed": counts.unanswered})
    lost.update(counts.lost)
    lost[pipeline.why_unsent] += counts.queued - counts.unanswered
    lost = +lost
    reasons = ", ".join(f"{reason} {count}" for reason, count in lost.items())
    in_words = f"{sum(lost.values())} ({reasons})" if lost else "0"
    if counts.left:
        in_words += f", left {counts.left} in the journal: another worker, or the next start, sends them"
    if pipeline.gave_up and lost[pipeline.why_unsent]:
        log.warning(
            "sent %d spans in %d requests, lost %s; the last attempt to send had failed, so the worker waited no "
            "longer: see the line 'the endpoint takes no spans' before this one",
            counts.delivered,
            counts.requests,
            in_words,
        )
    else:
        write = log.warning if lost or not (delivered or counts.left) else log.info
        write("sent %d spans in %d requests, lost %s", counts.delivered, counts.requests, in_words)


def report_too_late(count: int) -> None:
    """Log how many spans were lost after report_end()."""
    log.warning(
        "lost %d spans that ended after shutdown; call mackerel_otel_server.shutdown() when all requests have ended, "
        "or leave it to the server",
        count,
    )
