"""Traces as the page gets them: a line for the list, and all of their spans for the waterfall."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.receiver.attributes_as_text import exception, first, jsonable, service, text_of
from mackerel_otel_server.cli.receiver.tree import full_name, walk
from mackerel_otel_server.cli.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan
    from mackerel_otel_server.cli.receiver.traces import Trace

# Characters of each trace that the list's search looks at.
_SEARCHED_CHARACTERS = 8_000
# Attributes that say more about a span than its name.
_HINTS = ("db.query.text", "db.statement", "url.full", "http.url")
# Characters of a text in the list, and of a hint.
_LINE_CHARACTERS = 300
# Services of one trace. The list offers those of all traces for choice.
_MOST_SERVICES = 30


def summarise(trace: Trace) -> dict[str, Any]:
    """Return what the list shows of a trace and searches in it."""
    start = min(span.start_time_unix_nano for span in trace.spans)
    nodes = list(walk(sorted(trace.spans, key=lambda span: span.start_time_unix_nano)))
    # The span without a parent; of a trace that began elsewhere, the one that began first here.
    root = next((node.span for node in nodes if not node.depth and not node.orphan), nodes[0].span)
    errors = [span for span in trace.spans if span.status_code == "ERROR"]
    return {
        "id": trace.id,
        "number": trace.number,
        "version": trace.version,
        "name": root.name[:_LINE_CHARACTERS],
        "kind": root.kind,
        "method": _first(root.attributes, "http.request.method", "http.method"),
        "route": _first(root.attributes, "http.route", "url.path", "http.target"),
        "status": _first(root.attributes, "http.response.status_code", "http.status_code"),
        "start": start / 1e6,
        "duration": max(span.end_time_unix_nano for span in trace.spans) - start,
        "spans": len(trace.spans),
        "left_out": trace.left_out,
        "errors": len(errors),
        # What the request says of itself goes before what a child says, which may have been handled.
        "error": next(filter(None, map(_error, sorted(errors, key=lambda span: span is not root))), ""),
        "services": sorted({_service(span.resource) for span in trace.spans})[:_MOST_SERVICES],
        "worker": _worker(root.resource),
        "text": "\n".join(_searched(trace)).lower(),
    }


def detail(trace: Trace) -> dict[str, Any]:
    """Return everything about a trace: parents before their children, times in nanoseconds from its start."""
    start = min(span.start_time_unix_nano for span in trace.spans)
    spans = []
    # Each resource of the trace once: many requests bring the same one.
    resources: dict[str, Mapping[str, Any]] = {}
    places: dict[int, int] = {}

    def place_of(resource: Mapping[str, Any]) -> int:
        if id(resource) not in places:
            text = json.dumps(jsonable(resource), sort_keys=True)
            resources.setdefault(text, resource)
            places[id(resource)] = [*resources].index(text)
        return places[id(resource)]

    for node in walk(sorted(trace.spans, key=lambda span: span.start_time_unix_nano)):
        span = node.span
        place = place_of(span.resource)
        parent = node.parent if node.parent and place_of(node.parent.resource) != place else None
        spans.append(
            {
                "id": span.span_id,
                "depth": node.depth,
                "orphan": node.orphan,
                "elsewhere": parent is not None,
                # A span of another host may begin before its parent: that host's clock is behind by so much at least.
                "early": max(0, parent.start_time_unix_nano - span.start_time_unix_nano) if parent else 0,
                "name": full_name(span),
                "hint": one_line(first(span.attributes, *_HINTS), _LINE_CHARACTERS),
                "kind": span.kind,
                "scope": span.scope,
                "offset": span.start_time_unix_nano - start,
                "duration": span.end_time_unix_nano - span.start_time_unix_nano,
                "status": span.status_code,
                "message": span.status_message,
                "attributes": _pairs(span.attributes),
                "events": [
                    {"name": event.name, "offset": event.time_unix_nano - start, "attributes": _pairs(event.attributes)}
                    for event in span.events
                ],
                "links": [
                    {"trace": link.trace_id, "span": link.span_id, "attributes": _pairs(link.attributes)}
                    for link in span.links
                ],
                "resource": place,
            }
        )
    return {
        "spans_kept": len(spans),
        "spans": spans,
        "resources": [{"worker": _worker(found), "attributes": _pairs(found)} for found in resources.values()],
    }


def _worker(resource: Mapping[str, Any]) -> dict[str, str]:
    return {
        "service": _service(resource),
        "host": _first(resource, "host.name"),
        "pid": _first(resource, "process.pid"),
        "instance": _first(resource, "service.instance.id"),
    }


def _service(resource: Mapping[str, Any]) -> str:
    return service(resource)[:_LINE_CHARACTERS]


def _first(attributes: Mapping[str, Any], *names: str) -> str:
    return first(attributes, *names)[:_LINE_CHARACTERS]


def _error(span: ReceivedSpan) -> str:
    return (exception(span) or span.status_message)[:_LINE_CHARACTERS]


def _pairs(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, text_of(value)) for name, value in sorted(attributes.items())]


def _searched(trace: Trace) -> Iterator[str]:
    room = _SEARCHED_CHARACTERS
    seen = set()
    for text in _texts(trace):
        if text not in seen:
            seen.add(text)
            yield text[:room]
            room -= len(text)
            if room <= 0:
                break


def _texts(trace: Trace) -> Iterator[str]:
    yield trace.id
    for span in trace.spans:
        yield span.name
        yield from (_service(span.resource), *_worker(span.resource).values())
        yield _error(span)
    for span in trace.spans:
        yield from map(text_of, span.attributes.values())
