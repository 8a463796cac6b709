"""The API key, which is in no finding."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.variables import quotes
from mackerel_otel_server.settings import API_KEY_HEADER, catalogue
from mackerel_otel_server.settings.api_key import read_key_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.reader import Reader

_SHORTEST: Final = 20
"""Characters that an API key has at least."""
_BEARER: Final = re.compile(r"\W*bearer\b", re.IGNORECASE)
_ASSIGNMENT: Final = re.compile(r"\W*(export\s+)?(MACKEREL_API_?KEY|MACKEREL-API-KEY)\s*[=:]", re.IGNORECASE)
_QUOTES: Final = re.compile(
    "[\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}]"
)
_QUOTED: Final = "quotes beside the API key"
_EVERYBODY_READS: Final = 0o004


def malformed(source: Reader, settings: Settings) -> tuple[str, str] | None:
    """Return the variable that gives the key, and what the key holds besides, or None."""
    name, key = _typed(source, settings)
    if _BEARER.match(key):
        return name, "the word Bearer before the API key"
    if _ASSIGNMENT.match(key):
        return name, "the name of a variable or a header before the API key"
    if _QUOTES.search(key):
        return name, _QUOTED
    return None


def findings(
    environ: Mapping[str, str],
    source: Reader,
    collector: str | None,
    wrong: tuple[str, str] | None,
    env_lines: Collection[str],
) -> Iterator[Finding]:
    """Look at all places that a key can be in.

    Args:
        environ: The variables.
        source: Their reader.
        collector: The variable that names a Collector, None where the key goes to Mackerel.
        wrong: What malformed() has returned.
        env_lines: The variables that a line ``env = NAME=value`` of uWSGI sets.
    """
    given = _given(environ, source)
    if collector and given:
        yield _not_sent(collector, given)
    elif given:
        yield from _which(environ, given)
        yield from _malformed(given[0], environ, source, wrong, env_lines)
        if given[-1] in catalogue.HEADERS.names:
            yield _in_headers(given)
    yield from _readable(source.text(catalogue.API_KEY_FILE))


def in_force(source: Reader, settings: Settings) -> Iterator[Finding]:
    """Say where the key is."""
    if settings.api_key:
        yield Finding("OK", f"the API key is given by {_typed(source, settings)[0]}")


def _typed(source: Reader, settings: Settings) -> tuple[str, str]:
    """Return the variable that gives the key, and the key, also one that settings has refused."""
    name, key = source.raw(catalogue.API_KEY)
    if key:
        return name, key
    name, file = source.first(catalogue.API_KEY_FILE)
    if file:
        return name, settings.api_key or _content(file) or ""
    return source.first(catalogue.HEADERS)[0], settings.api_key or _in_pairs(source)


def _in_pairs(source: Reader) -> str:
    pairs = source.pairs(catalogue.HEADERS)
    return next((value for name, value in pairs.items() if name.lower() == API_KEY_HEADER.lower()), "")


def _content(file: str) -> str | None:
    with suppress(OSError, ValueError):
        return read_key_file(Path(file)).strip()
    return None


def _given(environ: Mapping[str, str], source: Reader) -> list[str]:
    """Return the variables that hold a key, in the order in which they are obeyed."""
    names = [name for name in (*catalogue.API_KEY.names, catalogue.API_KEY_FILE.name) if environ.get(name, "").strip()]
    return [*names, source.first(catalogue.HEADERS)[0]] if _in_pairs(source) else names


def _not_sent(collector: str, given: list[str]) -> Finding:
    return Finding(
        "WARN",
        f"{' and '.join(given)} {'holds' if len(given) == 1 else 'hold'} an API key, and {collector} names a Collector",
        "the key is not sent: a Collector gets none",
        f"give the key to the Collector and unset {' '.join(given)} here, or, to send to Mackerel, unset {collector}",
    )


def _which(environ: Mapping[str, str], given: list[str]) -> Iterator[Finding]:
    variables = [name for name in given if name not in catalogue.HEADERS.names]
    for other in variables[1:]:
        first, is_file = variables[0], other == catalogue.API_KEY_FILE.name
        if (_content(environ[other].strip()) if is_file else environ[other]) != environ[first]:
            yield Finding(
                "WARN",
                f"{first} and {other} are both set, and do not give the same key",
                f"{first} goes first; {other} is not used",
                f"unset {other}, or {first} if the other is right",
            )


def _malformed(
    name: str,
    environ: Mapping[str, str],
    source: Reader,
    wrong: tuple[str, str] | None,
    env_lines: Collection[str],
) -> Iterator[Finding]:
    in_file = name == catalogue.API_KEY_FILE.name
    cure = (
        "write the API key alone into that file" if in_file else f"{quotes.line(name, env_lines)} and the API key alone"
    )
    if name in catalogue.HEADERS.names:
        cure = f"set {catalogue.API_KEY.name} to the API key alone"
    if wrong:
        follows = "Mackerel refuses the key, and no span arrives" + quotes.kept(name, env_lines) * (wrong[1] == _QUOTED)
        yield Finding("FAIL", f"{name} holds {wrong[1]}", follows, cure)
        return
    key = (_content(environ[name].strip()) if in_file else environ.get(name)) or ""
    key = _in_pairs(source) if name in catalogue.HEADERS.names else key
    if name not in source.wrong and 0 < len(key) < _SHORTEST:
        yield Finding(
            "WARN",
            f"the API key of {name} has only {len(key)} characters",
            "Mackerel refuses it if a part is missing",
            f"copy it again from Mackerel; {cure}",
        )


def _in_headers(given: list[str]) -> Finding:
    *others, name = given
    used = f"it is not used: {others[0]} goes first" if others else "it is used"
    return Finding(
        "WARN",
        f"{name} holds the header {API_KEY_HEADER}",
        f"{used}; every other exporter of OpenTelemetry with these variables sends the key to its own endpoint",
        f"remove that item, and set {catalogue.API_KEY.name} to the key, or {catalogue.API_KEY_FILE.name} to a file "
        "that holds it",
    )


def _readable(file: str) -> Iterator[Finding]:
    with suppress(OSError, ValueError):
        mode = Path(file).stat().st_mode & 0o7777 if file else 0
        if mode & _EVERYBODY_READS:
            yield Finding(
                "WARN",
                f"{catalogue.API_KEY_FILE.name}={file!r} has the mode {mode:04o}",
                "every user of this machine may read the API key",
                f"chmod o= {shlex.quote(file)}; for a secret that a container mounts, set its mode there, such as 0400",
            )
