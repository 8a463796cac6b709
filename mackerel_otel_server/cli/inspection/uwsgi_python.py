"""Which Python a uWSGI runs that brings none of its own, and whether this package is installed for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli import demo_server
from mackerel_otel_server.cli.inspection.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.uwsgi_ini import Ini

HOMES: Final = ("virtualenv", "venv", "home", "pyhome")
PATHS: Final = ("pythonpath", "python-path", "pp")
_PLUGINS: Final = ("plugin", "plugins", "need-plugin", "need-plugins")
_SECONDS: Final = 10.0
_QUESTION: Final = (
    "import sys, importlib.util as util\n"
    "print(*sys.version_info[:2], int(util.find_spec('mackerel_otel_server') is not None))"
)


def findings(ini: Ini, environ: Mapping[str, str], folder: str) -> Iterator[Finding]:
    """Look for this package where that Python looks; what pyuwsgi runs is the Python that it is installed for.

    Args:
        ini: As uWSGI reads it.
        environ: The environment of the workers.
        folder: The working directory of the workers.
    """
    plugin, home = _plugin(ini), ini.last(*HOMES)
    if plugin is None and (home is None or _is_pyuwsgi()):
        return
    python = Path(folder, home, "bin", "python") if home else _of_system(plugin or "")
    answer = _ask(python, [str(Path(folder, path)) for path in ini.all(*PATHS)], environ, folder)
    if answer is None:
        if home:
            yield Finding(
                "FAIL",
                f"{_option(ini)} = {home} is no virtual environment: {python} cannot be run",
                "uWSGI does not start, or it traces nothing",
                f"correct that line, or python3 -m venv {home}",
            )
        return
    version, has_package = answer
    wanted = _version(plugin)
    if home and wanted is not None and version != wanted:
        yield Finding(
            "FAIL",
            f"{home} has Python {_dotted(version)}, and uWSGI's plugin {plugin} is Python {_dotted(wanted)}",
            "it finds no package there: no request is traced",
            f"make {home} with Python {_dotted(wanted)}, and install mackerel-otel-server into it",
        )
    elif not has_package:
        where = home or f"{python}, which uWSGI's plugin {plugin} runs without a line virtualenv = FOLDER"
        cure = f"{python} -m pip install mackerel-otel-server"
        if not home and sys.prefix != sys.base_prefix:
            cure = f"add this line: virtualenv = {sys.prefix}"
        yield Finding(
            "FAIL",
            f"mackerel-otel-server is not installed for {where}",
            "the import fails, uWSGI goes on, and no request is traced",
            cure,
        )
    else:
        yield Finding("OK", f"mackerel-otel-server is installed for {home or python}")


def _plugin(ini: Ini) -> str | None:
    """Return the name of the plugin that brings Python, as in ``plugins = logfile,python3``."""
    named = [name.strip() for value in ini.all(*_PLUGINS) for name in value.split(",")]
    # Debian's have such names, and some have a path before.
    found = [name for name in named if re.match(r"(.*/)?python\d*(_plugin\.so)?$", name)]
    return found[-1] if found else None


def _option(ini: Ini) -> str:
    return [name for name, _ in ini.options if name in HOMES][-1]


def _is_pyuwsgi() -> bool:
    """Tell whether the uWSGI of this environment, or else of PATH, is Python's script and not a program of its own."""
    command = demo_server.find("uwsgi")
    try:
        return command is None or Path(command[0]).read_bytes()[:2] == b"#!"
    except OSError:
        return True


def _of_system(plugin: str) -> Path:
    version = _digits(plugin)
    return Path("/usr/bin", f"python{_dotted(version)}" if version else "python3")


def _digits(plugin: str) -> tuple[int, int] | None:
    found = re.search(r"python3(\d+)", plugin)
    return (3, int(found[1])) if found else None


def _version(plugin: str | None) -> tuple[int, int] | None:
    """Return which Python a plugin is."""
    if plugin is None:
        return None
    if version := _digits(plugin):
        return version
    answer = _ask(_of_system(plugin), [], {}, "/")
    return answer[0] if answer else None


def _ask(
    python: Path, paths: list[str], environ: Mapping[str, str], folder: str
) -> tuple[tuple[int, int], bool] | None:
    """Return a Python's version, and whether it finds this package; None if it cannot be run."""
    searched = ":".join([*paths, *filter(None, [environ.get("PYTHONPATH")])])
    try:
        result = subprocess.run(  # noqa: S603 - the interpreter that the configuration names
            [python, "-c", _QUESTION],
            cwd=folder,
            # Nothing of the environment of this command, such as PYTHONHOME.
            env={"PYTHONPATH": searched} if searched else {},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        major, minor, found = map(int, result.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return (major, minor), bool(found)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
