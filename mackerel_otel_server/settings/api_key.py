"""The API key. No message shows it."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.masking import Secret
from mackerel_otel_server.settings.problems import TRACING_IS_OFF, Problem
from mackerel_otel_server.settings.shown_value import may_be_key

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader


def read_api_key(source: Reader, key_in_headers: str, headers_name: str) -> str | None:
    """Read the key: from its variable, its file, or the variable for headers, in this order.

    Args:
        source: The variables.
        key_in_headers: The value of the header ``Mackerel-Api-Key`` in the variable for headers, or empty.
        headers_name: The name of the variable for headers.
    """
    name, key = source.raw(catalogue.API_KEY)
    if key:
        return _checked(source, name, key)
    name, file = source.first(catalogue.API_KEY_FILE)
    if file:
        return _from_file(source, name, file)
    if key_in_headers:
        return _checked(source, headers_name, key_in_headers)
    source.problem(
        catalogue.API_KEY.name,
        "there is no API key and no Collector",
        "set MACKEREL_APIKEY to an API key of your Mackerel organization that "
        "has write permission, or OTEL_EXPORTER_OTLP_ENDPOINT to the URL of a Collector",
    )
    return None


def _from_file(source: Reader, name: str, file: str) -> str | None:
    try:
        key = Secret(read_key_file(Path(file)).strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        if may_be_key(file):
            source.problem(
                name,
                f"{name} names no file that is there (its value is not shown, it may be the API key itself)",
                f"type {catalogue.API_KEY.name}= and the key, or {name}= and the full name of a file that holds it",
            )
        else:
            source.problem(
                name,
                f"{name}={file!r} cannot be read ({reason})",
                "name a file that the server's user may read and that holds the API key",
            )
        return None
    if not key:
        source.problem(
            name,
            f"{name}={file!r} is empty",
            "write the API key into it, or where systemd has made it, into the file that "
            "the unit's LoadCredential= names, and restart",
        )
        return None
    return _checked(source, name, key)


def read_key_file(file: Path) -> str:
    """Read a regular file of text."""
    if not stat.S_ISREG(file.stat().st_mode):
        # A pipe gives its content once, to the arbiter, and nothing to the workers; a device may have no end.
        raise OSError(errno.EINVAL, "it is no regular file")
    return file.read_text(encoding="utf-8")


def _checked(source: Reader, name: str, key: str) -> str | None:
    if problem := unusable(name, key):
        source.add(problem)
        return None
    return key


def unusable(name: str, key: str) -> Problem | None:
    """Return what is wrong with a key that cannot be a header's value."""
    if any(character.isspace() for character in key):
        seen = f"{name} holds white space or a line break within its {len(key)} characters: that is not an API key"
        return Problem(name, seen, TRACING_IS_OFF, "copy it again from Mackerel, without quotes and spaces")
    if not (key.isascii() and key.isprintable()):
        seen = f"{name} holds characters that no API key has"
        return Problem(name, seen, TRACING_IS_OFF, "copy it again from Mackerel")
    return None
