"""What a URL tells: whose host it names, and what of it may be shown."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

CLOAK: Final = "****"
"""A secret of any length."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AT: Final = re.compile(r"@|%40")


def without_credentials(url: str) -> str:
    """Return the URL without a user's name and password, and with a mark in the place of its query.

    A password may hold what ends a URL's authority, a slash say: where an @ is left, nothing is shown.
    """
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", url[len(scheme) :], re.DOTALL).groups()  # type: ignore[union-attr] # matches all
    authority = authority.rpartition("@")[2]
    if _AT.search(authority) or _AT.search(rest):
        return CLOAK
    path, query, _ = rest.partition("#")[0].partition("?")
    return f"{scheme}{authority}{path}" + (f"?{CLOAK}" if query else "")


def with_path(shown: str, path: str) -> str:
    """Return what without_credentials() has returned, with a path at the end of its own."""
    bare, query, rest = shown.partition("?")
    return f"{bare.rstrip('/')}{path}{query}{rest}"


def is_mackerel(host: str) -> bool:
    """Tell whether a host is ``mackerelio.com`` or below it."""
    host = host.rstrip(".")
    return host == "mackerelio.com" or host.endswith(".mackerelio.com")


def is_loopback(host: str) -> bool:
    """Tell whether what is sent to this host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
