"""Whether this package's own parts make and send the spans, or OpenTelemetry's."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mackerel_otel_server.settings.reader import Reader

STANDARD_PACKAGES: Final = (
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-instrumentation-wsgi",
    "opentelemetry-instrumentation-asgi",
    "opentelemetry-instrumentation-dbapi",
)
"""What the extra ``standard`` installs."""


def are_standard(environ: Mapping[str, str]) -> bool:
    """Tell whether an environment chooses OpenTelemetry's own parts; another word is a problem of read_parts()."""
    return environ.get(catalogue.PARTS.name, "").strip().lower() == "standard"


def read_parts(source: Reader) -> str:
    """Return ``own`` or ``standard``. It is a problem where a package of the standard parts is not installed."""
    parts = source.choice(catalogue.PARTS)
    if parts == "standard" and (missing := [name for name in STANDARD_PACKAGES if not _is_installed(name)]):
        source.problem(
            catalogue.PARTS.name,
            f"{catalogue.PARTS.name}={parts!r} needs packages that are not installed ({', '.join(missing)})",
            "type pip install 'mackerel-otel-server[standard]', or unset the variable",
        )
    return parts


def _is_installed(name: str) -> bool:
    # The packages are not imported: this runs before the fork.
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
