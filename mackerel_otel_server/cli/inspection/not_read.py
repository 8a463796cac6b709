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
        variables: What the configuration sets, whose secrets the words may hold.
    """

    def __init__(
        self,
        seen: str,
        cure: str,
        follows: str = "the server does not start with it",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(seen)
        self.variables = variables or {}
        self.finding = Finding("FAIL", seen, follows, cure)
