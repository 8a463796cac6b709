"""What a look at an installation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One finding: what was seen, what follows from it, and what to type."""

    level: Literal["FAIL", "WARN", "OK"]
    seen: str
    follows: str = ""
    cure: str = ""
