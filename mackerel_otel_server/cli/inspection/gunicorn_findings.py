"""What follows from Gunicorn's configuration for tracing."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import applications, doors
from mackerel_otel_server.cli.inspection.files import text_or_nothing
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.gunicorn_config import GunicornConfig

_TWO_LINES: Final = "\nfrom mackerel_otel_server.gunicorn import install\ninstall(globals())"
_WITHOUT: Final = {
    "on_starting": "what is wrong with the settings is not said before the workers start",
    "on_reload": "what has become wrong with the settings is not said at a reload",
    "post_fork": "tracing starts after Gunicorn has dropped its privileges, which may be too late for a key file",
    "post_worker_init": "no request is traced",
    "worker_abort": "a request that Gunicorn kills at its timeout may not arrive",
    "worker_exit": "what a leaving worker has queued may be lost",
}
_KNOWN: Final = frozenset(
    name for variable in catalogue.CATALOGUE for name in variable.names if name.startswith(("MACKEREL_", "OTEL_"))
)
KEY_VARIABLES: Final = ("MACKEREL_APIKEY", "MACKEREL_API_KEY")
FILE_VARIABLES: Final = tuple(
    name
    for variable in (
        catalogue.API_KEY_FILE,
        catalogue.CERTIFICATE,
        catalogue.CLIENT_KEY,
        catalogue.CLIENT_CERTIFICATE,
    )
    for name in variable.names
)


def findings(config: GunicornConfig, environ: Mapping[str, str], folder: str) -> list[Finding]:
    """Look at one configuration.

    Args:
        config: As Gunicorn has loaded it.
        environ: The environment of the workers.
        folder: The working directory of the server.
    """
    return [
        *_hooks(config, environ),
        *_ignored(config, folder),
        *_worker_class(config),
        *_gevent(config),
        *_key(config),
        *_shutdown(config, environ),
        *_removed(config),
        *_provider(config),
        *user(config.settings["user"], environ),
    ]


def _hooks(config: GunicornConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    if not config.missing:
        yield Finding("OK", f"{config.name} installs the hooks of this package")
        return
    if config.imports_ours and config.hooks:
        worst = "post_worker_init" in config.missing
        places = ", ".join(f"{name} ({config.places.get(name, 'elsewhere')})" for name in config.missing)
        yield Finding(
            "FAIL" if worst else "WARN",
            f"hooks of this package are overwritten after install(globals()): {places}",
            "; ".join(_WITHOUT[name] for name in config.missing),
            "move these two lines to the end of the file, where they keep the hooks above them:" + _TWO_LINES,
        )
        return
    roots = [*config.roots, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    file = applications.file_with_door(config.cwd, config.application, roots, uwsgi=False)
    in_hook = None if config.instruments else doors.find(map(Path, config.files), [config.cwd, *roots])
    if file is not None:
        yield Finding("OK", f"{config.name} has no hooks of this package, and {file} uses it")
    elif in_hook is not None:
        whose = "one of its own hooks" if str(in_hook) in config.files else str(in_hook)
        yield Finding("OK", f"{config.name} has no hooks of this package, and instrument() is called in {whose}")
    elif config.imports_ours:
        yield Finding(
            "FAIL",
            f"{config.name} imports mackerel_otel_server.gunicorn and has none of its hooks",
            "no request is traced",
            "end that file with these two lines:" + _TWO_LINES,
        )
    elif config.instruments:
        yield Finding(
            "WARN",
            f"{config.name} calls instrument() while Gunicorn reads it",
            "tracing starts with the first request of an application of a known framework, under a name that is "
            "guessed unless OTEL_SERVICE_NAME is set; any other application makes no server spans",
            "remove that call, and end the file with these two lines:" + _TWO_LINES,
        )
    elif not config.read_from:
        yield Finding(
            "WARN",
            "Gunicorn finds no configuration file here, and what it is given on its command line is not known",
            "nothing is known about its hooks",
            "start it with gunicorn -c python:mackerel_otel_server.conf, and type "
            "mackerel-otel-server check --config python:mackerel_otel_server.conf",
        )
    else:
        yield Finding(
            "FAIL",
            f"{config.name} has no hooks of this package",
            "no request is traced",
            "end that file with these two lines:" + _TWO_LINES,
        )


def _ignored(config: GunicornConfig, folder: str) -> Iterator[Finding]:
    default = Path(folder, "gunicorn.conf.py")
    given = config.read_from[0] if config.read_from else ""
    if not given or not default.is_file() or _is_same(folder, given, default):
        return
    yield Finding(
        "WARN",
        f"{default} is ignored",
        f"Gunicorn reads one configuration only, which is {given}",
        "leave -c out, and end that file with these two lines:" + _TWO_LINES,
    )


def _is_same(folder: str, given: str, default: Path) -> bool:
    file = Path(folder, given.removeprefix("file:"))
    return file.exists() and file.samefile(default)


def _worker_class(config: GunicornConfig) -> Iterator[Finding]:
    name = config.worker_class
    if config.worker_error is not None:
        yield Finding(
            "FAIL",
            f"the worker class {name!r} cannot be loaded: {config.worker_error}",
            "Gunicorn does not start",
            "install what it needs, or correct worker_class",
        )
    elif config.is_worker("gunicorn.workers.gtornado"):
        yield Finding(
            "OK",
            f"the worker class is {name}: requests to a WSGI application make server spans",
            "those to a tornado.web.Application, which is none, do not; spans of its own code are sent",
        )
    elif config.is_worker("uvicorn", "uvicorn_worker"):
        yield Finding(
            "OK",
            f"the worker class is {name}, which leaves at TERM without calling any of Gunicorn's hooks",
            "what is queued is sent when the application's lifespan ends; at INT the worker hangs until "
            "graceful_timeout is over",
            "Gunicorn's own class ends in order: worker_class = 'asgi' (Gunicorn 25 and newer)",
        )


def _gevent(config: GunicornConfig) -> Iterator[Finding]:
    if not config.is_worker("gunicorn.workers.ggevent"):
        return
    follows = (
        "gevent patches the standard library in each worker, after that: the application's own https requests may "
        "fail with RecursionError"
    )
    if config.early:
        yield Finding(
            "WARN",
            f"{config.name} imports {', '.join(config.early)} before gevent has patched ssl",
            follows,
            "import them inside the hooks that use them, or begin the file with: "
            "from gevent import monkey; monkey.patch_all()",
        )
    if config.settings["preload_app"] and not config.patched:
        yield Finding(
            "WARN",
            "preload_app loads the application before gevent has patched ssl",
            follows + " if it imports ssl, requests or urllib3",
            "set preload_app = False, or begin the file with: from gevent import monkey; monkey.patch_all()",
        )


def _key(config: GunicornConfig) -> Iterator[Finding]:
    for name in KEY_VARIABLES:
        if config.env.get(name):
            yield Finding(
                "WARN",
                f"{name} is given by raw_env or -e",
                "gunicorn --print-config and the debug log show the API key, and -e shows it to all users of this "
                "machine",
                "remove it there, and set it in the environment of the server, or MACKEREL_APIKEY_FILE to a file "
                "that holds it",
            )


def _shutdown(config: GunicornConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    seconds = shutdown_timeout(environ)
    for name in ("graceful_timeout", "timeout"):
        limit = config.settings[name]
        if seconds is not None and limit and seconds >= limit:
            yield Finding(
                "WARN",
                f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT ({seconds:g} s) is not below Gunicorn's {name} ({limit} s)",
                "Gunicorn kills a leaving worker while it still sends; what is left then is lost",
                f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT={max(limit - 1, 0) // 2}, or raise {name}",
            )


def shutdown_timeout(environ: Mapping[str, str]) -> float | None:
    """Return the seconds that a leaving worker may take; None where the variable is wrong, which others say."""
    try:
        return float(environ.get("MACKEREL_OTEL_SHUTDOWN_TIMEOUT", "").strip() or 5.0)
    except ValueError:
        return None


def _removed(config: GunicornConfig) -> Iterator[Finding]:
    names = [name for name, value in config.changed.items() if value is None and name in _KNOWN]
    if names:
        yield Finding(
            "WARN",
            f"{config.name} removes {', '.join(names)} from the environment",
            "the workers do not get what is set there",
            "remove the lines that do so, or set it elsewhere if that is what they are for",
        )


def _provider(config: GunicornConfig) -> Iterator[Finding]:
    if config.provider is None and not any(
        "set_tracer_provider" in text_or_nothing(Path(file)) for file in config.files
    ):
        return
    yield Finding(
        "FAIL",
        f"{config.name} sets a tracer provider itself" + (f" ({config.provider})" if config.provider else ""),
        "this package stays off where another provider is set",
        "remove those lines: this package sets a provider in each worker",
    )


def user(wanted: int | str | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Say that another user than this one is going to read the key file and the certificates."""
    own = os.geteuid()
    uid, name = _user(wanted)
    named = [variable for variable in FILE_VARIABLES if environ.get(variable)]
    if uid in (None, own):
        return
    yield Finding(
        "WARN" if named else "OK",
        f"the workers run as user {name}, and this command as {_user(own)[1]}",
        f"whether they may read the files of {', '.join(named)} is not known" if named else "",
        f"sudo -u {name} --preserve-env mackerel-otel-server check" if named else "",
    )


def _user(wanted: int | str | None) -> tuple[int | None, str]:
    if wanted is None:
        return None, ""
    try:
        entry = pwd.getpwuid(int(wanted)) if str(wanted).isdecimal() else pwd.getpwnam(str(wanted))
    except KeyError:
        return (int(wanted) if str(wanted).isdecimal() else -1), str(wanted)
    return entry.pw_uid, entry.pw_name
