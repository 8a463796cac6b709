"""The trace id and the span id of a request, for the access log of its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span

TRACE_ID: Final = "otel_trace_id"
SPAN_ID: Final = "otel_span_id"
"""Where a WSGI environ holds the trace id and the span id, in hexadecimal digits."""

tell: Callable[[str], None] | None = None
"""Tells a server's own log the trace id of each request, 32 hexadecimal digits, when the request begins."""


def show(span: Span, carrier: dict[str, Any]) -> str:
    """Put a span's ids into the environ or scope of its request; return the span id."""
    ids = span.get_span_context()
    # The quickest way to write a number in hexadecimal digits.
    carrier[TRACE_ID] = trace_id = ids.trace_id.to_bytes(16, "big").hex()
    carrier[SPAN_ID] = span_id = ids.span_id.to_bytes(8, "big").hex()
    if tell is not None:
        try:
            tell(trace_id)
        except Exception:
            log.debug("the server's log does not take the trace id", exc_info=True)
    return span_id
