"""A server's configuration that cannot be read."""

from __future__ import annotations

from mackerel_otel_server.cli.inspection.findings import Finding


class NotReadError(Exception):
    """A configuration cannot be read.

    Attributes:
        finding: Why, what follows, and what to type.
    """

    def __init__(self, seen: str, cure: str, follows: str = "the server does not start with it") -> None:
        super().__init__(seen)
        self.finding = Finding("FAIL", seen, follows, cure)
