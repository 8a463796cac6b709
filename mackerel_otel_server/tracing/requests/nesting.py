"""A request within another one: a middleware, a mount, a bridge, or a request that the application makes of itself.

Mackerel lists each server span as a request, so that a request has one server span, however many applications it
passes on its way.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from mackerel_otel_server.tracing.requests import log_ids, request, wrapping
from mackerel_otel_server.tracing.requests.propagation import has_outer_span
from mackerel_otel_server.tracing.requests.request import KEY, NO_TOKEN

_aside: dict[int, Any] = {}
"""Applications, by id, whose server spans another instrumentation makes."""


def find_outer(carrier: dict[str, Any], outer_carrier: Any, application: Any) -> bool:
    """Look for the request that this one is part of, though its environ or scope does not tell.

    Args:
        carrier: The environ or scope; gets the token of the outer request.
        outer_carrier: What a bridge between WSGI and ASGI has made ``carrier`` of, where that is known.
        application: The callable that serves the request.

    Returns:
        Whether no server span is to be begun.
    """
    if has_outer_span():
        # The request under way whose server span is the current one.
        outer = request.find(trace.get_current_span().get_span_context().span_id.to_bytes(8, "big").hex())
        if outer is not None and ("wsgi.version" in outer.carrier) == ("wsgi.version" in carrier):
            # No bridge: the application makes a request of itself, by a client for tests, say.
            outer = None
    elif isinstance(outer_carrier, dict) and KEY in outer_carrier:
        outer = request.of(outer_carrier)
    else:
        return False
    carrier[KEY] = NO_TOKEN if outer is None else outer.token
    if outer is not None and outer.span is not None:
        log_ids.show(outer.span, carrier)
        outer.enter(carrier, application)
    return True


def step_aside(application: Any) -> None:
    """Leave an application's requests to another instrumentation, which has just taken one over."""
    _aside[wrapping.identity(application)] = application


def is_aside(application: Any) -> bool:
    """Tell whether another instrumentation makes an application's server spans."""
    return bool(_aside) and wrapping.identity(application) in _aside


def note_nested(carrier: dict[str, Any], application: Any) -> None:
    """Note that a request has come to an application within the one that its span began with. Never raises."""
    begun = request.of(carrier)
    if begun is None or begun.span is None:
        return
    if begun.carrier is not carrier:
        if begun.has_route():
            # A request that the application makes of itself, as batch endpoints do: its route is not that of ours.
            carrier[KEY] = NO_TOKEN
            return
        begun.carrier = carrier
    begun.application = application
    if is_aside(application):
        begun.is_dropped = True
