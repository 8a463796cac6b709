"""One log line per cause and minute, with a count of those that were held back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Hashable

_SECONDS_BETWEEN: Final = 60.0


class Complaints:
    """Say what goes wrong, seldom enough, and once when it is over."""

    def __init__(self) -> None:
        self._silent_until: dict[Hashable, float] = {}
        self._held_back: dict[Hashable, int] = {}
        self._unresolved = False

    def complain(self, cause: Hashable, words: str) -> None:
        """Log a warning, unless one of this cause was logged less than a minute ago."""
        now = time.monotonic()
        if now < self._silent_until.get(cause, 0.0):
            self._held_back[cause] = self._held_back.get(cause, 0) + 1
            return
        self._silent_until[cause] = now + _SECONDS_BETWEEN
        self._unresolved = True
        held_back = self._held_back.pop(cause, 0)
        log.warning("%s%s", words, f" (and {held_back} times more since this was last said)" if held_back else "")

    def resolve(self, words: str) -> None:
        """Log that it is over, if anything was said that is."""
        if self._unresolved:
            self._unresolved = False
            log.info("%s", words)
