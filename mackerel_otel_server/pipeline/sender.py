"""One process's spans: queued, encoded a few at a time, sent in batches by one thread, and accounted for.

finished = delivered + lost + queued, at any moment. Nothing here takes a lock that a signal handler could meet: what
ends a span may run in one that has interrupted another span's end.
"""

from __future__ import annotations

import _thread
import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.log import log
from mackerel_otel_server.native import threads_without_signals
from mackerel_otel_server.pipeline import cutting
from mackerel_otel_server.pipeline.exporter import Cause

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from mackerel_otel_server.pipeline.encoder import EncodedSpan, Encoder
    from mackerel_otel_server.pipeline.exporter import Exporter
    from mackerel_otel_server.settings import Settings

BATCH_BYTES: Final = 3_500_000
"""Uncompressed. Mackerel refuses 6 MB, and its own Collector batches at this size."""
ENCODED_TOGETHER: Final = 16
"""Spans: the first one takes three times as long as the next ones, whose code and data the processor still has at hand.
More would hold up the request that ends the last of them."""
QUEUE_BYTES: Final = 16_000_000
"""What a dead endpoint may cost a worker in memory, beside ``OTEL_BSP_MAX_QUEUE_SIZE``."""
AFTER_A_FAILURE: Final = 0.5
"""Seconds that a leaving worker still tries where the last attempt had failed."""
# Reasons why spans are lost at the end of a process.
NOT_IN_TIME: Final = "not sent in time"
AFTER_FAILED_ATTEMPT: Final = "not sent after a failed attempt"
TOO_LATE: Final = "ended after shutdown"


@dataclass(frozen=True)
class Counts:
    """What became of the spans that one process finished."""

    finished: int = 0
    delivered: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    requests: int = 0
    """That the endpoint took spans from."""
    attempts: int = 0
    retried: int = 0
    bytes_sent: int = 0
    unanswered: int = 0
    """Of those that are queued: in a request that was sent and has no answer yet."""

    @property
    def all_lost(self) -> int:
        """Spans that are lost, for whatever reason."""
        return sum(self.lost.values())

    @property
    def queued(self) -> int:
        """Spans that are waiting or under way."""
        return self.finished - self.delivered - self.all_lost


class _Count:
    """A counter for several threads and for signal handlers: next() is one step of the interpreter, += is not."""

    def __init__(self) -> None:
        self.add: Final = itertools.count().__next__
        self._asked = 0
        self._asking = threading.RLock()

    def value(self) -> int:
        with self._asking:
            value = self.add() - self._asked
            self._asked += 1
            return value


class _Book:
    """What became of the spans that one thread sent with one exporter."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter: Final = exporter
        self.delivered = 0
        self.answered = 0
        self.lost: Counter[str] = Counter()


class Sender:
    """The queue of one process and the thread that empties it."""

    def __init__(
        self, settings: Settings, encoder: Encoder, exporter: Exporter, new_api_key: Callable[[], str | None]
    ) -> None:
        """Start the thread: call after the fork only.

        Args:
            settings: Sizes and times.
            encoder: Makes bytes of a span.
            exporter: Sends them.
            new_api_key: Reads the API key again, after the endpoint has refused the one in use.
        """
        self._settings = settings
        self._queue_size = settings.max_queue_size
        self._batch_size = settings.max_export_batch_size
        self._encoder = encoder
        self._new_api_key = new_api_key
        self._together = min(ENCODED_TOGETHER, settings.max_export_batch_size)
        self._ended: deque[ReadableSpan] = deque()  # and not encoded yet
        self._queue: deque[EncodedSpan] = deque()
        self._queued_bytes = 0
        # Its put() may be called by a signal handler that has interrupted another put(), unlike an Event's set().
        self._wake: queue.SimpleQueue[queue.SimpleQueue[None] | None] = queue.SimpleQueue()
        self._is_woken = False
        self._finished = _Count()
        self._full = _Count()
        self._has_cut = False
        self._unencodable = _Count()
        self._book = _Book(exporter)
        self._rescue: _Book | None = None
        self._rescuing = _thread.allocate_lock()
        self._last_failed = False
        self._paused_until = 0.0
        self._dropping: _Count | None = None
        self._dropped: dict[str, _Count] = {}
        self._stop_by: float | None = None
        self._too_late: _Count | None = None
        """Counts the spans that end when this sender has stopped; None until then."""
        self._flushes: set[queue.SimpleQueue[None]] = set()
        """One for each thread that waits in flush(): a signal handler may end the wait that it has interrupted."""
        self.why_unsent = NOT_IN_TIME
        """Why what was left when this sender stopped is lost."""
        # Stays of the same kind as the thread. What an Event waits with becomes gevent's when that patches the standard
        # library later, as uWSGI's gevent-monkey-patch does; the process would then end while stop() waits.
        self._running = _thread.allocate_lock()
        self._running.acquire()
        with threads_without_signals():
            # Not a Thread, for the same reason: it would not find itself at its end.
            _thread.start_new_thread(self._run, ())

    def put(self, span: ReadableSpan) -> None:
        """Queue a finished span, and every so often encode the last ones in this thread. Never waits, never raises."""
        self._finished.add()
        if (dropping := self._too_late or self._dropping) is not None:
            dropping.add()
            return
        ended = self._ended
        if len(self._queue) + len(ended) >= self._queue_size or self._queued_bytes >= QUEUE_BYTES:
            # The newest: what is queued may be on its way already.
            self._full.add()
            self._wake_once()
            return
        ended.append(span)
        if len(ended) >= self._together:
            self._encode(self._together)
            if len(self._queue) >= self._batch_size or self._queued_bytes >= BATCH_BYTES:
                self._wake_once()

    def _encode(self, count: int) -> None:
        """Encode so many of the spans that have ended, if there are so many. Any threads may meet here."""
        ended = self._ended
        for _ in range(count):
            try:
                span = ended.popleft()
            except IndexError:
                return
            try:
                encoded = self._encoder.encode(span)
                if len(encoded[1]) > BATCH_BYTES:
                    self._say_what_is_cut(span, len(encoded[1]))
                    encoded = self._encoder.encode(cutting.cut(span))
            except Exception:
                self._unencodable.add()
                log.debug("a span cannot be encoded", exc_info=True)
                continue
            size = len(encoded[1])
            self._queue.append(encoded)
            # Approximate when threads meet here; the sender sets it right when it has caught up.
            self._queued_bytes += size

    def _say_what_is_cut(self, span: ReadableSpan, size: int) -> None:
        """Say what happens to a span that no request can hold, the first time."""
        write, self._has_cut = (log.debug if self._has_cut else log.warning), True
        write(
            "the span %.100r has %d bytes, more than a request may have: its long values are cut; "
            "set OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, or give the span less",
            span.name,
            size,
        )

    def flush(self, timeout: float) -> bool:
        """Send what is queued now; return at once where this sender has stopped.

        Returns:
            Whether nothing was left after ``timeout`` seconds.
        """
        # Of the same kind as the thread, see _running.
        done: queue.SimpleQueue[None] = type(self._wake)()  # type: ignore[assignment]
        # Before this thread looks whether the sender has stopped: stop() ends the waits that it finds here.
        self._flushes.add(done)
        self._wake.put(done)
        if self._stop_by is not None:
            timeout = min(timeout, self._stop_by - time.monotonic())
        if self._too_late is None:
            with suppress(queue.Empty):
                done.get(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))
        self._flushes.discard(done)
        return not self.counts().queued

    def rescue(self, timeout: float) -> None:
        """Send what is queued from the calling thread, for a process that is about to be killed.

        Its own thread may wait for an answer, or be a greenlet whose hub is blocked. Does nothing while another thread
        is at it, or this one is and was interrupted.

        Args:
            timeout: Seconds.
        """
        if not (self._queue or self._ended) or not self._rescuing.acquire(blocking=False):
            return
        try:
            if self._rescue is None:
                self._rescue = _Book(self._book.exporter.another())
            deadline = time.monotonic() + timeout
            while (self._queue or self._ended) and time.monotonic() < deadline:
                self._encode(len(self._ended))
                batch = self._take(self._batch_size)
                if batch and not self._deliver(self._rescue, batch, deadline):
                    return
        finally:
            self._rescuing.release()

    def stop(self, timeout: float) -> bool:
        """Send what is queued and end the thread, for ``timeout`` seconds at most; 0 sends nothing more.

        Returns:
            Whether every span that this process finished was delivered.
        """
        timeout = min(timeout, AFTER_A_FAILURE if self._is_failing() else threading.TIMEOUT_MAX)
        self._stop_by = time.monotonic() + timeout
        try:
            self._book.exporter.wake()
            self._wake.put(None)
            if timeout > 0 and self._running.acquire(timeout=timeout):
                self._running.release()
                if not self._last_failed:
                    # What has ended since the thread looked for the last time.
                    self.rescue(self._stop_by - time.monotonic())
            if timeout > 0 and self._is_failing():
                self.why_unsent = AFTER_FAILED_ATTEMPT
        except Exception:
            # Who waits in flush() would wait for nothing. An exit that a signal handler raises is another matter: the
            # worker stops this sender again then.
            self._give_up()
            raise
        self._give_up()
        return self.counts().delivered == self._finished.value()

    def too_late(self) -> int:
        """Return how many spans have ended since this sender stopped."""
        return self._too_late.value() if self._too_late is not None else 0

    def _is_failing(self) -> bool:
        return self._last_failed or self._book.exporter.is_failing

    def _give_up(self) -> None:
        """Count what is left as lost, and what ends from now on; let those go on that wait in flush()."""
        if self._too_late is None:
            self._too_late = self._dropped.setdefault(TOO_LATE, _Count())
        unsent = self._dropped.setdefault(self.why_unsent, _Count())
        for _ in range(_empty(self._queue) + _empty(self._ended)):
            unsent.add()
        self._let_flushes_return()

    def _let_flushes_return(self) -> None:
        for done in list(self._flushes):
            done.put(None)

    def counts(self) -> Counts:
        """Return what became of the spans so far."""
        # Before `finished`, so that a span that ends meanwhile counts as queued.
        books = [self._book] if self._rescue is None else [self._book, self._rescue]
        lost: Counter[str] = Counter()
        for book in books:
            # A copy, in one step: the other thread may note a new reason meanwhile.
            lost.update(dict(book.lost))
        delivered = sum(book.delivered for book in books)
        counted = {
            "queue full": self._full,
            "not encodable": self._unencodable,
            **self._dropped,
        }
        for reason, count in counted.items():
            if value := count.value():
                lost[reason] += value
        exporters = [book.exporter for book in books]
        return Counts(
            self._finished.value(),
            delivered,
            dict(lost),
            sum(book.answered for book in books),
            sum(exporter.requests for exporter in exporters),
            sum(exporter.retried for exporter in exporters),
            sum(exporter.bytes_sent for exporter in exporters),
            sum(exporter.unanswered for exporter in exporters),
        )

    def _wake_once(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._wake.put(None)

    def _run(self) -> None:
        """Send a batch when one is full, at the latest after the schedule delay; drain the queue when told to."""
        delay = self._settings.schedule_delay / 1000
        while self._stop_by is None:
            try:
                asked = self._wake.get(timeout=delay)
                drain = asked is not None
            except queue.Empty:
                asked, drain = None, True
            self._is_woken = False
            if time.monotonic() >= self._paused_until:
                # The next spans are the probe.
                self._dropping = None
            self._try_to_send(drain=drain)
            # In a pause, a full queue is no reason to wake this thread with every span.
            self._is_woken = time.monotonic() < self._paused_until
            if asked is not None:
                asked.put(None)
        # What came while the last batch was under way.
        self._try_to_send(drain=True)
        self._book.exporter.close()
        self._let_flushes_return()
        self._running.release()

    def _try_to_send(self, *, drain: bool) -> None:
        try:
            self._send(drain=drain)
        except Exception:
            log.exception("the sender of spans goes on after an error of its own")

    def _send(self, *, drain: bool) -> None:
        size = self._batch_size
        if drain:
            self._encode(len(self._ended))
        if not self._queue:
            # Threads that met in put() may have left a remainder, which would count as a full queue for ever.
            self._queued_bytes = 0
        while self._queue and (drain or len(self._queue) >= size or self._queued_bytes >= BATCH_BYTES):
            now = time.monotonic()
            stop_by = self._stop_by
            if stop_by is not None and now >= stop_by:
                return
            if now < self._paused_until and stop_by is None:
                return
            batch = self._take(size)
            if not batch:
                return
            if not self._deliver(self._book, batch, stop_by if stop_by is not None else now + self._settings.timeout):
                return

    def _take(self, size: int) -> list[EncodedSpan]:
        """Take the oldest spans, as many as one request may hold."""
        queue = self._queue
        batch: list[EncodedSpan] = []
        taken = 0
        try:
            while len(batch) < size:
                taken += len(queue[0][1])
                if taken > BATCH_BYTES:
                    break
                batch.append(queue.popleft())
        except IndexError:  # no more, or somebody else has taken them
            pass
        # Not always exactly: a queue of many batches would be counted with each of them.
        backlog = len(queue) >= size
        self._queued_bytes = self._queued_bytes - _bytes(batch) if backlog else _bytes(list(queue))
        return batch

    def _deliver(self, book: _Book, batch: list[EncodedSpan], deadline: float) -> bool:
        """Send one batch; return whether to go on with the next."""
        answer = book.exporter.export(self._encoder.assemble(batch), len(batch), deadline)
        # Spans that were taken are no failure, whatever else the answer said.
        self._last_failed = answer.cause is not None and not answer.accepted
        book.delivered += answer.accepted
        book.answered += answer.accepted > 0
        if answer.rejected:
            book.lost["rejected by the endpoint"] += answer.rejected
        left = len(batch) - answer.accepted - answer.rejected
        if answer.cause is None or not left:
            return True
        reason = "unconfirmed" if answer.unconfirmed else _reason(answer.cause)
        if answer.keep and self._too_late is None:
            self._queue.extendleft(reversed(batch))
            self._queued_bytes += _bytes(batch)
            self._paused_until = time.monotonic() + answer.pause
            return False
        book.lost[reason] += left
        if answer.pause:
            self._drop_for(book, answer.pause, reason)
            if answer.cause is Cause.KEY and (key := self._new_api_key()) is not None:
                book.exporter.set_api_key(key)
        return not answer.pause

    def _drop_for(self, book: _Book, seconds: float, reason: str) -> None:
        """Drop and count what is queued, and what ends within the next seconds."""
        self._paused_until = time.monotonic() + seconds
        self._dropping = self._dropped.setdefault(reason, _Count())
        book.lost[reason] += _empty(self._queue) + _empty(self._ended)
        self._queued_bytes = 0


def _empty(spans: deque[Any]) -> int:
    """Take all spans out of a queue; return how many they were."""
    taken = 0
    while spans:
        try:
            spans.popleft()
        except IndexError:  # another thread was quicker
            break
        taken += 1
    return taken


def _bytes(spans: list[EncodedSpan]) -> int:
    return sum([len(data) for _, data in spans])


def _reason(cause: Cause) -> str:
    """Name a cause in a few words, for the line in which a worker says what became of its spans."""
    if cause is Cause.KEY:
        return "API key refused"
    return cause.name.lower().replace("_", " ")
