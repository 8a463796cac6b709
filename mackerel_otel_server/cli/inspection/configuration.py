"""Which server, and which of its configurations, a look at an installation is about."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mackerel_otel_server.cli.inspection import files

if TYPE_CHECKING:
    from collections.abc import Mapping

Server = Literal["gunicorn", "uwsgi"]
_SECTION: Final = re.compile(r"^\s*\[uwsgi\]", re.MULTILINE)
_OF_UWSGI: Final = (".ini", ".yaml", ".yml", ".xml", ".json")


@dataclass(frozen=True)
class Choice:
    """What is going to be read; ``server`` is None where nothing tells which one it is."""

    server: Server | None
    config: str | None
    """As the server would be given it; None for what it finds by itself."""
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
        if server is not None:
            return Choice(server, config, "--server and --config")
        return Choice("uwsgi" if _is_of_uwsgi(folder, config) else "gunicorn", config, f"the name {config}")
    gunicorn = None if server == "uwsgi" else _for_gunicorn(folder, environ)
    if gunicorn is not None:
        return gunicorn
    if server == "gunicorn":
        return Choice(server, None, "--server")
    return _for_uwsgi(server, folder)


def _for_gunicorn(folder: str, environ: Mapping[str, str]) -> Choice | None:
    if _names_config(environ.get("GUNICORN_CMD_ARGS", "")):
        return Choice("gunicorn", None, "GUNICORN_CMD_ARGS")
    if Path(folder, "gunicorn.conf.py").exists():
        return Choice("gunicorn", None, "gunicorn.conf.py is here")
    if Path(folder, "mackerel_otel_server.conf").exists():
        return Choice("gunicorn", "mackerel_otel_server.conf", "mackerel_otel_server.conf is here")
    return None


def _for_uwsgi(server: Server | None, folder: str) -> Choice:
    found = [file.name for file in sorted(Path(folder).glob("*.ini")) if _has_section(file)]
    usual = [name for name in ("mackerel_otel_server.ini", "uwsgi.ini") if name in found]
    if len(found) == 1 or usual:
        file = (usual or found)[0]
        others = ", ".join(name for name in found if name != file)
        return Choice(
            "uwsgi", file, f"{file} is here" + (f"; {others} too, which --config FILE chooses" * bool(others))
        )
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
    return name.endswith(_OF_UWSGI) or _has_section(Path(folder, name))


def _has_section(file: Path) -> bool:
    return _SECTION.search(files.text_or_nothing(file)) is not None
