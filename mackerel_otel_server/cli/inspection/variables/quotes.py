"""Quotes that no shell has taken away: ``docker run --env-file`` and uWSGI's ``env``, say, keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import API_KEY_HEADER, catalogue
from mackerel_otel_server.settings.shown import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mackerel_otel_server.settings.reader import Reader

_QUOTES: Final = ("'", '"')


def findings(source: Reader, env_lines: Collection[str]) -> Iterator[Finding]:
    """Look at all values that settings takes as they are; the API key is looked at elsewhere.

    Args:
        source: The variables.
        env_lines: Those that a line ``env = NAME=value`` of uWSGI sets.
    """
    name, _ = source.first(catalogue.HEADERS)
    pairs = source.pairs(catalogue.HEADERS)
    pairs = {header: value for header, value in pairs.items() if header.lower() != API_KEY_HEADER.lower()}
    if name not in source.wrong and _any(pairs):
        yield Finding(
            "WARN",
            f"{name} holds quotes around a name or a value",
            "they are sent as a part of the header" + kept(name, env_lines),
            f"{line(name, env_lines)}name=value,name=value without quotes",
        )
    name, typed = source.first(catalogue.RESOURCE_ATTRIBUTES)
    if name not in source.wrong and _any(source.pairs(catalogue.RESOURCE_ATTRIBUTES)):
        yield _quoted(name, typed, "".join(one for one in typed if one not in _QUOTES), env_lines)
    for variable in catalogue.CATALOGUE:
        name, typed = source.first(variable)
        apart = variable.secret or variable is catalogue.RESOURCE_ATTRIBUTES or name in source.wrong
        if not apart and len(typed) > 1 and typed[0] == typed[-1] and typed[0] in _QUOTES:
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
    return Finding(
        "WARN",
        f"{name}={typed!r} holds quotes",
        "they are a part of the value" + kept(name, env_lines),
        line(name, env_lines) + bare,
    )
