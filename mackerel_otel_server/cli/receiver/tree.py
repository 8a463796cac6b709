"""Traces as trees of text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mackerel_otel_server.cli import style
from mackerel_otel_server.cli.receiver import attributes
from mackerel_otel_server.cli.receiver.durations import took
from mackerel_otel_server.cli.style import Part
from mackerel_otel_server.cli.text import encodable, one_line, printable, say, stdout_encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mackerel_otel_server.cli.receiver.spans import ReceivedSpan

_NAME_LIMIT = 120
_TEXT_LIMIT = 100
# A terminal with fewer columns has no room for the kind of each span and today's date.
_NARROW = 40
# What a span's line needs beside its branches.
_NEEDED = 24


@dataclass(frozen=True)
class _Branches:
    tee: str
    corner: str
    bar: str


_UNICODE = _Branches("├─ ", "└─ ", "│  ")
_ASCII = _Branches("|- ", "`- ", "|  ")
_BLANK = "   "


@dataclass(frozen=True)
class Node:
    """A span and what stands before it and before its children."""

    span: ReceivedSpan
    prefix: str = ""
    indent: str = ""
    orphan: bool = False
    parent: ReceivedSpan | None = None

    @property
    def depth(self) -> int:
        """How many ancestors it has."""
        return len(self.indent) // len(_BLANK)


def show(spans: Iterable[ReceivedSpan], *, indent: str = "") -> None:
    """Print traces to standard output: in a terminal in colour and no wider than it is."""
    columns = style.width()
    limit = None if columns is None else columns - len(indent)
    for line in render(spans, encoding=stdout_encoding(), limit=limit):
        say(f"{indent}{line}" if line else "")


def render(spans: Iterable[ReceivedSpan], *, encoding: str = "utf-8", limit: int | None = None) -> Iterator[str]:
    """Draw each trace as a header and a tree, oldest first, with an empty line after each.

    Args:
        spans: Spans of any number of traces, in any order.
        encoding: What the output can carry; without box-drawing characters the branches are ASCII.
        limit: Columns that a line may have at most; None for any number.

    Yields:
        Lines without line ends, with colours where standard output is a terminal that wants them.
    """
    traces: dict[str, list[ReceivedSpan]] = {}
    micro = "µ" if encodable("µ", encoding) == "µ" else "u"
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        traces.setdefault(span.trace_id, []).append(span)
    for trace in traces.values():
        for line in _lines(list(walk(trace, encoding)), limit, micro):
            parts = [Part(encodable(part.text, encoding), part.styles) for part in line]
            yield style.paint_parts(style.fitted(parts, limit))
        yield ""


def _lines(nodes: list[Node], limit: int | None, micro: str) -> Iterator[list[Part]]:
    yield from _wrapped(_header(nodes[0].span, limit), limit)
    durations = [took(node.span.end_time_unix_nano - node.span.start_time_unix_nano, micro=micro) for node in nodes]
    width = max(map(len, durations))
    for node, duration in zip(nodes, durations, strict=True):
        branches = Part(_shortened(node.prefix, limit), ("dim",))
        yield [Part(f"  {duration:>{width}}  ", ("dim",)), branches, *_spaced(_describe(node, limit))]


def _wrapped(fields: list[Part], limit: int | None) -> Iterator[list[Part]]:
    line: list[Part] = []
    for field in fields:
        longer = [*line, field]
        if line and limit is not None and sum(style.columns(part.text) for part in _spaced(longer)) > limit:
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
    return prefix if levels <= most else f".. {prefix[-(most - 1) * len(_BLANK) :] if most > 1 else ''}"


def _is_narrow(limit: int | None) -> bool:
    return limit is not None and limit < _NARROW


def _branches(encoding: str) -> _Branches:
    try:
        (_UNICODE.tee + _UNICODE.corner + _UNICODE.bar).encode(encoding)
    except UnicodeEncodeError:
        return _ASCII
    return _UNICODE


def walk(trace: Iterable[ReceivedSpan], encoding: str = "utf-8") -> Iterator[Node]:
    """Visit the spans of one trace, each once and before its children; siblings keep their order."""
    branches = _branches(encoding)
    trace = list(trace)
    known = {span.span_id for span in trace}
    children: dict[str, list[ReceivedSpan]] = {}
    roots: list[Node] = []
    for span in trace:
        if span.parent_span_id in known:
            children.setdefault(span.parent_span_id, []).append(span)
        else:
            roots.append(Node(span, orphan=bool(span.parent_span_id)))
    yield from _descend(roots, children, branches)
    # What is left hangs on itself in a circle. It is shown all the same.
    while children:
        first = children[next(iter(children))].pop(0)
        yield from _descend([Node(first, orphan=True)], children, branches)
        children = {parent: rest for parent, rest in children.items() if rest}


def _descend(roots: list[Node], children: dict[str, list[ReceivedSpan]], branches: _Branches) -> Iterator[Node]:
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
            stack.append(Node(span, node.indent + branch, node.indent + bar, parent=node.span))


def _header(root: ReceivedSpan, limit: int | None) -> list[Part]:
    moment = datetime.fromtimestamp(root.start_time_unix_nano / 1e9, tz=timezone.utc).astimezone()
    day = "" if _is_narrow(limit) else f"{moment:%Y-%m-%d} "
    return [
        Part(f"trace {root.trace_id}", ("dim",)),
        Part(_service(root), ("bold", "blue")),
        Part(_pid(root)),
        Part(f"{day}{moment:%H:%M:%S}.{moment.microsecond // 1000:03}", ("dim",)),
    ]


def _service(span: ReceivedSpan) -> str:
    return printable(attributes.service(span.resource))


def _pid(span: ReceivedSpan) -> str:
    return f"pid {printable(attributes.first(span.resource, 'process.pid') or '?')}"


def _process(span: ReceivedSpan) -> str:
    return f"{_service(span)}  {_pid(span)}"


def _describe(node: Node, limit: int | None) -> list[Part]:
    span = node.span
    error = ("red",) if span.status_code == "ERROR" else ()
    emphasis = ("bold",) if span.kind == "SERVER" else ()
    kind = "" if _is_narrow(limit) else f"{span.kind} "
    parts = [Part(f"{kind}{one_line(full_name(span), _NAME_LIMIT)}", emphasis + error)]
    if span.kind == "SERVER":
        status = _first(span, "http.response.status_code", "http.status_code")
        parts += [Part(text, _status_style(text)) for text in status]
    if error:
        parts.append(Part("ERROR", ("bold", *error)))
    if why := attributes.exception(span) or span.status_message:
        parts.append(Part(one_line(why, _TEXT_LIMIT), error))
    # Last, because a narrow terminal cuts what is last.
    if span.kind != "SERVER":
        parts += [Part(text, ("cyan",)) for text in _first(span, "db.query.text", "db.statement")]
    if node.orphan:
        parts.append(Part("(parent not received)", ("yellow",)))
    if node.parent and _process(node.parent) != _process(span):
        parts.append(Part(f"({_process(span)})", ("blue",)))
    return parts


def _status_style(status: str) -> tuple[str, ...]:
    return ({"2": "green", "3": "cyan", "4": "yellow", "5": "red"}.get(status[:1], "dim"),)


def full_name(span: ReceivedSpan) -> str:
    """Return the name; of a request without a route, whose name is the method alone, also the path."""
    path = attributes.first(span.attributes, "url.path")
    is_bare = span.kind == "SERVER" and path and "http.route" not in span.attributes and "/" not in span.name
    return f"{span.name} {path}" if is_bare else span.name


def _first(span: ReceivedSpan, *names: str) -> list[str]:
    """Return the first attribute that is there, on a short line, as a list of at most one."""
    text = attributes.first(span.attributes, *names)
    return [one_line(text, _TEXT_LIMIT)] if text else []
