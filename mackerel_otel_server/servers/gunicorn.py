"""Gunicorn, by its hooks, which never raise.

https://docs.gunicorn.org/en/stable/settings.html#server-hooks

Registers: ``install(globals())`` at the end of the configuration file, or ``instrument()`` in the application; then the
hook on_starting in the arbiter.
Starts: in post_fork; under gevent in post_worker_init.
Stops: in worker_exit, and at signals that nobody handles.
Kills: at the end of ``timeout`` and of ``graceful_timeout``; see gunicorn_limits.
"""

from __future__ import annotations

import functools
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server import worker as tracing_worker
from mackerel_otel_server.process import log as log_module
from mackerel_otel_server.process.log import log
from mackerel_otel_server.servers import gunicorn_limits as limits
from mackerel_otel_server.servers import gunicorn_signals, uvicorn

if TYPE_CHECKING:
    from collections.abc import Callable

_start_folder = Path.cwd()
"""Where Gunicorn looks for its configuration; ``chdir`` leads away from it later."""
INSTALLED: Final = "_mackerel_otel_server_hook"
"""The attribute that marks our hooks, also where they run a hook of the user's."""


def install(namespace: dict[str, Any]) -> None:
    """Add this package's hooks to a Gunicorn configuration file, after those that it defines itself.

    Args:
        namespace: The file's ``globals()``. Call this at the end: a hook that the file defines later replaces ours.
    """
    for name, ours in HOOKS.items():
        theirs = namespace.get(name)
        if theirs is None:
            namespace[name] = ours
        elif not hasattr(theirs, INSTALLED):
            namespace[name] = _after(name, theirs, ours)
    tracing_worker.register()


def instrument(config: Any, *, serves: bool) -> None:
    """Do what ``instrument()`` in the application asks for.

    It adds this package's hooks, most of which are yet to be called, because the application is being loaded. They go
    when a HUP reads the configuration again; under preload_app the workers then start with their first request.

    Args:
        config: The server's ``gunicorn.config.Config``, as it has been read.
        serves: Whether this is a worker; the arbiter loads the application under preload_app only.
    """
    log_module.to_gunicorn(logging.getLogger("gunicorn.error"))
    for name, ours in HOOKS.items():
        theirs = getattr(config, name)
        if not hasattr(theirs, INSTALLED):
            config.set(name, _after(name, theirs, ours))
    if serves:
        tracing_worker.start()
    else:
        # What is wrong is reported here, and not by each worker.
        tracing_worker.check(preload=False)


def on_starting(server: Any) -> None:
    """Arbiter, once: log what is wrong with the settings before any worker starts, and import what all will need."""
    try:
        _log_to(server.log)
        limits.note_stop(server)
        tracing_worker.register(application=application(server))
        tracing_worker.check(preload=not _is_gevent(server.worker_class))
        _say_if_ignored(server.cfg)
    except Exception:
        log.exception("the settings could not be checked")


def on_reload(server: Any) -> None:
    """Arbiter, at SIGHUP: log what has become wrong with the settings, such as a key file that is gone."""
    try:
        _log_to(server.log)
        tracing_worker.check(preload=False, again=True)
    except Exception:
        log.exception("the settings could not be checked")


def post_fork(server: Any, worker: Any) -> None:
    """Worker, before it loads the application: start tracing.

    Not under gevent, which patches the standard library after this hook: a connection made of unpatched parts
    delivers nothing.
    """
    try:
        gunicorn_signals.keep(worker)
        _log_to(worker.log)
        if not speaks_for_all(worker):
            tracing_worker.leave_reports_to_others(of_settings=False)
        tracing_worker.register(application=application(server))
        uvicorn.register()
        if _is_gevent(type(worker)):
            tracing_worker.read_settings()
        else:
            tracing_worker.start()
    except Exception:
        log.exception("tracing cannot start, the application serves without it")


def post_worker_init(worker: Any) -> None:
    """Worker, the application is loaded and patches are made: trace the callable."""
    try:
        if tracing_worker.start():
            _trace_application(worker)
            tracing_worker.note_server(limits.server_goes_on)
            limits.watch(worker)
    except Exception:
        log.exception("the application is not traced")


def worker_abort(worker: Any) -> None:
    """Worker, in the handler of the signal that tells it that ``timeout`` is over: send the request that took so long.

    Gunicorn calls ``sys.exit()`` then, where the interpreter's main thread is, and SIGKILL follows within a second.
    """
    try:
        limits.report_timeout(worker)
    except Exception:
        log.exception("a request that is killed may be lost")


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ARG001 - Gunicorn counts the parameters
    """Worker, at its end: send what is queued."""
    # Gunicorn calls this in the arbiter, too, when it signals a worker that is gone, and in a process that the
    # application forked, when that one leaves by sys.exit: stop() ends what the calling process itself has started.
    with suppress(ValueError):  # not the main thread
        # An event loop that has closed took its handlers away: a signal would end this process while it sends.
        gunicorn_signals.hold_back()
    tracing_worker.stop()


HOOKS: Final[dict[str, Callable[..., None]]] = {
    hook.__name__: hook for hook in (on_starting, on_reload, post_fork, post_worker_init, worker_abort, worker_exit)
}
for _hook in HOOKS.values():
    setattr(_hook, INSTALLED, True)


def _after(name: str, theirs: Any, ours: Callable[..., None]) -> Callable[..., Any]:
    """Run the user's hook unchanged, then ours, also when theirs raises; in worker_abort ours first: time is short."""
    # As Gunicorn does it: a dotted path is resolved, and a wrong number of parameters stops the start.
    from gunicorn.config import validate_callable
    from gunicorn.util import get_arity

    theirs = validate_callable(get_arity(ours))(theirs)

    @functools.wraps(ours)  # Gunicorn reads the number of parameters from the signature
    def hook(*args: Any) -> Any:
        if ours is worker_abort:
            ours(*args)
            return theirs(*args)
        try:
            return theirs(*args)
        finally:
            ours(*args)

    hook.__doc__ = f"Run {name} of the configuration file and that of mackerel_otel_server."
    return hook


def _log_to(gunicorn_log: Any) -> None:
    error_log = getattr(gunicorn_log, "error_log", None)
    if isinstance(error_log, logging.Logger):
        log_module.to_gunicorn(error_log)
        return

    def write(record: logging.LogRecord) -> None:
        # A logger class of the user's own has the methods that Gunicorn itself calls.
        getattr(gunicorn_log, record.levelname.lower())("%s", f"{log_module.NAME}: {log_module.text(record)}")

    log_module.to_host(write)


def speaks_for_all(worker: Any) -> bool:
    """Tell whether a worker reports what is the same for all: one of as many as are started together does."""
    # Workers are counted from 1 since the server started.
    return bool((getattr(worker, "age", 1) - 1) % max(worker.cfg.workers, 1) == 0)


def application(server: Any) -> str | None:
    """Return what the arbiter was told to serve, as it was typed."""
    uri = getattr(getattr(server, "app", None), "app_uri", None)
    return uri if isinstance(uri, str) else None


def _is_gevent(worker_class: type) -> bool:
    return any(cls.__module__ == "gunicorn.workers.ggevent" for cls in worker_class.__mro__)


def _trace_application(worker: Any) -> None:
    from mackerel_otel_server.tracing.requests import asgi, wsgi

    if hasattr(worker, "asgi"):
        worker.asgi = asgi.trace_callable(worker.asgi)
    elif _is_uvicorn(type(worker)):
        # uvicorn's worker class has removed Gunicorn's handlers, and uvicorn's server has its own only while it serves.
        gunicorn_signals.hold_back()
        # uvicorn's worker class reads this attribute when it begins to serve.
        worker.wsgi = asgi.trace_callable(worker.wsgi)
    elif any(cls.__module__ == "tornado.web" for cls in type(worker.wsgi).__mro__):
        log.warning(
            "%s does not serve a WSGI application: requests make no server spans; spans of the application's own code "
            "are sent",
            type(worker).__name__,
        )
    else:
        worker.wsgi = wsgi.trace_callable(worker.wsgi)


def _is_uvicorn(worker_class: type) -> bool:
    return any(cls.__module__.partition(".")[0] in ("uvicorn", "uvicorn_worker") for cls in worker_class.__mro__)


def _say_if_ignored(cfg: Any) -> None:
    """Say that ``-c`` makes Gunicorn ignore ``./gunicorn.conf.py``, with the lines that join the two."""
    given = str(cfg.settings["config"].get() or "")
    default = _start_folder / "gunicorn.conf.py"
    is_ours = given.startswith("python:mackerel_otel_server") or Path(given).name == "mackerel_otel_server.conf"
    if is_ours and default.is_file():
        log.warning(
            "%s is ignored, because Gunicorn reads one configuration only and was given -c %s: leave -c out, and end "
            "that file with these two lines:\nfrom mackerel_otel_server.gunicorn import install\ninstall(globals())",
            default,
            given,
        )
