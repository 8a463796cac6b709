"""What follows from a uWSGI configuration for tracing."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import applications
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.gunicorn_findings import KEY_VARIABLES, shutdown_timeout, user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.uwsgi_ini import Ini

_DOOR: Final = "mackerel_otel_server.uwsgi"
_IMPORTS: Final = ("import", "pyimport", "py-import", "python-import")
_FILES: Final = ("wsgi-file", "file")
_MODULES: Final = ("module", "wsgi")
_THREADS_BY_DEFAULT: Final = (2, 0, 27)
_CRASHES_IN_FORK_HOOKS: Final = (3, 12)
_MERCY: Final = 60
"""Seconds that uWSGI waits for a worker at a reload or at its end, unless told otherwise."""


def findings(ini: Ini, environ: Mapping[str, str], folder: str, version: tuple[int, ...] | None) -> list[Finding]:
    """Look at one configuration.

    Args:
        ini: As uWSGI reads it.
        environ: The environment of the workers.
        folder: The working directory of the server.
        version: Of the uWSGI that is installed; None if that is not known.
    """
    folder = str(Path(folder, ini.last("chdir") or ""))
    return [
        *(Finding("WARN", sentence, "what it says is not known here") for sentence in ini.not_understood),
        *_import(ini, folder),
        *_threads(ini, version),
        *_master(ini),
        *_interpreters(ini),
        *_plain_callable(ini, folder),
        *_exit(ini),
        *_forks(ini),
        *_harakiri(ini),
        *_shutdown(ini, environ),
        *_key(ini),
        *user(ini.last("uid"), environ),
    ]


def _import(ini: Ini, folder: str) -> Iterator[Finding]:
    imports = ini.all(*_IMPORTS)
    file = applications.file_with_door(folder, application(ini))
    line = f"add this line to {ini.files[0]}: import = {_DOOR}"
    if _DOOR in imports:
        yield Finding("OK", f"{ini.files[0]} imports {_DOOR}")
    elif wrong := [name for name in imports if name.partition(".")[0] == "mackerel_otel_server"]:
        yield Finding("FAIL", f"import = {wrong[0]} is not uWSGI's door", "no request is traced", line)
    elif file is not None:
        yield Finding("OK", f"{ini.files[0]} has no import of this package, and {file} uses it")
    else:
        yield Finding("FAIL", f"{ini.files[0]} does not import {_DOOR}", "no request is traced", line)


def application(ini: Ini) -> str | None:
    """Return what uWSGI is told to serve, for the service name and to find its file."""
    module = ini.last(*_MODULES)
    if module:
        return module if ":" in module else f"{module}:{ini.last('callable') or 'application'}"
    return ini.last(*_FILES)


def _threads(ini: Ini, version: tuple[int, ...] | None) -> Iterator[Finding]:
    if ini.is_on("enable-threads") or (ini.last("threads") or "0") != "0":
        yield Finding("OK", "uWSGI runs Python threads, which send the spans")
    elif version is None:
        yield Finding(
            "WARN",
            "enable-threads is not set, and which uWSGI runs it is not known",
            "before uWSGI 2.0.27 there are no Python threads without it: tracing is off then",
            "add this line: enable-threads = true",
        )
    elif version < _THREADS_BY_DEFAULT:
        yield Finding(
            "FAIL",
            f"uWSGI {_dotted(version)} runs no Python threads without enable-threads",
            "tracing is off, the application serves without it: spans are sent by a thread",
            "add this line: enable-threads = true",
        )
    else:
        yield Finding("OK", f"uWSGI {_dotted(version)} runs Python threads unless told otherwise")


def _master(ini: Ini) -> Iterator[Finding]:
    if ini.is_on("master"):
        return
    yield Finding(
        "WARN",
        "uWSGI runs without a master",
        "a worker that dies is not restarted, and harakiri kills nobody",
        "add this line: master = true",
    )


def _interpreters(ini: Ini) -> Iterator[Finding]:
    applications_ = [*ini.all("mount"), *filter(None, [ini.last(*_MODULES, *_FILES)])]
    if len(applications_) > 1 and not ini.is_on("single-interpreter"):
        yield Finding(
            "WARN",
            f"there are {len(applications_)} applications ({', '.join(applications_)}) and no single-interpreter",
            "only the first is traced: uWSGI gives each of the others a Python interpreter of its own",
            "add this line: single-interpreter = true",
        )


def _plain_callable(ini: Ini, folder: str) -> Iterator[Finding]:
    mounted = [value.partition("=")[2] for value in ini.all("mount")]
    name = ini.last("callable") or "application"
    for given in [*ini.all(*_FILES), *mounted]:
        if not given.endswith((".py", ".wsgi")):
            continue
        file = applications.file_of(folder, given)
        if file is None:
            yield Finding(
                "WARN", f"{given} is not in {folder}", "whether its application is traced is not known",
                "type this command in the server's working directory",
            )  # fmt: skip
        elif applications.is_plain_callable(file, name):
            yield Finding(
                "WARN",
                f"{name!r} of {file} is a plain callable that uWSGI loads by itself",
                "its requests make no server spans",
                f"end that file with these two lines:\nfrom mackerel_otel_server import trace_wsgi\n"
                f"{name} = trace_wsgi({name})",
            )


def _exit(ini: Ini) -> Iterator[Finding]:
    if ini.is_on("skip-atexit"):
        yield Finding(
            "WARN",
            "skip-atexit is set",
            "a leaving worker sends nothing more: what it has queued is lost, up to OTEL_BSP_SCHEDULE_DELAY",
            "remove that line",
        )
    if ini.is_on("skip-atexit-teardown"):
        yield Finding("OK", "skip-atexit-teardown is set; this package sends before that")
    if ini.is_on("lazy-apps") or ini.is_on("lazy"):
        yield Finding("OK", "lazy-apps is set; each worker starts its own tracing then, too")


def _forks(ini: Ini) -> Iterator[Finding]:
    name = "py-call-uwsgi-fork-hooks"
    python = tuple(sys.version_info[:2])
    if ini.is_on(name) and python >= _CRASHES_IN_FORK_HOOKS:
        yield Finding(
            "FAIL",
            f"{name} is set and this is Python {_dotted(python)}",
            "the interpreter crashes when a worker with threads is forked",
            "remove that line; this package needs no hooks at the fork",
        )


def _harakiri(ini: Ini) -> Iterator[Finding]:
    limit = ini.last("harakiri")
    if limit is None:
        return
    if not limit.isdecimal():
        yield Finding("WARN", f"harakiri = {limit} is no number of seconds", "uWSGI kills no request", "harakiri = 30")
    elif (ini.last("threads") or "1") not in ("0", "1"):
        yield Finding(
            "OK",
            f"a request is killed after {limit} s (harakiri), and shortly before that it is sent as an error",
            "with threads, a request that ends stops the clock of all others in its worker",
        )
    else:
        yield Finding("OK", f"a request is killed after {limit} s (harakiri), and shortly before that sent as an error")


def _shutdown(ini: Ini, environ: Mapping[str, str]) -> Iterator[Finding]:
    seconds = shutdown_timeout(environ)
    given = ini.last("worker-reload-mercy", "reload-mercy")
    mercy = int(given) if given and given.isdecimal() else _MERCY
    if seconds is not None and seconds >= mercy:
        yield Finding(
            "WARN",
            f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT ({seconds:g} s) is not below uWSGI's worker-reload-mercy ({mercy} s)",
            "uWSGI kills a leaving worker while it still sends; what is left then is lost",
            f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT={max(mercy - 1, 0) // 2}, or raise worker-reload-mercy",
        )


def _key(ini: Ini) -> Iterator[Finding]:
    for name in KEY_VARIABLES:
        if not any(value.startswith(f"{name}=") for value in ini.all("env")):
            continue
        open_ = [file for file in ini.files if _is_readable_by_all(file)]
        yield Finding(
            "WARN" if open_ else "OK",
            f"{name} is set by an env line",
            f"every user of this machine may read it in {', '.join(open_)}" if open_ else "",
            f"chmod o-r {' '.join(open_)}, or set MACKEREL_APIKEY_FILE to a file that holds the key" if open_ else "",
        )


def _is_readable_by_all(file: str) -> bool:
    try:
        return bool(Path(file).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
