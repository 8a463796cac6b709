"""The environment of this process: nobody else in this package reads ``os.environ``."""

from __future__ import annotations

import os
import sys

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.http import conventions


def set_semconv_default() -> None:
    """Select the stable semantic conventions for the instrumentations of OpenTelemetry, unless the user chose.

    They read ``OTEL_SEMCONV_STABILITY_OPT_IN`` once, so this runs before any of them is imported.
    """
    if "uwsgi" in sys.modules:
        _take_what_uwsgi_has_set()
    if not os.environ.get(catalogue.SEMCONV.name):
        os.environ[catalogue.SEMCONV.name] = catalogue.SEMCONV.default


def _take_what_uwsgi_has_set() -> None:
    """Let ``os.environ`` have the variables of uWSGI's ``env =`` and ``unenv =`` lines.

    The program of the package pyuwsgi is a Python that has copied the environment before uWSGI reads its options.
    """
    import ctypes  # under uWSGI only

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    for name in {name for variable in catalogue.CATALOGUE for name in variable.names}:
        # Others belong to the application, too.
        if not name.startswith(("MACKEREL_", "OTEL_")):
            continue
        value = getenv(name.encode())
        if value is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != os.fsdecode(value):
            os.environ[name] = os.fsdecode(value)


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
