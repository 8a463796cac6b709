"""``mackerel-otel-server config``: the settings in force, and where each comes from."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.cloak import cloaked, secrets
from mackerel_otel_server.cli.text import complain, printable, say
from mackerel_otel_server.settings.catalogue import CATALOGUE
from mackerel_otel_server.settings.origins import describe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from mackerel_otel_server.settings.origins import Description, Shown

_NOTHING = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``config`` understands."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the settings of this environment: those of a server that is started from here.

    Returns:
        0, or 1 when a value cannot be understood.
    """
    description: Description = cloaked(describe(os.environ), secrets(os.environ))
    if args.json:
        print(json.dumps(as_json(description), indent=2))
    else:
        for line in lines(description.settings, columns()):
            say(line)
        for sentence in (*description.warnings, *description.problems):
            complain(printable(sentence))
    return 1 if description.problems else 0


def columns() -> int | None:
    """Return the width of the terminal, None where the output goes elsewhere: there a setting is one line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def lines(settings: Sequence[Shown], width: int | None) -> Iterator[str]:
    """Lay out name, value and origin: in columns where they fit, else one below the other."""
    cells = [tuple(map(printable, (one.name, one.value or _NOTHING, one.origin))) for one in settings]
    names, values, origins = (max(map(len, column)) for column in zip(*cells, strict=True))
    for name, value, origin in cells:
        if width is None or names + 2 + values + 2 + origins <= width:
            yield f"{name:{names}}  {value:{values}}  {origin}"
        else:
            yield from _folded(name, width, "")
            yield from _folded(f"{value}  ({origin})", width, "  ")


def _folded(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, max(width, len(indent) + 1), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def as_json(description: Description) -> dict[str, Any]:
    """Return the settings with their documentation, the problems and the warnings."""
    documentation = {variable.name: variable.documentation for variable in CATALOGUE}
    return {
        "settings": [
            asdict(one) | ({"documentation": documentation[one.name]} if one.name in documentation else {})
            for one in description.settings
        ],
        "problems": list(description.problems),
        "warnings": list(description.warnings),
    }
