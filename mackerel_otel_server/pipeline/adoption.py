"""Files whose processes have ended: their spans are sent by exactly one other process of the same user.

The lock on a file makes a process its owner (see ``spool``). If the new owner is killed, too, the file is left to the
next one, with what was settled meanwhile.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.encoder import assemble
from mackerel_otel_server.pipeline.spool import DAY, SUFFIX
from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from mackerel_otel_server.pipeline.answer import Answer
    from mackerel_otel_server.pipeline.exporter import Exporter
    from mackerel_otel_server.pipeline.fingerprint import Destination
    from mackerel_otel_server.pipeline.journal_file import Contents
    from mackerel_otel_server.pipeline.spool import Spool

MOST_READ: Final = 16_000_000
"""Bytes of one file. A process ends its files long before."""
_BEING_MADE: Final = 60.0
"""Seconds after which a hidden file is one that nobody will rename any more."""


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
        self.contents: Final = _contents(file)
        self.delivered = 0
        self.lost: Counter[str] = Counter()
        self._under_way: list[int] = []

    def owner(self) -> str:
        """Return who has left the file, for the log."""
        return f"worker {self.contents.about.get('pid', '?')!s:.20}"

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
        self._under_way = numbers
        groups: dict[journal_file.Scope, list[bytes]] = {}
        for scope, data in spans:
            groups.setdefault(contents.scopes.get(scope, journal_file.NO_SCOPE), []).append(data)
        answer = exporter.export(assemble(contents.resource, contents.schema_url, groups), len(spans), deadline)
        if self._under_way is not numbers:
            # give_up() has settled them meanwhile.
            return answer
        left = len(spans) - answer.accepted - answer.rejected
        self.delivered += answer.accepted
        if answer.rejected:
            self.lost["rejected by the endpoint"] += answer.rejected
        if left and (answer.keep or answer.pause):
            # Nothing can be sent now. Whoever owns the file next tries again.
            self._under_way = []
            return answer
        if left:
            self.lost[answer.reason] += left
        self._settle(numbers)
        return answer

    def give_up(self) -> None:
        """Do not send the spans again that were sent and have no answer, because this process is about to end."""
        if self._under_way:
            self.lost["unconfirmed"] += sum(len(self.contents.spans.get(number, ())) for number in self._under_way)
            self._settle(self._under_way)

    def _settle(self, numbers: list[int]) -> None:
        self._under_way = []
        with suppress(OSError):
            os.write(self._file, journal_file.settled_record(self.contents.mark, numbers))
        for number in numbers:
            self.contents.spans.pop(number, None)

    def close(self) -> None:
        """Say what became of the spans, remove the file if none is left, and let go of it."""
        if not self.contents.spans:
            self._spool.remove(self.name)
        os.close(self._file)
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

    def next(self) -> LeftBehind | None:
        """Become the owner of the oldest file that this process may send; tidy up on the way. Never raises."""
        try:
            files = self._spool.files()
        except OSError:
            # The journal has said so, or the operator has none.
            return None
        for name, _, age in files:
            is_hidden = name.startswith(".")
            if (is_hidden and age < _BEING_MADE) or (not is_hidden and not name.endswith(SUFFIX)):
                continue
            file = self._spool.take(name)
            if file is None:
                continue
            left = LeftBehind(self._spool, name, file)
            if age > DAY:
                say_deleted(file, "the file is older than a day")
                left.contents.spans.clear()
            elif left.contents.is_foreign or (
                left.contents.spans and not self._destination().is_of(left.contents.about)
            ):
                os.close(file)
                continue
            elif left.contents.spans:
                return left
            left.close()
        return None


def _contents(file: int) -> Contents:
    """Read a file; return no spans where it is no journal, or one of another format."""
    data = b""
    try:
        data = os.pread(file, MOST_READ, 0)
        return journal_file.read(data)
    except (OSError, ValueError):
        # A process that is killed while it makes a file leaves an empty one.
        return journal_file.Contents(b"", is_foreign=bool(data))


def say_deleted(file: int, why: str) -> None:
    """Say which spans are lost with a file that is deleted."""
    contents = _contents(file)
    if contents.spans:
        log.warning(
            "deleted %d spans that worker %s left behind for %s, because %s; type mackerel-otel-server flush to send "
            "such files",
            len(contents),
            contents.about.get("pid", "?"),
            contents.about.get("endpoint", "?"),
            why,
        )
