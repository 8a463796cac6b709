"""The endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.destination import is_to_mackerel
from mackerel_otel_server.settings.urls import with_path, without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.reader import Reader

_PATH: Final = "/v1/traces"
_GRPC_PORT: Final = 4317
"""https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-default-port"""
_, _TRACES, _ALL_SIGNALS = catalogue.ENDPOINT.names


def takes_key(source: Reader, settings: Settings) -> bool:
    """Tell whether the key goes to the endpoint."""
    name, endpoint = source.first(catalogue.ENDPOINT)
    return "otlp" in settings.exporters and is_to_mackerel(name, endpoint, _parts(endpoint))


def collector(source: Reader, settings: Settings) -> str | None:
    """Return the variable that names a Collector, None where the spans go to Mackerel or nowhere."""
    if "otlp" not in settings.exporters or takes_key(source, settings):
        return None
    return source.first(catalogue.ENDPOINT)[0]


def findings(source: Reader, settings: Settings) -> Iterator[Finding]:
    """Look at a URL that is one, and may still be another than was meant."""
    name, typed = source.first(catalogue.ENDPOINT)
    parts = _parts(settings.endpoint)
    if not typed or name in source.wrong or parts is None or "otlp" not in settings.exporters:
        return
    shown = without_credentials(typed)
    given = f"{name}={shown!r}"
    path, query, rest = shown.partition("?")
    path = path.rstrip("/")
    while path.endswith(_PATH):
        path = path.removesuffix(_PATH)
    base = path + query + rest
    if parts.path.rstrip("/").endswith(_PATH * 2):
        yield Finding(
            "FAIL",
            f"{given} ends with {_PATH}, which is added to it"
            if name == _ALL_SIGNALS
            else f"{given} ends with {_PATH} twice",
            f"spans are sent to {settings.shown_endpoint}, where nobody takes them",
            f"type {name}={base if name == _ALL_SIGNALS else with_path(base, _PATH)}",
        )
    elif name == _TRACES and parts.path in ("", "/"):
        yield Finding(
            "WARN",
            f"{given} has no path, and nothing is added to it",
            "spans are sent to /, where a Collector takes none",
            f"type {name}={with_path(shown, _PATH)}" + ("" if query else f", or {_ALL_SIGNALS}={shown.rstrip('/')}"),
        )
    if parts.port == _GRPC_PORT:
        yield Finding(
            "WARN",
            f"{given} names port {_GRPC_PORT}, which is that of OTLP over gRPC",
            "spans are sent over http, which such a port does not take",
            f"type {name}={(shown if name != _ALL_SIGNALS else base).replace(f':{_GRPC_PORT}', ':4318')}",
        )


def in_force(settings: Settings, collector: str | None) -> Iterator[Finding]:
    """Say where spans go."""
    if settings.endpoint:
        who = ", a Collector, which gets no key" if collector else ""
        yield Finding("OK", f"spans are sent to {settings.shown_endpoint}{who}")


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError:
        return None
    return parts
