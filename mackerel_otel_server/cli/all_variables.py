"""All variables that are understood here: those of the settings, and those that the frameworks name."""

from __future__ import annotations

from typing import Final

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.tracing import frameworks

FRAMEWORKS: Final = tuple(sorted(map(str.upper, frameworks.instrumentations())))
"""Whose ``OTEL_PYTHON_<NAME>_EXCLUDED_URLS`` are obeyed."""
VARIABLES: Final = catalogue.with_frameworks(FRAMEWORKS)
