"""What an operator may choose about server spans: read by ``settings``, obeyed by ``tracing``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# The methods of RFC 9110 and RFC 5789; the specification's default.
# https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
KNOWN_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)

EXCLUDED: Final = "mackerel_otel_server.excluded"
"""The key of the context of an excluded request, in which nothing is recorded."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """One frozen set for all requests of a process."""

    new_names: bool = True
    """Attributes have the names of the stable semantic conventions."""
    old_names: bool = False
    """Attributes have (also) the names of before: ``http.method``, ``http.status_code`` …"""
    known_methods: frozenset[str] = KNOWN_METHODS
    """All others appear as ``_OTHER``."""
    excluded_urls: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """By interface, ``wsgi`` and ``asgi``: requests to URLs in which this is found make no span."""
    request_headers: re.Pattern[str] | None = None
    """Names of the request's headers that become attributes."""
    response_headers: re.Pattern[str] | None = None
    sanitized_headers: re.Pattern[str] | None = None
    """Names of headers whose values are not shown."""
    propagators: tuple[str, ...] = ("tracecontext", "baggage")
