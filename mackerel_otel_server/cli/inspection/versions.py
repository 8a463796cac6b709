"""What is installed here, and by whom each library is traced."""

from __future__ import annotations

import platform
import re
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mackerel_otel_server import __version__
from mackerel_otel_server.cli import demo_server
from mackerel_otel_server.cli.inspection import oldest
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.variables import recording

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
_BY_DRIVERS: Final = "sqlalchemy"
"""The entry point of an instrumentation whose queries are traced by their drivers as well."""
_NOT_OFFERED: Final = frozenset(
    {
        *_FRAMEWORKS, *_DRIVERS, _BY_DRIVERS,  # traced without them
        "asgi", "wsgi", "aiohttp-server", "tornado",  # servers
        "click", "asyncclick",  # commands
        "structlog", "system-metrics",  # no spans
    }
)  # fmt: skip
"""Instrumentations that a look at an installation does not offer, and why."""
_NO_LIBRARIES: Final = frozenset({"pydantic"})
"""What OpenTelemetry's list names beside the library that an instrumentation is for, here tortoise-orm."""
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
        environ: For ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` and ``OTEL_SDK_DISABLED``.
    """
    off = _switched_off(environ)
    found = [Version("Python", platform.python_version()), Version(_OURS, __version__)]
    found += _installed(*_BASE, *_SERVERS)
    if uwsgi := uwsgi_version():
        found.append(Version("uWSGI", uwsgi))
    for name, shown in _FRAMEWORKS.items():
        if version := _version(name):
            found.append(Version(shown, version, _OURS))
    found += [*_drivers(off), *_libraries(off)]
    if recording.is_disabled(environ):
        return [replace(one, traced_by="nobody (OTEL_SDK_DISABLED)") if one.traced_by else one for one in found]
    return found


def _switched_off(environ: Mapping[str, str]) -> set[str]:
    return {name.strip() for name in environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}


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


def findings(versions: list[Version], environ: Mapping[str, str]) -> list[Finding]:
    """Look for what is too old, and for instrumentations that do not fit their library, or are not there."""
    return [*_too_old(versions), *oldest.findings(), *_conflicts(), *_missing(_switched_off(environ))]


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
    for entry_point in metadata.entry_points(group=_GROUP):
        dist = entry_point.dist
        if dist is None or entry_point.name in _FRAMEWORKS:
            continue
        try:
            conflict = _conflict(dist)
        except Exception as error:
            yield Finding(
                "WARN", f"{dist.name} has metadata that cannot be read ({error})", "", f"reinstall {dist.name}"
            )
            continue
        if conflict is None:
            continue
        follows = {
            _OURS: "it is left out; the driver is traced by this package",
            _BY_DRIVERS: "it is left out; this package traces the queries by their drivers",
        }.get(_instead(entry_point.name))
        yield Finding(
            "WARN",
            f"{dist.name} {dist.version} does not fit what is installed: {conflict}",
            follows or f"{entry_point.name} is not traced",
            f"pip uninstall {dist.name}" if follows else f"install versions that fit: pip install -U {dist.name}",
        )


def _conflict(dist: metadata.Distribution) -> str | None:
    """Return which version is installed and which one an instrumentation takes, or None where it can be used."""
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

    conflict = get_dist_dependency_conflicts(dist)
    # The oldest OpenTelemetry that we take knows of no alternatives.
    found = conflict and (conflict.found or getattr(conflict, "found_any", None))
    if conflict is None or not found:
        return None
    required = [conflict.required, *(getattr(conflict, "required_any", None) or ())]
    wanted = ", ".join(str(one).partition(";")[0] for one in required if one)
    return f"{found if isinstance(found, str) else ', '.join(found)} (it takes {wanted})"


def _instead(name: str) -> str:
    """Return who traces a library whose own instrumentation cannot be used; empty: nobody does."""
    if name in (*_DRIVERS, "sqlite3"):
        return _OURS
    return _BY_DRIVERS if name == _BY_DRIVERS else ""


def _missing(off: set[str]) -> Iterator[Finding]:
    """Name the libraries that this package would trace if their instrumentations were installed."""
    names: set[str] = set()
    packages: set[str] = set()
    for library, package in _known_instrumentations():
        name = package.name.removeprefix("opentelemetry-instrumentation-")
        version = None if "*" in off or name in off or name in _NOT_OFFERED else _version(library.name)
        fits = version is not None and library.specifier.contains(version, prereleases=True)
        if fits and library.name not in _NO_LIBRARIES and _version(package.name) is None:
            names.add(library.name)
            packages.add(str(package))
    if packages:
        yield Finding(
            "OK",
            f"libraries without their OpenTelemetry instrumentation: {', '.join(sorted(names))}",
            "their calls make no spans; with the instrumentation, each call makes one, and spans are billed",
            "\n".join(
                ["to see the calls of a library, type its line:", *(f"pip install {one}" for one in sorted(packages))]
            ),
        )


def _known_instrumentations() -> Iterator[tuple[Requirement, Requirement]]:
    """Return which instrumentation OpenTelemetry has for which library; ``opentelemetry-bootstrap`` reads that, too."""
    try:
        from opentelemetry.instrumentation.bootstrap_gen import libraries
    except ImportError:
        return
    for one in libraries:
        yield Requirement(one["library"]), Requirement(one["instrumentation"])


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
        version = next(filter(None, map(_version, _names_of_library(entry_point))), None)
        if version or entry_point.name in sys.stdlib_module_names:
            yield Version(entry_point.name, version or "", _by(entry_point.name, entry_point, off))


def _by(name: str, entry_point: metadata.EntryPoint | None, off: set[str]) -> str:
    if name in off or "*" in off:
        return "nobody (OTEL_PYTHON_DISABLED_INSTRUMENTATIONS)"
    if entry_point is None or entry_point.dist is None:
        return _OURS
    with suppress(Exception):  # of the metadata, which a finding tells
        if _conflict(entry_point.dist):
            instead = {_OURS: _OURS, _BY_DRIVERS: "its drivers"}.get(_instead(name))
            return instead or f"nobody ({entry_point.dist.name} does not fit)"
    return f"{entry_point.dist.name} {entry_point.dist.version}"


def _names_of_library(entry_point: metadata.EntryPoint) -> list[str]:
    """Return the distributions that an instrumentation may be for: that of its own name, else those of its metadata."""
    told = [
        Requirement(one).name for one in (entry_point.dist and entry_point.dist.requires) or () if "instruments" in one
    ]
    return [entry_point.name] if entry_point.name in told else [entry_point.name, *told]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
