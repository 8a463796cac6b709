"""The environment of this process: nobody else in this package reads ``os.environ``."""

from __future__ import annotations

import os

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.http import conventions


def set_semconv_default() -> None:
    """Select the stable semantic conventions for the instrumentations of OpenTelemetry, unless the user chose.

    They read ``OTEL_SEMCONV_STABILITY_OPT_IN`` once, so this runs before any of them is imported.
    """
    if not os.environ.get(catalogue.SEMCONV.name):
        os.environ[catalogue.SEMCONV.name] = catalogue.SEMCONV.default


def semantic_conventions(signal: str) -> str:
    """Return which attributes the spans of a signal have, ``new``, ``old`` or ``both``.

    ``OTEL_SEMCONV_STABILITY_OPT_IN`` as in https://opentelemetry.io/docs/specs/semconv/db/: ``database`` stands for
    the new ones, ``database/dup`` for both and goes first.

    Args:
        signal: ``database`` or ``http``.
    """
    values = [value.strip() for value in os.environ.get(catalogue.SEMCONV.name, "").split(",")]
    return conventions(values, signal)


def is_disabled() -> bool:
    """Tell whether ``OTEL_SDK_DISABLED`` switches tracing off; a value that is no boolean is an error of read()."""
    return os.environ.get(catalogue.SDK_DISABLED.name, "").strip().lower() == "true"


def disabled_instrumentations() -> frozenset[str]:
    """Return the entry-point names in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``; ``*`` stands for all."""
    value = os.environ.get(catalogue.DISABLED_INSTRUMENTATIONS.name, "")
    return frozenset(name.strip() for name in value.split(",") if name.strip())


def is_runserver_child() -> bool:
    """Tell whether this is the process that Django's reloader started to serve.

    Django's utils/autoreload.py marks it with ``RUN_MAIN=true``.
    """
    return os.environ.get("RUN_MAIN") == "true"


def wants_colour() -> bool:
    """Tell whether a terminal may be written to in colour: https://no-color.org."""
    return not os.environ.get("NO_COLOR") and not is_dumb_terminal()


def is_dumb_terminal() -> bool:
    """Tell whether the terminal, if there is one, shows lines and nothing else."""
    return os.environ.get("TERM") == "dumb"
