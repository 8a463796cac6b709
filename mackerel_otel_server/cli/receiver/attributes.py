"""What spans say, as text for people: the same for the terminal and the page."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.receiver.jsonable import jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mackerel_otel_server.cli.receiver.spans import ReceivedSpan

# What a browser obeys or hides. Text that turns its direction reads as something else than it is: "Trojan Source",
# https://trojansource.codes/. White space is harmless there.
_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def text_of(value: Any) -> str:
    """Return a value as a person reads it: text as it is, also what jsonable() makes text, everything else as JSON."""
    value = jsonable(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def first(attributes: Mapping[str, Any], *names: str) -> str:
    """Return the first attribute that is there, newer name first, or nothing."""
    return next((text_of(attributes[name]) for name in names if name in attributes), "")


def service(resource: Mapping[str, Any]) -> str:
    """Return the name of the service, or what stands for one that has none."""
    return first(resource, "service.name") or "unknown_service"


def exception(span: ReceivedSpan) -> str:
    """Return the last exception of a span, or nothing."""
    for event in reversed(span.events):
        if event.name == "exception":
            kind = first(event.attributes, "exception.type") or "exception"
            message = first(event.attributes, "exception.message")
            return f"{kind}: {message}" if message else kind
    return ""


def visible(value: Any) -> Any:
    """Return what JSON can hold with control characters and those that turn the direction of text as escapes."""
    if isinstance(value, str):
        return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), value)
    if isinstance(value, dict):
        return {key: visible(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [visible(inner) for inner in value]
    return value
