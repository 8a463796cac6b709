"""Which versions are installed here, and which package traces each library."""

from __future__ import annotations

import functools
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
from packaging.version import InvalidVersion

from mackerel_otel_server.cli import demo_server
from mackerel_otel_server.cli.inspection.findings import Finding, fail, ok, warn
from mackerel_otel_server.settings.environment import disabled_instrumentations, is_disabled
from mackerel_otel_server.settings.parts import STANDARD_PACKAGES, are_standard
from mackerel_otel_server.tracing import databases, frameworks, instrumentors
from mackerel_otel_server.tracing.databases import drivers
from mackerel_otel_server.tracing.libraries import known
from mackerel_otel_server.tracing.older_than_tested import is_older
from mackerel_otel_server.version import __version__

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mackerel_otel_server.tracing.framework import Framework

_OURS: Final = "mackerel-otel-server"
_BASE: Final = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation")
_SERVERS: Final = ("gunicorn", "gevent", "uvicorn", "uvicorn-worker", "tornado")
_BY_DRIVERS: Final = "its drivers"
_UWSGI_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Version:
    """One thing that is installed."""

    name: str
    version: str
    traced_by: str = ""
    """The package that traces it; empty for something that makes no spans, such as Python itself."""


def gather(environ: Mapping[str, str]) -> list[Version]:
    """Return what is installed, in a fixed order.

    Args:
        environ: For ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` and ``OTEL_SDK_DISABLED``.
    """
    standard = are_standard(environ)
    found = [Version("Python", platform.python_version()), Version(_OURS, __version__)]
    found += [
        Version("Gunicorn" if name == "gunicorn" else name, version)
        for name in (*_BASE, *(STANDARD_PACKAGES if standard else ()), *_SERVERS)
        if (version := _version(name))
    ]
    if uwsgi := uwsgi_version():
        found.append(Version("uWSGI", uwsgi))
    found += [
        Version(framework.name, version, _of_requests(framework) if standard else _OURS)
        for framework in frameworks.known()
        if (version := _version(framework.distribution))
    ]
    off = disabled_instrumentations(environ)
    found += [*_drivers(off, standard=standard), *_libraries(off)]
    if is_disabled(environ):
        return [replace(one, traced_by="nobody (OTEL_SDK_DISABLED)") if one.traced_by else one for one in found]
    return found


@functools.cache  # check() asks twice
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


def findings(environ: Mapping[str, str]) -> list[Finding]:
    """Look for versions that are too old, and for instrumentations that are missing or do not fit their library."""
    return [
        *_too_old(standard=are_standard(environ)),
        *(() if are_standard(environ) else unknown_sdk()),
        *_older_than_tested(),
        *_conflicts(),
        *_missing(disabled_instrumentations(environ)),
    ]


def unknown_sdk() -> Iterator[Finding]:
    """Ask the two files that use private fields of the SDK whether it is built as they know it."""
    try:
        from mackerel_otel_server.pipeline import encoder, spans  # not for the other commands

        difference = spans.sdk_difference() or encoder.sdk_difference()
    except Exception:
        # OpenTelemetry does not start with a variable of this environment, as the findings about the variables say.
        return
    if difference is not None:
        yield warn(
            f"the spans of opentelemetry-sdk {_version('opentelemetry-sdk')} are not built as this package knows them "
            f"({difference})",
            "OpenTelemetry's own code makes and encodes spans: none is lost, but requests take longer",
            "pip install -U mackerel-otel-server",
        )


def _too_old(*, standard: bool) -> Iterator[Finding]:
    try:
        own = metadata.distribution(_OURS)
    except metadata.PackageNotFoundError:
        return
    supported = SpecifierSet(own.metadata["Requires-Python"])
    if not supported.contains(platform.python_version(), prereleases=True):
        yield _old("Python", platform.python_version(), str(supported), "run the server with a newer Python")
    for wanted in map(Requirement, own.requires or ()):
        # Left out is what only the tests of this package need, and what the settings have not chosen.
        if any(f'extra == "{extra}"' in str(wanted.marker) for extra in ("dev", *(() if standard else ("standard",)))):
            continue
        name, version = wanted.name, _version(wanted.name)
        plain = version
        if name == "pyuwsgi":
            # The extra `uwsgi` installs pyuwsgi, but the uWSGI that runs may come from elsewhere, such as Debian.
            name, version = "uWSGI", uwsgi_version()
            plain = ".".join(map(str, numbers(version) or ()))
        if version and plain and not wanted.specifier.contains(plain, prereleases=True):
            cure = f"pip install '{wanted.name}{wanted.specifier}'"
            yield _old(name, version, str(wanted.specifier), cure)


def _old(name: str, version: str, wanted: str, cure: str) -> Finding:
    return fail(f"{name} {version} is not supported ({wanted} is)", "tracing may not work at all", cure)


def _older_than_tested() -> Iterator[Finding]:
    for name, oldest in {**frameworks.oldest(), **databases.oldest_releases()}.items():
        with suppress(InvalidVersion):
            installed = _version(name)
            if installed and is_older(installed, oldest):
                yield warn(
                    f"{name} {installed} is older than {oldest}, the oldest release that this package is tested with",
                    "spans may lack their route or their exception, or be missing",
                    f"pip install '{name}>={oldest}'",
                )


@functools.cache
def _instrumentations() -> dict[str, metadata.Distribution]:
    """Return the installed instrumentations of OpenTelemetry that may be applied, by entry point."""
    found = sorted(metadata.entry_points(group=instrumentors.GROUP), key=lambda point: point.name)
    return {point.name: point.dist for point in found if point.dist and point.name not in frameworks.instrumentations()}


def _conflicts() -> Iterator[Finding]:
    for name, dist in _instrumentations().items():
        try:
            conflict = _conflict(dist)
        except Exception as error:
            yield warn(f"{dist.name} has metadata that cannot be read ({error})", "", f"reinstall {dist.name}")
            continue
        if conflict is None:
            continue
        follows = {
            _OURS: "it is left out; the driver is traced by this package",
            _BY_DRIVERS: "it is left out; this package traces the queries by their drivers",
        }.get(_instead(name))
        yield warn(
            f"{dist.name} {dist.version} does not fit what is installed: {conflict}",
            follows or f"{name} is not traced",
            f"pip uninstall {dist.name}" if follows else f"install versions that fit: pip install -U {dist.name}",
        )


@functools.cache
def _conflict(dist: metadata.Distribution) -> str | None:
    """Return which version is installed and which one an instrumentation takes, or None where it can be used."""
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

    conflict = get_dist_dependency_conflicts(dist)
    # In the oldest supported OpenTelemetry, a conflict has no field found_any.
    found = conflict and (conflict.found or getattr(conflict, "found_any", None))
    if conflict is None or not found:
        return None
    required = [conflict.required, *(getattr(conflict, "required_any", None) or ())]
    wanted = ", ".join(str(one).partition(";")[0] for one in required if one)
    return f"{found if isinstance(found, str) else ', '.join(found)} (it takes {wanted})"


def _instead(name: str) -> str:
    """Return who traces a library whose own instrumentation cannot be used; empty: nobody does."""
    if name in databases.names():
        return _OURS
    return _BY_DRIVERS if known.about(name).by_drivers else ""


def _missing(off: Collection[str]) -> Iterator[Finding]:
    """Name the libraries that this package would trace if their instrumentations were installed."""
    try:
        # What OpenTelemetry has for which library; `opentelemetry-bootstrap` reads that, too.
        from opentelemetry.instrumentation.bootstrap_gen import libraries
    except ImportError:
        return
    missing: set[tuple[str, str]] = set()
    traced_without = frameworks.instrumentations() | databases.names()
    for one in libraries:
        library, package = Requirement(one["library"]), Requirement(one["instrumentation"])
        name = package.name.removeprefix("opentelemetry-instrumentation-")
        if not known.about(name).is_offered or name in traced_without or {name, "*"} & set(off):
            continue
        version = _version(library.name)
        fits = version is not None and library.specifier.contains(version, prereleases=True)
        if fits and library.name != known.about(name).needs and _version(package.name) is None:
            missing.add((library.name, str(package)))
    if missing:
        names, packages = (sorted(set(column)) for column in zip(*missing, strict=True))
        yield ok(
            f"libraries without their OpenTelemetry instrumentation: {', '.join(names)}",
            "their calls make no spans; with the instrumentation, each call makes one, and spans are billed",
            "\n".join(["to see the calls of a library, type its line:", *(f"pip install {one}" for one in packages)]),
        )


def _drivers(off: Collection[str], *, standard: bool) -> Iterator[Version]:
    for driver in drivers.DRIVERS:
        by = _by(driver.name, off)
        if standard and by == _OURS:
            wraps = driver.takes_wrapped_connections
            by = _instrumentation("dbapi") if wraps else "nobody (MACKEREL_OTEL_PARTS=standard)"
        if not driver.distributions:
            # sqlite3, the only driver that is a part of Python.
            yield Version(driver.name, sqlite3.sqlite_version, by)
        elif installed := next(filter(_version, driver.distributions), None):
            yield Version(installed, _version(installed) or "", by)


def _libraries(off: Collection[str]) -> Iterator[Version]:
    """Return the other libraries, of which only the installed instrumentations tell."""
    for name, dist in _instrumentations().items():
        if name not in databases.names():
            told = [Requirement(one).name for one in dist.requires or () if "instruments" in one]
            # The distribution has the name of the instrumentation, else one of those in its metadata.
            version = next(filter(None, map(_version, [name] if name in told else [name, *told])), None)
            if version or name in sys.stdlib_module_names:
                yield Version(name, version or "", _by(name, off))


def _by(name: str, off: Collection[str]) -> str:
    """Return who traces a library or a driver."""
    if name in off or "*" in off:
        return "nobody (OTEL_PYTHON_DISABLED_INSTRUMENTATIONS)"
    dist = _instrumentations().get(name)
    if dist is None:
        return _OURS
    with suppress(Exception):  # of the metadata, which a finding tells
        if _conflict(dist):
            return _instead(name) or f"nobody ({dist.name} does not fit)"
    return f"{dist.name} {dist.version}"


def _of_requests(framework: Framework) -> str:
    """Return what traces the requests of a framework with MACKEREL_OTEL_PARTS=standard."""
    return ", ".join(_instrumentation(name) for name in ("wsgi", "asgi") if getattr(framework, name)) or _OURS


def _instrumentation(name: str) -> str:
    """Return the package of OpenTelemetry that traces instead of this one with MACKEREL_OTEL_PARTS=standard."""
    package = f"opentelemetry-instrumentation-{name}"
    return f"{package} {_version(package) or '(missing)'}"


@functools.cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
