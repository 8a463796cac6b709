"""Waiting that a signal ends, but only where it may."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Seconds that a condition waits at most before it is asked again.
TICK = 0.05


@dataclass
class Watch:
    """Wait for things, unless a signal comes: the handler only makes a note, so that no cleanup is ever torn."""

    signals: list[int] = field(default_factory=list)

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.signals.append(number)

    def check(self) -> None:
        """Stop here if a signal came.

        Raises:
            KeyboardInterrupt: A signal came.
        """
        if self.signals:
            raise KeyboardInterrupt

    def until(self, condition: Callable[[], bool], seconds: float, what: str = "") -> bool:
        """Return whether ``condition`` has come true in time; it is asked often and may itself wait a moment.

        Args:
            condition: What is waited for.
            seconds: How long.
            what: What a terminal shows when it takes long.

        Raises:
            KeyboardInterrupt: A signal came.
        """
        deadline = time.monotonic() + seconds
        with progress(what) as tick:
            while not condition():
                self.check()
                tick()
                if time.monotonic() > deadline:
                    return False
        return True

    def until_signal(self) -> None:
        """Wait for a signal."""
        while not self.signals:
            time.sleep(TICK)
