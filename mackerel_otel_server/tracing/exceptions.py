"""What spans say about an exception, alike for requests and queries.

The names are those of https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-spans/, but for
``exception.escaped``, which is deprecated. Mackerel's Issues read the event.
"""

from __future__ import annotations

import traceback

EVENT = "exception"
"""The name of the event."""
_LONGEST = {"exception.type": 1024, "exception.message": 4096, "exception.stacktrace": 32_768}
"""Characters. An exception's text may hold a whole document, which would make its span too large to be sent."""


def type_name(error: BaseException) -> str:
    """Return ``module.Class``, and ``Class`` alone for a built-in one, as the SDK's exception events have it."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", None) else f"{cls.__module__}.{cls.__qualname__}"


def event_attributes(error: BaseException) -> dict[str, str]:
    """Return the attributes of an exception event, within their limits. Never raises."""
    return cut(words(error))


def cut(attributes: dict[str, str]) -> dict[str, str]:
    """Cut the attributes of an exception event in the middle, where they are longer than they may be."""
    for name, longest in _LONGEST.items():
        text = attributes[name]
        if len(text) > longest:
            end = longest // 4
            left_out = len(text) - longest
            attributes[name] = f"{text[: longest - end]}\n... {left_out} characters are left out ...\n{text[-end:]}"
    return attributes


def words(error: BaseException) -> dict[str, str]:
    """Return what an exception says, of any length. Never raises: ``?`` stands for what it cannot say."""
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
