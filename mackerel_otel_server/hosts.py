"""What ``instrument()`` does, by the server that runs this process: the Python door, called by no server's hook."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mackerel_otel_server import celery, log, settings, uvicorn, worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from mackerel_otel_server.settings import Arguments


class Role(Enum):
    """What a process is for."""

    UWSGI = "a uWSGI process, which mackerel_otel_server.uwsgi knows"
    GUNICORN_ARBITER = "forks workers and serves nothing itself"
    GUNICORN_WORKER = "serves requests"
    RUNSERVER_PARENT = "starts the process that serves, again and again"
    RUNSERVER = "Django's development server"
    OTHER = "a script, a Celery worker, another server"


@dataclass(frozen=True)
class Host:
    """The server around this process."""

    role: Role
    application: str | None = None
    """What the server was told to serve, as it was typed."""
    gunicorn_config: Any = None
    """Gunicorn's own ``gunicorn.config.Config``, into which hooks can still be put."""
    speaks_for_all: bool = True
    """Whether this process reports what is the same for all workers."""
    has_threads: bool = True
    """Whether threads run, which sending needs; where not, the server's own module says so."""


def instrument(arguments: Arguments) -> None:
    """Register, and start where nothing will be forked any more. Never raises."""
    try:
        host = current()
        if host.role is Role.UWSGI:
            # Registering reads some of them.
            settings.take_variables_of_process()
        if host.has_threads:
            _register(host, arguments)
        _start(host)
    except Exception:
        log.log.exception("tracing cannot start, the application serves without it")


def _register(host: Host, arguments: Arguments) -> None:
    if not host.speaks_for_all:
        worker.leave_reports_to_others(of_settings=True)
    worker.register(arguments=arguments, application=host.application)
    uvicorn.register()
    celery.register()


def _start(host: Host) -> None:
    if host.role is Role.UWSGI:
        # The import itself sets the hooks after fork and at exit.
        from mackerel_otel_server import uwsgi

        uwsgi.instrument()
    elif host.role in (Role.GUNICORN_ARBITER, Role.GUNICORN_WORKER):
        from mackerel_otel_server import gunicorn

        log.to_gunicorn(logging.getLogger("gunicorn.error"))
        # The application is being loaded, so most of the hooks are yet to come. They go when a HUP reads the
        # configuration again; under preload_app the workers then start with their first request.
        gunicorn.add_hooks(host.gunicorn_config)
        if host.role is Role.GUNICORN_WORKER:
            worker.start()
        else:
            # Under preload_app: what is wrong is reported here, and not by each worker.
            worker.check(preload=False)
    elif host.role is Role.RUNSERVER:
        log.to_stderr()
        worker.start()
    elif host.role is Role.OTHER:
        # It may be a Celery worker that is about to fork, or a command that ends at once.
        worker.start(with_first_span=True)


def current() -> Host:
    """Find out which server runs this process."""
    server: Any = sys.modules.get("uwsgi") or _import_uwsgi()
    if hasattr(server, "worker_id"):
        return Host(Role.UWSGI, has_threads=server.has_threads)
    if "gunicorn.arbiter" in sys.modules and (host := _gunicorn()):
        return host
    script, *arguments = sys.argv or [""]
    # __main__.py: python -m django
    if Path(script).name in ("manage.py", "django-admin", "__main__.py") and arguments[:1] == ["runserver"]:
        waits = "--noreload" not in arguments and not settings.is_runserver_child()
        return Host(Role.RUNSERVER_PARENT if waits else Role.RUNSERVER)
    return Host(Role.OTHER)


def _import_uwsgi() -> object:
    # Only the server has this module, and only as a built-in one: nothing is searched on the path.
    if "uwsgi" in sys.builtin_module_names:
        import uwsgi

        return uwsgi
    return None


def _gunicorn() -> Host | None:
    """Look for Gunicorn's arbiter among the frames of this process.

    Gunicorn offers no other way to code that none of its hooks called. A worker never leaves ``Arbiter.spawn_worker``
    (gunicorn/arbiter.py), so its frame tells the two apart. Should the names change, the role is OTHER: tracing starts
    with the first span, and the service name is taken from elsewhere.
    """
    # All threads: under gevent the main thread's ident is not the one that `sys` knows.
    for frame in sys._current_frames().values():  # noqa: SLF001 - documented
        spawned = None
        for caller in _stack(frame):
            if caller.f_globals.get("__name__") != "gunicorn.arbiter":
                continue
            if caller.f_code.co_name == "spawn_worker":
                spawned = caller.f_locals.get("worker")
            arbiter = caller.f_locals.get("self")
            config, app = getattr(arbiter, "cfg", None), getattr(arbiter, "app", None)
            if caller.f_code.co_name in ("run", "__init__") and config is not None:
                uri = getattr(app, "app_uri", None)
                role = Role.GUNICORN_ARBITER if spawned is None else Role.GUNICORN_WORKER
                from mackerel_otel_server import gunicorn

                speaks = gunicorn.speaks_for_all(getattr(spawned, "age", 1), config.workers)
                return Host(role, uri if isinstance(uri, str) else None, config, speaks)
    return None


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
