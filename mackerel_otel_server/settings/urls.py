"""What a URL tells: whose host it names, and what of it may be shown."""

from __future__ import annotations

import base64
import ipaddress
import re
import unicodedata
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from mackerel_otel_server.settings.masking import SHORTEST_PART, is_token

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOAK: Final = "****"
"""A secret of any length."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AT: Final = re.compile(r"@|%(25)*40")
"""Also percent-encoded, once or more often."""
_IGNORED: Final = str.maketrans("", "", "\t\r\n")
"""What urllib.parse leaves out of a URL."""
_AUTHORITY: Final = re.compile(r"[\w.:%\[\]-]*")
_HOST: Final = re.compile(r"|localhost|[\w-]+(\.[\w-]+)+\.?(:\d*)?|([\w-]+|\[[\da-fA-F:.]+\]):\d+")
"""Without a scheme: a domain, an address, or a name with a port; nothing before a path."""
SHORTEST_KEY: Final = 20
"""Characters of what is taken for an API key where a name may stand, too."""
_LONGEST_NAME: Final = 32
QUOTES: Final = (
    "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
)
"""Those that a shell has not taken away, and those that a word processor makes of them."""
_ENDS_OF_AUTHORITY: Final = re.compile(r"[/?#\\]")
_NO_SECRET: Final = frozenset(("traces",))
"""A part of nearly every endpoint's path, and a word of our sentences."""


def without_credentials(url: str) -> str:
    """Return the URL without a user's name and password, and with a mark in the place of its query and of tokens.

    Every text of ours that names a URL takes it from here. A password may hold what ends a URL's authority, a slash
    say: where an @ is left, in whatever form, nothing is shown. Nor is a text that names no host: it may be the API
    key, typed into the wrong variable.
    """
    url = url.translate(_IGNORED)
    if bare := url.strip(QUOTES):
        before, _, after = url.partition(bare)
        return before + _without_credentials(bare) + after
    return url


def _without_credentials(url: str) -> str:
    if any("@" in unicodedata.normalize("NFKC", character) for character in url if not character.isascii()):
        # Another character that looks like an @, which an input method may have typed; urllib.parse refuses it.
        return CLOAK
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    if scheme.lower() not in ("", "http://", "https://") and _AT.search(url):
        # It may be a user's name.
        return CLOAK
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", url[len(scheme) :], re.DOTALL).groups()  # type: ignore[union-attr] # matches all
    _, at, authority = authority.rpartition("@")
    if _AT.search(authority) or _AT.search(rest):
        return CLOAK
    if not (_AUTHORITY if scheme or at else _HOST).fullmatch(authority):
        return CLOAK
    if _may_be_token(authority, SHORTEST_KEY):
        authority = CLOAK
    path, query, _ = rest.partition("#")[0].partition("?")
    path = "/".join(CLOAK if _may_be_token(part) else part for part in path.split("/"))
    return f"{scheme}{authority}{path}" + (f"?{CLOAK}" if query else "")


def secrets_of(url: str) -> Iterator[str]:
    """Yield what of a URL somebody else may repeat and nobody may see: of a user's name, a password and the path.

    Args:
        url: As it was typed. The query is left to the caller.
    """
    url = url.translate(_IGNORED)
    found = _SCHEME.match(url)
    credentials, _, rest = url[found.end() if found else 0 :].rpartition("@")
    for part in re.split("[?#]", rest)[0].split("/")[1:]:
        if _may_be_token(part):
            yield from (part, unquote(part))
    user, colon, password = credentials.partition(":")
    if not credentials:
        return
    secrets = [password]
    if is_token(unquote(user), unquote(password)):
        secrets.append(user)
    if colon and _ENDS_OF_AUTHORITY.search(credentials):
        # The name is taken for the host then, and a part of the password for a path, which is sent.
        secrets += [user, *_ENDS_OF_AUTHORITY.split(password)]
    for secret in secrets:
        if secret and secret not in _NO_SECRET:
            yield from (secret, unquote(secret))
    yield basic(user, password)


def basic(user: str, password: str) -> str:
    """Return the percent-encoded credentials of a URL as the scheme Basic sends them (RFC 7617)."""
    pair = f"{unquote(user)}:{unquote(password)}"
    return base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode("ascii")


def _may_be_token(part: str, shortest: int = SHORTEST_PART) -> bool:
    """Tell whether a part of a URL's path, or a host without domain and port, is likelier a secret than a name."""
    if "." in part or ":" in part or len(part) < shortest:
        # What base64 has, and a path's names have not.
        return "+" in part or "=" in part
    return any(map(str.isdecimal, part)) or len(part) >= _LONGEST_NAME


def split(url: str) -> SplitResult:
    """Return a URL's parts, whose repr shows no secret.

    Raises:
        ValueError: It is no URL.
    """
    return _Parts(*urlsplit(url))


class _Parts(SplitResult):
    __slots__ = ()

    def __repr__(self) -> str:
        return repr(without_credentials(self.geturl()))


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
