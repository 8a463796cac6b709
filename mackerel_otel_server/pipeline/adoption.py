"""Files whose processes have ended: their spans are sent by exactly one other process of the same user.

The lock on a file makes a process its owner (see ``spool``). If the new owner is killed, too, the file is left to the
next one, with what was settled meanwhile.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.answer import PROBE_SECONDS, Cause
from mackerel_otel_server.pipeline.encoder import assemble
from mackerel_otel_server.pipeline.spool import DAY, FOLDER_BYTES
from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from mackerel_otel_server.pipeline.answer import Answer
    from mackerel_otel_server.pipeline.exporter import Exporter
    from mackerel_otel_server.pipeline.fingerprint import Destination
    from mackerel_otel_server.pipeline.journal_file import Contents
    from mackerel_otel_server.pipeline.spool import Left, Spool

MOST_READ: Final = FOLDER_BYTES
"""Bytes of one file. A process ends its files long before."""
_LOST_IN_ANY_CASE: Final = frozenset({Cause.TOO_LARGE, Cause.PARTIAL})
"""Another attempt would get the same answer."""
_BEING_MADE: Final = 5.0
"""Seconds after which a hidden file is one whose process has ended, in all likelihood. A process that only was slow
makes another file, see Spool.create()."""


def is_kept(answer: Answer) -> bool:
    """Tell whether spans that were not taken stay in their file: whether another attempt may get another answer.

    A worker drops its own spans that are refused, because others follow. Those of a file may wait for the end of a
    deployment, at which a proxy answers 404, say.
    """
    return not answer.accepted and not answer.unconfirmed and answer.cause not in _LOST_IN_ANY_CASE


class LeftBehind:
    """A file of a process that has ended, and that this process owns now. Close it in any case.

    Attributes:
        name: Of the file.
        contents: What is left of it; no spans where the file cannot be read.
        delivered: Spans.
        lost: Spans, by reason.
    """

    def __init__(self, spool: Spool, name: str, file: int) -> None:
        self.name: Final = name
        self._spool = spool
        self._file = file
        self.contents: Final = contents_of(file)
        self.delivered = 0
        self.lost: Counter[str] = Counter()
        self._under_way: list[list[int]] = []
        """The numbers of the records of the batch that is sent at present. Whoever takes them out settles them."""
        self._is_given_up = False

    def owner(self) -> str:
        """Return who has left the file, for the log."""
        return _owner(self.contents)

    def send_batch(self, exporter: Exporter, size: int, most_bytes: int, deadline: float) -> Answer | None:
        """Send the next spans; return what became of them, or None where nothing is left.

        Args:
            exporter: Sends.
            size: How many spans a batch has at most. A record is never split.
            most_bytes: How many bytes it has at most.
            deadline: See Exporter.export().
        """
        contents = self.contents
        numbers: list[int] = []
        spans: list[tuple[int, bytes]] = []
        taken = 0
        for number, record in sorted(contents.spans.items()):
            length = sum(len(data) for _, data in record)
            if numbers and (len(spans) + len(record) > size or taken + length > most_bytes):
                break
            numbers.append(number)
            spans += record
            taken += length
        if not numbers:
            return None
        self._under_way.append(numbers)
        groups: dict[journal_file.Scope, list[bytes]] = {}
        for scope, data in spans:
            groups.setdefault(contents.scopes.get(scope, journal_file.NO_SCOPE), []).append(data)
        answer = exporter.export(assemble(contents.resource, contents.schema_url, groups), len(spans), deadline)
        try:
            self._under_way.pop()
        except IndexError:
            # give_up() has settled them meanwhile, and has let go of the file.
            self._is_given_up = True
            return answer
        finally:
            exporter.conclude()
        left = len(spans) - answer.accepted - answer.rejected
        self.delivered += answer.accepted
        if answer.rejected:
            self.lost["rejected by the endpoint"] += answer.rejected
        if left and is_kept(answer):
            # Whoever owns the file next tries again.
            return answer
        if left:
            self.lost[answer.reason] += left
        self._settle(numbers)
        return answer

    def give_up(self) -> None:
        """Do not send the spans again that were sent and have no answer, because this process is about to end.

        The thread that has sent them may go on meanwhile, or wait for the answer for ever.
        """
        try:
            numbers = self._under_way.pop()
        except IndexError:
            return
        self.lost["unconfirmed"] += sum(len(self.contents.spans.get(number, ())) for number in numbers)
        self._settle(numbers)
        self._let_go()

    def _settle(self, numbers: list[int]) -> None:
        with suppress(OSError):
            os.write(self._file, journal_file.settled_record(self.contents.mark, numbers))
        for number in numbers:
            self.contents.spans.pop(number, None)

    def close(self) -> None:
        """Say what became of the spans, remove the file if none is left, and let go of it."""
        if not self._is_given_up:
            self._let_go()

    def _let_go(self) -> None:
        if self.contents.spans:
            self._spool.release(self._file)
        else:
            self._spool.remove(self.name, self._file)
        if self.delivered:
            log.info("delivered %d spans that %s left behind", self.delivered, self.owner())
        if self.lost:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.lost.items())
            log.warning("lost %d spans that %s left behind (%s)", sum(self.lost.values()), self.owner(), reasons)


class Adopter:
    """Looks for files that can be sent.

    Args:
        spool: The folder.
        destination: Tells where this process sends to at present. Spans that were to go elsewhere stay.
    """

    def __init__(self, spool: Spool, destination: Callable[[], Destination]) -> None:
        self._spool = spool
        self._destination = destination
        self._found: deque[Left] = deque()
        """The files of the last look that were not tried yet."""
        self._others: dict[str, dict[str, Any]] = {}
        """What the files that must stay say about themselves, by name, so that they are not read again each time."""
        self._not_before: dict[str, float] = {}
        """When a file whose spans were refused may be tried again."""

    def put_off(self, left: LeftBehind) -> None:
        """Try others first: the spans of this file were refused."""
        self._not_before[left.name] = time.monotonic() + PROBE_SECONDS

    def next(self) -> LeftBehind | None:
        """Become the owner of the oldest file that this process may send; tidy up on the way. Never raises."""
        if not self._found:
            self._look()
        while self._found:
            if (left := self._take(self._found.popleft())) is not None:
                return left
        return None

    def _look(self) -> None:
        """Find the files, the oldest first. The folder is listed once for all of them, since it may have a thousand."""
        try:
            self._found.extend(self._spool.files())
        except OSError:
            # The folder cannot be used, which the journal says at its first span.
            return
        names = {file.name for file in self._found}
        self._others = {name: about for name, about in self._others.items() if name in names}
        self._not_before = {name: at for name, at in self._not_before.items() if name in names}

    def _take(self, found: Left) -> LeftBehind | None:
        """Become the owner of a file if this process may send it."""
        name, age = found.name, found.age
        is_hidden = name.startswith(".")
        # The clock may have been set back since. Then nobody can know how old the file is.
        is_old = abs(age) > DAY
        if (is_hidden and abs(age) < _BEING_MADE) or time.monotonic() < self._not_before.get(name, 0.0):
            return None
        destination = self._destination()
        if not is_old and (about := self._others.get(name)) is not None and not destination.is_of(about):
            return None
        file = self._spool.take(name)
        if file is None:
            return None
        left = LeftBehind(self._spool, name, file)
        contents = left.contents
        can_be_sent = not contents.is_foreign and (not contents.spans or destination.is_of(contents.about))
        if age > DAY or (is_old and not can_be_sent):
            _say_old(contents)
            contents.spans.clear()
        elif not can_be_sent and not (is_hidden and contents.is_foreign):
            self._others[name] = contents.about
            self._spool.release(file)
            return None
        elif contents.spans:
            return left
        left.close()
        return None


def contents_of(file: int) -> Contents:
    """Read a file; return no spans where it is no journal, or one of another format."""
    data = b""
    try:
        data = os.pread(file, min(os.fstat(file).st_size, MOST_READ), 0)
        return journal_file.read(data)
    except (OSError, ValueError):
        # A process that is killed while it makes a file leaves an empty one.
        return journal_file.Contents(b"", is_foreign=bool(data))


def _owner(contents: Contents) -> str:
    return f"worker {contents.about.get('pid', '?')!s:.20}"


def _say_old(contents: Contents) -> None:
    """Say which spans are lost with a file that is deleted because of its age."""
    if contents.spans:
        log.warning(
            "deleted %d spans that %s left behind for %.200s, because the file is older than a day; to send such spans "
            "in time, type mackerel-otel-server flush",
            len(contents),
            _owner(contents),
            contents.about.get("endpoint", "?"),
        )
    elif contents.is_foreign:
        log.warning("deleted a journal that cannot be read, because it is older than a day")
