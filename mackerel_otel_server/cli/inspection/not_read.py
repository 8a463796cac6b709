"""A server's configuration that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.cli.inspection.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping


class NotReadError(Exception):
    """A configuration cannot be read.

    Attributes:
        finding: Why, what follows, and what to type.
        changed: What it has done to variables before it stopped, None for one that it has removed.
        raw_env: What it was going to set in the workers. The words may hold secrets of both.
    """

    def __init__(self, seen: str, cure: str, follows: str = "the server does not start with it") -> None:
        super().__init__(seen)
        self.changed: Mapping[str, str | None] = {}
        self.raw_env: Mapping[str, str] = {}
        self.finding = Finding("FAIL", seen, follows, cure)
