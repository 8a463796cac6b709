"""What may be shown of a variable's value, above all of one that stands in the wrong variable: it may be the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.urls import CLOAK, QUOTES, SHORTEST_KEY, without_credentials

_PEM: Final = "-----BEGIN"
"""Not a file's name but what the file should hold, such as a private key."""
# Most names of files have a slash at their beginning, or a dot.
_KEY: Final = re.compile(rf"(?<![A-Za-z0-9+/=_.-])(?!/)(?=[A-Za-z+/=_-]*[0-9])[A-Za-z0-9+/=_-]{{{SHORTEST_KEY},}}")
_NAME: Final = re.compile(r"[a-z_./~-]+")
"""A key has digits or capitals, however short it is."""


def shown(variable: catalogue.Variable, value: str) -> str:
    """Return a value that may be wrong as a message may show it."""
    if variable.secret or _PEM in value or (variable is catalogue.API_KEY_FILE and may_be_key(value)):
        return CLOAK
    return without_credentials(value) if variable in catalogue.URLS else _KEY.sub(CLOAK, value)


def may_be_key(file: str) -> bool:
    """Tell whether what should be the name of a file may be a key: it is no file, and looks like no path."""
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
