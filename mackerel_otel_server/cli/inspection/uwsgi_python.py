"""Which Python a uWSGI runs that brings none of its own, and whether this package is installed for it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
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
_QUESTION: Final = """
import importlib.util, os, sys
print("%d.%d" % sys.version_info[:2])
print(os.path.realpath(sys.base_prefix))
print(importlib.util.find_spec("mackerel_otel_server") is not None)
"""
_DEBIAN: Final = "debian"
_NOT_TRACED: Final = "the import fails, uWSGI goes on, and no request is traced"


@dataclass(frozen=True)
class _Python:
    version: str
    base: str
    """The folder that it was installed in, of which a virtual environment is made."""
    has_package: bool


def findings(ini: Ini, environ: Mapping[str, str], folder: str, installed: str | None) -> Iterator[Finding]:
    """Look for this package where that Python looks; what pyuwsgi runs is the Python that it is installed for.

    Args:
        ini: As uWSGI reads it.
        environ: The environment of the workers.
        folder: The working directory of the workers.
        installed: The version of the uWSGI that is installed.
    """
    plugin, home = _plugin(ini), ini.last(*HOMES)
    if plugin is None and installed is not None and _DEBIAN in installed:
        yield Finding(
            "WARN",
            f"{ini.files[0]} has no line plugin = python3, and the uWSGI that is installed is Debian's ({installed})",
            "it runs no Python, unless its command line names the plugin",
            "add this line above the others: plugin = python3",
        )
    elif plugin is not None:
        yield from _findings_of_plugin(ini, environ, folder, plugin)
    elif home is not None and not _is_pyuwsgi():
        yield from _findings_of_home(ini, environ, folder, home, None)


def _findings_of_plugin(ini: Ini, environ: Mapping[str, str], folder: str, plugin: str) -> Iterator[Finding]:
    home, python = ini.last(*HOMES), _of_system(plugin)
    of_system = _ask(python, ini, environ, folder)
    if home is not None:
        yield from _findings_of_home(ini, environ, folder, home, of_system)
    elif of_system is None:
        return  # that is for Debian's package manager to mend
    elif of_system.has_package:
        yield Finding("OK", f"mackerel-otel-server is installed for {python}")
    else:
        yield Finding(
            "FAIL",
            f"there is no line virtualenv = FOLDER, and mackerel-otel-server is not installed for {python}, which "
            f"uWSGI's plugin {plugin} runs",
            _NOT_TRACED,
            "add the line virtualenv = FOLDER, with a folder made by these commands in a clone of this package's "
            f"repository:\n{python} -m venv FOLDER\nFOLDER/bin/python -m pip install .",
        )


def _findings_of_home(
    ini: Ini, environ: Mapping[str, str], folder: str, home: str, of_system: _Python | None
) -> Iterator[Finding]:
    path = Path(folder, home)
    python = _ask(path / "bin" / "python", ini, environ, folder)
    if python is None:
        yield Finding(
            "FAIL",
            f"{_option(ini)} = {home} is no virtual environment: {path / 'bin' / 'python'} cannot be run",
            "uWSGI does not start, or it traces nothing",
            "correct that line",
        )
    elif of_system is not None and python.version != of_system.version:
        yield Finding(
            "FAIL",
            f"{home} has Python {python.version}, and uWSGI's plugin is Python {of_system.version}",
            "it finds no package there: no request is traced",
            f"make it with Python {of_system.version}, and install mackerel-otel-server into it",
        )
    elif not python.has_package:
        cure = f"type in a clone of this package's repository:\n{path / 'bin' / 'python'} -m pip install ."
        yield Finding("FAIL", f"mackerel-otel-server is not installed for {home}", _NOT_TRACED, cure)
    elif of_system is not None and python.base != of_system.base:
        yield Finding(
            "WARN",
            f"{home} was made by the Python in {python.base}, and uWSGI's plugin is the one in {of_system.base}",
            "uWSGI takes the first one's standard library; where that does not fit, no request is traced",
            f"make it with {of_system.base}/bin/python3 -m venv",
        )
    else:
        yield Finding("OK", f"mackerel-otel-server is installed for {home}")


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
    if command is None:
        return True
    try:
        with Path(command[0]).open("rb") as program:
            return program.read(2) == b"#!"
    except OSError:
        return True


def _of_system(plugin: str) -> Path:
    """Return the Python that has the version of Debian's plugin."""
    digits = re.search(r"python3(\d+)", plugin)
    return Path("/usr/bin", f"python3.{digits[1]}" if digits else "python3")


def _ask(python: Path, ini: Ini, environ: Mapping[str, str], folder: str) -> _Python | None:
    """Ask a Python what it is, and whether it finds this package; None if it cannot be run."""
    paths = [str(Path(folder, path)) for path in ini.all(*PATHS)]
    searched = ":".join([*paths, *filter(None, [environ.get("PYTHONPATH")])])
    try:
        result = subprocess.run(  # noqa: S603 - the interpreter that the configuration names
            [python, "-c", _QUESTION],
            cwd=folder,
            # Nothing else of the environment of this command, such as PYTHONHOME.
            env={"PYTHONPATH": searched} if searched else {},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        version, base, found = result.stdout.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _Python(version, base, found == "True")
