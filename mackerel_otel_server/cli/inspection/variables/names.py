"""Variables that have no effect here: their name has a slip, or nobody reads them."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Final

import opentelemetry

from mackerel_otel_server.cli.all_variables import VARIABLES
from mackerel_otel_server.cli.inspection.findings import Finding, warn
from mackerel_otel_server.cli.inspection.project import files
from mackerel_otel_server.cli.inspection.variables import quotes
from mackerel_otel_server.cli.text import printable
from mackerel_otel_server.settings.catalogue import EXPORT_TIMEOUT, WHY_NO_EXPORT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_BEGINNINGS: Final = ("OTEL", "OTLP", "MACK")
_OURS: Final = tuple(
    name for variable in VARIABLES for name in variable.names if name.startswith(("OTEL_", "MACKEREL_"))
)
_WORDS: Final = frozenset(word for name in _OURS for word in name.split("_"))
_URL_DECIDES: Final = "the endpoint's URL says whether it is http or https"
_OF_STARTER: Final = "only opentelemetry-instrument reads it, and where that starts the server, this package stays off"
NO_EFFECT: Final = {
    "OTEL_EXPORTER_OTLP_INSECURE": _URL_DECIDES,
    "OTEL_EXPORTER_OTLP_TRACES_INSECURE": _URL_DECIDES,
    EXPORT_TIMEOUT.name: WHY_NO_EXPORT_TIMEOUT,
    "OTEL_PYTHON_ID_GENERATOR": "ids are random",
    "OTEL_PYTHON_TRACER_CONFIGURATOR": "every tracer is on",
    "OTEL_CONFIG_FILE": "the settings come from variables only",
    "OTEL_LOG_LEVEL": "the server's own log level is in force",
    "OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH": _OF_STARTER,
    "OTEL_PYTHON_CONFIGURATOR": _OF_STARTER,
    "OTEL_PYTHON_DISTRO": _OF_STARTER,
    **dict.fromkeys(
        (
            f"OTEL_PYTHON_EXPORTER_OTLP_{of}_CREDENTIAL_PROVIDER"
            for of in ("HTTP", "HTTP_TRACES", "GRPC", "GRPC_TRACES")
        ),
        "the API key and OTEL_EXPORTER_OTLP_HEADERS are all that is sent along",
    ),
}
"""Variables of OpenTelemetry that this package does not obey, and why."""
_OF_OTHERS: Final = re.compile(
    r"OTEL_(METRICS?|LOGS?|BLRP|LOGRECORD|PROFILES?)_\w+"
    r"|OTEL_EXPORTER_(OTLP_(METRICS|LOGS|PROFILES)|PROMETHEUS|ZIPKIN|JAEGER)_\w+"
    r"|OTEL_PYTHON_(LOG|LOGGING|LOGGER|METER)_\w+"
)
_LIKENESS: Final = 0.8
"""Of the whole names."""
_LIKENESS_OF_WORDS: Final = 0.65
"""Of the words that differ: ``FLAKS`` and ``FLASK`` do not differ much, ``TORNADO`` and ``FLASK`` do."""


def findings(environ: Mapping[str, str], env_lines: Collection[str] = ()) -> Iterator[Finding]:
    """Look at all names that begin as ours and OpenTelemetry's do. Their values are not shown: one may be a key."""
    theirs = _installed()
    for name, value in sorted(environ.items()):
        if (bare := name.strip("\"' ")) != name:
            if bare in _OURS:
                yield warn(
                    f"the name {name!r} holds a quote or a blank",
                    "it has no effect: nobody reads a variable of that name",
                    f"{quotes.line(bare, [bare] if name in env_lines else [])}… without it",
                )
        elif not value or not name.upper().startswith(_BEGINNINGS):
            continue
        elif reason := NO_EFFECT.get(name):
            yield warn(f"{name} is set, and has no effect here", reason, f"unset {name}")
        elif name not in _OURS and name not in theirs and not _OF_OTHERS.fullmatch(name):
            likeness, near = max((_likeness(name.upper(), known), known) for known in (*_OURS, *theirs))
            if likeness > 0 and near in _OURS:
                yield warn(
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
