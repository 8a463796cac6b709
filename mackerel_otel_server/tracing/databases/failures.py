"""What a span says about a query that failed: the driver's words, without the values that the query was given.

A parameter's value is sensitive (``db.query.parameter.<key>`` is opt-in in
https://opentelemetry.io/docs/specs/semconv/database/database-spans/), and databases repeat it in their errors:
``Duplicate entry 'alice@example.com' for key 'email'``. Mackerel opens one issue for each text, so that ``?`` in its
place also keeps errors together that belong together. A value that the application wrote into the statement itself
cannot be told from the statement.
"""

from __future__ import annotations

import itertools
from datetime import date, time, timedelta
from numbers import Number
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.exceptions import cut, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PLAIN = (str, bytes, bytearray, Number, date, time, timedelta, UUID)
_WORDS = ("exception.message", "exception.stacktrace")
_VALUES = 10_000
_SHOWN = 10_000
"""Characters up to which a value is looked for in the form of its repr, too, as in an error that has arguments."""
_SIGNIFICANT = 24
"""Databases cut long values in their errors, PostgreSQL after 64 bytes; this much of the beginning tells one."""


def describe(error: BaseException, given: Iterable[Any]) -> dict[str, str]:
    """Return the attributes of an error's event, with ``?`` for each of the given values. Never raises.

    Args:
        error: What the driver raised.
        given: Parameters: values, sequences and mappings of values, or sequences of those, as of ``executemany()``.
    """
    event = words(error)
    try:
        values = sorted(set(itertools.islice(_texts(given), _VALUES)), key=len, reverse=True)
    except Exception:
        # A value cannot be shown, so it cannot be looked for.
        log.debug("the values of a query cannot be kept out of its error", exc_info=True)
        return cut({**event, **dict.fromkeys(_WORDS, "?")})
    for name in _WORDS:
        for value in values:
            event[name] = _without(value, event[name])
    # Not before: of a value that is cut at its beginning, nothing tells that it is one.
    return cut(event)


def _texts(given: Iterable[Any]) -> Iterator[str]:
    """Yield each value as an error may show it. What is no plain value stays untouched: str() of it may do anything."""
    for value in given:
        if isinstance(value, dict):
            yield from _texts(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            yield from _texts(value)
        elif isinstance(value, _PLAIN) and not isinstance(value, bool):
            text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else f"{value}"
            if text.strip():
                yield text
                if len(text) < _SHOWN and (shown := repr(text)[1:-1]) != text:
                    yield shown


def _without(value: str, text: str) -> str:
    """Replace each occurrence of a value, also one that was cut; not within a word, which a short value may be."""
    start = value[:_SIGNIFICANT]
    at = text.find(start)
    while at >= 0:
        end = at + len(start)
        while end - at < len(value) and end < len(text) and text[end] == value[end - at]:
            end += 1
        if len(value) > _SIGNIFICANT or not (_continues(text, at - 1) or _continues(text, end)):
            text, end = f"{text[:at]}?{text[end:]}", at + 1
        at = text.find(start, end)
    return text


def _continues(text: str, position: int) -> bool:
    return 0 <= position < len(text) and (text[position].isalnum() or text[position] == "_")
