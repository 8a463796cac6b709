"""What a URL tells: whose host it names, and what of it may be shown."""

from __future__ import annotations

import ipaddress


def without_credentials(url: str) -> str:
    """Return the URL without a user's name and password."""
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


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
