"""What the span of a request or of a query says about an exception: an event, which Mackerel's Issues read.

The names are those of https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-spans/, without
``exception.escaped``, which is deprecated.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVENT = "exception"
"""The name of the event."""
_LONGEST = {"exception.type": 1024, "exception.message": 4096, "exception.stacktrace": 32_768}
"""Characters. An exception's text may hold a whole document, which would make its span too large to be sent."""
_MOST_CAUSES = 100
_masks: WeakKeyDictionary[BaseException, Callable[[str], str]] = WeakKeyDictionary()
"""Each exception of a query, and the function that takes the values which the query was given out of a text."""


def type_name(error: BaseException) -> str:
    """Return ``module.Class``, and ``Class`` alone for a built-in one, as the SDK's exception events have it."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", None) else f"{cls.__module__}.{cls.__qualname__}"


def event_attributes(error: BaseException) -> dict[str, str]:
    """Return the attributes of an exception event, within their limits. Never raises.

    The values that a query was given appear neither in the words of the query's exception nor in those of an exception
    that was raised because of it.
    """
    attributes = words(error)
    if _masks:
        causes = list(_causes(error))
        masks = [mask for cause in causes if (mask := _mask_of(cause)) is not None]
        for text in map(_message, causes if masks else ()):
            masked = text
            for mask in masks:
                masked = mask(masked)
            # Only the messages are masked, not the rest of the stack trace: a line number may look like a value.
            if masked != text:
                attributes = {name: value.replace(text, masked) for name, value in attributes.items()}
    return cut(attributes)


def note_mask(error: BaseException, mask: Callable[[str], str]) -> None:
    """Hide values in the words of an exception wherever it appears, as long as it exists.

    Args:
        error: What a query has raised. Exceptions of Python itself take no weak reference, and are not remembered.
            Neither are those whose own ``__hash__`` fails.
        mask: Returns a text without the values. Must not raise.
    """
    try:
        _masks[error] = mask
    except Exception:
        log.debug("%s cannot be remembered", type(error))


def _mask_of(error: BaseException) -> Callable[[str], str] | None:
    try:
        return _masks.get(error)
    except Exception:
        # The exception takes no weak reference, or its own __hash__ or __eq__ fails.
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that its stack trace shows before it."""
    found: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if found is None:
            return
        yield found
        try:
            found = found.__cause__ or found.__context__
        except Exception:
            # The exception's own property fails. The stack trace has no words of the causes then, either.
            return


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
        # The exception's own __str__ fails.
        return "?"


def _stacktrace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        # The exception has notes, a cause or a source file that traceback cannot read.
        return "?"
