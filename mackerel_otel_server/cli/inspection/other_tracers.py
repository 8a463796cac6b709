"""Other tracers that run in the server's processes, beside this package."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding, fail, warn
from mackerel_otel_server.cli.inspection.project import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STARTERS: Final = {
    "opentelemetry/instrumentation/auto_instrumentation": "opentelemetry-instrument",
    "ddtrace/bootstrap": "ddtrace-run",
    "newrelic/bootstrap": "newrelic-admin",
}
"""End of a folder's name -> the command that puts the folder into PYTHONPATH, so that Python runs its sitecustomize."""


def findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look for other tracers in the environment of the server, and in the process of this command."""
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if not isinstance(provider, trace.ProxyTracerProvider):
        whose = f"{type(provider).__module__}.{type(provider).__qualname__}"
        yield fail(
            f"a tracer provider is set in every Python process that is started here ({whose})",
            "this package stays off where another provider is set",
            "start the server without the command or the sitecustomize module that sets it",
        )
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
        # opentelemetry-instrument sets a provider only if an installed package offers a configurator.
        sets_provider = name == "opentelemetry-instrument" and bool(entry_points(group="opentelemetry_configurator"))
        yield (fail if sets_provider else warn)(
            f"{seen} {entry}, where {name or 'a sitecustomize module'} starts another tracer",
            "this package stays off where another provider is set"
            if sets_provider
            else "both trace each request: it costs twice, and either may disturb the other",
            f"start the server without {name or 'that folder in PYTHONPATH'}",
        )
