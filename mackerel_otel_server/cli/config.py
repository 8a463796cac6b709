"""``mackerel-otel-server config``: the settings in force, and where each comes from."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.cli.all_variables import FRAMEWORKS, VARIABLES
from mackerel_otel_server.cli.masked import cloaked, secrets
from mackerel_otel_server.cli.output import complain, say, width
from mackerel_otel_server.cli.text import printable
from mackerel_otel_server.settings import environment, worded
from mackerel_otel_server.settings.masking import Mask
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
    """Print the settings of a server that is started here, and return 0, or 1 when a value cannot be understood."""
    environ = environment.variables()
    description: Description = cloaked(describe(environ, frameworks=FRAMEWORKS), Mask(secrets(environ)))
    if args.json:
        print(json.dumps(as_json(description), indent=2))
    else:
        for line in lines(description.settings, width()):
            say(line)
        for warning in description.warnings:
            complain(printable(warning))
        if description.problems:
            for line in worded(description.problems).splitlines():
                complain(printable(line))
    return 1 if description.problems else 0


def lines(settings: Sequence[Shown], limit: int | None) -> Iterator[str]:
    """Lay out name, value and origin: in columns where they fit into the limit, else one below the other."""
    cells = [tuple(map(printable, (one.name, one.value or _NOTHING, one.origin))) for one in settings]
    names, values, origins = (max(map(len, column)) for column in zip(*cells, strict=True))
    for name, value, origin in cells:
        if limit is None or names + 2 + values + 2 + origins <= limit:
            yield f"{name:{names}}  {value:{values}}  {origin}"
        else:
            for text, indent in ((name, ""), (f"{value}  ({origin})", "  ")):
                room = max(limit - len(indent), 1)
                yield from (indent + line for line in textwrap.wrap(text, room, break_on_hyphens=False))


def as_json(description: Description) -> dict[str, Any]:
    """Return the settings with their documentation, the problems and the warnings."""
    documentation = {variable.name: variable.documentation for variable in VARIABLES}
    return {
        "settings": [
            asdict(one) | ({"documentation": documentation[one.name]} if one.name in documentation else {})
            for one in description.settings
        ],
        "problems": [asdict(problem) for problem in description.problems],
        "warnings": [asdict(warning) for warning in description.warnings],
    }
