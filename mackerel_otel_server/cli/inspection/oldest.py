"""Libraries that are older than the oldest release that this package is tested with."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.tracing import frameworks
from mackerel_otel_server.tracing.databases import floors
from mackerel_otel_server.tracing.oldest import is_older

if TYPE_CHECKING:
    from collections.abc import Iterator


def findings() -> Iterator[Finding]:
    """Compare what is installed with the oldest releases that are tested."""
    for name, oldest in {**frameworks.oldest(), **floors.OLDEST}.items():
        try:
            installed = metadata.version(name)
            if is_older(installed, oldest):
                yield Finding(
                    "WARN",
                    f"{name} {installed} is older than {oldest}, the oldest release that this package is tested with",
                    "spans may lack their route or their exception, or be missing",
                    f"pip install '{name}>={oldest}'",
                )
        except (metadata.PackageNotFoundError, InvalidVersion):  # noqa: PERF203 - two dozen names
            continue
