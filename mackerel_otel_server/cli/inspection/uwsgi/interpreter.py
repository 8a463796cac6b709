"""Which Python a uWSGI runs, if a plugin or a virtual environment decides that, and whether it has this package."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli import demo_server
from mackerel_otel_server.cli.inspection.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.uwsgi.ini import Ini

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
_NOT_TRACED: Final = "the import fails, uWSGI goes on, and no request is traced"


@dataclass(frozen=True)
class _Python:
    version: str
    base: str
    """The folder that this Python was installed in; a virtual environment's is that of the Python it was made with."""
    has_package: bool


def findings(ini: Ini, environ: Mapping[str, str], folder: str, installed: str | None) -> Iterator[Finding]:
    """Look for this package where that Python looks. pyuwsgi always runs the Python that it is installed for.

    The arguments are those of config_findings.findings(), but the folder is that of the workers.
    """
    plugin, home = _plugin(ini), ini.last(*HOMES)
    if plugin is None and "debian" in (installed or ""):
        yield warn(
            f"{ini.files[0]} has no line plugin = python3, and the uWSGI that is installed is Debian's ({installed})",
            "it runs no Python, unless its command line names the plugin",
            "add this line above the others: plugin = python3",
        )
        return
    if plugin is None and (home is None or _is_pyuwsgi()):
        return
    # Debian's plugin has the version of Debian's Python.
    digits = re.search(r"python3(\d+)", plugin or "")
    python = Path("/usr/bin", f"python3.{digits[1]}" if digits else "python3")
    of_system = _ask(python, ini, environ, folder) if plugin else None
    if home is not None:
        yield _of_home(ini, environ, folder, home, of_system)
    elif of_system is None:
        return  # that is for Debian's package manager to mend
    elif of_system.has_package:
        yield ok(f"mackerel-otel-server is installed for {python}")
    else:
        yield fail(
            f"there is no line virtualenv = FOLDER, and mackerel-otel-server is not installed for {python}, which "
            f"uWSGI's plugin {plugin} runs",
            _NOT_TRACED,
            "add the line virtualenv = FOLDER, with a folder made by these commands in a clone of this package's "
            f"repository:\n{python} -m venv FOLDER\nFOLDER/bin/python -m pip install .",
        )


def _of_home(ini: Ini, environ: Mapping[str, str], folder: str, home: str, of_system: _Python | None) -> Finding:
    program = Path(folder, home, "bin", "python")
    python = _ask(program, ini, environ, folder)
    if python is None:
        option = [name for name, _ in ini.options if name in HOMES][-1]
        return fail(
            f"{option} = {home} is no virtual environment: {program} cannot be run",
            "uWSGI does not start, or it traces nothing",
            "correct that line",
        )
    if of_system is not None and python.version != of_system.version:
        return fail(
            f"{home} has Python {python.version}, and uWSGI's plugin is Python {of_system.version}",
            "it finds no package there: no request is traced",
            f"make it with Python {of_system.version}, and install mackerel-otel-server into it",
        )
    if not python.has_package:
        cure = f"type in a clone of this package's repository:\n{program} -m pip install ."
        return fail(f"mackerel-otel-server is not installed for {home}", _NOT_TRACED, cure)
    if of_system is not None and python.base != of_system.base:
        return warn(
            f"{home} was made by the Python in {python.base}, and uWSGI's plugin is the one in {of_system.base}",
            "uWSGI takes the first one's standard library; where that does not fit, no request is traced",
            f"make it with {of_system.base}/bin/python3 -m venv",
        )
    return ok(f"mackerel-otel-server is installed for {home}")


def _plugin(ini: Ini) -> str | None:
    """Return the name of the plugin that brings Python, as in ``plugins = logfile,python3``."""
    named = [name.strip() for value in ini.all(*_PLUGINS) for name in value.split(",")]
    # Debian's plugins have such names, some with a folder before the name.
    found = [name for name in named if re.match(r"(.*/)?python\d*(_plugin\.so)?$", name)]
    return found[-1] if found else None


def _is_pyuwsgi() -> bool:
    """Tell whether the uWSGI of this environment, or else of PATH, is Python's script and not a program of its own."""
    with suppress(OSError):
        if command := demo_server.find("uwsgi"):
            with Path(command[0]).open("rb") as program:
                return program.read(2) == b"#!"
    return True


def _ask(python: Path, ini: Ini, environ: Mapping[str, str], folder: str) -> _Python | None:
    """Ask a Python for its version and whether it finds this package; None if it cannot be run."""
    paths = [str(Path(folder, path)) for path in ini.all(*PATHS)]
    searched = ":".join(filter(None, [*paths, environ.get("PYTHONPATH")]))
    try:
        result = subprocess.run(  # noqa: S603 - the interpreter that the configuration names
            [python, "-c", _QUESTION],
            cwd=folder,
            # The environment of this command may hold PYTHONHOME, which would lead that Python astray.
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
