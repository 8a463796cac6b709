"""What happens when a span begins and ends; each process has a pipeline of its own."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceFlags

from mackerel_otel_server.pipeline.sender import AFTER_FAILED_ATTEMPT, Counts
from mackerel_otel_server.pipeline.spans import QuickSpan, give_resource, is_free
from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.pid import pid

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.util.types import Attributes

    from mackerel_otel_server.pipeline.sender import Sender
    from mackerel_otel_server.pipeline.standard import StandardSender
    from mackerel_otel_server.settings import Settings

# Constants, because CPython 3.10 and 3.11 take much longer to find the member of an enum.
_CLIENT: Final = SpanKind.CLIENT
_SERVER: Final = SpanKind.SERVER
_SAMPLED: Final = TraceFlags.SAMPLED
_MANY: Final = 4096
"""So many spans are open at least before the processor looks for spans that nobody has any more."""
_KILLED: Final = 500
"""The status code of a request that the server kills."""


class Pipeline:
    """What one process sends its spans with. It starts a thread, so make it after the fork only."""

    def __init__(
        self,
        settings: Settings,
        resource: Resource,
        make_sender: Callable[[Resource], Sender | StandardSender],
    ) -> None:
        self.pid: Final = pid()
        self.resource: Final = resource
        self._omitted = settings.omitted_attributes
        self._console = SimpleSpanProcessor(ConsoleSpanExporter()) if "console" in settings.exporters else None
        self._sender = make_sender(resource) if "otlp" in settings.exporters else None

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span."""
        context = span.context
        if context is None or not context.trace_flags & _SAMPLED:
            return
        if self._omitted:
            span = _without(span, self._omitted)
        if self._sender is not None:
            self._sender.put(span)
        if self._console is not None:
            self._console.on_end(span)

    def counts(self) -> Counts:
        """Return how many spans were finished, delivered and lost so far."""
        return self._sender.counts() if self._sender is not None else Counts()

    def flush(self, timeout: float) -> bool:
        """Send the queued spans now; return whether none was left after ``timeout`` seconds."""
        return self._sender is None or self._sender.flush(timeout)

    def rescue(self, timeout: float) -> None:
        """Send the queued spans from the calling thread, whatever the sender's own thread is doing."""
        if self._sender is not None:
            self._sender.rescue(timeout)

    def stop(self, timeout: float) -> bool:
        """Send the queued spans, for ``timeout`` seconds at most; return whether all spans were delivered."""
        return self._sender is None or self._sender.stop(timeout)

    def leave_journal_to_parent(self) -> None:
        """Give the files of the journal up in a process that was forked."""
        if self._sender is not None:
            self._sender.leave_journal_to_parent()

    @property
    def keeps_what_is_left(self) -> bool:
        """Whether another process will send the spans that this process does not send."""
        return self._sender is not None and self._sender.keeps_what_is_left()

    @property
    def why_unsent(self) -> str:
        """The reason why spans that were still queued when this pipeline stopped are lost."""
        return self._sender.why_unsent if self._sender is not None else ""

    @property
    def gave_up(self) -> bool:
        """Whether spans were left when this pipeline stopped, because the last attempt to send had failed."""
        return self.why_unsent == AFTER_FAILED_ATTEMPT

    def too_late(self) -> int:
        """Return how many spans have ended since this pipeline stopped."""
        return self._sender.too_late() if self._sender is not None else 0


def _without(span: ReadableSpan, names: frozenset[str]) -> ReadableSpan:
    """Return a copy of a span without some attributes of its own, of its events and of its links."""

    def rest(attributes: Attributes) -> dict[str, Any]:
        return {name: value for name, value in (attributes or {}).items() if name not in names}

    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=rest(span.attributes),
        events=[Event(event.name, rest(event.attributes), event.timestamp) for event in span.events],
        links=[Link(link.context, rest(link.attributes)) for link in span.links],
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


class ForkAwareSpanProcessor(SpanProcessor):
    """Hand each span to the pipeline of the process that began it; for the arguments, see make_tracer_provider()."""

    def __init__(
        self,
        make_pipeline: Callable[[], Pipeline],
        started: Callable[[Pipeline], None],
        shut_down: Callable[[], object],
    ) -> None:
        self._make_pipeline = make_pipeline
        self._started = started
        self._shut_down = shut_down
        self._closed_in_pid = 0
        self._pipeline: Pipeline | None = None
        self._can_tell = True
        self._open: dict[int, weakref.ref[Span]] = {}
        self._many = _MANY
        self._lock = threading.Lock()
        # Not for uWSGI, which runs no handlers at a fork: its master starts no pipeline.
        os.register_at_fork(after_in_child=self._forget_parent)

    def _forget_parent(self) -> None:
        # Another thread of the parent process may hold the old lock for ever.
        self._lock = threading.Lock()
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.leave_journal_to_parent()
        self._open.clear()
        self._many = _MANY

    def pipeline(self) -> Pipeline:
        """Return this process's pipeline, made at the first call in each process."""
        if (pipeline := self.existing_pipeline()) is not None:
            return pipeline
        with self._lock:
            if (pipeline := self.existing_pipeline()) is not None:
                return pipeline
            # The parent process keeps its own pipeline, with its queue, its connections and its counts.
            pipeline = self._pipeline = self._make_pipeline()
        # The lock is free again: started() writes to the log, and a log handler of the application may begin a span.
        self._started(pipeline)
        return pipeline

    def existing_pipeline(self) -> Pipeline | None:
        """Return this process's pipeline if it has one."""
        pipeline = self._pipeline
        return pipeline if pipeline is not None and pipeline.pid == pid() else None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Give the span the resource of the process that begins it. The resource tells whose span it is."""
        pipeline = self._pipeline
        if pipeline is None or pipeline.pid != pid():
            try:
                pipeline = self.pipeline()
            except Exception:
                # At the interpreter's exit, or at a limit of the system, no thread can be started. The application's
                # code must run all the same.
                log.debug("a span is not recorded", exc_info=True)
                return
        resource = pipeline.resource
        if span.resource is not resource:
            # A forked process: the provider's tracers keep the resource of the process that made them. With that one,
            # this process's spans would say the parent's pid, and nobody could tell them from the parent's.
            self._can_tell = give_resource(span, resource)
        if span.kind is _SERVER and isinstance(span, QuickSpan):
            # It belongs to a request of ours, which ends it.
            return
        context = span.context
        if context is not None:
            if len(self._open) > self._many:
                self._forget_lost()
            self._open[context.span_id] = weakref.ref(span)

    def _forget_lost(self) -> None:
        """Forget the spans that were never ended and that nobody has any more."""
        for span_id, reference in list(self._open.items()):
            if reference() is None:
                self._open.pop(span_id, None)
        # The next search comes when the number of spans has doubled, so that searches stay cheap.
        self._many = max(_MANY, 2 * len(self._open))

    def end_open(self, kind: str, message: str) -> int:
        """End the spans that are under way, as errors, because the process is about to be killed.

        Args:
            kind: The type of the error.
            message: Who kills it, and at which limit.

        Returns:
            How many of them were server spans, which another instrumentation has made.
        """
        server_spans = 0
        for reference in list(self._open.values()):
            span = reference()
            if span is None or not is_free(span):
                continue
            span.set_attribute("error.type", kind)
            span.set_status(StatusCode.ERROR, message)
            if span.kind is _SERVER:
                # Another instrumentation has made this request's span.
                server_spans += 1
                span.set_attribute("http.response.status_code", _KILLED)
                span.add_event("exception", {"exception.type": kind, "exception.message": message})
            span.end()
        return server_spans

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, unless another process began it or it is a client span that nothing asked for."""
        # To ask for the pid would take a system call, so the resource is compared. Under uWSGI, which runs no handlers
        # at a fork, a span could otherwise go into the worker's copy of the master's queue and stay there.
        context = span.context
        if context is not None:
            self._open.pop(context.span_id, None)
        pipeline = self._pipeline
        if pipeline is None or (span.resource is not pipeline.resource and self._can_tell):
            return
        if span.kind is _CLIENT and span.parent is None:
            # A query of the start-up or of a migration. Spans are billed, and this one belongs to no request.
            return
        pipeline.on_end(span)

    def close(self) -> None:
        """Let no span begin any more in this process. A process that is forked later may begin spans again."""
        self._closed_in_pid = pid()

    def is_closed(self, _context: object = None) -> bool:
        """Tell whether tracing has ended in this process, whatever the context of a span."""
        return self._closed_in_pid != 0 and self._closed_in_pid == pid()

    def shutdown(self) -> None:
        """End tracing in this process: the application has shut the tracer provider down."""
        self._shut_down()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued now."""
        pipeline = self.existing_pipeline()
        return pipeline is None or pipeline.flush(timeout_millis / 1000)
