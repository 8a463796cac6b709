"""The API key. No finding shows it."""

from __future__ import annotations

import re
import shlex
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding, fail, warn
from mackerel_otel_server.cli.inspection.variables import quotes
from mackerel_otel_server.settings import API_KEY_HEADER, catalogue
from mackerel_otel_server.settings.api_key import read_key_file
from mackerel_otel_server.settings.urls import QUOTES, SHORTEST_KEY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.reader import Reader

_BEARER: Final = re.compile(r"\W*bearer\b", re.IGNORECASE)
_ASSIGNMENT: Final = re.compile(r"\W*(export\s+)?(MACKEREL_API_?KEY|MACKEREL-API-KEY)\s*[=:]", re.IGNORECASE)
_QUOTED: Final = "quotes beside the API key"


def malformed(source: Reader, settings: Settings) -> str | None:
    """Return what stands beside the key in the value that gives it; None where nothing does."""
    _, key = typed(source, settings)
    if _BEARER.match(key):
        return "the word Bearer before the API key"
    if _ASSIGNMENT.match(key):
        return "the name of a variable or a header before the API key"
    return _QUOTED if set(key) & set(QUOTES) else None


def findings(  # noqa: PLR0913, PLR0917 - what the other inspections have found out
    environ: Mapping[str, str],
    source: Reader,
    settings: Settings,
    collector: str | None,
    wrong: str | None,
    env_lines: Collection[str],
) -> Iterator[Finding]:
    """Look at all places that a key can be in.

    Args:
        environ: The variables.
        source: Their reader.
        settings: What they say.
        collector: The variable that names a Collector, None where the key goes to Mackerel.
        wrong: What malformed() has returned.
        env_lines: As for variables.findings().
    """
    names = [name for name in (*catalogue.API_KEY.names, catalogue.API_KEY_FILE.name) if environ.get(name, "").strip()]
    in_headers = [source.first(catalogue.HEADERS)[0]] if _in_pairs(source) else []
    given = [*names, *in_headers]
    if collector and given:
        yield warn(
            f"{' and '.join(given)} {'holds' if len(given) == 1 else 'hold'} an API key, and {collector} names a "
            "Collector",
            "the key is not sent: a Collector gets none",
            f"give the key to the Collector and unset {' '.join(given)} here, or, to send to Mackerel, unset "
            f"{collector}",
        )
    elif given:
        yield from _which(environ, names)
        yield from _malformed(source, settings, wrong, env_lines)
        yield from (_in_headers(name, names) for name in in_headers)
    yield from _readable(source.text(catalogue.API_KEY_FILE))


def typed(source: Reader, settings: Settings) -> tuple[str, str]:
    """Return the variable that gives the key, and the key, even where settings has refused it."""
    name, key = source.raw(catalogue.API_KEY)
    if key:
        return name, key
    name, file = source.first(catalogue.API_KEY_FILE)
    if file:
        return name, settings.api_key or _content(file)
    return source.first(catalogue.HEADERS)[0], settings.api_key or _in_pairs(source)


def _in_pairs(source: Reader) -> str:
    pairs = source.pairs(catalogue.HEADERS)
    return next((value for name, value in pairs.items() if name.lower() == API_KEY_HEADER.lower()), "")


def _content(file: str) -> str:
    with suppress(OSError, ValueError):
        return read_key_file(Path(file)).strip()
    return ""


def _which(environ: Mapping[str, str], names: list[str]) -> Iterator[Finding]:
    for other in names[1:]:
        key = _content(environ[other].strip()) if other == catalogue.API_KEY_FILE.name else environ[other]
        if key != environ[names[0]]:
            yield warn(
                f"{names[0]} and {other} are both set, and do not give the same key",
                f"{names[0]} goes first; {other} is not used",
                f"unset {other}, or {names[0]} if the other is right",
            )


def _malformed(source: Reader, settings: Settings, wrong: str | None, env_lines: Collection[str]) -> Iterator[Finding]:
    name, key = typed(source, settings)
    cure = f"{quotes.line(name, env_lines)} and the API key alone"
    if name == catalogue.API_KEY_FILE.name:
        cure = "write the API key alone into that file"
    elif name in catalogue.HEADERS.names:
        cure = f"set {catalogue.API_KEY.name} to the API key alone"
    if wrong:
        follows = "Mackerel refuses the key, and no span arrives" + quotes.kept(name, env_lines) * (wrong == _QUOTED)
        yield fail(f"{name} holds {wrong}", follows, cure)
    elif name not in source.wrong and 0 < len(key) < SHORTEST_KEY:
        yield warn(
            f"the API key of {name} has only {len(key)} characters",
            "Mackerel refuses it if a part is missing",
            f"copy it again from Mackerel; {cure}",
        )


def _in_headers(name: str, others: list[str]) -> Finding:
    used = f"it is not used: {others[0]} goes first" if others else "it is used"
    return warn(
        f"{name} holds the header {API_KEY_HEADER}",
        f"{used}; every other exporter of OpenTelemetry with these variables sends the key to its own endpoint",
        f"remove that item, and set {catalogue.API_KEY.name} to the key, or {catalogue.API_KEY_FILE.name} to a file "
        "that holds it",
    )


def _readable(file: str) -> Iterator[Finding]:
    with suppress(OSError, ValueError):
        mode = Path(file).stat().st_mode & 0o7777 if file else 0
        if mode & stat.S_IROTH:
            yield warn(
                f"{catalogue.API_KEY_FILE.name}={file!r} has the mode {mode:04o}",
                "every user of this machine may read the API key",
                f"chmod o= {shlex.quote(file)}; for a secret that a container mounts, set its mode there, such as 0400",
            )
