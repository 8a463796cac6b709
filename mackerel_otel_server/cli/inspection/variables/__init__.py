"""What is wrong with the variables that were typed, and what to type instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.cli.inspection.variables import (
    certificates,
    destination,
    identity,
    key,
    names,
    quotes,
    recording,
    reported,
)
from mackerel_otel_server.settings import Arguments, understand
from mackerel_otel_server.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mackerel_otel_server.cli.inspection.findings import Finding


def findings(
    environ: Mapping[str, str], application: str | None = None, env_lines: Collection[str] = ()
) -> list[Finding]:
    """Look at all variables; what is in force is said only where nothing fails.

    Args:
        environ: The variables of the server.
        application: What the server is told to serve (``mysite.wsgi:application``), where that is known.
        env_lines: The variables that a line ``env = NAME=value`` of uWSGI sets.
    """
    source = Reader(environ)
    settings = understand(source, Arguments(), application, None)
    # Those who look further ask the reader again.
    problems, warnings = tuple(source.problems), tuple(source.warnings)
    collector = destination.collector(source, settings)
    malformed = key.malformed(source, settings) if destination.takes_key(source, settings) else None
    if malformed is not None:
        # What the key holds too much is said by its name.
        problems = tuple(problem for problem in problems if not problem.startswith(f"{malformed[0]} holds "))
    found = [
        *reported.failures(problems),
        *key.findings(environ, source, collector, malformed, env_lines),
        *destination.findings(source, settings),
        *certificates.findings(source, settings),
        *quotes.findings(source, env_lines),
        *reported.warnings(warnings),
        *identity.findings(source),
        *recording.findings(environ, source, settings),
        *names.findings(environ, env_lines),
    ]
    if recording.is_disabled(environ) or any(one.level == "FAIL" for one in found):
        return found
    return [
        *found,
        *key.in_force(source, settings),
        *destination.in_force(settings, collector),
        *identity.in_force(source, settings),
        *recording.in_force(settings),
    ]
