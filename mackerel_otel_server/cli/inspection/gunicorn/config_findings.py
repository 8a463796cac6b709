"""What follows from Gunicorn's configuration for tracing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import server_user
from mackerel_otel_server.cli.inspection.findings import Finding, fail, ok, warn
from mackerel_otel_server.cli.inspection.project import sources
from mackerel_otel_server.cli.inspection.project.files import text_or_nothing
from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.cli.inspection.gunicorn.effective import GunicornConfig

_TWO_LINES: Final = "\nfrom mackerel_otel_server.gunicorn import install\ninstall(globals())"
_WITHOUT: Final = {
    "on_starting": "what is wrong with the settings is not said before the workers start",
    "on_reload": "what has become wrong with the settings is not said at a reload",
    "post_fork": "tracing starts after Gunicorn has dropped its privileges, which may be too late for a key file",
    "post_worker_init": "no request is traced",
    "worker_abort": "a request that Gunicorn kills at its timeout may not arrive",
    "worker_exit": "what a leaving worker has queued may be lost",
}


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
        *_provider(config),
        *server_user.findings(config.settings["user"], environ),
    ]


def _hooks(config: GunicornConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    if not config.missing:
        yield ok(f"{config.name} installs the hooks of this package")
        return
    if config.imports_ours and config.has_hooks:
        places = ", ".join(f"{name} ({config.places.get(name, 'elsewhere')})" for name in config.missing)
        yield (fail if "post_worker_init" in config.missing else warn)(
            f"hooks of this package are overwritten after install(globals()): {places}",
            "; ".join(_WITHOUT[name] for name in config.missing),
            "move these two lines to the end of the file, where they keep the hooks above them:" + _TWO_LINES,
        )
        return
    roots = [*config.roots, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    file = sources.of_application(config.cwd, config.application, roots, uwsgi=False)
    own = Path(config.file) if config.file else None
    in_hook = sources.that_traces([own], [config.cwd, *roots]) if own and not config.instruments else None
    if file is not None:
        yield ok(f"{config.name} has no hooks of this package, and {file} uses it")
    elif in_hook is not None:
        whose = "one of its own hooks" if in_hook == own else in_hook
        yield ok(f"{config.name} has no hooks of this package, and instrument() is called in {whose}")
    elif config.instruments and not config.imports_ours:
        yield warn(
            f"{config.name} calls instrument() while Gunicorn reads it",
            "tracing starts with the first request of an application of a known framework, under a name that is "
            "guessed unless OTEL_SERVICE_NAME is set; any other application makes no server spans",
            "remove that call, and end the file with these two lines:" + _TWO_LINES,
        )
    elif not config.read_from and not config.imports_ours:
        yield warn(
            "Gunicorn finds no configuration file here, and what it is given on its command line is not known",
            "nothing is known about its hooks",
            "start it with gunicorn -c python:mackerel_otel_server.conf, and type "
            "mackerel-otel-server check --config python:mackerel_otel_server.conf",
        )
    else:
        seen = "imports mackerel_otel_server.gunicorn and has none of its hooks"
        yield fail(
            f"{config.name} {seen if config.imports_ours else 'has no hooks of this package'}",
            "no request is traced",
            "end that file with these two lines:" + _TWO_LINES,
        )


def _ignored(config: GunicornConfig, folder: str) -> Iterator[Finding]:
    default, given = Path(folder, "gunicorn.conf.py"), config.read_from
    file = Path(folder, (given or "").removeprefix("file:"))
    if given and default.is_file() and not (file.exists() and file.samefile(default)):
        yield warn(
            f"{default} is ignored",
            f"Gunicorn reads one configuration only, which is {given}",
            "leave -c out, and end that file with these two lines:" + _TWO_LINES,
        )


def _worker_class(config: GunicornConfig) -> Iterator[Finding]:
    name = config.worker_class
    if config.worker_error is not None:
        yield fail(
            f"the worker class {name!r} cannot be loaded: {config.worker_error}",
            "Gunicorn does not start",
            "install what it needs, or correct worker_class",
        )
    elif config.is_worker("gunicorn.workers.gtornado"):
        yield ok(
            f"the worker class is {name}: requests to a WSGI application make server spans",
            "those to a tornado.web.Application, which is none, do not; spans of its own code are sent",
        )
    elif config.is_worker("uvicorn", "uvicorn_worker"):
        yield ok(
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
        yield warn(
            f"{config.name} imports {', '.join(config.early)} before gevent has patched ssl",
            follows,
            "import them inside the hooks that use them, or begin the file with: "
            "from gevent import monkey; monkey.patch_all()",
        )
    if config.settings["preload_app"] and not config.patched:
        yield warn(
            "preload_app loads the application before gevent has patched ssl",
            follows + " if it imports ssl, requests or urllib3",
            "set preload_app = False, or begin the file with: from gevent import monkey; monkey.patch_all()",
        )


def _key(config: GunicornConfig) -> Iterator[Finding]:
    for name in catalogue.API_KEY.names:
        if config.env.get(name):
            yield warn(
                f"{name} is given by raw_env or -e",
                "gunicorn --print-config and the debug log show the API key, and -e shows it to all users of this "
                "machine",
                "remove it there, and set it in the environment of the server, or MACKEREL_APIKEY_FILE to a file "
                "that holds it",
            )


def _shutdown(config: GunicornConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    source = Reader(environ)
    seconds = source.number(catalogue.SHUTDOWN_TIMEOUT)
    for name in ("graceful_timeout", "timeout"):
        limit = config.settings[name]
        if limit and seconds >= limit and not source.problems:
            yield warn(
                f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT ({seconds:g} s) is not below Gunicorn's {name} ({limit} s)",
                "Gunicorn kills a leaving worker while it still sends; what is left then is lost",
                f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT={max(limit - 1, 0) // 2}, or raise {name}",
            )


def _provider(config: GunicornConfig) -> Iterator[Finding]:
    if config.provider or (config.file and "set_tracer_provider" in text_or_nothing(Path(config.file))):
        yield fail(
            f"{config.name} sets a tracer provider itself" + (f" ({config.provider})" if config.provider else ""),
            "this package stays off where another provider is set",
            "remove those lines: this package sets a provider in each worker",
        )
