"""The end of a span: one queue per process, however the process came to be.

The queues and their threads are the SDK's ``BatchSpanProcessor``. This module gives each process its own, drops what
another process began, keeps the deadline at the end, and counts.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from mackerel_otel_server.log import log
from mackerel_otel_server.pipeline.exporter import CountingExporter, make_exporter

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource

    from mackerel_otel_server.settings import Settings


@dataclass(frozen=True)
class Counts:
    """What became of the spans that one process finished."""

    finished: int
    delivered: int
    requests: int

    @property
    def lost(self) -> int:
        """Spans that the far end did not confirm."""
        return self.finished - self.delivered


class Pipeline:
    """The queues, exporters and counters of one process."""

    def __init__(self, resource: Resource, processors: list[tuple[SpanProcessor, CountingExporter]]) -> None:
        self.pid: Final = os.getpid()
        self.resource: Final = resource
        self._processors: Final = processors
        # next() is one step of the interpreter: no lock that a signal handler could meet.
        self._finished: Final = itertools.count()
        self._times_asked = 0
        self._stop: Final = threading.Event()
        self._stopped: Final = threading.Event()
        # Python 3.12+ starts no thread while the interpreter exits, so the one that flushes then waits from now on.
        threading.Thread(target=self._shut_down_when_told, name="mackerel-otel-stop", daemon=True).start()

    @classmethod
    def of(cls, settings: Settings, resource: Resource) -> Pipeline:
        """Build what the settings describe. Starts threads: call after the fork only."""
        with _threads_without_signals():
            return cls(resource, _make_processors(settings))

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span."""
        if not (span.context and span.context.trace_flags.sampled) or not self._processors:
            return
        next(self._finished)
        for processor, _ in self._processors:
            processor.on_end(span)

    def counts(self) -> Counts:
        """Return the counts so far; of several exporters those of the one that delivered least."""
        exporters = [exporter for _, exporter in self._processors]
        least = min(exporters, key=lambda exporter: exporter.delivered, default=None)
        finished = next(self._finished) - self._times_asked
        self._times_asked += 1
        return Counts(finished, least.delivered if least else 0, least.requests if least else 0)

    def stop(self, timeout: float) -> bool:
        """Send what is queued, for ``timeout`` seconds at most; 0 sends nothing more.

        Returns:
            Whether everything that this process finished was delivered.
        """
        if timeout > 0:
            self._stop.set()
            self._stopped.wait(timeout)
        return self.counts().lost == 0

    def force_flush(self, timeout_millis: int) -> bool:
        """Send what is queued now."""
        # Every one of them, also after one that did not manage.
        results = [processor.force_flush(timeout_millis) for processor, _ in self._processors]
        return all(results)

    def _shut_down_when_told(self) -> None:
        self._stop.wait()
        try:
            for processor, _ in self._processors:
                processor.shutdown()
        finally:
            self._stopped.set()


def _make_processors(settings: Settings) -> list[tuple[SpanProcessor, CountingExporter]]:
    processors: list[tuple[SpanProcessor, CountingExporter]] = []
    for name in settings.exporters:
        exporter = make_exporter(name, settings)
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=settings.max_queue_size,
            schedule_delay_millis=settings.schedule_delay,
            max_export_batch_size=settings.max_export_batch_size,
        )
        processors.append((processor, exporter))
    return processors


@contextmanager
def _threads_without_signals() -> Iterator[None]:
    """Let threads that are started here leave the signals to the main thread.

    uWSGI handles them in C, in whichever thread they arrive, and ends the interpreter there: one of ours would wait
    for itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkAwareSpanProcessor(SpanProcessor):
    """Hand each span to the pipeline of the process that began it."""

    def __init__(self, make_pipeline: Callable[[], Pipeline], started: Callable[[Pipeline], None]) -> None:
        self._make_pipeline = make_pipeline
        self._started = started
        self._pipeline: Pipeline | None = None
        self._can_tell = True
        self._lock = threading.Lock()
        # Not for uWSGI, which runs no handlers at a fork: its master starts no pipeline.
        os.register_at_fork(after_in_child=self._forget_lock)

    def _forget_lock(self) -> None:
        # Another thread of the parent may have held it.
        self._lock = threading.Lock()

    def pipeline(self) -> Pipeline:
        """Return this process's pipeline, made at the first call in each process."""
        pipeline = self._pipeline
        if pipeline is not None and pipeline.pid == os.getpid():
            return pipeline
        with self._lock:
            pipeline = self._pipeline
            if pipeline is not None and pipeline.pid == os.getpid():
                return pipeline
            # What a parent process had belongs to the parent: its queue, its connections, its counts.
            pipeline = self._pipeline = self._make_pipeline()
        # Without the lock: it writes to the log, and a handler of the application may begin a span.
        self._started(pipeline)
        return pipeline

    def existing_pipeline(self) -> Pipeline | None:
        """Return this process's pipeline if it has one."""
        pipeline = self._pipeline
        return pipeline if pipeline is not None and pipeline.pid == os.getpid() else None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Let the span carry the resource of the process that begins it, which marks it as that process's own."""
        try:
            resource = self.pipeline().resource
        except Exception:
            # No thread can be started, at the interpreter's exit or at a limit: the span's own block must still run.
            log.debug("a span is not recorded", exc_info=True)
            return
        if span.resource is not resource:
            # A forked process: the provider's tracers keep the resource of the process that made them. Private, but
            # there is no other way. Without it, such spans would say their parent's pid, and could not be told apart.
            span._resource = resource  # noqa: SLF001
            self._can_tell = span.resource is resource

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, unless another process began it or it is a client span that nothing asked for."""
        pipeline = self.existing_pipeline()
        if pipeline is None or (self._can_tell and span.resource is not pipeline.resource):
            return
        if span.kind is SpanKind.CLIENT and span.parent is None:
            # Start-up queries and migrations: spans are billed, and no request is behind these.
            return
        pipeline.on_end(span)

    def shutdown(self) -> None:
        """Send what is queued, as long as that takes."""
        if pipeline := self.existing_pipeline():
            pipeline.stop(30.0)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued now."""
        pipeline = self.existing_pipeline()
        return pipeline.force_flush(timeout_millis) if pipeline else True
