"""What a span says about a query that failed: the driver's words, without the values that the query was given.

The value of a parameter is sensitive: ``db.query.parameter.<key>`` is opt-in in
https://opentelemetry.io/docs/specs/semconv/database/database-spans/. Databases repeat values in their errors, as in
``Duplicate entry 'alice@example.com' for key 'email'``. A ``?`` stands for each value. It also keeps errors of one kind
together, because Mackerel opens one issue for each text. A value that the application wrote into the statement itself
cannot be told from the rest of the statement, and stays.
"""

from __future__ import annotations

import itertools
from datetime import date, time, timedelta
from numbers import Number
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing.exceptions import cut, note_mask, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PLAIN = (str, bytes, bytearray, Number, date, time, timedelta, UUID)
_WORDS = ("exception.message", "exception.stacktrace")
_VALUES = 10_000
"""The most values that are looked for."""
_SHOWN = 10_000
"""Characters. A value up to this length is also looked for as repr() shows it, since some errors show it so."""
_SIGNIFICANT = 24
"""Characters. A value is found by its start: databases cut long values in their errors, PostgreSQL after 64 bytes."""


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
        # A value cannot be shown as text, so nobody knows what the error shows of it.
        log.debug("the values of a query cannot be kept out of its error", exc_info=True)
        note_mask(error, lambda _text: "?")
        return cut({**event, **dict.fromkeys(_WORDS, "?")})

    def mask(text: str) -> str:
        for value in values:
            text = _without(value, text)
        return text

    if values:
        note_mask(error, mask)
    event |= {name: mask(event[name]) for name in _WORDS}
    # Only now: a value that has lost its beginning would not be found.
    return cut(event)


def _texts(given: Iterable[Any]) -> Iterator[str]:
    """Yield each plain value as an error may show it. Other objects are left alone, whose str() may do anything."""
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
    """Replace a value wherever it occurs, also where it was cut. A short value is not replaced within a longer word."""
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
