"""Traces as the page gets them: a line for the list, and all of their spans for the waterfall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.receiver.attributes import exception, first, service, text_of
from mackerel_otel_server.cli.receiver.tree import full_name, walk
from mackerel_otel_server.cli.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mackerel_otel_server.cli.receiver.spans import ReceivedSpan
    from mackerel_otel_server.cli.receiver.traces import Trace
    from mackerel_otel_server.cli.receiver.tree import Node

# What the list can be searched for, of each trace.
_SEARCHED_CHARACTERS = 8_000
# Of one value. A stack trace is longer than a line, and a page that holds megabytes helps nobody.
_VALUE_CHARACTERS = 50_000
# What says more about a span than its name.
_HINTS = ("db.query.text", "db.statement", "url.full", "http.url")
_HINT_CHARACTERS = 300
_ERROR_CHARACTERS = 300


def summarise(trace: Trace) -> dict[str, Any]:
    """Return what the list shows of a trace and searches in it."""
    root = _root(trace.spans)
    errors = [span for span in trace.spans if span.status_code == "ERROR"]
    return {
        "id": trace.id,
        "number": trace.number,
        "version": trace.version,
        "name": root.name,
        "kind": root.kind,
        "method": first(root.attributes, "http.request.method", "http.method"),
        "route": first(root.attributes, "http.route", "url.path", "http.target"),
        "status": first(root.attributes, "http.response.status_code", "http.status_code"),
        "start": _start(trace.spans) / 1e6,
        "duration": max(span.end_time_unix_nano for span in trace.spans) - _start(trace.spans),
        "spans": len(trace.spans),
        "left_out": trace.left_out,
        "errors": len(errors),
        # What the request says of itself goes before what a child says, which may have been handled.
        "error": next(filter(None, map(_error, sorted(errors, key=lambda span: span is not root))), ""),
        "services": sorted({service(span.resource) for span in trace.spans}),
        "worker": _worker(root.resource),
        "text": "\n".join(_searched(trace)).lower(),
    }


def detail(trace: Trace) -> dict[str, Any]:
    """Return everything about a trace: parents before their children, times in nanoseconds from its start."""
    start = _start(trace.spans)
    resources: list[Mapping[str, Any]] = []
    spans = []
    for node in walk(sorted(trace.spans, key=lambda span: span.start_time_unix_nano)):
        span = node.span
        elsewhere = node.parent is not None and node.parent.resource != span.resource
        if span.resource not in resources:
            resources.append(span.resource)
        spans.append(
            {
                "id": span.span_id,
                "depth": node.depth,
                "orphan": node.orphan,
                "elsewhere": elsewhere,
                # What another host says to have begun before it was asked: its clock is behind by so much at least.
                "early": _early(node) if elsewhere else 0,
                "name": full_name(span),
                "hint": one_line(first(span.attributes, *_HINTS), _HINT_CHARACTERS),
                "kind": span.kind,
                "scope": span.scope,
                "offset": span.start_time_unix_nano - start,
                "duration": span.end_time_unix_nano - span.start_time_unix_nano,
                "status": span.status_code,
                "message": span.status_message,
                "attributes": _pairs(span.attributes),
                "events": [
                    {
                        "name": event.name,
                        "offset": event.time_unix_nano - start,
                        "attributes": _pairs(event.attributes),
                    }
                    for event in span.events
                ],
                "links": [
                    {"trace": link.trace_id, "span": link.span_id, "attributes": _pairs(link.attributes)}
                    for link in span.links
                ],
                "resource": resources.index(span.resource),
            }
        )
    return {
        "spans_kept": len(spans),
        "spans": spans,
        "resources": [{"worker": _worker(found), "attributes": _pairs(found)} for found in resources],
    }


def _root(spans: Iterable[ReceivedSpan]) -> ReceivedSpan:
    """Return the span without a parent; of a trace that began elsewhere, the one that began first here."""
    nodes = list(walk(sorted(spans, key=lambda span: span.start_time_unix_nano)))
    return next((node.span for node in nodes if not node.depth and not node.orphan), nodes[0].span)


def _start(spans: Iterable[ReceivedSpan]) -> int:
    return min(span.start_time_unix_nano for span in spans)


def _early(node: Node) -> int:
    return max(0, node.parent.start_time_unix_nano - node.span.start_time_unix_nano) if node.parent else 0


def _worker(resource: Mapping[str, Any]) -> dict[str, str]:
    return {
        "service": service(resource),
        "host": first(resource, "host.name"),
        "pid": first(resource, "process.pid"),
        "instance": first(resource, "service.instance.id"),
    }


def _error(span: ReceivedSpan) -> str:
    return (exception(span) or span.status_message)[:_ERROR_CHARACTERS]


def _pairs(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _cut(text_of(value))) for name, value in sorted(attributes.items())]


def _cut(text: str) -> str:
    if len(text) <= _VALUE_CHARACTERS:
        return text
    return f"{text[:_VALUE_CHARACTERS]}... ({len(text) - _VALUE_CHARACTERS} more characters)"


def _searched(trace: Trace) -> Iterator[str]:
    room = _SEARCHED_CHARACTERS
    seen = set()
    for text in _texts(trace):
        if text not in seen and room > 0:
            seen.add(text)
            yield text[:room]
            room -= len(text)


def _texts(trace: Trace) -> Iterator[str]:
    yield trace.id
    for span in trace.spans:
        yield span.name
        yield from (service(span.resource), *_worker(span.resource).values())
        yield _error(span)
    for span in trace.spans:
        yield from map(text_of, span.attributes.values())
