"""What a message may show of a variable's value: the API key may stand in the wrong variable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.masking import MARK
from mackerel_otel_server.settings.urls import QUOTES, SHORTEST_KEY, without_credentials

_PEM: Final = "-----BEGIN"
"""The beginning of a private key or a certificate, typed where the name of its file belongs."""
# A text with a slash at its beginning, or with a dot, is taken for the name of a file.
_KEY: Final = rf"(?<![A-Za-z0-9+/=_.-])(?!/)(?=[A-Za-z+/=_-]*[0-9])[A-Za-z0-9+/=_-]{{{SHORTEST_KEY},}}"
_NUMBER_OR_WORD: Final = r"[0-9]*[A-Za-z]?[a-z]*(?![A-Za-z0-9])"
"""Such as ``5000milliseconds`` and ``Traceidratiobased``."""
_SHORT_KEY: Final = rf"(?<![A-Za-z0-9])(?!{_NUMBER_OR_WORD})[A-Za-z0-9]{{14,}}"
_ANYWHERE: Final = re.compile(_KEY)
_FOR_A_WORD: Final = re.compile(f"{_KEY}|{_SHORT_KEY}")
"""A variable for a number or for known words holds nothing else that is as long."""
_LIKENESS: Final = 0.6
"""Of ``difflib``: random letters and digits reach 0.5 at most, slips of known words 0.6 at least."""
_SLIP: Final = 8
"""Characters more than the known word has; what is longer may be a key behind a known word."""
_NAME: Final = re.compile(r"[a-z_./~-]+")
"""A key has digits or capitals, however short it is."""


def shown(variable: catalogue.Variable, value: str) -> str:
    """Return a value that may be wrong as a message may show it."""
    if variable.secret or _PEM in value or (variable is catalogue.API_KEY_FILE and may_be_key(value)):
        return MARK
    if variable in catalogue.URLS:
        return without_credentials(value)
    # A URL in the wrong variable may have a key in its path, and in a list a key may stand beside a URL.
    value = without_credentials(value) if "://" in value else value
    keys = _ANYWHERE if variable.minimum is None and not variable.words else _FOR_A_WORD
    return keys.sub(lambda found: found[0] if _is_slip(found[0], variable.words) else MARK, value)


def _is_slip(text: str, words: tuple[str, ...]) -> bool:
    """Tell whether a text is a known word that was typed wrong."""
    from difflib import SequenceMatcher  # imported here: hardly any worker needs it

    return any(
        len(text) <= len(word) + _SLIP and SequenceMatcher(None, text.lower(), word).ratio() >= _LIKENESS
        for word in words
    )


def may_be_key(file: str) -> bool:
    """Tell whether a text may be a key where the name of a file belongs: no such file is there, and it is no path."""
    try:
        Path(file).stat()
    except PermissionError:
        return False
    except OSError:  # also when it is too long for a name, which Path.exists() raises
        bare = file.strip(QUOTES)
    else:
        return False
    if _NAME.fullmatch(bare) and (bare.startswith("/") or len(bare) < SHORTEST_KEY):
        return False
    if bare.startswith("/"):
        # A key may begin with a slash, too, but not with the name of a folder.
        top, slash, _ = bare[1:].partition("/")
        return not (slash and Path("/", top).is_dir())
    return not ("/" in bare and bare.startswith((".", "~", "$", "%")))
