"""The journal of one process: files that hold its queued spans, so that another process can send them if it is killed.

What write() has returned from is in the system's page cache, which outlives the process. Nothing here waits for a
disk, and no lock is held that a signal handler could meet.
"""

from __future__ import annotations

import _thread
import errno
import itertools
import math
import operator
import os
import secrets
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.adoption import contents_of
from mackerel_otel_server.pipeline.encoder import scope_fields
from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from mackerel_otel_server.pipeline.encoder import EncodedSpan, Encoder, QueuedSpan
    from mackerel_otel_server.pipeline.fingerprint import Destination
    from mackerel_otel_server.pipeline.spool import Spool

SEGMENT_BYTES: Final = 500_000
"""After so many bytes another file begins. The sooner a file is full, the sooner it can be removed."""
_WORTH_REPLACING: Final = 262_144
"""From so many bytes on, a file whose spans are all settled is removed while the process goes on."""
_BETWEEN_TRIES: Final = 10.0
"""Seconds from a failure to the next try."""
_BETWEEN_WARNINGS: Final = 600.0
"""Seconds. A folder that is full may take some records now and then."""
_TRIES: Final = 10
"""How often a record is tried, if other threads retire the file meanwhile."""
_BETWEEN_LOOKS: Final = 5.0
"""Seconds from one look at the room in the folder to the next."""
_LONGEST_WAIT: Final = 1.0
"""Seconds. To open a file takes some microseconds."""

# Names of this module, because the span of each request is written with them.
_BEFORE_SPAN: Final = journal_file.BEFORE_SPAN
_HEAD_BYTES: Final = journal_file.HEAD_BYTES
_pack_head_and_scope: Final = journal_file.pack_head_and_scope
_crc32: Final = zlib.crc32
_write: Final = os.write
_number_of: Final = operator.itemgetter(2)
"""Of the record that a queued span is in."""


class _Segment:
    """One file. Its process holds it open, and with it the lock, until every span in it is settled."""

    __slots__ = (
        "file",
        "identity",
        "is_closed",
        "last_scope",
        "mark",
        "name",
        "open",
        "scope_number",
        "scopes",
        "written",
    )

    def __init__(self, file: int, name: str, mark: bytes, written: int) -> None:
        self.file = file
        state = os.fstat(file)
        self.identity: Final = state.st_dev, state.st_ino
        self.name: Final = name
        self.mark: Final = mark
        self.written = written
        """Bytes. Two threads at once may make the number a little wrong."""
        self.open: Final[set[int]] = set()
        """The numbers of the records that are not settled."""
        self.is_closed = False
        """Whether no record may be added; see Journal._retire()."""
        self.scope_number: Final = itertools.count().__next__
        self.scopes: Final[dict[int, _Scope]] = {}
        """By the id of the scope. The scope is kept, because the id of an object that is gone may be given to another
        one."""
        self.last_scope: _Scope = _NO_SCOPE, b"", 0
        """That of the span that was written last, because most spans have the same."""


_Scope = tuple[object, bytes, int]
"""A scope, the bytes before a span of it, and their checksum."""
_NO_SCOPE: Final = object()


class Journal:
    """The files of one process. Make it after the fork; the first record opens the first file.

    Args:
        spool: The folder.
        encoder: Encodes the scopes, and has the resource.
        destination: Tells where spans are to be sent at present.
        pid: Of this process.
    """

    def __init__(self, spool: Spool, encoder: Encoder, destination: Callable[[], Destination], pid: int) -> None:
        self._spool = spool
        self._encoder = encoder
        self._destination = destination
        self._pid = pid
        self._number: Final = itertools.count(1).__next__
        self._segment: _Segment | None = None
        self._segments: set[_Segment] = set()
        # Not of the module threading: gevent may replace those later, and its locks belong to one thread's hub.
        self._opening = _thread.RLock()
        self._retiring = _thread.allocate_lock()
        self._again_at = 0.0
        self._has_failed = False
        self._has_warned = False
        self._warn_from = 0.0
        self._look_at = 0.0
        """When to look next whether the folder has room."""

    @property
    def works(self) -> bool:
        """Whether spans that are queued now would outlive this process."""
        return not self._has_failed

    # One function, because a call for each of the steps would take time.
    def write(  # noqa: C901
        self, scope: InstrumentationScope | None, span: bytes, more: Sequence[EncodedSpan] = ()
    ) -> int | None:
        """Append spans; return the number of their record, or None where they cannot be written. Never raises.

        Any thread and any signal handler may call this.

        Args:
            scope: Of the span.
            span: As it was encoded.
            more: Further spans, which are delivered or lost together with this one.
        """
        tries = _TRIES
        while tries:
            segment = self._segment
            if segment is None or segment.written >= SEGMENT_BYTES:
                segment = self._next(segment)
                if segment is None:
                    return None
            number = self._number()
            segment.open.add(number)
            if segment.is_closed:
                # Another thread has retired this file meanwhile, and the record would be removed with it.
                segment.open.discard(number)
                if segment is not self._segment:
                    self._retire_if_done(segment)
                tries -= 1
                continue
            try:
                of, before, checksum = segment.last_scope
                if of is not scope:
                    segment.last_scope = of, before, checksum = self._scope(segment, scope)
                for another_scope, another in more:
                    span += self._scope(segment, another_scope)[1][1:] + another
                # What journal_file.record() and self._write() do. A call of each would take time.
                size = len(span) + _BEFORE_SPAN
                checksum = _crc32(span, checksum) ^ number
                written = _write(
                    segment.file, _pack_head_and_scope(segment.mark, size, checksum, number, before) + span
                )
                segment.written += written
                if written == size + _HEAD_BYTES:
                    return number
                raise _not_whole()  # noqa: TRY301 - as where nothing was written
            except Exception as error:
                segment.open.discard(number)
                # In a process that was forked meanwhile, the file is closed, and these spans are its parent's.
                if segment in self._segments:
                    self._fail(error)
                return None
            except BaseException:
                # A signal handler has raised an exit. The spans stay in the queue, from which nobody could settle them.
                self.settle([(None, b"", number)])
                raise
        return None

    @staticmethod
    def _write(segment: _Segment, data: bytes) -> None:
        """Append one record.

        Raises:
            OSError: It was not written, or not all of it.
        """
        written = _write(segment.file, data)
        segment.written += written
        if written != len(data):
            raise _not_whole()

    def settle(self, spans: Iterable[QueuedSpan]) -> None:
        """Note that spans were delivered or lost, and remove the files that are not needed any more. Never raises."""
        # The spans of one record have the same number.
        numbers = set(map(_number_of, spans))
        numbers.discard(None)
        if not numbers:
            return
        for segment in list(self._segments):
            of_segment = segment.open & numbers
            if not of_segment:
                continue
            self._renew_if_gone(segment)
            if self._retire_if_done(segment, of_segment):
                continue
            # As long as the numbers are in `open`, no other thread closes the file.
            with suppress(OSError):
                self._write(segment, journal_file.settled_record(segment.mark, of_segment))
            segment.open.difference_update(of_segment)
            self._retire_if_done(segment)

    def close(self) -> None:
        """Remove the files whose spans are all settled. The others stay, and stay this process's until it ends."""
        for segment in list(self._segments):
            self._renew_if_gone(segment)
            self._retire(segment)

    def begin_another(self) -> None:
        """Let the next record begin another file, because the destination is another one now."""
        segment, self._segment = self._segment, None
        if segment is not None:
            self._retire_if_done(segment)

    def leave_to_parent(self) -> None:
        """Give the files up in a process that was forked; they are its parent's. Nothing more is written.

        The fork may have come in the middle of write(), which goes on here with a span that the parent writes as well.
        """
        self._again_at = math.inf
        self._has_failed = True
        self._segment = None
        segments, self._segments = self._segments, set()
        for segment in segments:
            segment.file = -1
            segment.is_closed = True
        self._spool.leave_to_parent()

    def _next(self, before: _Segment | None) -> _Segment | None:
        """Open the next file, unless another thread does or has done so. Where there is a file, no thread waits."""
        if time.monotonic() < self._again_at:
            return None
        # A full file takes more records. Where there is none, the calling thread waits for the one that makes it.
        is_usable = before is not None and not before.is_closed
        if not self._opening.acquire(timeout=0.0 if is_usable else _LONGEST_WAIT):
            return before if is_usable else None
        try:
            if self._segment is before:
                self._segment = self._open()
                if before is not None:
                    self._retire_if_done(before)
        except Exception as error:
            self._segment = None
            self._fail(error)
        finally:
            self._opening.release()
        return self._segment

    def _open(self) -> _Segment:
        if (now := time.monotonic()) >= self._look_at:
            # Not for each file: a folder may hold a thousand, and a request may be waiting for this.
            self._look_at = now + _BETWEEN_LOOKS
            self._make_room()
        mark = secrets.token_bytes(journal_file.MARK_BYTES)
        about = {"pid": self._pid, **self._destination().described()}
        data = journal_file.beginning(mark, about, *self._encoder.resource_fields)
        file, name = self._spool.create(data)
        if self._again_at == math.inf:
            # This process was forked meanwhile.
            self._spool.remove(name, file)
            raise InterruptedError(errno.EINTR, "a fork came in between")
        segment = _Segment(file, name, mark, len(data))
        self._segments.add(segment)
        self._has_failed = False
        if self._has_warned:
            self._has_warned = False
            log.info("the journal in %s is written again", self._spool.path)
        return segment

    def _make_room(self) -> None:
        """Delete the oldest files if the folder is full, and say so.

        Raises:
            OSError: The files of living processes take all the room.
        """
        deleted: list[int] = []
        try:
            self._spool.make_room(SEGMENT_BYTES, lambda file: deleted.append(len(contents_of(file))))
        finally:
            if deleted:
                log.warning(
                    "deleted %d spans in %d files that other processes left behind, because the folder %s is full; to "
                    "send such spans in time, type mackerel-otel-server flush as soon as the endpoint takes spans",
                    sum(deleted),
                    len(deleted),
                    self._spool.path,
                )

    def _scope(self, segment: _Segment, scope: Any) -> _Scope:
        """Return what stands before a span of this scope. The first one writes the scope into the file as well."""
        known = segment.scopes.get(id(scope))
        if known is None:
            number = segment.scope_number()
            self._write(segment, journal_file.scope_record(segment.mark, number, scope_fields(scope)))
            before = bytes((journal_file.SPANS,)) + journal_file.pack_scope_number(number)
            known = segment.scopes[id(scope)] = scope, before, _crc32(before)
        return known

    def _retire_if_done(self, segment: _Segment, numbers: AbstractSet[int] = frozenset()) -> bool:
        """Remove a file that takes no more records, or enough room, if all but these records in it are settled."""
        is_done = segment is not self._segment or segment.written >= _WORTH_REPLACING
        return is_done and segment.open <= numbers and self._retire(segment, numbers)

    def _retire(self, segment: _Segment, numbers: AbstractSet[int] = frozenset()) -> bool:
        """Remove a file, unless records other than these are open, or one is being added; return whether it is gone.

        A thread that writes adds its number first and looks at is_closed then; here it is the other way round. So one
        of the two sees what the other one does.
        """
        if not self._retiring.acquire(blocking=False):
            # Another thread does this for some file; this one is removed with its next record, or at the end.
            return False
        try:
            segment.is_closed = True
            if not segment.open <= numbers:
                if segment is self._segment:
                    segment.is_closed = False
                return False
            if segment is self._segment:
                self._segment = None
            if segment in self._segments:
                self._segments.remove(segment)
                file, segment.file = segment.file, -1
                self._spool.remove(segment.name, file)
            return True
        finally:
            self._retiring.release()

    def _renew_if_gone(self, segment: _Segment) -> None:
        """Let the next record open another file if this one cannot be used any more.

        Somebody may have removed it, and nobody could send what is in it then. Or the application has closed all
        descriptors, and this one is another file now, which is not ours to write to or to close.
        """
        with suppress(OSError):
            state = os.fstat(segment.file)
            if (state.st_dev, state.st_ino) == segment.identity:
                if state.st_nlink or segment is not self._segment:
                    return
            else:
                self._spool.forget(segment.file)
                self._segments.discard(segment)
                segment.file = -1
                segment.is_closed = True
        if segment is self._segment:
            self._segment = None

    def _fail(self, error: Exception) -> None:
        """Write nothing for a while, and say so once."""
        segment, self._segment = self._segment, None
        self._again_at = max(self._again_at, time.monotonic() + _BETWEEN_TRIES)
        if segment is not None:
            self._retire(segment)
        is_known = self._has_failed or time.monotonic() < self._warn_from
        self._has_failed = True
        write = log.debug
        if not is_known:
            write, self._has_warned = log.warning, True
            self._warn_from = time.monotonic() + _BETWEEN_WARNINGS
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        write(
            "the journal in %s cannot be written (%s): tracing goes on, but if this process is killed, its last spans "
            "are lost; mend that (it is tried again every %d s), or set MACKEREL_OTEL_SPOOL to another folder that "
            "user %d can write, or to none",
            self._spool.path,
            reason,
            _BETWEEN_TRIES,
            os.geteuid(),
        )


def _not_whole() -> OSError:
    """Return the error of a record of which the system has written only the beginning."""
    return OSError(errno.ENOSPC, "there is no room for a record, or files may not become so large")
