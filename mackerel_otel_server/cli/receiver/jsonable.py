"""Spans as JSON."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mackerel_otel_server.cli.receiver.spans import ReceivedSpan


def line(span: ReceivedSpan, encoding: str) -> str:
    """Return everything that was decoded of a span as one line of JSON.

    Args:
        span: The span.
        encoding: What the output can carry; the rest is escaped, and so is what a terminal might obey.
    """
    value = jsonable(asdict(span))
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return text if text.isprintable() else json.dumps(value)


def jsonable(value: Any) -> Any:
    """Return a value with what JSON lacks as in OTLP/JSON: bytes in base64, NaN and the infinities by their names.

    https://protobuf.dev/programming-guides/json/
    """
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    return value
