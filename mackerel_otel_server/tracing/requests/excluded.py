"""The URLs of which the operator wants no spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mackerel_otel_server.tracing.requests.http_attributes import LONGEST_ADDRESS, LONGEST_TEXT

if TYPE_CHECKING:
    import re

    from mackerel_otel_server.settings.http_options import HttpOptions

_obeyed: Final[dict[str, list[str]]] = {"wsgi": ["WSGI"], "asgi": ["ASGI"]}
"""By interface: the names in the variables ``OTEL_PYTHON_…_EXCLUDED_URLS`` that count for it."""
patterns: dict[str, re.Pattern[str] | None] = {"wsgi": None, "asgi": None}
"""By interface: a request makes no span if this is found in its URL."""


def obey(interface: str, name: str) -> None:
    """Let a framework's own variable exclude requests as well. Call this before prepare().

    Args:
        interface: ``wsgi`` or ``asgi``.
        name: ``FLASK`` for ``OTEL_PYTHON_FLASK_EXCLUDED_URLS``.
    """
    if name not in _obeyed[interface]:
        _obeyed[interface].append(name)


def prepare(chosen: HttpOptions) -> None:
    """Take the patterns that the operator chose."""
    global patterns
    patterns = {interface: chosen.excluded_by(names) for interface, names in _obeyed.items()}


def matches(pattern: re.Pattern[str], scheme: str, host: str, path: str) -> bool:
    """Tell whether a request to this URL makes no span."""
    return pattern.search(f"{scheme}://{host[:LONGEST_ADDRESS]}{path[:LONGEST_TEXT]}") is not None
