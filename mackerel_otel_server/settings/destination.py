"""Where spans go, with which headers, and whether the API key may go there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.api_key import read_api_key
from mackerel_otel_server.settings.masking import MARK, Secret
from mackerel_otel_server.settings.urls import is_loopback, is_mackerel, split, with_path, without_credentials

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader

API_KEY_HEADER: Final = "Mackerel-Api-Key"
_MACKEREL, _TRACES, _ALL_SIGNALS = catalogue.ENDPOINT.names
TRACES_PATH: Final = "/v1/traces"
"""Where a receiver of OTLP over HTTP takes traces: https://opentelemetry.io/docs/specs/otlp/#otlphttp-request"""


def read_destination(source: Reader, *, wanted: bool) -> tuple[str, str | None, dict[str, str]]:
    """Return the traces URL, the API key that may be sent to it or None, and the further headers."""
    if not wanted:
        return "", None, {}
    name, endpoint = source.first(catalogue.ENDPOINT)
    parts = _checked(source, name, endpoint) if endpoint else split(catalogue.ENDPOINT.default)
    given = without_credentials(endpoint)
    if endpoint and parts and name == _ALL_SIGNALS:
        endpoint = Secret(endpoint.rstrip("/") + TRACES_PATH)

    headers = source.pairs(catalogue.HEADERS)
    key_in_headers = next((headers.pop(key) for key in list(headers) if key.lower() == API_KEY_HEADER.lower()), "")

    if not is_to_mackerel(name, endpoint, parts):
        return endpoint, None, headers
    key = read_api_key(source, key_in_headers, source.first(catalogue.HEADERS)[0])
    if parts and _is_unencrypted(parts):
        # To the variable for all signals, the path is added.
        typed = with_path(given, TRACES_PATH) if parts.path in ("", "/") and name != _ALL_SIGNALS else given
        source.problem(
            name,
            f"{name}={given!r} would send the API key unencrypted: the key goes over https only (http to this machine "
            "excepted)",
            f"type {name}=https://{typed.partition('://')[2]}",
        )
    return endpoint or catalogue.ENDPOINT.default, key, headers


def is_to_mackerel(name: str, endpoint: str, parts: SplitResult | None) -> bool:
    """Tell whether the key is sent: to Mackerel, and to an endpoint that stands for Mackerel, but to no Collector.

    Args:
        name: The variable that gave the endpoint.
        endpoint: Its value, or empty.
        parts: The parts of the endpoint; None for a text that is no URL.
    """
    return not endpoint or name == _MACKEREL or bool(parts and is_mackerel(parts.hostname or ""))


def _checked(source: Reader, name: str, endpoint: str) -> SplitResult | None:
    path = "" if name == _ALL_SIGNALS else TRACES_PATH
    shown = without_credentials(endpoint)
    example = f"{name}=http://localhost:4318{path}"
    try:
        parts = split(endpoint)
    except ValueError as error:
        # The error may quote a part of the URL that must not be shown.
        reason = f" ({error})" if shown == endpoint else ""
        source.problem(name, f"{name}={shown!r} is not a URL{reason}", f"type {example}")
        return None
    if "://" not in endpoint and MARK in shown:
        seen = f"{name} is no URL (its value is not shown, it may be the API key itself)"
        source.problem(name, seen, f"type {catalogue.API_KEY.name}= and the key, or {example}")
        return None
    if "://" not in endpoint:
        source.problem(name, f"{name}={shown!r} has no scheme", f"type {_with_scheme(name, shown, path)}")
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        source.problem(name, f"{name}={shown!r} is not an http or https URL", f"type {example}")
        return None
    # For an unencrypted one, the problem of the key says both.
    if name == _MACKEREL and parts.path in ("", "/") and not _is_unencrypted(parts):
        source.problem(name, f"{name}={shown!r} has no path", f"type the full traces URL: {with_path(shown, path)}")
    if name == _ALL_SIGNALS and (parts.query or parts.fragment):
        what = "a query" if parts.query else "a fragment"
        source.problem(
            name,
            f"{name}={shown!r} has {what}, and /v1/traces cannot be added to its end",
            "type the full traces URL: "
            f"{_TRACES}={shown if parts.path.rstrip('/').endswith(TRACES_PATH) else with_path(shown, TRACES_PATH)}",
        )
    return parts


def _with_scheme(name: str, shown: str, path: str) -> str:
    """Return what to type for an endpoint without a scheme, so that the next start has nothing to complain about."""
    url = shown if "/" in shown else with_path(shown, path)
    try:
        parts = split(f"https://{shown}")
    except ValueError:
        return f"{name}=http://{url} or https://{url}"
    if is_loopback(parts.hostname or ""):
        return f"{name}=http://{url}"
    return f"{name}=https://{url}" if is_to_mackerel(name, shown, parts) else f"{name}=http://{url} or https://{url}"


def _is_unencrypted(parts: SplitResult) -> bool:
    """Tell whether what is sent to a URL could be read on its way."""
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")
