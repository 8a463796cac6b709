"""Find out which server ``check`` is to look at, and which of its configuration files."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mackerel_otel_server.cli.inspection.project import files

if TYPE_CHECKING:
    from collections.abc import Mapping

Server = Literal["gunicorn", "uwsgi"]
_SECTION: Final = re.compile(r"^\s*\[uwsgi\]", re.MULTILINE)
OTHER_FORMATS: Final = (".yaml", ".yml", ".xml", ".json")
"""Ends of file names that uWSGI understands beside ``.ini``, which is the one format that ``check`` reads."""


@dataclass(frozen=True)
class Choice:
    """What ``check`` is going to read; ``server`` is None if nothing tells which server is used."""

    server: Server | None
    config: str | None
    """The configuration as the server would be given it; None for the one that the server finds by itself."""
    why: str


def choose(server: Server | None, config: str | None, folder: str, environ: Mapping[str, str]) -> Choice:
    """Choose by what was typed, else by what is in the working directory.

    Args:
        server: ``--server``.
        config: ``--config``.
        folder: The working directory.
        environ: For ``GUNICORN_CMD_ARGS``.
    """
    if config is not None:
        guessed: Server = "uwsgi" if _is_of_uwsgi(folder, config) else "gunicorn"
        return Choice(server or guessed, config, "--server and --config" if server else f"the name {config}")
    gunicorn = None if server == "uwsgi" else _for_gunicorn(server, folder, environ)
    return gunicorn or _for_uwsgi(server, folder)


def _for_gunicorn(server: Server | None, folder: str, environ: Mapping[str, str]) -> Choice | None:
    if _names_config(environ.get("GUNICORN_CMD_ARGS", "")):
        return Choice("gunicorn", None, "GUNICORN_CMD_ARGS")
    for name, config in (("gunicorn.conf.py", None), ("mackerel_otel_server.conf", "mackerel_otel_server.conf")):
        if Path(folder, name).exists():
            return Choice("gunicorn", config, f"{name} is here")
    return Choice(server, None, "--server") if server else None


def _for_uwsgi(server: Server | None, folder: str) -> Choice:
    found = [file.name for file in sorted(Path(folder).glob("*.ini")) if _has_section(file)]
    usual = [name for name in ("mackerel_otel_server.ini", "uwsgi.ini") if name in found]
    if len(found) == 1 or usual:
        file = (usual or found)[0]
        others = ", ".join(name for name in found if name != file)
        more = f"; {others} too, which --config FILE chooses" if others else ""
        return Choice("uwsgi", file, f"{file} is here{more}")
    return Choice(server, None, f"--config FILE chooses one of {', '.join(found)}" if found else "")


def _names_config(arguments: str) -> bool:
    try:
        words = shlex.split(arguments)
    except ValueError:
        return True  # Gunicorn is going to complain
    return any(word.startswith(("-c", "--config")) for word in words)


def _is_of_uwsgi(folder: str, config: str) -> bool:
    if config.startswith(("python:", "file:")):
        return False
    name = config.partition(":")[0]
    return name.endswith((".ini", *OTHER_FORMATS)) or _has_section(Path(folder, name))


def _has_section(file: Path) -> bool:
    return _SECTION.search(files.text_or_nothing(file)) is not None
