"""What the log says where the installed OpenTelemetry SDK is not built as this package knows it."""

from __future__ import annotations

from opentelemetry.sdk.version import __version__ as sdk_version

from mackerel_otel_server.process.log import log

_has_said = False


def say_once(difference: str) -> None:
    """Warn, unless that was done in this process or before it was forked.

    Args:
        difference: What is not as this package knows it.
    """
    global _has_said
    write, _has_said = (log.debug if _has_said else log.warning), True
    write(
        "the spans of opentelemetry-sdk %s are not built as this package knows them (%s), so OpenTelemetry's own code "
        "makes and encodes spans: none is lost, but requests take longer; type: pip install -U mackerel-otel-server",
        sdk_version,
        difference,
    )


def leave_to_others() -> None:
    """Do not warn: another worker of the same server does."""
    global _has_said
    _has_said = True
