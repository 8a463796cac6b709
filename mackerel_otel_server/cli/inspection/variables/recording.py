"""What is recorded, and what of it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import catalogue, reader
from mackerel_otel_server.settings.http import conventions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.reader import Reader


def findings(environ: Mapping[str, str], source: Reader, settings: Settings) -> Iterator[Finding]:
    """Look for what leaves a user without spans, or with other ones than Mackerel reads."""
    name = catalogue.SDK_DISABLED.name
    if is_disabled(environ):
        yield Finding(
            "WARN", f"{name}={environ[name]!r}", "nothing is traced, and no log line says so", f"unset {name}"
        )
    yield from _exporter(source, settings)
    if not {name for variable in (catalogue.SAMPLER, catalogue.SAMPLER_ARG) for name in variable.names} & source.wrong:
        yield from _sampler(source, settings)
    yield from _propagators(source)
    yield from _semconv(source)


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Tell whether nothing is set up."""
    return environ.get(catalogue.SDK_DISABLED.name, "").strip().lower() == "true"


def silence(environ: Mapping[str, str], settings: Settings | None) -> str:
    """Return why no span is sent although no setting is wrong; empty where spans are sent.

    Args:
        environ: The variables of the server.
        settings: None where they have errors.
    """
    if is_disabled(environ):
        return f"Nothing is traced: {catalogue.SDK_DISABLED.name} is true"
    if settings is None:
        return ""
    if "otlp" not in settings.exporters:
        typed = ",".join(settings.exporters) or "none"
        goes = "Spans are printed, and none is sent" if settings.exporters else "No span is sent"
        return f"{goes}: {catalogue.EXPORTER.name} is {typed}"
    if _ratio(settings) == 0:
        parents = " but those whose caller has decided so" * settings.sampler.startswith("parentbased_")
        return f"No request is traced{parents}: the sampler {settings.sampler} records none"
    return ""


def in_force(settings: Settings) -> Iterator[Finding]:
    """Say how many traces are recorded."""
    if _ratio(settings) > 0 and settings.exporters:
        part = "every trace" if _ratio(settings) == 1 else f"{_ratio(settings):.6g} of all traces"
        theirs = "; a caller's decision goes first" if settings.sampler.startswith("parentbased_") else ""
        yield Finding("OK", f"the sampler {settings.sampler} records {part}{theirs}")


def _ratio(settings: Settings) -> float:
    if settings.sampler.endswith("traceidratio"):
        return settings.sampler_ratio
    return 0.0 if settings.sampler.endswith("always_off") else 1.0


def _exporter(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, typed = source.first(catalogue.EXPORTER)
    if "otlp" not in settings.exporters and name not in source.wrong:
        goes = "spans are printed, and none is sent" if settings.exporters else "no span is sent"
        yield Finding("WARN", f"{name}={typed!r}", goes, f"unset {name}, or type {name}=otlp")
    elif "console" in settings.exporters and name not in source.wrong:
        yield Finding("WARN", f"{name}={typed!r}", "every span is printed, too", f"type {name}=otlp")


def _sampler(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, typed = source.first(catalogue.SAMPLER)
    argument_name, argument = source.first(catalogue.SAMPLER_ARG)
    has_ratio = settings.sampler.endswith("traceidratio")
    if argument and not has_ratio:
        given = reader.seen(catalogue.SAMPLER_ARG, argument_name, argument)
        yield Finding(
            "WARN",
            f"{given} has no effect: the sampler is {settings.sampler}",
            f"{'no trace' if _ratio(settings) == 0 else 'every trace'} is recorded, whatever the argument",
            f"type {name}=parentbased_traceidratio, or unset {argument_name}",
        )
    if has_ratio and not argument:
        yield Finding(
            "WARN",
            f"{name}={typed!r} has no {argument_name}",
            "every trace is recorded",
            f"type {argument_name}=0.1 for a tenth, or unset {name}",
        )
    if _ratio(settings) == 0:
        seen = f"{argument_name}={argument!r}" if has_ratio else f"{name}={typed!r}"
        parents = settings.sampler.startswith("parentbased_")
        yield Finding(
            "WARN",
            f"{seen} records no trace",
            "nothing arrives" + (" but requests whose caller has decided so" if parents else ""),
            f"type {argument_name}=0.1 for a tenth" if has_ratio else f"unset {name}",
        )


def _propagators(source: Reader) -> Iterator[Finding]:
    name, typed = source.first(catalogue.PROPAGATORS)
    if typed and name not in source.wrong and "tracecontext" not in source.names(catalogue.PROPAGATORS):
        others = [one for one in source.names(catalogue.PROPAGATORS) if one != "none"]
        yield Finding(
            "WARN",
            f"{name}={typed!r} lacks tracecontext",
            "the header traceparent is not read: a request begins a trace of its own, apart from its caller's",
            f"type {name}={','.join(['tracecontext', *others])}",
        )


def _semconv(source: Reader) -> Iterator[Finding]:
    name, typed = source.first(catalogue.SEMCONV)
    values = source.names(catalogue.SEMCONV)
    kept = {signal: conventions(values, signal) for signal in ("http", "database")}
    old = [signal for signal, names in kept.items() if names == "old"]
    both = [signal for signal, names in kept.items() if names == "both"]
    if not typed or not (old or both):
        return
    only = f"spans of {' and '.join(old)} have the old attribute names, and Mackerel looks for the new ones first"
    twice = f"spans of {' and '.join(both)} have the old attribute names beside the new ones, and are larger"
    yield Finding(
        "WARN",
        f"{name}={typed!r} keeps old attribute names",
        "; ".join([only] * bool(old) + [twice] * bool(both)),
        f"unset {name}, or type {name}={catalogue.SEMCONV.default}",
    )
