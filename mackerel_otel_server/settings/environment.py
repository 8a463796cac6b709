"""The environment of this process: nobody else in this package reads ``os.environ``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.http_options import SECRET_HEADERS, conventions, named_headers
from mackerel_otel_server.settings.parts import are_standard

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Mapping

_differs = False
"""Whether the process has variables that ``os.environ`` does not show."""


def variables() -> Mapping[str, str]:
    """Return the environment of this process."""
    return (_of_process() if _differs else None) or os.environ


def take_variables_of_process() -> None:
    """From now on, read also the variables that this process got after its interpreter had started.

    A uWSGI process calls this. Python copies the variables of a process into ``os.environ`` once, at its start. pyuwsgi
    runs inside an interpreter, sets the ``env`` and ``unenv`` lines of its ini file with ``putenv()``, and
    ``os.environ`` does not show them. What is written to ``os.environ`` goes to the process as well.

    OpenTelemetry reads ``os.environ`` itself, so its variables are copied there. The application's do not change.
    """
    global _differs
    newest = _of_process()
    if newest is None or newest == dict(os.environ):
        return
    _differs = True
    for name in {*os.environ, *newest}:
        if name.startswith("OTEL_") and newest.get(name) != os.environ.get(name):
            if name in newest:
                os.environ[name] = newest[name]
            else:
                del os.environ[name]


def _of_process() -> dict[str, str] | None:
    """Read the C variable ``environ``, see environ(7); None where that is not possible."""
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
    except Exception:  # whatever goes wrong here, os.environ still has what everybody else reads
        return None
    return found


def set_semconv_default() -> None:
    """Select the stable semantic conventions for the instrumentations of OpenTelemetry, unless the user chose.

    They read ``OTEL_SEMCONV_STABILITY_OPT_IN`` once, so this runs before any of them is imported.
    """
    if not os.environ.get(catalogue.SEMCONV.name):
        os.environ[catalogue.SEMCONV.name] = catalogue.SEMCONV.default


def set_sanitized_headers_default(captured: Iterable[re.Pattern[str] | None]) -> None:
    """Let OpenTelemetry's middlewares redact the headers that hold credentials, unless the user chose what to redact.

    Args:
        captured: Match the names of headers that become attributes; those that are named in full are meant.
    """
    meant = [named_headers(pattern.pattern) for pattern in captured if pattern is not None]
    if meant and not os.environ.get(catalogue.SANITIZED_HEADERS.name):
        names = sorted(SECRET_HEADERS.difference(*meant))
        # The names are searched for, and Cookie is a part of others.
        os.environ[catalogue.SANITIZED_HEADERS.name] = ",".join(f"^{name.replace('_', '.')}$" for name in names)


def semantic_conventions(signal: str) -> str:
    """Return which attributes the spans of a signal have, ``new``, ``old`` or ``both``.

    ``OTEL_SEMCONV_STABILITY_OPT_IN`` as in https://opentelemetry.io/docs/specs/semconv/db/: ``database`` stands for
    the new ones, ``database/dup`` for both and goes first.

    Args:
        signal: ``database`` or ``http``.
    """
    values = [value.strip() for value in os.environ.get(catalogue.SEMCONV.name, "").split(",")]
    return conventions(values, signal)


def is_disabled(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether ``OTEL_SDK_DISABLED`` switches tracing off; a value that is no boolean is an error of read().

    Args:
        environ: Other variables than those of the process.
    """
    return (os.environ if environ is None else environ).get(catalogue.SDK_DISABLED.name, "").strip().lower() == "true"


def disabled_instrumentations(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return the entry-point names in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``; ``*`` stands for all.

    Args:
        environ: Other variables than those of the process.
    """
    value = (os.environ if environ is None else environ).get(catalogue.DISABLED_INSTRUMENTATIONS.name, "")
    return frozenset(name.strip() for name in value.split(",") if name.strip())


def uses_standard_parts() -> bool:
    """Tell whether ``MACKEREL_OTEL_PARTS`` chooses OpenTelemetry's own parts."""
    return are_standard(variables())


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
