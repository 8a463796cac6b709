"""Attributes and exceptions of spans as text and as JSON, the same for the terminal and the page."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

# Characters that a browser hides, or that turn the direction of text, which then reads as something else than it is:
# "Trojan Source", https://trojansource.codes/. White space is harmless.
_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ESCAPES = {
    number: chr(number).encode("unicode_escape").decode("ascii")
    for number in range(0x2070)
    if _UNSEEN.match(chr(number))
}


def jsonable(value: Any) -> Any:
    """Return a value with what JSON lacks as in OTLP/JSON: bytes in base64, NaN and the infinities by their names.

    https://protobuf.dev/programming-guides/json/
    """
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return _inside(value, jsonable)


def _inside(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a dictionary or a list with each member changed, and anything else as it is."""
    if isinstance(value, dict):
        return {key: change(inner) for key, inner in value.items()}
    return [change(inner) for inner in value] if isinstance(value, list | tuple) else value


def text_of(value: Any) -> str:
    """Return a value as a person reads it: text as it is, and everything else as JSON."""
    value = jsonable(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def first(attributes: Mapping[str, Any], *names: str) -> str:
    """Return the value of the first of these attributes that is there, or an empty text."""
    return next((text_of(attributes[name]) for name in names if name in attributes), "")


def service(resource: Mapping[str, Any]) -> str:
    """Return the name of the service, or what stands for one that has none."""
    return first(resource, "service.name") or "unknown_service"


def exception(span: ReceivedSpan) -> str:
    """Return type and message of a span's last exception, or an empty text."""
    for event in reversed(span.events):
        if event.name == "exception":
            kind = first(event.attributes, "exception.type") or "exception"
            message = first(event.attributes, "exception.message")
            return f"{kind}: {message}" if message else kind
    return ""


def visible(value: Any) -> Any:
    """Return what JSON can hold with control characters and those that turn the direction of text as escapes."""
    if isinstance(value, str):
        return value.translate(_ESCAPES) if _UNSEEN.search(value) else value
    return _inside(value, visible)
