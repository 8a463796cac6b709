"""Spans as the receiver makes them, with what a test leaves out filled in."""

from __future__ import annotations

from typing import Any

from mackerel_otel_server.cli.receiver.received_spans import ReceivedEvent, ReceivedSpan

MS = 1_000_000
SECOND = 1_000 * MS


def span(name: str, span_id: str, parent: str = "", **changes: Any) -> ReceivedSpan:
    values: dict[str, Any] = {
        "name": name,
        "kind": "INTERNAL",
        "trace_id": "t1",
        "span_id": span_id,
        "parent_span_id": parent,
        "start_time_unix_nano": 1_700_000_000 * SECOND,
        "end_time_unix_nano": 1_700_000_000 * SECOND + 2 * MS,
        "attributes": {},
        "resource": {"service.name": "shop", "process.pid": 42},
        "scope": "tests",
        "status_code": "UNSET",
        "status_message": "",
        "events": (),
    }
    values |= changes
    return ReceivedSpan(**values, size=len(repr(values)))


def at(milliseconds: int, duration: float = 1) -> dict[str, Any]:
    start = 1_700_000_000 * SECOND + milliseconds * MS
    return {"start_time_unix_nano": start, "end_time_unix_nano": start + int(duration * MS)}


def exception(kind: str, text: str) -> tuple[ReceivedEvent, ...]:
    return (ReceivedEvent("exception", 0, {"exception.type": kind, "exception.message": text}),)
