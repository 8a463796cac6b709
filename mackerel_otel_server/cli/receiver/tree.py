"""Traces as trees of text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mackerel_otel_server.cli import output
from mackerel_otel_server.cli.receiver import attributes_as_text
from mackerel_otel_server.cli.text import Part, columns, encodable, fitted, one_line, took

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

_TEXT_LIMIT = 100
# A terminal with fewer columns has no room for the kind of each span and today's date.
_NARROW = 40
# Columns that a span's line needs beside its branches.
_NEEDED = 24
# Levels whose branches are drawn: those of a thousand spans, each below the other, would be half a million.
_DEEPEST = 50
# Before a span that has siblings below, before the last one, and before what is below the former.
_UNICODE = ("├─ ", "└─ ", "│  ")
_ASCII = ("|- ", "`- ", "|  ")
_BLANK = "   "
_LEFT_OUT = ".. "
_STATUS_STYLES = {"2": "green", "3": "cyan", "4": "yellow", "5": "red"}


@dataclass(frozen=True)
class Node:
    """A span and what stands before it and before its children."""

    span: ReceivedSpan
    prefix: str = ""
    indent: str = ""
    orphan: bool = False
    parent: ReceivedSpan | None = None
    depth: int = 0


def show(spans: Iterable[ReceivedSpan], *, indent: str = "", full: bool = False) -> None:
    """Print traces to standard output: in a terminal in colour and, unless all is to be seen, no wider than it is."""
    width = None if full else output.width()
    limit = None if width is None else width - len(indent)
    for line in render(spans, encoding=output.stdout_encoding(), limit=limit, full=full):
        output.say(f"{indent}{line}" if line else "")


def render(
    spans: Iterable[ReceivedSpan], *, encoding: str = "utf-8", limit: int | None = None, full: bool = False
) -> Iterator[str]:
    """Draw each trace as a header and a tree, oldest first, with an empty line after each.

    Args:
        spans: Spans of any number of traces, in any order.
        encoding: What the output can carry; without box-drawing characters the branches are ASCII.
        limit: Columns that a line may have at most; None for any number.
        full: Whether names, queries and the like are drawn whole, however long they are.
    """
    traces: dict[str, list[ReceivedSpan]] = {}
    micro = "µ" if encodable("µ", encoding) == "µ" else "u"
    branches = _UNICODE if encodable("├└─│", encoding) == "├└─│" else _ASCII
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        traces.setdefault(span.trace_id, []).append(span)
    for trace in traces.values():
        for line in _lines(list(walk(trace, branches)), limit, micro, full):
            parts = [Part(encodable(part.text, encoding), part.styles) for part in line]
            yield "".join(output.paint(part.text, *part.styles) for part in fitted(parts, limit))
        yield ""


def _lines(nodes: list[Node], limit: int | None, micro: str, full: bool) -> Iterator[list[Part]]:
    longest = None if full else _TEXT_LIMIT
    narrow = limit is not None and limit < _NARROW
    yield from _wrapped(_header(nodes[0].span, narrow, longest), limit)
    durations = [took(node.span.end_time_unix_nano - node.span.start_time_unix_nano, micro=micro) for node in nodes]
    width = max(map(len, durations))
    for node, duration in zip(nodes, durations, strict=True):
        branches = Part(_shortened(node.prefix, limit), ("dim",))
        yield [Part(f"  {duration:>{width}}  ", ("dim",)), branches, *_spaced(_describe(node, narrow, longest))]


def _wrapped(fields: list[Part], limit: int | None) -> Iterator[list[Part]]:
    line: list[Part] = []
    for field in fields:
        longer = [*line, field]
        if line and limit is not None and sum(columns(part.text) for part in _spaced(longer)) > limit:
            yield _spaced(line)
            longer = [Part(""), field]
        line = longer
    yield _spaced(line)


def _spaced(fields: list[Part]) -> list[Part]:
    return [part for field in fields for part in (Part("  "), field)][1:]


def _shortened(prefix: str, limit: int | None) -> str:
    """Return the branches next to a span when all of them would leave no room for its name."""
    levels = len(prefix) // len(_BLANK)
    most = levels if limit is None else max(1, (limit - _NEEDED) // 2 // len(_BLANK))
    return prefix if levels <= most else f"{_LEFT_OUT}{prefix[-(most - 1) * len(_BLANK) :] if most > 1 else ''}"


def walk(trace: Iterable[ReceivedSpan], branches: Sequence[str] = _UNICODE) -> Iterator[Node]:
    """Visit the spans of one trace, each once and before its children; siblings keep their order."""
    trace = list(trace)
    known = {span.span_id for span in trace}
    children: dict[str, list[ReceivedSpan]] = {}
    roots: list[Node] = []
    for span in trace:
        if span.parent_span_id in known and span.parent_span_id != span.span_id:
            children.setdefault(span.parent_span_id, []).append(span)
        else:
            roots.append(Node(span, orphan=bool(span.parent_span_id)))
    yield from _descend(roots, children, branches)
    # The spans that are left form circles. They are shown all the same.
    while children:
        around = children.pop(next(iter(children)))
        yield from _descend([Node(span, orphan=True) for span in around], children, branches)


def _descend(roots: list[Node], children: dict[str, list[ReceivedSpan]], branches: Sequence[str]) -> Iterator[Node]:
    tee, corner, line = branches
    # A stack of its own: a trace may be deeper than Python's recursion limit.
    stack = roots[::-1]
    while stack:
        node = stack.pop()
        yield node
        # pop(): a span that arrived twice shows its children once.
        below = children.pop(node.span.span_id, [])
        indent = node.indent if node.depth < _DEEPEST else f"{_LEFT_OUT}{node.indent[2 * len(_BLANK) :]}"
        for span in reversed(below):
            last = span is below[-1]
            branch, bar = (corner, _BLANK) if last else (tee, line)
            stack.append(Node(span, indent + branch, indent + bar, parent=node.span, depth=node.depth + 1))


def _header(root: ReceivedSpan, narrow: bool, longest: int | None) -> list[Part]:
    moment = datetime.fromtimestamp(root.start_time_unix_nano / 1e9, tz=timezone.utc).astimezone()
    day = "" if narrow else f"{moment:%Y-%m-%d} "
    service, pid = _process(root, longest)
    return [
        Part(f"trace {root.trace_id}", ("dim",)),
        Part(service, ("bold", "blue")),
        Part(pid),
        Part(f"{day}{moment:%H:%M:%S}.{moment.microsecond // 1000:03}", ("dim",)),
    ]


def _process(span: ReceivedSpan, longest: int | None) -> tuple[str, str]:
    """Return the names of its service and its process."""
    pid = attributes_as_text.first(span.resource, "process.pid") or "?"
    return one_line(attributes_as_text.service(span.resource), longest), f"pid {one_line(pid, longest)}"


def _describe(node: Node, narrow: bool, longest: int | None) -> list[Part]:
    span = node.span
    error = ("red",) if span.status_code == "ERROR" else ()
    emphasis = ("bold",) if span.kind == "SERVER" else ()
    kind = "" if narrow else f"{span.kind} "
    name = Part(f"{kind}{one_line(full_name(span), longest)}", emphasis + error)
    status = query = ""
    if span.kind == "SERVER":
        status = attributes_as_text.first(span.attributes, "http.response.status_code", "http.status_code")
    else:
        query = attributes_as_text.first(span.attributes, "db.query.text", "db.statement")
    parts = [
        Part(one_line(status, longest), (_STATUS_STYLES.get(status[:1], "dim"),)),
        Part("ERROR" if error else "", ("bold", *error)),
        Part(one_line(attributes_as_text.exception(span) or span.status_message, longest), error),
        # The query comes last of what the span says, because a narrow terminal cuts the end of a line.
        Part(one_line(query, longest), ("cyan",)),
        Part("(parent not received)" if node.orphan else "", ("yellow",)),
    ]
    if node.parent and node.parent.resource is not span.resource:
        process = _process(span, longest)
        if process != _process(node.parent, longest):
            parts.append(Part(f"({'  '.join(process)})", ("blue",)))
    return [name, *(part for part in parts if part.text)]


def full_name(span: ReceivedSpan) -> str:
    """Return the name; of a request without a route, whose name is the method alone, also the path."""
    path = attributes_as_text.first(span.attributes, "url.path")
    is_bare = span.kind == "SERVER" and path and "http.route" not in span.attributes and "/" not in span.name
    return f"{span.name} {path}" if is_bare else span.name
