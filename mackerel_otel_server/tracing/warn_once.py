"""Warnings that would be the same in every worker: one of the workers logs each of them, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing import on_or_off

if TYPE_CHECKING:
    from collections.abc import Callable

_said: set[str] = set()
"""A forked process inherits these, so that the workers do not repeat the arbiter."""
said_by_others: Callable[[], bool] = bool
"""Tells whether another worker of this server logs the warnings."""


def warn(message: str, *args: object) -> None:
    """Log a warning unless it is in the log already; at debug level also where the settings were refused.

    What fails then may fail because of the settings, and the log says what is wrong with those.
    """
    text = message % args
    is_new = text not in _said and not on_or_off.refused and not said_by_others()
    _said.add(text)
    (log.warning if is_new else log.debug)("%s", text)
