"""The http proxy on the way to the endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.masking import Secret
from mackerel_otel_server.settings.urls import is_loopback, split, without_credentials

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader


def read_proxy(source: Reader, endpoint: str) -> str | None:
    """Return the proxy that the usual variables name for the endpoint, lower case first, as curl and urllib do.

    Never for a loopback address, as in Go's net/http: a key may go there over http, and must not leave the machine.
    """
    try:
        parts = split(endpoint)
    except ValueError:
        return None  # told already
    host = parts.hostname or ""
    if not host or is_loopback(host):
        return None
    variable = {"https": catalogue.HTTPS_PROXY, "http": catalogue.HTTP_PROXY}.get(parts.scheme)
    name, url = source.first(variable) if variable else ("", "")
    excepted = source.text(catalogue.NO_PROXY)
    if not url or (excepted and _is_excepted(parts, excepted)):
        return None
    try:
        proxy_parts = split(url if "://" in url else f"http://{url}")
        usable = proxy_parts.scheme == "http" and bool(proxy_parts.hostname) and proxy_parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        named = host if host in without_credentials(endpoint) else "the endpoint's host"
        source.problem(
            name,
            f"{name} does not name an http proxy (its value is not shown, it may hold a password); type "
            f"{name}=http://host:port, or name {named} in NO_PROXY",
        )
        return None
    return Secret(proxy_parts.geturl())


def _is_excepted(endpoint: SplitResult, excepted: str) -> bool:
    # Only here: it imports http.client, which the doors must not.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

    host = endpoint.hostname or ""
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    proxies = {"no": excepted}
    return bool(proxy_bypass_environment(host, proxies) or proxy_bypass_environment(f"{host}:{port}", proxies))
