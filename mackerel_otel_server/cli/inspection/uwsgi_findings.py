"""What follows from a uWSGI configuration for tracing."""

from __future__ import annotations

import glob
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import applications, uwsgi_python, uwsgi_variables, versions
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.gunicorn_findings import shutdown_timeout, user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.uwsgi_ini import Ini

_DOOR: Final = "mackerel_otel_server.uwsgi"
_IMPORTS: Final = tuple(
    f"{shared}{name}" for shared in ("", "shared-") for name in ("import", "pyimport", "py-import", "python-import")
)
_FILES: Final = ("wsgi-file", "file")
_MODULES: Final = ("module", "wsgi")
_UNDERSTOOD: Final = (*_IMPORTS, *_FILES, *_MODULES, "mount", "chdir", "harakiri", "uid", *uwsgi_python.HOMES)
_SPARES: Final = (2, 0, 22)
"""The first release that knows harakiri-queue-threshold."""
_ON_EXCEPTION: Final = tuple(f"reload-on-exception{what}" for what in ("", "-type", "-value", "-repr"))
_THREADS_BY_DEFAULT: Final = (2, 0, 27)
_CRASHES_IN_FORK_HOOKS: Final = (3, 12)
_MERCY: Final = 60
"""Seconds that uWSGI waits for a worker at a reload or at its end, unless told otherwise."""


def findings(ini: Ini, environ: Mapping[str, str], folder: str, installed: str | None) -> list[Finding]:
    """Look at one configuration.

    Args:
        ini: As uWSGI reads it.
        environ: The environment of the workers.
        folder: The working directory of the server.
        installed: The version of the uWSGI that is installed; None if that is not known.
    """
    version = versions.numbers(installed)
    look = "look into the log of the server, where each worker says that it traces, as whom and to where"
    not_known = [Finding("WARN", sentence, "what it says is not known here", look) for sentence in ini.not_understood]
    if (emperor := ini.last("emperor")) and application(ini) is None and not ini.all("mount"):
        return [*not_known, _emperor(ini, emperor)]
    start, folder = folder, str(Path(folder, ini.last("chdir") or ""))
    return [
        *not_known,
        *uwsgi_variables.placeholders(ini, _UNDERSTOOD),
        *(leads_nowhere := list(_chdir(ini, start))),
        *_import(ini, folder),
        *(uwsgi_python.findings(ini, environ, folder, installed) if not leads_nowhere else ()),
        *_threads(ini, version),
        *_master(ini),
        *_async(ini),
        *_interpreters(ini),
        *_plain_callable(ini, folder),
        *_exit(ini),
        *_exceptions(ini),
        *_forks(ini),
        *_harakiri(ini, version),
        *_shutdown(ini, environ),
        *uwsgi_variables.blanks(ini),
        *uwsgi_variables.keys(ini),
        *user(ini.last("uid"), environ),
    ]


def _emperor(ini: Ini, vassals: str) -> Finding:
    # A folder, or a pattern.
    found = glob.glob(f"{vassals}/*.ini") or glob.glob(vassals)  # noqa: PTH207 - as uWSGI has it
    first = min((file for file in found if file.endswith(".ini")), default="VASSAL")
    return Finding(
        "WARN",
        f"{ini.files[0]} starts vassals (emperor = {vassals}), and serves nothing itself",
        "each vassal has a configuration of its own, and that one decides whether its requests are traced",
        f"mackerel-otel-server check --server uwsgi --config {first}",
    )


def _chdir(ini: Ini, start: str) -> Iterator[Finding]:
    given = ini.last("chdir")
    if not given or ini.last("chroot"):
        return
    try:
        is_there = stat.S_ISDIR(Path(start, given).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    except OSError:
        return  # the server's user may be allowed what this one is not
    if not is_there:
        yield Finding(
            "FAIL",
            f"chdir = {given} leads to {Path(start, given)}, which is no folder here",
            "uWSGI does not start",
            "correct that line, or type this command in the folder that the server is started in",
        )


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
    """Look at what uWSGI loads past Python's import, and at mounted modules: whose callable the door is not told."""
    name = ini.last("callable") or "application"
    folders = [folder, *(str(Path(folder, path)) for path in ini.all(*uwsgi_python.PATHS))]
    mounted = [value.partition("=")[2] for value in ini.all("mount")]
    for given in dict.fromkeys([*ini.all(*_FILES), *mounted]):
        module, colon, own_name = given.rpartition(":")
        if given.endswith((".py", ".wsgi")):
            module, own_name = given, name
        elif not colon or given not in mounted or given == application(ini):
            continue
        file = next(filter(None, (applications.file_of(each, module) for each in folders)), None)
        if file is None and not applications.is_framework(module):
            yield Finding(
                "WARN", f"{module} is not in {folder}", "whether its application is traced is not known",
                "type this command in the server's working directory",
            )  # fmt: skip
        elif file is not None and applications.is_plain_callable(file, own_name.removesuffix("()")):
            yield _plain(file, own_name)


def _plain(file: Path, name: str) -> Finding:
    wrapped = f"{name} = trace_wsgi({name})"
    two_lines = f"end that file with these two lines:\nfrom mackerel_otel_server import trace_wsgi\n{wrapped}"
    factory = f"let {name} return trace_wsgi(…) of what it returns now; from mackerel_otel_server import trace_wsgi"
    return Finding(
        "WARN",
        f"{name!r} of {file} is a plain callable that uWSGI loads by itself",
        "its requests make no server spans",
        factory if name.endswith("()") else two_lines,
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


def _async(ini: Ini) -> Iterator[Finding]:
    cores = ini.last("async") or "0"
    if cores.isdecimal() and int(cores) > 1 and not ini.last("gevent"):
        yield Finding(
            "WARN",
            f"async = {cores} is set",
            "a leaving worker runs no code in this mode: what it has queued is lost, up to OTEL_BSP_SCHEDULE_DELAY",
            f"put this line in its place: threads = {cores}",
        )


def _exceptions(ini: Ini) -> Iterator[Finding]:
    for name in _ON_EXCEPTION:
        if ini.is_on(name):
            yield Finding(
                "WARN",
                f"{name} is set",
                "uWSGI ends the worker without running any code: the span of a request whose exception nobody handles "
                "is lost, and what the worker has queued, up to OTEL_BSP_SCHEDULE_DELAY",
                "remove that line",
            )


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


def _harakiri(ini: Ini, version: tuple[int, ...] | None) -> Iterator[Finding]:
    limit = ini.last("harakiri")
    threshold = ini.last("harakiri-queue-threshold") or "0"
    if threshold != "0" and (version is None or version >= _SPARES):
        yield Finding(
            "WARN",
            f"harakiri-queue-threshold = {threshold} is set",
            "whether uWSGI kills a slow request is not known beforehand: a request that it kills is not reported, and "
            "what its worker has queued is lost",
            "remove that line to see the requests that harakiri kills",
        )
        return
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


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
