"""Which traces are recorded, and which of them are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mackerel_otel_server.cli.inspection.findings import Finding, warn
from mackerel_otel_server.settings import catalogue, reader
from mackerel_otel_server.settings.environment import is_disabled
from mackerel_otel_server.settings.http_options import conventions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.reader import Reader


def findings(environ: Mapping[str, str], source: Reader, settings: Settings) -> Iterator[Finding]:
    """Look for settings with which no span arrives, or spans that Mackerel does not understand fully."""
    if is_disabled(environ):
        name = catalogue.SDK_DISABLED.name
        yield warn(f"{name}={environ[name]!r}", "nothing is traced, and no log line says so", f"unset {name}")
    yield from _exporter(source, settings)
    if not {name for variable in (catalogue.SAMPLER, catalogue.SAMPLER_ARG) for name in variable.names} & source.wrong:
        yield from _sampler(source, settings)
    yield from _propagators(source)
    yield from _semconv(source)


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
        return f"{_goes(settings).capitalize()}: {catalogue.EXPORTER.name} is {typed}"
    if ratio(settings) == 0:
        return f"No request is traced{_but('those', settings)}: the sampler {settings.sampler} records none"
    return ""


def ratio(settings: Settings) -> float:
    """Return the part of all traces that the sampler records."""
    if settings.sampler.endswith("traceidratio"):
        return settings.sampler_ratio
    return 0.0 if settings.sampler.endswith("always_off") else 1.0


def _goes(settings: Settings) -> str:
    return "spans are printed, and none is sent" if settings.exporters else "no span is sent"


def _but(those: str, settings: Settings) -> str:
    return f" but {those} whose caller has decided so" if settings.sampler.startswith("parentbased_") else ""


def _exporter(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, typed = source.first(catalogue.EXPORTER)
    if name in source.wrong:
        return
    if "otlp" not in settings.exporters:
        yield warn(f"{name}={typed!r}", _goes(settings), f"unset {name}, or type {name}=otlp")
    elif "console" in settings.exporters:
        yield warn(f"{name}={typed!r}", "every span is printed, too", f"type {name}=otlp")


def _sampler(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, typed = source.first(catalogue.SAMPLER)
    argument_name, argument = source.first(catalogue.SAMPLER_ARG)
    has_ratio = settings.sampler.endswith("traceidratio")
    if argument and not has_ratio:
        given = reader.seen(catalogue.SAMPLER_ARG, argument_name, argument)
        yield warn(
            f"{given} has no effect: the sampler is {settings.sampler}",
            f"{'no trace' if ratio(settings) == 0 else 'every trace'} is recorded, whatever the argument",
            f"type {name}=parentbased_traceidratio, or unset {argument_name}",
        )
    if has_ratio and not argument:
        yield warn(
            f"{name}={typed!r} has no {argument_name}",
            "every trace is recorded",
            f"type {argument_name}=0.1 for a tenth, or unset {name}",
        )
    if ratio(settings) == 0:
        seen = f"{argument_name}={argument!r}" if has_ratio else f"{name}={typed!r}"
        cure = f"type {argument_name}=0.1 for a tenth" if has_ratio else f"unset {name}"
        yield warn(f"{seen} records no trace", f"nothing arrives{_but('requests', settings)}", cure)


def _propagators(source: Reader) -> Iterator[Finding]:
    name, typed = source.first(catalogue.PROPAGATORS)
    if typed and name not in source.wrong and "tracecontext" not in source.names(catalogue.PROPAGATORS):
        others = [one for one in source.names(catalogue.PROPAGATORS) if one != "none"]
        yield warn(
            f"{reader.seen(catalogue.PROPAGATORS, name, typed)} lacks tracecontext",
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
    only = [f"spans of {' and '.join(old)} have the old attribute names, and Mackerel looks for the new ones first"]
    twice = [f"spans of {' and '.join(both)} have the old attribute names beside the new ones, and are larger"]
    yield warn(
        f"{reader.seen(catalogue.SEMCONV, name, typed)} keeps old attribute names",
        "; ".join(only * bool(old) + twice * bool(both)),
        f"unset {name}, or type {name}={catalogue.SEMCONV.default}",
    )
