"""What follows from a uWSGI configuration for tracing."""

from __future__ import annotations

import glob
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import server_user, versions
from mackerel_otel_server.cli.inspection.findings import Finding, fail, ok, warn
from mackerel_otel_server.cli.inspection.project import sources
from mackerel_otel_server.cli.inspection.uwsgi import interpreter
from mackerel_otel_server.servers.uwsgi_rules import FILES, MODULES, judge
from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.uwsgi.ini import Ini

_DOOR: Final = "mackerel_otel_server.uwsgi"
_IMPORTS: Final = tuple(
    f"{shared}{name}" for shared in ("", "shared-") for name in ("import", "pyimport", "py-import", "python-import")
)
_UNDERSTOOD: Final = (*_IMPORTS, *FILES, *MODULES, "env", "mount", "chdir", "harakiri", "uid", *interpreter.HOMES)
_PLACEHOLDER: Final = re.compile(r"([$%])\(([^()]+)\)")


def findings(ini: Ini, environ: Mapping[str, str], folder: str, installed: str | None) -> list[Finding]:
    """Look at one configuration.

    Args:
        ini: As uWSGI reads it.
        environ: The environment of the workers.
        folder: The working directory of the server.
        installed: The version of the uWSGI that is installed; None if that is not known.
    """
    look = "look into the log of the server, where each worker says that it traces, as whom and to where"
    not_known = [warn(sentence, "what it says is not known here", look) for sentence in ini.not_understood]
    if (emperor := ini.last("emperor")) and application(ini) is None and not ini.all("mount"):
        return [*not_known, _emperor(ini, emperor)]
    start, folder = folder, str(Path(folder, ini.last("chdir") or ""))
    return [
        *not_known,
        *_placeholders(ini),
        *(leads_nowhere := list(_chdir(ini, start))),
        *_import(ini, folder),
        *(interpreter.findings(ini, environ, folder, installed) if not leads_nowhere else ()),
        *(Finding(*judgement) for judgement in judge(ini, versions.numbers(installed), environ)),
        *_plain_callable(ini, folder),
        *_keys(ini),
        *server_user.findings(ini.last("uid"), environ),
    ]


def _emperor(ini: Ini, vassals: str) -> Finding:
    # The option names a folder or a pattern of file names.
    found = glob.glob(f"{vassals}/*.ini") or glob.glob(vassals)  # noqa: PTH207 - as uWSGI has it
    first = min((file for file in found if file.endswith(".ini")), default="VASSAL")
    return warn(
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
        yield fail(
            f"chdir = {given} leads to {Path(start, given)}, which is no folder here",
            "uWSGI does not start",
            "correct that line, or type this command in the folder that the server is started in",
        )


def _import(ini: Ini, folder: str) -> Iterator[Finding]:
    imports = ini.all(*_IMPORTS)
    file = sources.of_application(folder, application(ini))
    line = f"add this line to {ini.files[0]}: import = {_DOOR}"
    if _DOOR in imports:
        yield ok(f"{ini.files[0]} imports {_DOOR}")
    elif wrong := [name for name in imports if name.partition(".")[0] == "mackerel_otel_server"]:
        yield fail(f"import = {wrong[0]} is not uWSGI's door", "no request is traced", line)
    elif file is not None:
        yield ok(f"{ini.files[0]} has no import of this package, and {file} uses it")
    else:
        yield fail(f"{ini.files[0]} does not import {_DOOR}", "no request is traced", line)


def application(ini: Ini) -> str | None:
    """Return what uWSGI is told to serve, for the service name and to find its file."""
    return ini.callable_to_load() or ini.last(*FILES)


def _plain_callable(ini: Ini, folder: str) -> Iterator[Finding]:
    """Look for plain callables that mackerel_otel_server.uwsgi cannot trace, because uWSGI loads them by itself.

    uWSGI loads the files of ``wsgi-file`` and ``mount`` without Python's import, and does not tell which callable of a
    mounted module it takes.
    """
    name = ini.last("callable") or "application"
    folders = [folder, *(str(Path(folder, path)) for path in ini.all(*interpreter.PATHS))]
    mounted = [value.partition("=")[2] for value in ini.all("mount")]
    for given in dict.fromkeys([*ini.all(*FILES), *mounted]):
        module, colon, own_name = given.rpartition(":")
        if given.endswith((".py", ".wsgi")):
            module, own_name = given, name
        elif not colon or given not in mounted or given == application(ini):
            continue
        file = sources.file_of(module, folders)
        if file is None and not sources.is_framework(module):
            cure = "type this command in the server's working directory"
            yield warn(f"{module} is not in {folder}", "whether its application is traced is not known", cure)
        elif file is not None and sources.is_plain_callable(file, own_name.removesuffix("()")):
            line = "from mackerel_otel_server import trace_wsgi"
            cure = f"end that file with these two lines:\n{line}\n{own_name} = trace_wsgi({own_name})"
            if own_name.endswith("()"):
                cure = f"let {own_name} return trace_wsgi(…) of what it returns now; {line}"
            yield warn(
                f"{own_name!r} of {file} is a plain callable that uWSGI loads by itself",
                "its requests make no server spans",
                cure,
            )


def _placeholders(ini: Ini) -> Iterator[Finding]:
    # Other options, such as log-format, have their own use for placeholders.
    for name, value in dict.fromkeys(ini.options):
        for kind, meant in _PLACEHOLDER.findall(value) if name in _UNDERSTOOD else ():
            if kind == "%":
                yield warn(
                    f"%({meant}) in a line {name} = … is no option of {ini.files[0]}",
                    "uWSGI takes it as it is written",
                    f"add this line above it: set-placeholder = {meant}=VALUE",
                )
            else:
                yield warn(
                    f"$({meant}) in a line {name} = … is not set in the environment of this command",
                    "where the server's environment lacks it, too, uWSGI takes it as it is written",
                    f"type {meant}=VALUE mackerel-otel-server check, and see that the server gets it",
                )


def _keys(ini: Ini) -> Iterator[Finding]:
    """Say whether other users may read an API key that an ``env`` line sets."""
    for name in catalogue.API_KEY.names:
        written = [value for option, value in ini.written if option == "env" and value.startswith(f"{name}=")]
        if not written:
            continue
        # With @(file), the key is in that file, and the ini file itself may be readable by everyone.
        elsewhere = re.findall(r"@\(([^()]+)\)", written[-1])
        open_ = [file for file in elsewhere or ini.files if _is_readable_by_all(file)]
        if open_:
            yield warn(
                f"{name} is set by an env line",
                f"every user of this machine may read it in {', '.join(open_)}",
                f"chmod o-r {' '.join(open_)}, or set MACKEREL_APIKEY_FILE to a file that holds the key",
            )
        else:
            yield ok(f"{name} is set by an env line")


def _is_readable_by_all(file: str) -> bool:
    with suppress(OSError):
        return bool(Path(file).stat().st_mode & stat.S_IROTH)
    return False
