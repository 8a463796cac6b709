"""URLs: their parts, whose host they name, and what of them may be shown."""

from __future__ import annotations

import base64
import ipaddress
import re
import unicodedata
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from mackerel_otel_server.settings.masking import MARK, SHORTEST_PART, is_token

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AT: Final = re.compile(r"@|%(25)*40")
"""An @, also percent-encoded once or several times."""
_IGNORED: Final = str.maketrans("", "", "\t\r\n")
"""Characters that urllib.parse removes from a URL."""
_AUTHORITY: Final = re.compile(r"[\w.:%\[\]-]*")
_HOST: Final = re.compile(r"|localhost|[\w-]+(\.[\w-]+)+\.?(:\d*)?|([\w-]+|\[[\da-fA-F:.]+\]):\d+")
"""A host without a scheme: a domain, an address, a name with a port, or nothing before a path."""
SHORTEST_KEY: Final = 20
"""Characters from which on a text is taken for an API key where a name may stand, too."""
_LONGEST_NAME: Final = 32
QUOTES: Final = (
    "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
)
"""Quotes that no shell has removed, and the ones that a word processor makes of them."""
_ENDS_OF_AUTHORITY: Final = re.compile(r"[/?#\\]")
_NO_SECRET: Final = frozenset(("traces",))
"""Words that stand in the path of nearly every endpoint, and in our own sentences."""


def without_credentials(url: str) -> str:
    """Return the URL without a user's name and password, and with a mark in the place of its query and of tokens.

    Every text of ours that names a URL takes it from here. A password may hold a character that ends a URL's authority,
    such as a slash. So where an @ is left, in whatever form, nothing is shown. A text that names no host is not shown
    either: it may be the API key in the wrong variable.
    """
    url = url.translate(_IGNORED)
    if bare := url.strip(QUOTES):
        before, _, after = url.partition(bare)
        return before + _without_credentials(bare) + after
    return url


def _without_credentials(url: str) -> str:
    if any("@" in unicodedata.normalize("NFKC", character) for character in url if not character.isascii()):
        # An input method may have typed another character that looks like an @. urllib.parse refuses such a URL.
        return MARK
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    if scheme.lower() not in ("", "http://", "https://") and _AT.search(url):
        # It may be a user's name.
        return MARK
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", url[len(scheme) :], re.DOTALL).groups()  # type: ignore[union-attr] # matches all
    _, at, authority = authority.rpartition("@")
    if _AT.search(authority) or _AT.search(rest):
        return MARK
    if not (_AUTHORITY if scheme or at else _HOST).fullmatch(authority):
        return MARK
    if _may_be_token(authority, SHORTEST_KEY):
        authority = MARK
    path, query, _ = rest.partition("#")[0].partition("?")
    path = "/".join(MARK if _may_be_token(part) else part for part in path.split("/"))
    return f"{scheme}{authority}{path}" + (f"?{MARK}" if query else "")


def secrets_of(url: str) -> Iterator[str]:
    """Yield the secrets of a URL that somebody else may repeat: of the user's name, the password and the path.

    Args:
        url: As it was typed. secrets_of_query() has what its query holds.
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
        # The user's name is then taken for the host, and a part of the password for the path, and both are sent.
        secrets += [user, *_ENDS_OF_AUTHORITY.split(password)]
    for secret in secrets:
        if secret and secret not in _NO_SECRET:
            yield from (secret, unquote(secret))
    yield basic(user, password)


def secrets_of_query(url: str) -> Iterator[str]:
    """Yield the query of a URL and the query's values. Most of them are no secrets."""
    query = url.partition("#")[0].partition("?")[2]
    yield query
    for item in re.split("[&;]", query):
        name, equals, value = item.partition("=")
        yield unquote(value if equals else name)


def basic(user: str, password: str) -> str:
    """Return the percent-encoded credentials of a URL as the scheme Basic sends them (RFC 7617)."""
    pair = f"{unquote(user)}:{unquote(password)}"
    return base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode("ascii")


def _may_be_token(part: str, shortest: int = SHORTEST_PART) -> bool:
    """Tell whether a part of a URL's path, or a host without domain and port, is likelier a secret than a name."""
    if "." in part or ":" in part or len(part) < shortest:
        # base64 has these characters, names in a path do not.
        return "+" in part or "=" in part
    return any(map(str.isdecimal, part)) or len(part) >= _LONGEST_NAME


def split(url: str) -> SplitResult:
    """Return a URL's parts, whose repr shows no secret. Every URL of the settings is cut here.

    Raises:
        ValueError: It is no URL, or its port is no number.
    """
    parts = _Parts(*urlsplit(url))
    parts.port  # noqa: B018 - it raises
    return parts


def split_or_none(url: str) -> SplitResult | None:
    """Return a URL's parts, and None for a text that is no URL."""
    try:
        return split(url)
    except ValueError:
        return None


class _Parts(SplitResult):
    __slots__ = ()

    def __repr__(self) -> str:
        return repr(without_credentials(self.geturl()))


def with_path(shown: str, path: str) -> str:
    """Return a URL of without_credentials() with a path added at the end of its own."""
    bare, query, rest = shown.partition("?")
    return f"{bare.rstrip('/')}{path}{query}{rest}"


def without_path(shown: str, path: str) -> str:
    """Return a URL of without_credentials() without this path at its end, however often it stands there."""
    bare, query, rest = shown.partition("?")
    bare = bare.rstrip("/")
    while bare.endswith(path):
        bare = bare.removesuffix(path)
    return bare + query + rest


def is_mackerel(host: str) -> bool:
    """Tell whether a host is ``mackerelio.com``, or a name below it."""
    host = host.rstrip(".")
    return host == "mackerelio.com" or host.endswith(".mackerelio.com")


def leads_to_this_machine(url: str) -> bool:
    """Tell whether what is sent to this URL stays on this machine."""
    parts = split_or_none(url)
    return bool(parts and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    """Tell whether what is sent to this host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
