"""What spans say about an exception, alike for requests and queries.

The names are those of https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-spans/, but for
``exception.escaped``, which is deprecated. Mackerel's Issues read the event.
"""

from __future__ import annotations

import traceback

EVENT = "exception"
"""The name of the event."""


def type_name(error: BaseException) -> str:
    """Return ``module.Class``, and ``Class`` alone for a built-in one, as the SDK's exception events have it."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", None) else f"{cls.__module__}.{cls.__qualname__}"


def event_attributes(error: BaseException) -> dict[str, str]:
    """Return the attributes of an exception event. Never raises: ``?`` stands for what the exception cannot say."""
    return {
        "exception.type": type_name(error),
        "exception.message": _message(error),
        "exception.stacktrace": _stacktrace(error),
    }


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        # Its __str__ fails.
        return "?"


def _stacktrace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        # A notes attribute, a cause or a source file that traceback cannot read.
        return "?"
