"""What is wrong with the variables that were typed, and what to type instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.cli.all_variables import FRAMEWORKS
from mackerel_otel_server.cli.inspection.findings import Finding, ok
from mackerel_otel_server.cli.inspection.variables import destination, identity, key, names, quotes, recording
from mackerel_otel_server.settings import Arguments, catalogue, understand
from mackerel_otel_server.settings.api_key import unusable
from mackerel_otel_server.settings.environment import is_disabled
from mackerel_otel_server.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mackerel_otel_server.settings import Settings


def findings(
    environ: Mapping[str, str], application: str | None = None, env_lines: Collection[str] = ()
) -> list[Finding]:
    """Look at all variables. Where nothing fails, say also what is in force.

    Args:
        environ: The variables of the server.
        application: What the server is told to serve (``mysite.wsgi:application``), where that is known.
        env_lines: The variables that a line ``env = NAME=value`` of uWSGI sets.
    """
    source = Reader(environ)
    settings = understand(source, Arguments(), application, None, FRAMEWORKS)
    # The inspections below ask the reader again, which would add to its lists.
    problems, warnings = tuple(source.problems), tuple(source.warnings)
    collector = destination.collector(source, settings)
    takes_key = "otlp" in settings.exporters and collector is None
    malformed = key.malformed(source, settings) if takes_key else None
    if malformed is not None:
        # The finding about the key says more than settings says about the same key.
        told = unusable(*key.typed(source, settings))
        problems = tuple(problem for problem in problems if problem != told)
    found = [
        *(Finding.of(problem, "FAIL") for problem in problems),
        *key.findings(environ, source, settings, collector, malformed, env_lines),
        *destination.findings(source, settings),
        *quotes.findings(source, env_lines),
        *(Finding.of(warning, "WARN") for warning in warnings),
        *identity.findings(source),
        *recording.findings(environ, source, settings),
        *names.findings(environ, env_lines),
    ]
    if is_disabled(environ) or any(one.level == "FAIL" for one in found):
        return found
    return [*found, *_in_force(source, settings, collector)]


def _in_force(source: Reader, settings: Settings, collector: str | None) -> Iterator[Finding]:
    if settings.api_key:
        yield ok(f"the API key is given by {key.typed(source, settings)[0]}")
    if settings.endpoint:
        who = ", a Collector, which gets no key" if collector else ""
        yield ok(f"spans are sent to {settings.shown_endpoint}{who}")
    # Settings warns where nobody gave a service name.
    if source.text(catalogue.SERVICE_NAME) or source.pairs(catalogue.RESOURCE_ATTRIBUTES).get("service.name"):
        yield ok(f"the service name is {settings.service_name!r}")
    if settings.exporters and (ratio := recording.ratio(settings)) > 0:
        part = "every trace" if ratio == 1 else f"{ratio:.6g} of all traces"
        theirs = "; a caller's decision goes first" if settings.sampler.startswith("parentbased_") else ""
        yield ok(f"the sampler {settings.sampler} records {part}{theirs}")
