"""The end of a span: one pipeline per process, however the process came to be."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceFlags

from mackerel_otel_server.log import log
from mackerel_otel_server.native import is_free
from mackerel_otel_server.pipeline.encoder import Encoder
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.pipeline.sender import AFTER_FAILED_ATTEMPT, Counts, Sender
from mackerel_otel_server.pipeline.spans import QuickSpan
from mackerel_otel_server.process import pid

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.util.types import Attributes

    from mackerel_otel_server.settings import Settings

_MANY: Final = 4096
"""As many open spans at least, before those are looked for that were never ended."""
_KILLED: Final = 500
"""What the client gets, or would have got."""


class Pipeline:
    """What one process sends with. Starts a thread: make it after the fork only."""

    def __init__(self, settings: Settings, resource: Resource, new_api_key: Callable[[], str | None]) -> None:
        self.pid: Final = pid()
        self.resource: Final = resource
        self._omitted = settings.omitted_attributes
        self._console = SimpleSpanProcessor(ConsoleSpanExporter()) if "console" in settings.exporters else None
        self._sender = None
        if "otlp" in settings.exporters:
            self._sender = Sender(settings, Encoder(resource), Exporter(settings), new_api_key)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span."""
        context = span.context
        if context is None or not context.trace_flags & TraceFlags.SAMPLED:
            return
        if self._omitted:
            span = _without(span, self._omitted)
        if self._sender is not None:
            self._sender.put(span)
        if self._console is not None:
            self._console.on_end(span)

    def counts(self) -> Counts:
        """Return what became of the spans so far."""
        return self._sender.counts() if self._sender is not None else Counts()

    def flush(self, timeout: float) -> bool:
        """Send what is queued now; return whether nothing was left after ``timeout`` seconds."""
        return self._sender is None or self._sender.flush(timeout)

    def rescue(self, timeout: float) -> None:
        """Send what is queued from the calling thread, whatever the sender's is doing."""
        if self._sender is not None:
            self._sender.rescue(timeout)

    def stop(self, timeout: float) -> bool:
        """Send what is queued, for ``timeout`` seconds at most; return whether everything was delivered."""
        return self._sender is None or self._sender.stop(timeout)

    @property
    def why_unsent(self) -> str:
        """Why what was left when this pipeline stopped is lost."""
        return self._sender.why_unsent if self._sender is not None else ""

    @property
    def gave_up(self) -> bool:
        """Whether spans were left when this pipeline stopped, because the last attempt to send had failed."""
        return self.why_unsent == AFTER_FAILED_ATTEMPT

    def too_late(self) -> int:
        """Return how many spans have ended since this pipeline stopped."""
        return self._sender.too_late() if self._sender is not None else 0


def _without(span: ReadableSpan, names: frozenset[str]) -> ReadableSpan:
    """Return a span, its events and its links without some of their attributes, whoever set them."""

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
    """Hand each span to the pipeline of the process that began it.

    Args:
        make_pipeline: Makes one for the calling process.
        started: Called with each process's pipeline once it exists.
        shut_down: Ends tracing in the calling process.
    """

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
        # Another thread of the parent may have held it.
        self._lock = threading.Lock()
        self._pipeline = None
        self._open.clear()
        self._many = _MANY

    def pipeline(self) -> Pipeline:
        """Return this process's pipeline, made at the first call in each process."""
        pipeline = self._pipeline
        if pipeline is not None and pipeline.pid == pid():
            return pipeline
        with self._lock:
            pipeline = self._pipeline
            if pipeline is not None and pipeline.pid == pid():
                return pipeline
            # What a parent process had belongs to the parent: its queue, its connections, its counts.
            pipeline = self._pipeline = self._make_pipeline()
        # Without the lock: it writes to the log, and a handler of the application may begin a span.
        self._started(pipeline)
        return pipeline

    def existing_pipeline(self) -> Pipeline | None:
        """Return this process's pipeline if it has one."""
        pipeline = self._pipeline
        return pipeline if pipeline is not None and pipeline.pid == pid() else None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Let the span carry the resource of the process that begins it, which marks it as that process's own."""
        pipeline = self._pipeline
        if pipeline is None or pipeline.pid != pid():
            try:
                pipeline = self.pipeline()
            except Exception:
                # No thread can be started, at the interpreter's exit or at a limit: the span's block must still run.
                log.debug("a span is not recorded", exc_info=True)
                return
        resource = pipeline.resource
        if span.resource is not resource:
            # A forked process: the provider's tracers keep the resource of the process that made them. Private, but
            # there is no other way. Without it, such spans would say their parent's pid, and could not be told apart.
            span._resource = resource  # noqa: SLF001
            self._can_tell = span.resource is resource
        if span.kind is SpanKind.SERVER and isinstance(span, QuickSpan):
            # A request's, which looks after it.
            return
        context = span.context
        if context is not None:
            if len(self._open) > self._many:
                self._forget_lost()
            self._open[context.span_id] = weakref.ref(span)

    def _forget_lost(self) -> None:
        """Forget the spans that nobody ended and nobody has any more."""
        for span_id, reference in list(self._open.items()):
            if reference() is None:
                self._open.pop(span_id, None)
        # So that a search comes after as many new spans as it has looked at.
        self._many = max(_MANY, 2 * len(self._open))

    def end_open(self, kind: str, message: str) -> None:
        """End the spans that are under way, as errors, because the process is about to be killed.

        Args:
            kind: The type of the error.
            message: Who kills it, and at which limit.
        """
        for reference in list(self._open.values()):
            span = reference()
            if span is None or not is_free(span):
                continue
            span.set_attribute("error.type", kind)
            span.set_status(StatusCode.ERROR, message)
            if span.kind is SpanKind.SERVER:
                # Another instrumentation's.
                span.set_attribute("http.response.status_code", _KILLED)
                span.add_event("exception", {"exception.type": kind, "exception.message": message})
            span.end()

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, unless another process began it or it is a client span that nothing asked for."""
        # Without a look at the pid, which is a system call: what a worker of uWSGI, where no handler runs at the fork,
        # put into its copy of the master's queue would stay there.
        context = span.context
        if context is not None:
            self._open.pop(context.span_id, None)
        pipeline = self._pipeline
        if pipeline is None or (span.resource is not pipeline.resource and self._can_tell):
            return
        if span.kind is SpanKind.CLIENT and span.parent is None:
            # Start-up queries and migrations: spans are billed, and no request is behind these.
            return
        pipeline.on_end(span)

    def close(self) -> None:
        """Let no span begin any more in this process; one that it forks later begins anew."""
        self._closed_in_pid = pid()

    def is_closed(self) -> bool:
        """Tell whether tracing has ended in this process."""
        return self._closed_in_pid != 0 and self._closed_in_pid == pid()

    def shutdown(self) -> None:
        """End tracing in this process: the application has shut the tracer provider down."""
        self._shut_down()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued now."""
        pipeline = self.existing_pipeline()
        return pipeline is None or pipeline.flush(timeout_millis / 1000)
