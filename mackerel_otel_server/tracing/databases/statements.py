"""The query that a driver's method is given: its text as the application wrote it, and the operation it begins with."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

QueryOf = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Finds the query among the arguments of a cursor's method."""

_QUERY_NAMES = ("query", "operation", "sql", "statement", "procname")

LIMIT = 16 * 1024
"""Characters of a statement that a span carries; ``...`` stands for the rest.

``OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT`` makes the SDK cut more. Only this many characters are copied, so a statement of
megabytes costs no more than a long one.
"""

# White space, opening parentheses and comments, then the first word.
_OPERATION = re.compile(r"(?:[\s(]|/\*.*?\*/|--[^\n]*\n)*([A-Za-z]\w*)?", re.DOTALL)
_HEAD = 32
_operations: dict[str, str] = {}
_OPERATIONS_KEPT = 1024


def given_query(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the query among the arguments of a cursor's method, as most drivers have it."""
    if args:
        return args[0]
    return next((kwargs[name] for name in _QUERY_NAMES if name in kwargs), "")


def text_of(query: Any, cursor: Any) -> str:
    """Return the query as the application wrote it, never with a parameter's value, cut at LIMIT.

    Args:
        query: What was given to the driver: text, bytes, or an object of ``psycopg2.sql``, ``psycopg.sql``.
        cursor: What such an object needs to quote identifiers.
    """
    if isinstance(query, str):
        return query if len(query) <= LIMIT else query[:LIMIT] + "..."
    if isinstance(query, bytes | bytearray):
        return text_of(bytes(query[: LIMIT + 1]).decode("utf-8", "replace"), cursor)
    if hasattr(query, "as_string"):
        return _joined(_composed(query, cursor))
    if hasattr(query, "interpolations"):  # string.templatelib.Template, Python 3.14
        return _joined(part if isinstance(part, str) else f"{{{part.expression}}}" for part in query)
    return ""


def operation_of(text: str) -> str:
    """Return the first word, such as ``SELECT``, after any comments and parentheses; empty if there is no word.

    The word keeps the case in which the application wrote it, as
    https://opentelemetry.io/docs/specs/semconv/database/database-spans/ has it.
    """
    head = text[:_HEAD]
    operation = _operations.get(head)
    if operation is None:
        found = _OPERATION.match(text)
        operation = (found and found.group(1)) or ""
        # The word ends within the head, so every statement with this head has the same operation.
        if found and operation and found.end() < len(head):
            if len(_operations) >= _OPERATIONS_KEPT:
                _operations.clear()
            _operations[head] = operation
    return operation


def _joined(parts: Iterable[str]) -> str:
    """Join as many parts as LIMIT leaves room for: a query may be composed of a million parts."""
    texts, length = [], 0
    for part in parts:
        texts.append(part[: LIMIT + 1])
        length += len(part)
        if length > LIMIT:
            break
    return text_of("".join(texts), None)


def _composed(query: Any, cursor: Any) -> Iterator[str]:
    """Render a ``psycopg2.sql`` or ``psycopg.sql`` object, with a placeholder for each literal."""
    kinds = {cls.__name__ for cls in type(query).__mro__}
    if "Composed" in kinds:
        for part in query:
            yield from _composed(part, cursor)
    elif kinds & {"SQL", "Identifier", "Placeholder"}:
        yield str(query.as_string(cursor))
    else:
        yield "%s"
