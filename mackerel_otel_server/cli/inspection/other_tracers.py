"""Other tracers beside this package: who is active, who is only installed."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import files
from mackerel_otel_server.cli.inspection.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STARTERS: Final = {
    "opentelemetry/instrumentation/auto_instrumentation": "opentelemetry-instrument",
    "ddtrace/bootstrap": "ddtrace-run",
    "newrelic/bootstrap": "newrelic-admin",
}
"""A folder that a start command puts into PYTHONPATH, where Python looks for a ``sitecustomize`` module."""
_VARIABLES: Final = {"ddtrace": ("DD_", "Datadog"), "newrelic": ("NEW_RELIC_", "New Relic")}
_ONLY_THEIRS: Final = ("OTEL_PYTHON_CONFIGURATOR", "OTEL_PYTHON_DISTRO")
"""Only opentelemetry-instrument reads these."""


def findings(environ: Mapping[str, str]) -> list[Finding]:
    """Look for other tracers in the environment of the server, and in this very process."""
    return [*_provider(), *_python_path(environ), *_by_variables(environ)]


def _provider() -> Iterator[Finding]:
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if not isinstance(provider, trace.ProxyTracerProvider):
        name = f"{type(provider).__module__}.{type(provider).__qualname__}"
        yield Finding(
            "FAIL",
            f"a tracer provider is set in every Python process that is started here ({name})",
            "this package stays off where another provider is set",
            "start the server without the command or the sitecustomize module that sets it",
        )


def _python_path(environ: Mapping[str, str]) -> Iterator[Finding]:
    entries = dict.fromkeys(environ.get("PYTHONPATH", "").split(os.pathsep), "PYTHONPATH holds")
    if file := getattr(sys.modules.get("sitecustomize"), "__file__", None):
        # opentelemetry-instrument of older releases takes its folder out of PYTHONPATH when it has done its work.
        entries.setdefault(str(Path(file).parent), "this process was started with")
    entries.pop("", None)
    for entry, seen in entries.items():
        text = files.text_or_nothing(Path(entry, "sitecustomize.py"))
        name = next((name for folder, name in _STARTERS.items() if folder in entry.replace(os.sep, "/")), None)
        if name is None and not any(word in text for word in ("ddtrace", "newrelic", "opentelemetry")):
            continue
        # It sets a provider where a distribution of OpenTelemetry tells it how.
        sets_provider = name == "opentelemetry-instrument" and bool(entry_points(group="opentelemetry_configurator"))
        yield Finding(
            "FAIL" if sets_provider else "WARN",
            f"{seen} {entry}, where {name or 'a sitecustomize module'} starts another tracer",
            "this package stays off where another provider is set"
            if sets_provider
            else "both trace each request: it costs twice, and either may disturb the other",
            f"start the server without {name or 'that folder in PYTHONPATH'}",
        )


def _by_variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    for module, (prefix, name) in _VARIABLES.items():
        variables = sorted(variable for variable in environ if variable.startswith(prefix))
        installed = find_spec(module) is not None
        if installed and variables:
            yield Finding(
                "WARN",
                f"{name}'s tracer ({module}) is installed and {', '.join(variables)} set",
                "where the server is started with it, both trace each request: it costs twice, and either may disturb "
                "the other",
                f"pip uninstall {module}, or unset those variables and start the server without it",
            )
        elif installed:
            yield Finding("OK", f"{name}'s tracer ({module}) is installed, and nothing here starts it")
    variables = [variable for variable in _ONLY_THEIRS if environ.get(variable)]
    if variables:
        yield Finding(
            "WARN",
            f"{', '.join(variables)}: only opentelemetry-instrument reads that",
            "where the server is started with it, this package stays off",
            f"start the server without it, and unset {' '.join(variables)}",
        )
