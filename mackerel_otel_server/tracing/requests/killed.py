"""What becomes of the spans of requests when the server is about to kill the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mackerel_otel_server.tracing.requests import stacks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry.trace import Span

    from mackerel_otel_server.tracing.requests.request import Request


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


def report(killing: Killing, requests: Collection[Request], is_free: Callable[[Span], bool]) -> None:
    """End the spans of requests that the server is about to kill.

    ``is_free`` tells whether a span can be changed at once: a signal handler may have interrupted a change of it.
    """
    stack_of = stacks.finder()
    for request in requests:
        span = request.span
        if request.is_sending and killing.spares_streams:
            request.end()
        elif span is not None:
            request.killed(killing.type, killing.message, stack_of(request) if is_free(span) else None)
