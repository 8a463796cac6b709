"""What a URL tells: whose host it names, and what of it may be shown."""

from __future__ import annotations

import base64
import ipaddress
import re
import unicodedata
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOAK: Final = "****"
"""A secret of any length."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AT: Final = re.compile(r"@|%(25)*40")
"""Also percent-encoded, once or more often."""
_IGNORED: Final = str.maketrans("", "", "\t\r\n")
"""What urllib.parse leaves out of a URL."""
_ENDS_OF_AUTHORITY: Final = re.compile(r"[/?#\\]")
_NO_SECRET: Final = frozenset(("traces",))
"""A part of nearly every endpoint's path, and a word of our sentences."""


def without_credentials(url: str) -> str:
    """Return the URL without a user's name and password, and with a mark in the place of its query.

    Every text of ours that names a URL takes it from here. A password may hold what ends a URL's authority, a slash
    say: where an @ is left, in whatever form, nothing is shown.
    """
    url = url.translate(_IGNORED)
    if any("@" in unicodedata.normalize("NFKC", character) for character in url if not character.isascii()):
        # Another character that looks like an @, which an input method may have typed; urllib.parse refuses it.
        return CLOAK
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    if scheme.lower() not in ("", "http://", "https://") and _AT.search(url):
        # It may be a user's name.
        return CLOAK
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", url[len(scheme) :], re.DOTALL).groups()  # type: ignore[union-attr] # matches all
    authority = authority.rpartition("@")[2]
    if _AT.search(authority) or _AT.search(rest):
        return CLOAK
    path, query, _ = rest.partition("#")[0].partition("?")
    return f"{scheme}{authority}{path}" + (f"?{CLOAK}" if query else "")


def secrets_of(url: str) -> Iterator[str]:
    """Yield what of a URL somebody else may repeat and nobody may see: of a user's name and password.

    Args:
        url: As it was typed. The query is left to the caller.
    """
    found = _SCHEME.match(url.translate(_IGNORED))
    credentials = url.translate(_IGNORED)[found.end() if found else 0 :].rpartition("@")[0]
    user, colon, password = credentials.partition(":")
    if not credentials:
        return
    # A name without a password is a token.
    secrets = [password if colon else user]
    if colon and _ENDS_OF_AUTHORITY.search(credentials):
        # The name is taken for the host then, and a part of the password for a path, which is sent.
        secrets += [user, *_ENDS_OF_AUTHORITY.split(password)]
    for secret in secrets:
        if secret not in _NO_SECRET:
            yield from (secret, unquote(secret))
    # As it is sent.
    yield base64.b64encode(unquote(credentials).encode("utf-8", "surrogateescape")).decode()


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
