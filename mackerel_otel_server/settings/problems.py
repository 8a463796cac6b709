"""What the environment becomes where something is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TRACING_IS_OFF: Final = "tracing is off, the application serves without it"
"""What follows from every problem of a SettingsError."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with the settings, or is hardly wanted; no secret stands in it."""

    variable: str
    """The variable as it was typed, or ``instrument()``."""
    seen: str
    follows: str
    cure: str
    """What to type."""

    def __str__(self) -> str:
        """Word one problem for a log or a terminal."""
        return f"{self.seen}: {self.follows}; {self.cure}"


def worded(problems: Sequence[Problem]) -> str:
    """Word the problems of a SettingsError: the same follows from all of them, and is said once, at the beginning."""
    items = [f"{problem.seen}; {problem.cure}" for problem in problems]
    return f"{TRACING_IS_OFF}: " + (items[0] if len(items) == 1 else "".join(f"\n  - {item}" for item in items))


class SettingsError(Exception):
    """The settings cannot be used.

    Attributes:
        problems: All of them, in a fixed order.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(worded(problems))
        self.problems = problems
