"""Hide known secrets in texts that others wrote: a far end that quotes a request, an exception, a file."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MARK: Final = "****"
"""It stands for a secret of any length."""
SHORTEST_PART: Final = 8
"""Characters that a part of a value must have to be hidden as a secret: a common word must stay readable."""
_SHORTEST: Final = 4
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_BROKEN: Final = r"%(?:\s*2\s*5)*\s*(?P<percent>[0-9a-f]\s*[0-9a-f])"
"""A percent-encoded character, also with a line break in its middle."""
_HAS_BROKEN: Final = re.compile(_BROKEN, re.IGNORECASE)
_PIECE, _PIECE_OR_BROKEN = (
    re.compile(
        rf"{percent}|\\x(?P<byte>[0-9a-f]{{2}})|\\u(?P<json>[0-9a-f]{{4}})"
        r"|&\#x(?P<html>[0-9a-f]{1,5});|&\#(?P<decimal>[0-9]{1,6});|&(?P<named>amp|lt|gt|quot|apos);"
        r"|(?P<end>\\[nrt])|(?P<plain>.)",
        re.IGNORECASE | re.DOTALL,
    )
    for percent in (r"%(?:25)*(?P<percent>[0-9a-f]{2})", _BROKEN)
)
"""One character, in each way in which URLs, JSON, Python and HTML write it."""


class Secret(str):
    """A text whose repr hides it: a debugger, or a traceback with the values of variables, shows the mark."""

    __slots__ = ()

    def __repr__(self) -> str:  # noqa: D105 - the class says what it is for
        return repr(MARK)


class Mask:
    """Hide secrets in a text, in whatever case and encoding, also where lines are broken within them.

    Args:
        secrets: A secret of fewer than four characters is not hidden.
    """

    def __init__(self, secrets: Iterable[str | None]) -> None:
        given = {secret for secret in secrets if secret and len(secret) >= _SHORTEST}
        # Some programs read the bytes of UTF-8 as Latin-1: this is what they print.
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
            is_cut: The text was cut off, so it may end in the middle of a secret.
        """
        if not self._secrets or not text:
            return text
        text = self._hide(text, _pieces(text), is_cut=is_cut)
        if not _HAS_BROKEN.search(text):
            return text
        return self._hide(text, _pieces(text, _PIECE_OR_BROKEN), is_cut=is_cut)

    def _hide(self, text: str, pieces: list[tuple[str, int, int]], *, is_cut: bool) -> str:
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
                # The letters of a short secret may meet by chance, at the end of one word and the start of the next.
                is_apart = owners[end - 1] - owners[begin] >= len(set(owners[begin:end]))
                if len(secret) >= SHORTEST_PART or not (is_whole and is_apart):
                    yield begin, end
                begin = plain.find(secret, begin + 1)
            lengths = range(min(len(secret), len(plain)), _SHORTEST - 1, -1) if is_cut else ()
            if rest := next((length for length in lengths if plain.endswith(secret[:length])), 0):
                yield len(plain) - rest, len(plain)


def _pieces(text: str, pattern: re.Pattern[str] = _PIECE) -> list[tuple[str, int, int]]:
    """Return what each character means, and from where to where it is written.

    White space, a plus sign (a blank in a query) and a backslash (it stands before other characters) have an empty
    meaning, so a secret is found with and without them.
    """
    return [(_meaning(found), *found.span()) for found in pattern.finditer(text)]


def _meaning(found: re.Match[str]) -> str:
    kind, written = found.lastgroup, found[found.lastgroup or 0]
    if kind == "end":
        return ""
    if kind == "plain":
        character = written
    elif kind == "named":
        # A pattern that ignores case takes some characters for an ASCII letter that lower() leaves as they are.
        character = _NAMED.get(written.lower(), written)
    else:
        character = chr(int("".join(written.split()), 10 if kind == "decimal" else 16))
    if character.isspace() or character in "+\\":
        return ""
    if kind in ("percent", "byte"):
        return character.lower()
    return character.lower().encode("utf-8", "surrogatepass").decode("latin-1").lower()


def of_header(value: str) -> Iterator[str]:
    """Yield the parts of a header's value that somebody may repeat, such as the password of ``Basic`` credentials."""
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
    """Tell whether the user's name is the secret, such as in ``token:`` and ``token:x-oauth-basic``."""
    return (
        len(password) < _SHORTEST
        or password.startswith("x-")
        or (len(user) >= SHORTEST_PART and any(map(str.isdecimal, user)))
    )
