"""The spans of one process are encoded, queued, sent in batches by one thread, and counted.

finished = delivered + lost + left + queued, at any moment. A signal handler may end a span while it has interrupted the
end of another span. Therefore nothing here takes a lock that the interrupted thread could hold.
"""

from __future__ import annotations

import _thread
import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.pipeline import oversized_spans
from mackerel_otel_server.pipeline.adoption import is_kept
from mackerel_otel_server.pipeline.answer import PROBE_SECONDS, Cause
from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.threads import get_within, original, threads_without_signals

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from mackerel_otel_server.pipeline.adoption import Adopter, LeftBehind
    from mackerel_otel_server.pipeline.answer import Answer
    from mackerel_otel_server.pipeline.encoder import EncodedSpan, Encoder, QueuedSpan
    from mackerel_otel_server.pipeline.exporter import Exporter
    from mackerel_otel_server.pipeline.journal import Journal
    from mackerel_otel_server.settings import Settings

BATCH_BYTES: Final = 3_500_000
"""Uncompressed. Mackerel refuses 6 MB, and its own Collector batches at this size."""
ENCODED_TOGETHER: Final = 16
"""Spans that one thread encodes in a row. The first one takes three times as long as the others, because the processor
has to load code and data for it. More spans would delay the request that has ended the last of them."""
QUEUE_BYTES: Final = 16_000_000
"""How much memory the queue may take while the endpoint is down; ``OTEL_BSP_MAX_QUEUE_SIZE`` limits it as well."""
AFTER_A_FAILURE: Final = 0.5
"""Seconds for which a leaving worker still tries to send after a failed attempt."""
# Reasons why spans are lost at the end of a process.
NOT_IN_TIME: Final = "not sent in time"
AFTER_FAILED_ATTEMPT: Final = "not sent after a failed attempt"
TOO_LATE: Final = "ended after shutdown"
_LONGEST_WAIT: Final = 0.1
"""Seconds to wait for a lock that is held for microseconds."""


@dataclass(frozen=True)
class Counts:
    """How many spans one process has finished, and how many of them were delivered or lost."""

    finished: int = 0
    delivered: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    requests: int = 0
    """Requests from which the endpoint took spans."""
    attempts: int = 0
    retried: int = 0
    bytes_sent: int = 0
    unanswered: int = 0
    """Those of the queued spans that are in a request which was sent and has no answer yet."""
    left: int = 0
    """Spans that this process leaves behind in its journal, for another process to send."""

    @property
    def all_lost(self) -> int:
        """Spans that are lost, for whatever reason."""
        return sum(self.lost.values())

    @property
    def queued(self) -> int:
        """Spans that are waiting or under way."""
        return self.finished - self.delivered - self.all_lost - self.left


class Tally:
    """A counter for several threads and signal handlers. next() is one step of the interpreter, and += is several."""

    def __init__(self) -> None:
        self.add: Final = itertools.count().__next__
        self._asked = 0
        self._asking = threading.RLock()

    def value(self) -> int:
        """Return how often ``add`` was called."""
        with self._asking:
            value = self.add() - self._asked
            self._asked += 1
            return value


class _Book:
    """How many spans of one thread, which has an exporter of its own, were delivered or lost."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter: Final = exporter
        self.under_way: Final[list[list[QueuedSpan]]] = []
        """The batch that is being sent. Whoever takes it out of this list says what became of it."""
        self.delivered = 0
        self.answered = 0
        self.lost: Counter[str] = Counter()
        self.took = 0.0
        """Seconds that the last batch took."""


class Sender:
    """The queue of one process and the thread that empties it."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a pipeline
        self,
        settings: Settings,
        encoder: Encoder,
        exporter: Exporter,
        new_api_key: Callable[[], str | None],
        journal: Journal | None = None,
        adopter: Adopter | None = None,
    ) -> None:
        """Start the thread: call after the fork only.

        Args:
            settings: Sizes and times.
            encoder: Encodes the spans.
            exporter: Sends them.
            new_api_key: That of make_tracer_provider().
            journal: Keeps the queued spans for the case that this process is killed.
            adopter: Finds what processes that have ended left in their journals.
        """
        self._settings = settings
        self._queue_size = settings.max_queue_size
        self._batch_size = settings.max_export_batch_size
        self._encoder = encoder
        self._new_api_key = new_api_key
        self._together = min(ENCODED_TOGETHER, settings.max_export_batch_size)
        self._ended: deque[ReadableSpan] = deque()  # and not encoded yet
        self._queue: deque[QueuedSpan] = deque()
        self._queued_bytes = 0
        # A signal handler that has interrupted put() may call put() as well. That is not so for the set() of an Event.
        self._wake: queue.SimpleQueue[queue.SimpleQueue[None] | None] = queue.SimpleQueue()
        self._is_woken = False
        self._finished = Tally()
        self._full = Tally()
        self._unencodable = Tally()
        self._dropped = {"queue full": self._full, "not encodable": self._unencodable}
        """By reason, the spans that no exporter got."""
        self._has_cut = False
        self._journal = journal
        self._left = Tally()
        self._adopter = adopter
        self._adopted: LeftBehind | None = None
        self._book = _Book(exporter)
        self._rescue: _Book | None = None
        self._rescuing = _thread.allocate_lock()
        # Held for a moment by the thread of the sender and by the one in rescue(). Where the former is a greenlet, a
        # signal handler may have interrupted it just then. So nobody waits for the lock for long.
        self._taking = original("_thread", "allocate_lock")()
        self._adopt_from = 0.0
        self._last_failed = False
        self._paused_until = 0.0
        self._dropping: Tally | None = None
        self._stop_by: float | None = None
        self._too_late: Tally | None = None
        """Counts the spans that end when this sender has stopped; None until then."""
        self._flushes: set[queue.SimpleQueue[None]] = set()
        """One for each thread that waits in flush(). A signal handler may end the wait that it has interrupted."""
        self.why_unsent = NOT_IN_TIME
        """The reason why spans that were still queued when this sender stopped are lost."""
        # This lock stays of the same kind as the thread: of the system, or of gevent. An Event would change to gevent's
        # kind when gevent patches the standard library later, as uWSGI's gevent-monkey-patch does, and the process
        # would end while stop() waits.
        self._running = _thread.allocate_lock()
        self._running.acquire()
        self._has_ended = False
        with threads_without_signals():
            # Not a threading.Thread: once gevent has patched the standard library, it would not find itself at its end.
            _thread.start_new_thread(self._run, ())

    # One function, because a call for each of the steps would take time.
    def put(self, span: ReadableSpan) -> None:  # noqa: C901, PLR0912
        """Queue a finished span; encode a request's span at once, others when enough of them wait. Never raises."""
        self._finished.add()
        if (dropping := self._too_late or self._dropping) is not None:
            if self._too_late is None or not self._leave(span):
                dropping.add()
            return
        ended = self._ended
        if len(self._queue) + len(ended) >= self._queue_size or self._queued_bytes >= QUEUE_BYTES:
            # The newest span is dropped, because the queued ones may be on their way already.
            self._full.add()
            self._wake_once()
            return
        # A request's span ends before the last part of its response is sent, and must be in the journal by then. So
        # this thread encodes it: another thread that took it might still be encoding it when the response leaves. Field
        # 2 of a span context says whether it came from another process; its property would take more time.
        if (journal := self._journal) is not None and ((parent := span.parent) is None or parent[2]):
            try:
                if ended:
                    self._encode(self._take_ended(self._together))
                scope, data = self._encoder.encode_known(span)
                size = len(data)
            except Exception:
                size = BATCH_BYTES + 1
            except BaseException:
                # A signal handler has raised an exit.
                ended.append(span)
                raise
            if size > BATCH_BYTES:
                self._encode([span])
            else:
                # What _encode() does, in half the time.
                record = None
                try:
                    record = journal.write(scope, data)
                finally:
                    # Also where a signal handler raises an exit meanwhile.
                    self._queue.append((scope, data, record))
                    self._queued_bytes += size
        else:
            ended.append(span)
            if len(ended) < self._together:
                return
            self._encode(self._take_ended(self._together))
        if len(self._queue) >= self._batch_size or self._queued_bytes >= BATCH_BYTES:
            self._wake_once()

    def _take_ended(self, count: int) -> list[ReadableSpan]:
        """Take up to so many of the spans that wait to be encoded. Several threads may do so at the same time."""
        ended = self._ended
        spans: list[ReadableSpan] = []
        with suppress(IndexError):
            while len(spans) < count:
                spans.append(ended.popleft())
        return spans

    def _encode(self, spans: list[ReadableSpan]) -> None:
        """Encode spans, write them into the journal, and queue them."""
        encode = self._encoder.encode
        encoded: list[EncodedSpan] = []
        size = 0
        rest = iter(spans)
        try:
            for span in rest:
                try:
                    data = encode(span)
                    if len(data[1]) > BATCH_BYTES:
                        self._say_what_is_cut(span, len(data[1]))
                        data = encode(oversized_spans.cut(span))
                except Exception:
                    self._unencodable.add()
                    log.debug("a span cannot be encoded", exc_info=True)
                    continue
                except BaseException:
                    # A signal handler has raised an exit.
                    self._ended.append(span)
                    raise
                size += len(data[1])
                if size > BATCH_BYTES:
                    # A record must fit into one request, because it is settled as a whole.
                    record, encoded, size = encoded, [], len(data[1])
                    self._enqueue(record)
                encoded.append(data)
        finally:
            self._enqueue(encoded)
            self._ended.extend(rest)

    def _enqueue(self, encoded: list[EncodedSpan]) -> None:
        """Write spans into the journal as one record, and queue them."""
        record = None
        try:
            if encoded and self._journal is not None:
                record = self._journal.write(*encoded[0], encoded[1:])
        finally:
            # Also where a signal handler raises an exit meanwhile.
            for scope, data in encoded:
                self._queue.append((scope, data, record))
                # Two threads at once may make the number wrong; the sender's thread sets it right when the queue is
                # empty.
                self._queued_bytes += len(data)

    def _encode_ended(self) -> None:
        """Encode all spans that wait for it, so many together as a batch may have."""
        while spans := self._take_ended(self._together):
            self._encode(spans)

    def _leave(self, span: ReadableSpan) -> bool:
        """Write a span that comes too late for this process into the journal; return whether that was possible."""
        if self._journal is None:
            return False
        try:
            scope, data = self._encoder.encode(span)
        except Exception:
            return False
        if self._journal.write(scope, data) is None:
            return False
        self._left.add()
        return True

    def _say_what_is_cut(self, span: ReadableSpan, size: int) -> None:
        """Warn, the first time, that a span is too large for a request and is cut."""
        write, self._has_cut = (log.debug if self._has_cut else log.warning), True
        write(
            "the span %.100r has %d bytes, more than a request may have: its long values are cut; "
            "set OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, or give the span less",
            span.name,
            size,
        )

    def flush(self, timeout: float) -> bool:
        """Send the queued spans now; return at once if this sender has stopped.

        Returns:
            Whether nothing was left after ``timeout`` seconds.
        """
        # A queue of the same kind as the thread, see _running.
        done: queue.SimpleQueue[None] = type(self._wake)()  # type: ignore[assignment]
        # This comes before the look at _too_late: stop() ends the waits that it finds in _flushes.
        self._flushes.add(done)
        self._wake.put(done)
        if self._stop_by is not None:
            timeout = min(timeout, self._stop_by - time.monotonic())
        if self._too_late is None:
            with suppress(queue.Empty):
                get_within(done, min(timeout, threading.TIMEOUT_MAX))
        self._flushes.discard(done)
        return not self.counts().queued

    def rescue(self, timeout: float) -> None:
        """Send the queued spans from the calling thread, for a process that is about to be killed.

        The sender's own thread may wait for an answer, or be a greenlet whose hub is blocked. Does nothing while
        another call of this method is at work, be it in another thread or in this one, interrupted by a signal handler.

        Args:
            timeout: Seconds.
        """
        # First, what a kill would take along must be in the journal.
        self._encode_ended()
        if not (self._queue or self._ended) or not self._rescuing.acquire(blocking=False):
            return
        try:
            if self._rescue is None:
                self._rescue = _Book(self._book.exporter.another())
            self._give_up_what_was_interrupted(self._rescue)
            deadline = time.monotonic() + timeout
            while (self._queue or self._ended) and self._is_in_time(deadline):
                self._encode_ended()
                batch = self._take(self._batch_size)
                if batch and not self._deliver(self._rescue, batch, deadline):
                    return
        finally:
            self._rescuing.release()

    def stop(self, timeout: float) -> bool:
        """Send the queued spans and end the thread, for ``timeout`` seconds at most; with 0, send nothing more.

        Returns:
            Whether every span that this process finished was delivered.
        """
        timeout = min(timeout, AFTER_A_FAILURE if self._is_failing() else threading.TIMEOUT_MAX)
        self._stop_by = time.monotonic() + timeout
        try:
            self._book.exporter.wake()
            self._wake.put(None)
            if self._adopted is not None:
                # The thread may wait for an answer about spans of another process. That must not hold up this one's.
                self.rescue(timeout)
                timeout = max(self._stop_by - time.monotonic(), 0.0)
            # The lock is never released here. A signal handler may raise an exit between two steps, so that a release
            # would be skipped, and the worker would then stop this sender again. That is why the thread itself says
            # that it has ended.
            if timeout > 0 and (self._has_ended or self._running.acquire(timeout=timeout)) and not self._last_failed:
                # Send the spans that have ended since the thread looked for the last time.
                self.rescue(self._stop_by - time.monotonic())
            if timeout > 0 and self._is_failing():
                self.why_unsent = AFTER_FAILED_ATTEMPT
        except Exception:
            # Threads that wait in flush() must not wait for ever. An exit that a signal handler raises is not caught
            # here, because the worker stops this sender again after it.
            self._give_up()
            raise
        self._give_up()
        if self._journal is not None:
            self._journal.close()
        if (rescue := self._rescue) is not None and self._rescuing.acquire(blocking=False):
            rescue.exporter.close()
            self._rescuing.release()
        return self.counts().delivered == self._finished.value()

    def too_late(self) -> int:
        """Return how many spans have ended since this sender stopped."""
        return self._too_late.value() if self._too_late is not None else 0

    def _is_failing(self) -> bool:
        return self._last_failed or self._book.exporter.is_failing

    def _give_up(self) -> None:
        """Leave the spans that are not sent to another process, or count them as lost; end the waits in flush()."""
        if self._too_late is None:
            self._too_late = self._dropped.setdefault(TOO_LATE, Tally())
        if (adopted := self._adopted) is not None and self._book.exporter.unanswered:
            adopted.give_up()
        for book in self._books():
            self._give_up_what_is_under_way(book)
        unsent = self._dropped.setdefault(self.why_unsent, Tally())
        if self._journal is not None:
            self._encode_ended()
        for _ in range(_empty(self._ended)):
            unsent.add()
        with suppress(IndexError):
            # One after the other, because a signal handler may raise an exit meanwhile.
            while True:
                record = self._queue.popleft()[2]
                (self._left if record is not None else unsent).add()
        self._let_flushes_return()

    def _give_up_what_is_under_way(self, book: _Book) -> None:
        """Queue a batch again, unless it was sent and has no answer: then it is not sent again."""
        with suppress(IndexError):
            if book.exporter.unanswered:
                # The answer may come yet. Until then the spans count as unanswered.
                self._settle(book.under_way[-1])
            else:
                batch = book.under_way.pop()
                self._queue.extendleft(reversed(batch))
                self._queued_bytes += _bytes(batch)

    def _give_up_what_was_interrupted(self, book: _Book) -> None:
        """Do the same with what a call was sending that an exit has ended: nobody waits for the answer any more."""
        self._give_up_what_is_under_way(book)
        with suppress(IndexError):
            book.lost["unconfirmed"] += len(book.under_way.pop())
        book.exporter.conclude()

    def _books(self) -> list[_Book]:
        return [self._book] if self._rescue is None else [self._book, self._rescue]

    def _let_flushes_return(self) -> None:
        for done in list(self._flushes):
            done.put(None)

    def counts(self) -> Counts:
        """Return how many spans were finished, delivered and lost so far."""
        # These are read before `finished`, so that a span that ends meanwhile counts as queued.
        left = self._left.value()
        books = self._books()
        lost: Counter[str] = Counter()
        for book in books:
            # dict() copies in one step of the interpreter: another thread may note a new reason meanwhile.
            lost.update(dict(book.lost))
        delivered = sum(book.delivered for book in books)
        for reason, count in dict(self._dropped).items():
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
            sum(len(batch) for book in books if book.exporter.unanswered for batch in list(book.under_way)),
            left,
        )

    def leave_journal_to_parent(self) -> None:
        """Give the files of the journal up in a process that was forked."""
        if self._journal is not None:
            self._journal.leave_to_parent()

    def keeps_what_is_left(self) -> bool:
        """Tell whether another process will send the spans that this process does not send."""
        return self._journal is not None and self._journal.works

    def _wake_once(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._wake.put(None)

    def _run(self) -> None:
        """Send a batch when one is full, at the latest after the schedule delay; drain the queue when told to."""
        delay = self._settings.schedule_delay / 1000
        due = time.monotonic() + delay
        # The first look comes at once, because a script may have ended before the delay is over.
        adopts = looks = self._adopter is not None
        while self._stop_by is None:
            try:
                asked = get_within(self._wake, 0.0 if looks or self._adopted else due - time.monotonic())
                drain = asked is not None
            except queue.Empty:
                asked, drain = None, time.monotonic() >= due
            self._is_woken = False
            if time.monotonic() >= self._paused_until:
                # The next spans show whether the endpoint takes spans again.
                self._dropping = None
            self._try_to_send(drain=drain)
            if drain:
                due = time.monotonic() + delay
            # In a pause, a full queue must not wake this thread with every span.
            self._is_woken = time.monotonic() < self._paused_until
            if asked is not None:
                asked.put(None)
            if adopts:
                try:
                    self._send_what_others_left(look=drain or looks)
                except Exception:
                    adopts, self._adopted = False, None
                    log.exception("what other processes left in their journals is not sent by this process")
            looks = False
        # Send the spans that came while the last batch was under way.
        self._try_to_send(drain=True)
        if self._adopted is not None:
            self._adopted.close()
        self._book.exporter.close()
        self._let_flushes_return()
        self._has_ended = True
        self._running.release()

    def _send_what_others_left(self, *, look: bool) -> None:
        """Send one batch of what a process that has ended left behind, while this process's own sending succeeds.

        Args:
            look: Whether to look for files, where none is at hand.
        """
        now = time.monotonic()
        # A process that has nothing of its own to send tries again after a while.
        is_failing = self._is_failing() and (bool(self._queue) or now < self._adopt_from)
        if is_failing or now < self._paused_until or self._stop_by is not None:
            adopted, self._adopted = self._adopted, None
            if adopted is not None:
                adopted.close()
            return
        if self._adopted is None and look and self._adopter is not None:
            self._adopted = self._adopter.next()
        if (adopted := self._adopted) is None:
            return
        if self._stop_by is not None:
            # stop() may have looked before there was anything to send for others.
            self._adopted = None
            adopted.close()
            return
        answer = adopted.send_batch(self._book.exporter, self._batch_size, BATCH_BYTES, now + self._settings.timeout)
        if answer is not None:
            # That these spans were refused says nothing about others.
            self._last_failed = answer.keep or answer.unconfirmed or answer.pause > 0
            self._adopt_from = time.monotonic() + PROBE_SECONDS
            if answer.keep:
                # Nothing is lost by another attempt, so this one need not be rare.
                self._paused_until = self._adopt_from = time.monotonic() + answer.pause
        if answer is None or is_kept(answer):
            self._take_another(adopted, answer)

    def _take_another(self, adopted: LeftBehind, answer: Answer | None) -> None:
        """Let go of a file of which nothing is left, or whose spans were not taken."""
        self._adopted = None
        adopted.close()
        if self._adopter is None or self._stop_by is not None:
            return
        if answer is None:
            self._adopted = self._adopter.next()
        elif not answer.keep:
            self._adopter.put_off(adopted)

    def _try_to_send(self, *, drain: bool) -> None:
        try:
            self._send(drain=drain)
        except Exception:
            log.exception("the sender of spans goes on after an error of its own")

    def _send(self, *, drain: bool) -> None:
        size = self._batch_size
        if drain:
            self._encode_ended()
        if not self._queue:
            # Threads that met in _encode() may have left a wrong number, which would count as a full queue for ever.
            self._queued_bytes = 0
        while self._queue and (drain or len(self._queue) >= size or self._queued_bytes >= BATCH_BYTES):
            now = time.monotonic()
            stop_by = self._stop_by
            if now < self._paused_until if stop_by is None else not self._is_in_time(stop_by):
                return
            batch = self._take(size)
            deadline = now + self._settings.timeout if stop_by is None else stop_by
            if not batch or not self._deliver(self._book, batch, deadline):
                return

    def _is_in_time(self, deadline: float) -> bool:
        """Tell whether a batch that is sent now has its answer before the process ends, as far as one can know.

        Without the answer, its spans would be unconfirmed. Those that are not sent are left to another process.
        """
        expected = self._book.took if self.keeps_what_is_left() else 0.0
        return time.monotonic() + expected < deadline

    def _settle(self, spans: Iterable[QueuedSpan]) -> None:
        """Note in the journal that these spans need not be sent any more."""
        if self._journal is not None:
            self._journal.settle(spans)

    def _take(self, size: int) -> list[QueuedSpan]:
        """Take the oldest spans, as many as one request may hold. Spans of one record of the journal stay together."""
        if not self._taking.acquire(timeout=_LONGEST_WAIT):
            return []
        try:
            return self._take_together(size)
        finally:
            self._taking.release()

    def _take_together(self, size: int) -> list[QueuedSpan]:
        queue = self._queue
        batch: list[QueuedSpan] = []
        taken = 0
        try:
            while len(batch) < size:
                taken += len(queue[0][1])
                if taken > BATCH_BYTES:
                    break
                batch.append(queue.popleft())
            record = batch[-1][2]
            if record is not None and queue[0][2] == record != batch[0][2]:
                while batch[-1][2] == record:
                    queue.appendleft(batch.pop())
        except IndexError:  # the queue is empty, or another thread has emptied it
            pass
        # The exact count is for short queues only: with many batches in the queue, each batch would count all again.
        backlog = len(queue) >= size
        self._queued_bytes = self._queued_bytes - _bytes(batch) if backlog else _bytes(list(queue))
        return batch

    def _deliver(self, book: _Book, batch: list[QueuedSpan], deadline: float) -> bool:
        """Send one batch; return whether to go on with the next."""
        book.under_way.append(batch)
        began = time.monotonic()
        answer = book.exporter.export(self._encoder.assemble(batch), len(batch), deadline)
        book.took = time.monotonic() - began
        try:
            book.under_way.pop()
        except IndexError:
            # This process has given up meanwhile, and has said what became of these spans. What was taken after all, or
            # refused, must not be sent again.
            if not answer.keep:
                self._settle(batch)
            return False
        finally:
            book.exporter.conclude()
        # If the endpoint took spans, the attempt has not failed, whatever else the answer said.
        self._last_failed = answer.cause is not None and not answer.accepted
        book.delivered += answer.accepted
        book.answered += answer.accepted > 0
        if answer.rejected:
            book.lost["rejected by the endpoint"] += answer.rejected
        left = len(batch) - answer.accepted - answer.rejected
        if answer.keep and self._too_late is None:
            self._queue.extendleft(reversed(batch))
            self._queued_bytes += _bytes(batch)
            self._paused_until = time.monotonic() + answer.pause
            return False
        self._settle(batch)
        if not left:
            return True
        book.lost[answer.reason] += left
        if answer.pause:
            # Drop and count what is queued, and what ends during the pause.
            self._paused_until = time.monotonic() + answer.pause
            self._dropping = self._dropped.setdefault(answer.reason, Tally())
            dropped = _take_all(self._queue)
            self._settle(dropped)
            book.lost[answer.reason] += len(dropped) + _empty(self._ended)
            self._queued_bytes = 0
            if answer.cause is Cause.KEY and (key := self._new_api_key()) is not None:
                book.exporter.set_api_key(key)
                if self._journal is not None:
                    self._journal.begin_another()
        return not answer.pause


def _take_all(spans: deque[Any]) -> list[Any]:
    """Take all spans out of a queue."""
    taken = []
    while spans:
        try:
            taken.append(spans.popleft())
        except IndexError:  # noqa: PERF203 - another thread was quicker
            break
    return taken


def _empty(spans: deque[Any]) -> int:
    """Take all spans out of a queue; return how many they were."""
    return len(_take_all(spans))


def _bytes(spans: Iterable[QueuedSpan]) -> int:
    return sum([len(span[1]) for span in spans])
