"""Cut a span that is too large for a request to the endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status

_LONGEST: Final = 1024
"""Characters of a text, and items of a sequence."""
_MOST: Final = 500_000
"""Characters of all texts of a span: at four bytes each, less than a request may have."""
_MOST_ITEMS: Final = 10_000
"""Values of a span."""


def cut(span: ReadableSpan) -> ReadableSpan:
    """Return a copy of a finished span with shorter texts, without links, and perhaps without its last events."""
    room = _Room()
    return ReadableSpan(
        name=room.text(span.name),
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=room.attributes(span.attributes),
        events=[
            Event(room.text(event.name), room.attributes(event.attributes), event.timestamp)
            for event in span.events
            if room.is_left
        ],
        kind=span.kind,
        instrumentation_scope=span.instrumentation_scope,
        status=span.status if len(span.status.description or "") <= _LONGEST else Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
    )


class _Room:
    """How many characters and values the copy may still get."""

    def __init__(self) -> None:
        self._characters = _MOST
        self._items = _MOST_ITEMS

    @property
    def is_left(self) -> bool:
        return self._characters > 0 and self._items > 0

    def text(self, text: str) -> str:
        """Cut a text."""
        longest = min(_LONGEST, self._characters)
        cut = text if len(text) <= longest else f"{text[:longest]}..."
        self._characters -= len(cut)
        return cut

    def attributes(self, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
        """Cut the values of attributes, and leave out the attributes for which no room is left."""
        return {
            self.text(key): self._value(value)
            for key, value in (attributes or {}).items()
            if self.is_left and len(key) <= _LONGEST
        }

    def _value(self, value: Any) -> Any:
        self._items -= 1
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            self._characters -= _LONGEST
            return value[:_LONGEST]
        if isinstance(value, list | tuple):
            return [self._value(item) for item in value[:_LONGEST] if self.is_left]
        # In newer releases of the SDK, the value of an attribute may be a mapping.
        return self.attributes(value) if isinstance(value, Mapping) else value
