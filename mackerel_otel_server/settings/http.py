"""What an operator may choose about server spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.http_options import KNOWN_METHODS, HttpOptions
from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.reader import seen
from mackerel_otel_server.settings.shown import shown

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader

_API_KNOWS_NONE: Final = (1, 33)
"""The first release of opentelemetry-api that takes ``OTEL_PROPAGATORS=none``."""
# OpenTelemetry's instrumentation of each has a variable of its own. What these say goes before the general one.
_EXCLUDED_URLS: Final = {
    "wsgi": (
        catalogue.WSGI_EXCLUDED_URLS,
        catalogue.DJANGO_EXCLUDED_URLS,
        catalogue.FALCON_EXCLUDED_URLS,
        catalogue.FLASK_EXCLUDED_URLS,
        catalogue.PYRAMID_EXCLUDED_URLS,
    ),
    "asgi": (
        catalogue.ASGI_EXCLUDED_URLS,
        catalogue.DJANGO_EXCLUDED_URLS,
        catalogue.FALCON_EXCLUDED_URLS,
        catalogue.FASTAPI_EXCLUDED_URLS,
        catalogue.STARLETTE_EXCLUDED_URLS,
    ),
}


def read_propagators(source: Reader) -> tuple[str, ...]:
    """Read how context arrives in requests."""
    names = source.names(catalogue.PROPAGATORS)
    if not names:
        return tuple(catalogue.PROPAGATORS.default.split(","))
    # Only now: the entry points of all installed packages are read for this.
    from importlib.metadata import entry_points, version

    known = {"tracecontext", "baggage"} | {point.name for point in entry_points(group="opentelemetry_propagator")}
    if tuple(int(part) for part in version("opentelemetry-api").split(".")[:2]) >= _API_KNOWS_NONE:
        known.add("none")
    if unknown := [name for name in names if name not in known]:
        variable, value = source.first(catalogue.PROPAGATORS)
        source.problem(
            variable,
            f"{seen(catalogue.PROPAGATORS, variable, value)}: "
            f"{', '.join(repr(shown(catalogue.PROPAGATORS, name)) for name in unknown)} is not installed; known here: "
            f"{', '.join(sorted(known))}",
        )
    return names


def read_http_options(source: Reader, propagators: tuple[str, ...]) -> HttpOptions:
    """Read all that concerns requests."""
    chosen = conventions(source.names(catalogue.SEMCONV) or ("http",), "http")
    general = source.pattern(catalogue.EXCLUDED_URLS)
    excluded = {interface: source.pattern(*variables) or general for interface, variables in _EXCLUDED_URLS.items()}
    return HttpOptions(
        new_names=chosen != "old",
        old_names=chosen != "new",
        known_methods=frozenset(source.names(catalogue.KNOWN_METHODS)) or KNOWN_METHODS,
        excluded_urls={interface: pattern for interface, pattern in excluded.items() if pattern is not None},
        request_headers=source.pattern(catalogue.REQUEST_HEADERS, flags=re.IGNORECASE),
        response_headers=source.pattern(catalogue.RESPONSE_HEADERS, flags=re.IGNORECASE),
        sanitized_headers=source.pattern(catalogue.SANITIZED_HEADERS, flags=re.IGNORECASE),
        propagators=propagators,
    )


def conventions(values: Sequence[str], signal: str) -> str:
    """Return ``new``, ``old`` or ``both`` for the values of ``OTEL_SEMCONV_STABILITY_OPT_IN``."""
    if f"{signal}/dup" in values:
        return "both"
    return "new" if signal in values else "old"
