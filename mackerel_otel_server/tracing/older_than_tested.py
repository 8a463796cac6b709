"""Say which libraries are older than the oldest tested release."""

from __future__ import annotations

from importlib import metadata

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing import warn_once


def warn_if_older(distribution: str, oldest: str) -> None:
    """Log a warning if the installed release of a library is older than ``oldest``. Never raises.

    Args:
        distribution: Its name on the package index. Nothing is said where it is not installed.
        oldest: The oldest release that this package is tested with.
    """
    try:
        installed = metadata.version(distribution)
        if is_older(installed, oldest):
            warn_once.warn(
                "%s %s is older than %s, the oldest release that this package is tested with, so spans may lack their "
                "route or their exception, or be missing; type: pip install '%s>=%s'",
                distribution,
                installed,
                oldest,
                distribution,
                oldest,
            )
    except Exception:
        log.debug("the release of %s is not known", distribution, exc_info=True)


def is_older(installed: str, oldest: str) -> bool:
    """Compare two releases; a pre-release of ``oldest`` counts as ``oldest``.

    Raises:
        packaging.version.InvalidVersion: if one of them cannot be read.
    """
    from packaging.version import Version  # only where a library is imported that is compared

    return Version(Version(installed).base_version) < Version(oldest)
