"""Variables that have no effect here, for want of a letter or because nobody reads them."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Final

import opentelemetry

from mackerel_otel_server.cli.inspection import files
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.variables import quotes
from mackerel_otel_server.cli.text import printable
from mackerel_otel_server.settings.catalogue import CATALOGUE, TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_BEGINNINGS: Final = ("OTEL", "OTLP", "MACK")
_OURS: Final = tuple(
    name for variable in CATALOGUE for name in variable.names if name.startswith(("OTEL_", "MACKEREL_"))
)
_WORDS: Final = frozenset(word for name in _OURS for word in name.split("_"))
_URL_DECIDES: Final = "the endpoint's URL says whether it is http or https"
_NO_CREDENTIALS: Final = "the API key and OTEL_EXPORTER_OTLP_HEADERS are all that is sent along"
_PROVIDER: Final = "OTEL_PYTHON_EXPORTER_OTLP"
NO_EFFECT: Final = {
    "OTEL_EXPORTER_OTLP_INSECURE": _URL_DECIDES,
    "OTEL_EXPORTER_OTLP_TRACES_INSECURE": _URL_DECIDES,
    "OTEL_BSP_EXPORT_TIMEOUT": f"{TIMEOUT.names[-1]} is the limit of a request",
    "OTEL_PYTHON_ID_GENERATOR": "ids are random",
    "OTEL_PYTHON_TRACER_CONFIGURATOR": "every tracer is on",
    "OTEL_CONFIG_FILE": "the settings come from variables only",
    "OTEL_LOG_LEVEL": "the server's own log level is in force",
    "OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH": "only opentelemetry-instrument reads it",
    f"{_PROVIDER}_HTTP_CREDENTIAL_PROVIDER": _NO_CREDENTIALS,
    f"{_PROVIDER}_HTTP_TRACES_CREDENTIAL_PROVIDER": _NO_CREDENTIALS,
    f"{_PROVIDER}_GRPC_CREDENTIAL_PROVIDER": _NO_CREDENTIALS,
    f"{_PROVIDER}_GRPC_TRACES_CREDENTIAL_PROVIDER": _NO_CREDENTIALS,
}
"""What OpenTelemetry has and this package does not obey, and why nothing comes of it."""
_OTHER_EXPORTERS: Final = re.compile(r"OTEL_EXPORTER_(ZIPKIN|JAEGER)_\w+")
_OTHER_SIGNALS: Final = re.compile(
    r"OTEL_(METRICS?|LOGS?|BLRP|LOGRECORD|PROFILES?)_\w+"
    r"|OTEL_EXPORTER_(OTLP_(METRICS|LOGS|PROFILES)|PROMETHEUS)_\w+"
    r"|OTEL_PYTHON_(LOG|LOGGING|LOGGER|METER)_\w+"
)
_LIKENESS: Final = 0.8
"""Of the whole names."""
_LIKENESS_OF_WORDS: Final = 0.65
"""Of the words that differ: ``FLAKS`` and ``FLASK`` do not differ much, ``TORNADO`` and ``FLASK`` do."""


def findings(environ: Mapping[str, str], env_lines: Collection[str] = ()) -> Iterator[Finding]:
    """Look at all names that begin as ours and OpenTelemetry's do. Their values are not shown: one may be a key.

    Args:
        environ: The variables.
        env_lines: Those that a line ``env = NAME=value`` of uWSGI sets.
    """
    for name in sorted(environ):
        if (bare := name.strip("\"' ")) != name and bare in _OURS:
            yield Finding(
                "WARN",
                f"the name {name!r} holds a quote or a blank",
                "it has no effect: nobody reads a variable of that name",
                f"{quotes.line(bare, [bare] if name in env_lines else [])}… without it",
            )
    theirs = _installed()
    for name in sorted(name for name, value in environ.items() if name.upper().startswith(_BEGINNINGS) and value):
        if name != name.strip("\"' "):
            continue
        reason = NO_EFFECT.get(name) or ("spans are sent over OTLP only" if _OTHER_EXPORTERS.fullmatch(name) else None)
        if reason:
            yield Finding("WARN", f"{name} is set, and has no effect here", reason, f"unset {name}")
        elif name not in _OURS and name not in theirs and not _OTHER_SIGNALS.fullmatch(name):
            likeness, near = max((_likeness(name.upper(), known), known) for known in (*_OURS, *theirs))
            if likeness > 0 and near in _OURS:
                yield Finding(
                    "WARN",
                    f"{printable(name)} is not known; near to it is {near}",
                    "it has no effect here",
                    f"if that was meant, type {near} instead of {printable(name)}",
                )


def _likeness(name: str, known: str) -> float:
    """Return 0 for what cannot be a slip."""
    whole = SequenceMatcher(None, name, known).ratio()
    if whole < _LIKENESS:
        return 0.0
    left, right = name.split("_"), known.split("_")
    for end in (0, -1):
        while left and right and left[end] == right[end]:
            del left[end], right[end]
    lacks_words = not left or (not right and all(word in _WORDS for word in left))
    words = SequenceMatcher(None, "_".join(left), "_".join(right)).ratio()
    return whole if lacks_words or words >= _LIKENESS_OF_WORDS else 0.0


def _installed() -> frozenset[str]:
    """Return the variables that the installed parts of OpenTelemetry name as theirs; nothing of them is imported."""
    patterns = (
        "environment_variables/*.py",
        "sdk/environment_variables/*.py",
        "instrumentation/environment_variables.py",
        "instrumentation/*/environment_variables.py",
        "util/http/__init__.py",
    )
    found = [file for root in opentelemetry.__path__ for pattern in patterns for file in Path(root).glob(pattern)]
    texts = map(files.text_or_nothing, found)
    return frozenset(name for text in texts for name in re.findall(r"\bOTEL_[A-Z0-9_]*[A-Z0-9]\b", text))
