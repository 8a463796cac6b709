"""The environment of this process: nobody else in this package reads ``os.environ``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.http import conventions

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_OPENTELEMETRY: Final = "OTEL_"
_differs = False
"""Whether ``os.environ`` lacks what the process has."""


def variables() -> Mapping[str, str]:
    """Return the environment of this process."""
    return (_of_process() if _differs else None) or os.environ


def take_variables_of_process() -> None:
    """Read, from now on, the variables that this process has got since its interpreter started, too.

    Python copies them into ``os.environ`` once. pyuwsgi is an extension of an interpreter that runs already when uWSGI
    reads its ini file and does what its ``env`` and ``unenv`` lines say, by ``putenv()``; so it is for a uWSGI process
    to call this. As whatever is written to ``os.environ`` goes to the process as well, the process's are the newest.

    What OpenTelemetry reads from ``os.environ`` by itself is put there; nothing else of the application's changes.
    """
    global _differs
    newest = _of_process()
    if newest is None or newest == dict(os.environ):
        return
    _differs = True
    for name in {*os.environ, *newest}:
        if name.startswith(_OF_OPENTELEMETRY) and newest.get(name) != os.environ.get(name):
            if name in newest:
                os.environ[name] = newest[name]
            else:
                del os.environ[name]


def _of_process() -> dict[str, str] | None:
    """Read ``environ`` of environ(7); None where that cannot be done."""
    try:
        import ctypes  # optional: a Python without libffi lacks it

        entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
        found: dict[str, str] = {}
        position = 0
        while entry := entries[position]:
            name, equals, value = entry.partition(b"=")
            if equals:
                # The first of two counts for getenv(3).
                found.setdefault(os.fsdecode(name), os.fsdecode(value))
            position += 1
    except Exception:  # whatever is in the way: os.environ is what everybody else reads
        return None
    return found


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
