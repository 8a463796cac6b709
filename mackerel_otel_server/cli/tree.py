"""Traces as trees of text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.text import encodable, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mackerel_otel_server.cli.spans import ReceivedSpan

_NAME_LIMIT = 120
_TEXT_LIMIT = 100


@dataclass(frozen=True)
class _Branches:
    tee: str
    corner: str
    bar: str


_UNICODE = _Branches("├─ ", "└─ ", "│  ")
_ASCII = _Branches("|- ", "`- ", "|  ")
_BLANK = "   "


@dataclass(frozen=True)
class _Node:
    """A span and what stands before it and before its children."""

    span: ReceivedSpan
    prefix: str = ""
    indent: str = ""
    orphan: bool = False
    parent: ReceivedSpan | None = None


def render(spans: Iterable[ReceivedSpan], *, encoding: str = "utf-8") -> Iterator[str]:
    """Draw each trace as a header and a tree, oldest first, with an empty line after each.

    Args:
        spans: Spans of any number of traces, in any order.
        encoding: What the output can carry; without box-drawing characters the branches are ASCII.

    Yields:
        Lines without line ends.
    """
    branches = _branches(encoding)
    traces: dict[str, list[ReceivedSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        traces.setdefault(span.trace_id, []).append(span)
    for trace in traces.values():
        nodes = list(_walk(trace, branches))
        durations = [f"{_milliseconds(node.span):.2f} ms" for node in nodes]
        width = max(map(len, durations))
        yield encodable(_header(nodes[0].span), encoding)
        for node, duration in zip(nodes, durations, strict=True):
            yield encodable(f"  {duration:>{width}}  {node.prefix}{_describe(node)}", encoding)
        yield ""


def _branches(encoding: str) -> _Branches:
    try:
        (_UNICODE.tee + _UNICODE.corner + _UNICODE.bar).encode(encoding)
    except UnicodeEncodeError:
        return _ASCII
    return _UNICODE


def _walk(trace: list[ReceivedSpan], branches: _Branches) -> Iterator[_Node]:
    known = {span.span_id for span in trace}
    children: dict[str, list[ReceivedSpan]] = {}
    roots: list[_Node] = []
    for span in trace:
        if span.parent_span_id in known:
            children.setdefault(span.parent_span_id, []).append(span)
        else:
            roots.append(_Node(span, orphan=bool(span.parent_span_id)))
    yield from _descend(roots, children, branches)
    # What is left hangs on itself in a circle. It is shown all the same.
    while children:
        first = children[next(iter(children))].pop(0)
        yield from _descend([_Node(first, orphan=True)], children, branches)
        children = {parent: rest for parent, rest in children.items() if rest}


def _descend(roots: list[_Node], children: dict[str, list[ReceivedSpan]], branches: _Branches) -> Iterator[_Node]:
    # A stack of its own: a trace may be deeper than Python's recursion limit.
    stack = roots[::-1]
    while stack:
        node = stack.pop()
        yield node
        # pop(): a span that arrived twice shows its children once.
        below = children.pop(node.span.span_id, [])
        for span in reversed(below):
            last = span is below[-1]
            branch, bar = (branches.corner, _BLANK) if last else (branches.tee, branches.bar)
            stack.append(_Node(span, node.indent + branch, node.indent + bar, parent=node.span))


def _header(root: ReceivedSpan) -> str:
    moment = datetime.fromtimestamp(root.start_time_unix_nano / 1e9, tz=timezone.utc).astimezone()
    return f"trace {root.trace_id}  {_process(root)}  {moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}"


def _process(span: ReceivedSpan) -> str:
    service = printable(span.resource.get("service.name", "unknown_service"))
    return f"{service}  pid {printable(span.resource.get('process.pid', '?'))}"


def _describe(node: _Node) -> str:
    span = node.span
    parts = [f"{span.kind} {one_line(_name(span), _NAME_LIMIT)}"]
    parts += _details(span)
    if span.status_code == "ERROR":
        parts.append("ERROR")
    exception = _exception(span)
    if exception or span.status_message:
        parts.append(exception or one_line(span.status_message, _TEXT_LIMIT))
    if node.orphan:
        parts.append("(parent not received)")
    if node.parent and _process(node.parent) != _process(span):
        parts.append(f"({_process(span)})")
    return "  ".join(parts)


def _name(span: ReceivedSpan) -> str:
    """Return the name; of a request without a route, whose name is the method alone, also the path."""
    path = span.attributes.get("url.path")
    is_bare = span.kind == "SERVER" and path and "http.route" not in span.attributes and "/" not in span.name
    return f"{span.name} {path}" if is_bare else span.name


def _details(span: ReceivedSpan) -> list[str]:
    if span.kind == "SERVER":
        return _first(span.attributes, "http.response.status_code", "http.status_code")
    return _first(span.attributes, "db.query.text", "db.statement")


def _first(attributes: dict[str, Any], *names: str) -> list[str]:
    """Return the first attribute that is there, newer name first, as a list of at most one."""
    return [one_line(attributes[name], _TEXT_LIMIT) for name in names if name in attributes][:1]


def _exception(span: ReceivedSpan) -> str:
    for event in reversed(span.events):
        if event.name == "exception":
            kind = event.attributes.get("exception.type", "exception")
            message = event.attributes.get("exception.message", "")
            return one_line(f"{kind}: {message}" if message else kind, _TEXT_LIMIT)
    return ""


def _milliseconds(span: ReceivedSpan) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
