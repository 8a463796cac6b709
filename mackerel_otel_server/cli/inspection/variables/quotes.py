"""Quotes around a value that no shell has removed: ``docker run --env-file`` and uWSGI's ``env`` keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.all_variables import VARIABLES
from mackerel_otel_server.cli.inspection.findings import Finding, warn
from mackerel_otel_server.settings import API_KEY_HEADER, catalogue
from mackerel_otel_server.settings.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mackerel_otel_server.settings.reader import Reader

_QUOTES: Final = ("'", '"')


def findings(source: Reader, env_lines: Collection[str]) -> Iterator[Finding]:
    """Look at all values that settings takes as they are, except the API key, which has its own inspection."""
    pairs = source.pairs(catalogue.HEADERS)
    headers = {header: value for header, value in pairs.items() if header.lower() != API_KEY_HEADER.lower()}
    for variable in VARIABLES:
        name, typed = source.first(variable)
        if name in source.wrong:
            continue
        if variable is catalogue.HEADERS and _any(headers):
            yield warn(
                f"{name} holds quotes around a name or a value",
                "they are sent as a part of the header" + kept(name, env_lines),
                f"{line(name, env_lines)}name=value,name=value without quotes",
            )
        elif variable is catalogue.RESOURCE_ATTRIBUTES and _any(source.pairs(variable)):
            yield _quoted(name, typed, "".join(one for one in typed if one not in _QUOTES), env_lines)
        elif not variable.secret and len(typed) > 1 and typed[0] == typed[-1] and typed[0] in _QUOTES:
            text = shown(variable, typed)
            yield _quoted(name, text, text.strip("".join(_QUOTES)), env_lines)


def kept(name: str, env_lines: Collection[str]) -> str:
    """Return who has kept the quotes around a value, as the end of a sentence."""
    return ": uWSGI keeps them" if name in env_lines else ""


def line(name: str, env_lines: Collection[str]) -> str:
    """Return how a variable is to be typed where it was set, up to its value."""
    return f"write the line env = {name}=" if name in env_lines else f"type {name}="


def _any(pairs: dict[str, str]) -> bool:
    return any(text.startswith(_QUOTES) or text.endswith(_QUOTES) for pair in pairs.items() for text in pair)


def _quoted(name: str, typed: str, bare: str, env_lines: Collection[str]) -> Finding:
    return warn(
        f"{name}={typed!r} holds quotes",
        "they are a part of the value" + kept(name, env_lines),
        line(name, env_lines) + bare,
    )
