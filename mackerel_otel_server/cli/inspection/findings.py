"""What ``check`` says about one thing that it has looked at."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mackerel_otel_server.settings import Problem


@dataclass(frozen=True)
class Finding:
    """One finding: what was seen, what follows from it, and what to type."""

    level: Literal["FAIL", "WARN", "OK"]
    seen: str
    follows: str = ""
    cure: str = ""
    variable: str = ""
    """The variable that has the problem, where settings has found it."""

    @classmethod
    def of(cls, problem: Problem, level: Literal["FAIL", "WARN"]) -> Finding:
        """Make a finding of a problem that the settings have found."""
        return cls(level, problem.seen, problem.follows, problem.cure, problem.variable)


fail: Final = functools.partial(Finding, "FAIL")
"""Make a finding about what loses spans."""
warn: Final = functools.partial(Finding, "WARN")
"""Make a finding about what the user hardly wants."""
ok: Final = functools.partial(Finding, "OK")
"""Make a finding about what is well."""


class NotReadError(Exception):
    """A server's configuration cannot be read.

    Attributes:
        finding: Why it cannot be read, what follows, and what to type.
        changed: What the configuration had done to variables before it stopped; None for one that it has removed.
        raw_env: What it was going to set in the workers. The finding's words may hold secrets of both.
    """

    def __init__(self, seen: str, cure: str, follows: str = "the server does not start with it") -> None:
        super().__init__(seen)
        self.changed: Mapping[str, str | None] = {}
        self.raw_env: Mapping[str, str] = {}
        self.finding = fail(seen, follows, cure)
