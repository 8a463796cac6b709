"""Where spans go, with which headers, and whether the API key may go there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.api_key import read_api_key
from mackerel_otel_server.settings.masking import Secret
from mackerel_otel_server.settings.urls import CLOAK, is_loopback, is_mackerel, split, with_path, without_credentials

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader

API_KEY_HEADER: Final = "Mackerel-Api-Key"
_MACKEREL, _TRACES, _ALL_SIGNALS = catalogue.ENDPOINT.names


def read_destination(source: Reader, *, wanted: bool) -> tuple[str, str | None, dict[str, str]]:
    """Return the traces URL, the API key that may go there (None: none may), and the further headers."""
    if not wanted:
        return "", None, {}
    name, endpoint = source.first(catalogue.ENDPOINT)
    parts = _checked(source, name, endpoint) if endpoint else split(catalogue.ENDPOINT.default)
    if endpoint and parts and name == _ALL_SIGNALS:
        endpoint = Secret(endpoint.rstrip("/") + "/v1/traces")

    headers = source.pairs(catalogue.HEADERS)
    key_in_headers = next((headers.pop(key) for key in list(headers) if key.lower() == API_KEY_HEADER.lower()), "")

    if not is_to_mackerel(name, endpoint, parts):
        return endpoint, None, headers
    key = read_api_key(source, key_in_headers, source.first(catalogue.HEADERS)[0])
    if parts and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        shown = without_credentials(endpoint)
        source.problem(
            name,
            f"{name}={shown!r} would send the API key unencrypted: the key goes over https only (http to this machine "
            f"excepted); type {name}=https://{shown.partition('://')[2] or shown}",
        )
    return endpoint or catalogue.ENDPOINT.default, key, headers


def is_to_mackerel(name: str, endpoint: str, parts: SplitResult | None) -> bool:
    """Tell whether the key goes along: to Mackerel and to what the operator says that stands for it, to no Collector.

    Args:
        name: The variable that gave the endpoint.
        endpoint: Its value, or empty.
        parts: Its parts, None when they make no sense.
    """
    return not endpoint or name == _MACKEREL or bool(parts and is_mackerel(parts.hostname or ""))


def _checked(source: Reader, name: str, endpoint: str) -> SplitResult | None:
    path = "" if name == _ALL_SIGNALS else "/v1/traces"
    shown = without_credentials(endpoint)
    try:
        parts = split(endpoint)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError as error:
        # Its words may hold a part of what is not shown.
        reason = f" ({error})" if shown == endpoint else ""
        source.problem(name, f"{name}={shown!r} is not a URL{reason}; type {name}=http://localhost:4318{path}")
        return None
    if "://" not in endpoint and CLOAK in shown:
        source.problem(
            name,
            f"{name} is no URL (its value is not shown, it may be the API key itself); type {catalogue.API_KEY.name}= "
            f"and the key, or {name}=http://localhost:4318{path}",
        )
        return None
    if "://" not in endpoint:
        source.problem(name, f"{name}={shown!r} has no scheme; type {name}=http://{shown} or https://{shown}")
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        source.problem(name, f"{name}={shown!r} is not an http or https URL; type {name}=http://localhost:4318{path}")
        return None
    if name == _MACKEREL and parts.path in ("", "/"):
        source.problem(name, f"{name}={shown!r} has no path; type the full traces URL: {with_path(shown, path)}")
    if name == _ALL_SIGNALS and (parts.query or parts.fragment):
        what = "a query" if parts.query else "a fragment"
        source.problem(
            name,
            f"{name}={shown!r} has {what}, and /v1/traces cannot be added to its end; type the full traces URL: "
            f"{_TRACES}={shown if parts.path.rstrip('/').endswith('/v1/traces') else with_path(shown, '/v1/traces')}",
        )
    return parts
