"""Secrets in the words of others: a far end that quotes a request, an exception, a file that is read."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MARK: Final = "***"
SHORTEST_PART: Final = 8
"""Characters of what may be a secret; a common word shall not vanish from all sentences."""
_SHORTEST: Final = 4
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_PIECE: Final = re.compile(
    r"%(?:25)*(?P<percent>[0-9a-f]{2})|\\x(?P<byte>[0-9a-f]{2})|\\u(?P<json>[0-9a-f]{4})"
    r"|&\#x(?P<html>[0-9a-f]{1,5});|&\#(?P<decimal>[0-9]{1,6});|&(?P<named>amp|lt|gt|quot|apos);"
    r"|(?P<end>\\[nrt])|(?P<plain>.)",
    re.IGNORECASE | re.DOTALL,
)
"""A character as URLs, JSON, Python and HTML may write it."""


class Secret(str):
    """A text that no debugger and no traceback with the values of variables shows."""

    __slots__ = ()

    def __repr__(self) -> str:  # noqa: D105 - the class says what it is for
        return repr(MARK)


class Mask:
    """Hide secrets in a text, in whatever case and encoding, also where lines are broken within them.

    Args:
        secrets: Those of fewer than four characters are not looked for.
    """

    def __init__(self, secrets: Iterable[str | None]) -> None:
        given = {secret for secret in secrets if secret and len(secret) >= _SHORTEST}
        # As it looks where the bytes of UTF-8 are taken for Latin-1.
        given |= {one.encode("utf-8", "surrogatepass").decode("latin-1") for one in given}
        found = {
            ("".join(piece[0] for piece in pieces), all(piece[0] for piece in pieces)) for pieces in map(_pieces, given)
        }
        self._secrets = sorted(
            (one for one in found if len(one[0]) >= _SHORTEST), key=lambda one: len(one[0]), reverse=True
        )

    def __call__(self, text: str, *, is_cut: bool = False) -> str:
        """Return the text with a mark in the place of each secret.

        Args:
            text: What somebody said.
            is_cut: It may end within a secret.
        """
        if not self._secrets or not text:
            return text
        pieces = _pieces(text)
        owners = [index for index, piece in enumerate(pieces) for _ in piece[0]]
        plain = "".join(piece[0] for piece in pieces)
        hidden = bytearray(b" " * len(text))
        for begin, end in self._found(plain, owners, is_cut=is_cut):
            first, last = pieces[owners[begin]][1], pieces[owners[end - 1]][2]
            hidden[first:last] = b"*" * (last - first)
        parts = re.finditer(rb"\*+| +", hidden)
        return "".join(MARK if part[0].startswith(b"*") else text[part.start() : part.end()] for part in parts)

    def _found(self, plain: str, owners: list[int], *, is_cut: bool) -> Iterator[tuple[int, int]]:
        for secret, is_whole in self._secrets:
            begin = plain.find(secret)
            while begin >= 0:
                end = begin + len(secret)
                # A short one may stand by chance where a word ends and the next begins.
                is_apart = owners[end - 1] - owners[begin] >= len(set(owners[begin:end]))
                if len(secret) >= SHORTEST_PART or not (is_whole and is_apart):
                    yield begin, end
                begin = plain.find(secret, begin + 1)
            lengths = range(min(len(secret), len(plain)), _SHORTEST - 1, -1) if is_cut else ()
            if rest := next((length for length in lengths if plain.endswith(secret[:length])), 0):
                yield len(plain) - rest, len(plain)


def _pieces(text: str) -> list[tuple[str, int, int]]:
    """Return what each character means, and from where to where it is written.

    White space, plus signs, which mean blanks in a query, and backslashes, which precede other characters, mean
    nothing: they may be there or not.
    """
    return [(_meaning(found), *found.span()) for found in _PIECE.finditer(text)]


def _meaning(found: re.Match[str]) -> str:
    kind, written = found.lastgroup, found[found.lastgroup or 0]
    if kind == "end":
        return ""
    if kind == "plain":
        character = written
    elif kind == "named":
        character = _NAMED[written.lower()]
    else:
        character = chr(int(written, 10 if kind == "decimal" else 16))
    if character.isspace() or character in "+\\":
        return ""
    if kind in ("percent", "byte"):
        return character.lower()
    return character.lower().encode("utf-8", "surrogatepass").decode("latin-1").lower()


def of_header(value: str) -> Iterator[str]:
    """Yield what of a header's value somebody may repeat: credentials without their scheme, and decoded."""
    yield value
    yield from (part for part in re.split(r"[\s,;=]+", value) if len(part) >= SHORTEST_PART)
    scheme, _, credentials = value.strip().partition(" ")
    yield credentials.strip()
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(credentials, validate=False).decode("utf-8", "surrogateescape")
        except ValueError:
            return
        user, _, password = pair.partition(":")
        yield from (pair, password)
        if is_token(user, password):
            yield user


def is_token(user: str, password: str) -> bool:
    """Tell whether the name of a user is a secret itself, as that of ``token:`` or of ``token:x-oauth-basic``."""
    return (
        len(password) < _SHORTEST
        or password.startswith("x-")
        or (len(user) >= SHORTEST_PART and any(map(str.isdecimal, user)))
    )


def of_query(query: str) -> Iterator[str]:
    """Yield the values of a URL's query, and the query itself."""
    yield query
    for item in re.split("[&;]", query):
        name, equals, value = item.partition("=")
        yield unquote(value if equals else name)
