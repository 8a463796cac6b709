"""BatchSpanProcessor and OTLPSpanExporter in the place of our queue and exporter, for MACKEREL_OTEL_PARTS=standard.

Import this only where they are chosen, and under gevent after its patches: this imports requests.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from requests import Session
from requests.exceptions import TooManyRedirects

from mackerel_otel_server.pipeline.sender import NOT_IN_TIME, TOO_LATE, Counts, Tally
from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.threads import threads_without_signals
from mackerel_otel_server.settings import API_KEY_HEADER
from mackerel_otel_server.settings.http_options import GIVEN_WAY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from requests import PreparedRequest, Response

    from mackerel_otel_server.settings import Settings

_NOT_TAKEN: Final = "not taken by the endpoint"
"""Why spans are lost, as far as OTLPSpanExporter tells."""
_REFUSALS: Final = frozenset((400, 401, 403))
"""Answers to a wrong API key."""
_REDIRECTS: Final = range(300, 400)


class StandardSender:
    """The queue of one process and the thread that empties it, both BatchSpanProcessor's; see ``sender.Sender``."""

    why_unsent: Final = NOT_IN_TIME

    def leave_journal_to_parent(self) -> None:
        """Do nothing: these parts have no journal."""

    def keeps_what_is_left(self) -> bool:
        """Say that these parts have no journal."""
        return False

    def __init__(self, settings: Settings, new_api_key: Callable[[], str | None]) -> None:
        """Start the threads: call after the fork only.

        Args:
            settings: Sizes and times, what to send to, and with which headers.
            new_api_key: Reads the API key again, after the endpoint has refused the one in use.
        """
        self._queue_size = settings.max_queue_size
        self._finished = Tally()
        self._put = 0
        self._full = Tally()
        self._too_late: Tally | None = None
        self._session = _Session(settings, new_api_key)
        self._exporter = _Exporter(settings, self._session)
        # A thread cannot be started any more when Python's atexit calls stop(), so it waits for that from now on. Locks
        # are safer than an Event where a signal handler calls stop().
        self._asked, self._stopped = threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._stopped.acquire()
        with threads_without_signals():
            self._batches = BatchSpanProcessor(
                self._exporter,
                max_queue_size=settings.max_queue_size,
                schedule_delay_millis=settings.schedule_delay,
                max_export_batch_size=settings.max_export_batch_size,
            )
            threading.Thread(target=self._shut_down, name="mackerel_otel_server", daemon=True).start()

    def put(self, span: ReadableSpan) -> None:
        """Queue a finished span."""
        if GIVEN_WAY in (span.attributes or ()):
            return
        self._finished.add()
        if self._too_late is not None:
            self._too_late.add()
            return
        # BatchSpanProcessor drops spans in silence, so none goes to a queue that is full.
        if self._put - self._exporter.taken >= self._queue_size:
            self._full.add()
            return
        self._put += 1
        self._batches.on_end(span)

    def counts(self) -> Counts:
        """Return how many spans were finished, delivered and lost so far."""
        exporter, session = self._exporter, self._session
        # These are read before `finished`, so that a span that ends meanwhile counts as queued.
        delivered = exporter.delivered
        lost = {_NOT_TAKEN: exporter.failed, "queue full": self._full.value()}
        unanswered = exporter.taken - delivered - exporter.failed if session.awaits_answer else 0
        finished = self._finished.value()
        if self._too_late is not None:
            lost[TOO_LATE] = self._too_late.value()
            lost[NOT_IN_TIME] = max(0, finished - delivered - sum(lost.values()) - unanswered)
        return Counts(
            finished,
            delivered,
            {reason: count for reason, count in lost.items() if count},
            exporter.answered,
            session.attempts,
            max(0, session.attempts - exporter.batches),
            session.bytes_sent,
            unanswered,
        )

    def flush(self, timeout: float) -> bool:
        """Send the queued spans; newer SDKs ignore the limit. Return whether none was left."""
        self._batches.force_flush(int(timeout * 1000))
        return not self.counts().queued

    def rescue(self, timeout: float) -> None:
        """Send the queued spans, for a process that is about to be killed; BatchSpanProcessor knows one way only."""
        if self._too_late is None and self.counts().queued:
            self.flush(timeout)

    def stop(self, timeout: float) -> bool:
        """Send the queued spans, for ``timeout`` seconds at most; return whether all spans were delivered.

        BatchSpanProcessor takes its own time, 30 s and more. It goes on in its thread, which ends with the process.
        """
        if timeout > 0:
            if self._asked.locked():
                self._asked.release()
            # Released again, so that a second call finds it as the first one did.
            if self._stopped.acquire(timeout=timeout):
                self._stopped.release()
        if self._too_late is None:
            self._too_late = Tally()
        return self.counts().delivered == self._finished.value()

    def too_late(self) -> int:
        """Return how many spans have ended since this sender stopped."""
        return self._too_late.value() if self._too_late is not None else 0

    def _shut_down(self) -> None:
        self._asked.acquire()
        try:
            self._batches.shutdown()  # type: ignore[no-untyped-call, unused-ignore]
        except Exception:
            log.debug("BatchSpanProcessor did not stop", exc_info=True)
        self._stopped.release()


class _Exporter(OTLPSpanExporter):
    """Counts what OTLPSpanExporter is given, and what becomes of it. One thread at a time calls it."""

    def __init__(self, settings: Settings, session: Session) -> None:
        super().__init__(
            endpoint=settings.endpoint,
            certificate_file=settings.certificate,
            client_key_file=settings.client_key,
            client_certificate_file=settings.client_certificate,
            # Never empty: OTLPSpanExporter would then read the variables itself.
            headers={"Accept": "*/*", **settings.headers},
            timeout=settings.timeout,  # type: ignore[arg-type, unused-ignore] # older releases say int
            compression=Compression(settings.compression),
            session=session,
        )
        self.taken = self.delivered = self.failed = self.batches = self.answered = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; see the SDK."""
        count = len(spans)
        self.taken += count
        self.batches += 1
        result = SpanExportResult.FAILURE
        try:
            result = super().export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.delivered += count
                self.answered += 1
            else:
                self.failed += count
        return result


class _Session(Session):
    """Keeps this package's promises about the API key and the proxy, and counts attempts."""

    def __init__(self, settings: Settings, new_api_key: Callable[[], str | None]) -> None:
        super().__init__()
        # The settings have read the variables; requests would read .netrc, too.
        self.trust_env = False
        if settings.proxy:
            self.proxies = {"http": settings.proxy, "https": settings.proxy}
        self.attempts = 0
        self.bytes_sent = 0
        self.awaits_answer = False
        self._key = settings.api_key
        self._new_api_key = new_api_key

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:
        """Send a request with the key, if the settings allow one at this endpoint, and follow no redirect."""
        # OTLPSpanExporter adds the headers of the variables itself, where a key for Mackerel may stand.
        request.headers.pop(API_KEY_HEADER, None)
        if self._key is not None:
            request.headers[API_KEY_HEADER] = self._key
        self.attempts += 1
        self.bytes_sent += len(request.body) if isinstance(request.body, bytes) else 0
        self.awaits_answer = True
        try:
            response = super().send(request, **{**kwargs, "allow_redirects": False})
        finally:
            self.awaits_answer = False
        if response.status_code in _REDIRECTS:
            # OTLPSpanExporter would count the spans as delivered, or an older one send the key to another host.
            raise TooManyRedirects(f"the endpoint answers {response.status_code}, and spans are not sent elsewhere")
        if response.status_code in _REFUSALS and self._key is not None:
            self._key = self._new_api_key() or self._key
        return response
