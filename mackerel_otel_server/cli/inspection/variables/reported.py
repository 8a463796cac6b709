"""What settings itself reports, a sentence each, as findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def failures(problems: Iterable[str]) -> Iterator[Finding]:
    """Return what a server says at its start, and then serves without tracing."""
    for sentence in problems:
        seen, cure = _split(sentence)
        yield Finding("FAIL", seen, "tracing is off, and the application serves without it", cure)


def warnings(sentences: Iterable[str]) -> Iterator[Finding]:
    """Return what a server says at its start, and then traces."""
    for sentence in sentences:
        seen, cure = _split(sentence)
        if seen.startswith(catalogue.TIMEOUT.names):
            yield Finding("WARN", seen, "an endpoint that does not answer is waited for that long", cure)
        else:
            seen, _, follows = seen.partition(": ")
            yield Finding("WARN", seen, follows, cure)


def _split(sentence: str) -> tuple[str, str]:
    """Return what was seen, and what to type, which stands last."""
    for separator in ("; ", ": "):
        seen, found, cure = sentence.rpartition(separator)
        if found:
            return seen, cure
    return sentence, ""
