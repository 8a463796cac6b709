"""The requests under way, and what becomes of their spans when the server is about to kill the process."""

from __future__ import annotations

import os
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.tracing import stacks

if TYPE_CHECKING:
    from collections.abc import Collection

    from mackerel_otel_server.tracing.request import Request

_requests: dict[str, weakref.ref[Request]] = {}
"""By token. Weak, because a response that the server forgets must end its span by being forgotten."""

_ends_are_noted = False
last_end = 0
"""Nanoseconds since the epoch, when a request has ended, where that is of interest; see note_ends()."""


@dataclass(frozen=True)
class Killing:
    """Why a request is not going to end by itself.

    Attributes:
        type: What the exception event says, ``gunicorn.WorkerTimeout``.
        message: The killer and its limit, ``gunicorn worker timeout after 30 s``.
        spares_streams: Whether a response that is on its way ends as such, not as an error.
    """

    type: str
    message: str
    spares_streams: bool = False


def add(request: Request) -> None:
    """Note that a request has begun."""
    _requests[request.token] = weakref.ref(request)


def discard(request: Request) -> None:
    """Note that it has ended."""
    global last_end
    _requests.pop(request.token, None)
    if _ends_are_noted:
        last_end = time.time_ns()


def find(token: Any) -> Request | None:
    """Return the request under way that a token stands for."""
    reference = _requests.get(token)
    return None if reference is None else reference()


def note_ends() -> None:
    """Keep ``last_end`` from now on."""
    global _ends_are_noted
    _ends_are_noted = True


def requests() -> list[Request]:
    """Return the requests whose spans are open."""
    found = (reference() for reference in list(_requests.values()))
    return [request for request in found if request is not None and request.span is not None]


def report(killing: Killing, killed: Collection[Request]) -> None:
    """End the spans of requests that the server is about to kill."""
    stack_of = stacks.finder()
    for request in killed:
        if request.is_sending and killing.spares_streams:
            request.end()
        else:
            request.killed(killing.type, killing.message, stack_of(request))


def _forget_parent() -> None:
    # They are the parent's to end.
    _requests.clear()


# Not for uWSGI, which runs no handlers at a fork: its master has no requests.
os.register_at_fork(after_in_child=_forget_parent)
