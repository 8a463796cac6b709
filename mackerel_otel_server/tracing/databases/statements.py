"""What a span says about a statement: its text as the application wrote it, and the operation that it begins with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LIMIT = 16 * 1024
"""Characters of a statement that a span carries; ``...`` stands for the rest.

The SDK cuts further by ``OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT``. It is a slice, so a statement of megabytes costs no more.
"""

# White space, opening parentheses and comments, then the first word.
_OPERATION = re.compile(r"(?:[\s(]|/\*.*?\*/|--[^\n]*\n)*([A-Za-z]\w*)?", re.DOTALL)
_HEAD = 32
_operations: dict[str, str] = {}
_OPERATIONS_KEPT = 1024


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
    """Return the first word, ``SELECT``, without regard to comments and parentheses before it; empty if there is none.

    Case is the application's: https://opentelemetry.io/docs/specs/semconv/database/database-spans/
    """
    head = text[:_HEAD]
    operation = _operations.get(head)
    if operation is None:
        found = _OPERATION.match(text)
        operation = (found and found.group(1)) or ""
        # The head decides, whatever follows it.
        if found and operation and found.end() < len(head):
            if len(_operations) >= _OPERATIONS_KEPT:
                _operations.clear()
            _operations[head] = operation
    return operation


def _joined(parts: Iterable[str]) -> str:
    """Join what fits: a query may be composed of a million parts."""
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
