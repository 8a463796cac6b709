"""The http proxy on the way to the endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.masking import Secret
from mackerel_otel_server.settings.urls import is_loopback, split_or_none, without_credentials

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader


def read_proxy(source: Reader, endpoint: str) -> str | None:
    """Return the proxy that the usual variables name for the endpoint.

    A loopback address never has one, as in Go's net/http: a key may be sent there over http, and must not leave this
    machine.
    """
    parts = split_or_none(endpoint)
    if not parts or not parts.hostname or is_loopback(parts.hostname):
        return None
    host = parts.hostname
    variable = {"https": catalogue.HTTPS_PROXY, "http": catalogue.HTTP_PROXY}.get(parts.scheme)
    name, url = source.first(variable) if variable else ("", "")
    excepted = source.text(catalogue.NO_PROXY)
    if not url or (excepted and _is_excepted(parts, excepted)):
        return None
    proxy = split_or_none(url if "://" in url else f"http://{url}")
    if not proxy or proxy.scheme != "http" or not proxy.hostname or proxy.port == 0:
        named = host if host in without_credentials(endpoint) else "the endpoint's host"
        source.problem(
            name,
            f"{name} does not name an http proxy (its value is not shown, it may hold a password)",
            f"type {name}=http://host:port, or name {named} in NO_PROXY",
        )
        return None
    return Secret(proxy.geturl())


def _is_excepted(endpoint: SplitResult, excepted: str) -> bool:
    # Imported here, because it imports http.client, and the doors must not import that.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

    host = endpoint.hostname or ""
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    proxies = {"no": excepted}
    return bool(proxy_bypass_environment(host, proxies) or proxy_bypass_environment(f"{host}:{port}", proxies))
