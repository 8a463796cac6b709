"""What is installed here, and by whom each library is traced."""

from __future__ import annotations

import platform
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mackerel_otel_server import __version__
from mackerel_otel_server.cli import demo_server
from mackerel_otel_server.cli.inspection.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OURS: Final = "mackerel-otel-server"
_GROUP: Final = "opentelemetry_instrumentor"
_BASE: Final = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation")
_SERVERS: Final = ("gunicorn", "gevent", "uvicorn", "uvicorn-worker", "tornado")
_FRAMEWORKS: Final = {
    "django": "Django", "flask": "Flask", "fastapi": "FastAPI", "starlette": "Starlette", "falcon": "Falcon",
    "bottle": "Bottle", "pyramid": "Pyramid", "werkzeug": "Werkzeug",
}  # fmt: skip
"""Distribution -> its name. Their requests get server spans of ours."""
_DRIVERS: Final = {
    "mysqlclient": ("mysqlclient",),
    "pymysql": ("PyMySQL",),
    "mysql": ("mysql-connector-python", "mysql-connector"),
    "psycopg2": ("psycopg2", "psycopg2-binary"),
    "psycopg": ("psycopg",),
    "pyodbc": ("pyodbc",),
    "duckdb": ("duckdb",),
}
"""Entry point of a driver's own instrumentation -> the distributions that bring the driver."""
_UWSGI_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Version:
    """One thing that is installed."""

    name: str
    version: str
    traced_by: str = ""
    """Empty where there is nothing to trace."""


def gather(environ: Mapping[str, str]) -> list[Version]:
    """Return what is installed, in a fixed order.

    Args:
        environ: For ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``.
    """
    off = {name.strip() for name in environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    found = [Version("Python", platform.python_version()), Version(_OURS, __version__)]
    found += _installed(*_BASE, *_SERVERS)
    if uwsgi := uwsgi_version():
        found.append(Version("uWSGI", uwsgi))
    for name, shown in _FRAMEWORKS.items():
        if version := _version(name):
            found.append(Version(shown, version, _OURS))
    return [*found, *_drivers(off), *_libraries(off)]


def uwsgi_version() -> str | None:
    """Return what the uWSGI of this environment, or else of PATH, says that it is."""
    command = demo_server.find("uwsgi")
    if command is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603 - the server that is asked about
            [*command, "--version"], capture_output=True, text=True, timeout=_UWSGI_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    found = re.search(r"^\d+\.\d[\w.+-]*$", result.stdout, re.MULTILINE)
    return found[0] if found else None


def numbers(version: str | None) -> tuple[int, ...] | None:
    """Return (2, 0, 21) of ``2.0.21-debian``."""
    found = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in found[0].split(".")) if found else None


def findings(versions: list[Version]) -> list[Finding]:
    """Look for what is too old, and for instrumentations that do not fit their library."""
    return [*_too_old(versions), *_conflicts()]


def _too_old(versions: list[Version]) -> Iterator[Finding]:
    try:
        own = metadata.distribution(_OURS)
    except metadata.PackageNotFoundError:
        return
    supported = SpecifierSet(own.metadata["Requires-Python"])
    if not supported.contains(platform.python_version(), prereleases=True):
        yield _old("Python", platform.python_version(), str(supported), "run the server with a newer Python")
    for text in own.requires or ():
        wanted = Requirement(text)
        # pyuwsgi is what the extra brings; the server that runs may come from elsewhere.
        is_uwsgi = wanted.name == "pyuwsgi"
        name = "uWSGI" if is_uwsgi else wanted.name
        version = next((v.version for v in versions if v.name == name), None) or (None if is_uwsgi else _version(name))
        plain = ".".join(map(str, numbers(version) or ())) if is_uwsgi else version
        if version and plain and not wanted.specifier.contains(plain, prereleases=True):
            cure = f"pip install '{wanted.name}{wanted.specifier}'"
            yield _old(name, version, str(wanted.specifier), cure)


def _old(name: str, version: str, wanted: str, cure: str) -> Finding:
    return Finding("FAIL", f"{name} {version} is not supported ({wanted} is)", "tracing may not work at all", cure)


def _conflicts() -> Iterator[Finding]:
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

    for entry_point in metadata.entry_points(group=_GROUP):
        dist = entry_point.dist
        if dist is None or entry_point.name in _FRAMEWORKS:
            continue
        try:
            conflict = get_dist_dependency_conflicts(dist)
        except Exception as error:
            yield Finding(
                "WARN", f"{dist.name} has metadata that cannot be read ({error})", "", f"reinstall {dist.name}"
            )
            continue
        found = conflict and (conflict.found or getattr(conflict, "found_any", None))
        if conflict is None or not found:
            continue
        wanted = conflict.required or ", ".join(map(str, conflict.required_any))
        installed = found if isinstance(found, str) else ", ".join(found)
        is_driver = entry_point.name in _DRIVERS
        yield Finding(
            "WARN",
            f"{dist.name} {dist.version} does not fit what is installed: {installed} (it takes {wanted})",
            "it is left out; the driver is traced by this package"
            if is_driver
            else f"{entry_point.name} is not traced",
            f"pip uninstall {dist.name}" if is_driver else f"install versions that fit: pip install -U {dist.name}",
        )


def _installed(*names: str) -> list[Version]:
    shown = {"gunicorn": "Gunicorn"}
    return [Version(shown.get(name, name), version) for name in names if (version := _version(name))]


def _drivers(off: set[str]) -> Iterator[Version]:
    own = {entry_point.name: entry_point for entry_point in metadata.entry_points(group=_GROUP)}
    for name, distributions in _DRIVERS.items():
        installed = next((dist for dist in distributions if _version(dist)), None)
        if installed:
            yield Version(installed, _version(installed) or "", _by(name, own.get(name), off))
    yield Version("sqlite3", sqlite3.sqlite_version, _by("sqlite3", own.get("sqlite3"), off))


def _libraries(off: set[str]) -> Iterator[Version]:
    """Return the other libraries, of which only the installed instrumentations tell."""
    for entry_point in sorted(metadata.entry_points(group=_GROUP), key=lambda point: point.name):
        if entry_point.name in _FRAMEWORKS or entry_point.name in (*_DRIVERS, "sqlite3"):
            continue
        version = _version(entry_point.name)
        if version or entry_point.name in sys.stdlib_module_names:
            yield Version(entry_point.name, version or "", _by(entry_point.name, entry_point, off))


def _by(name: str, entry_point: metadata.EntryPoint | None, off: set[str]) -> str:
    if name in off or "*" in off:
        return "nobody (OTEL_PYTHON_DISABLED_INSTRUMENTATIONS)"
    if entry_point is None or entry_point.dist is None:
        return _OURS
    return f"{entry_point.dist.name} {entry_point.dist.version}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
