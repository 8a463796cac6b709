"""What an operator may choose about server spans: ``settings`` reads it, ``tracing`` obeys it."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader

KNOWN_METHODS: Final = frozenset(catalogue.KNOWN_METHODS.default.split(","))
"""The methods of RFC 9110 and RFC 5789, the default of the specification:
https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span"""
EXCLUDED: Final = "mackerel_otel_server.excluded"
"""The key of the context of an excluded request, in which nothing is recorded."""
GIVEN_WAY: Final = "mackerel_otel_server.given_way"
"""The attribute of a server span of OpenTelemetry's middleware that is not sent: another instrumentation's stands for
the request."""
SECRET_HEADERS: Final = frozenset(
    {"api_key", "authorization", "cookie", "mackerel_api_key", "private_token", "proxy_authorization", "set_cookie"}
    | {"x_access_token", "x_amz_security_token", "x_api_key", "x_auth_token", "x_csrf_token", "x_csrftoken"}
    | {"x_vault_token"}
)
"""The headers that hold credentials, spelled as in the names of attributes."""
_API_KNOWS_NONE: Final = (1, 33)
"""The first release of opentelemetry-api that takes ``OTEL_PROPAGATORS=none``."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """One frozen set for all requests of a process."""

    new_names: bool = True
    """Attributes have the names of the stable semantic conventions."""
    old_names: bool = False
    """Attributes have the older names: ``http.method``, ``http.status_code`` … With new_names, they have both."""
    known_methods: frozenset[str] = KNOWN_METHODS
    """Any other method appears as ``_OTHER``."""
    excluded_urls: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """``OTEL_PYTHON_<NAME>_EXCLUDED_URLS`` by name; the general variable has an empty name."""
    request_headers: re.Pattern[str] | None = None
    """Names of the request's headers that become attributes."""
    response_headers: re.Pattern[str] | None = None
    sanitized_headers: re.Pattern[str] | None = None
    """Names of headers whose values are not shown."""
    propagators: tuple[str, ...] = ("tracecontext", "baggage")

    def excluded_by(self, names: Iterable[str]) -> re.Pattern[str] | None:
        """Return the pattern of the URLs that these variables exclude; the general one counts where none is set."""
        patterns = [self.excluded_urls[name] for name in names if name in self.excluded_urls]
        if not patterns:
            return self.excluded_urls.get("")
        return re.compile("|".join(pattern.pattern for pattern in patterns))


def read_propagators(source: Reader) -> tuple[str, ...]:
    """Read how context arrives in requests."""
    names = source.names(catalogue.PROPAGATORS)
    if not names:
        return tuple(catalogue.PROPAGATORS.default.split(","))
    # Imported only here: to read the entry points of all installed packages takes time.
    from importlib.metadata import entry_points, version

    known = {*catalogue.PROPAGATORS.words} | {point.name for point in entry_points(group="opentelemetry_propagator")}
    if tuple(int(part) for part in version("opentelemetry-api").split(".")[:2]) >= _API_KNOWS_NONE:
        known.add("none")
    unknown = [name for name in names if name not in known]
    cure = f"type one of {', '.join(sorted(known))}, or install the package that brings it (opentelemetry-propagator-…)"
    source.unknown_word(catalogue.PROPAGATORS, unknown, "is not installed", cure)
    return names


def read_http_options(source: Reader, propagators: tuple[str, ...], frameworks: Collection[str]) -> HttpOptions:
    """Read everything that concerns requests.

    Args:
        source: The variables.
        propagators: As read_propagators() returns them.
        frameworks: Whose ``OTEL_PYTHON_<NAME>_EXCLUDED_URLS`` count. Those of other libraries are for their own
            instrumentations, so what is wrong with them is no problem of the settings.
    """
    chosen = conventions(source.names(catalogue.SEMCONV) or ("http",), "http")
    excluded = {"": source.pattern(catalogue.EXCLUDED_URLS)}
    for name in ("WSGI", "ASGI", *frameworks):
        excluded[name] = source.pattern(catalogue.excluded_urls(name))
    return HttpOptions(
        new_names=chosen != "old",
        old_names=chosen != "new",
        known_methods=frozenset(source.names(catalogue.KNOWN_METHODS)) or KNOWN_METHODS,
        excluded_urls={name: pattern for name, pattern in excluded.items() if pattern is not None},
        request_headers=source.pattern(catalogue.REQUEST_HEADERS, flags=re.IGNORECASE),
        response_headers=source.pattern(catalogue.RESPONSE_HEADERS, flags=re.IGNORECASE),
        sanitized_headers=source.pattern(catalogue.SANITIZED_HEADERS, flags=re.IGNORECASE),
        propagators=propagators,
    )


@functools.lru_cache
def named_headers(pattern: str) -> frozenset[str]:
    """Return the alternatives of a pattern, spelled as in the names of attributes."""
    return frozenset(pattern.lower().replace("\\", "").replace("-", "_").split("|"))


def conventions(values: Sequence[str], signal: str) -> str:
    """Return ``new``, ``old`` or ``both`` for the values of ``OTEL_SEMCONV_STABILITY_OPT_IN``."""
    if f"{signal}/dup" in values:
        return "both"
    return "new" if signal in values else "old"
