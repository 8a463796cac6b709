"""What ``instrument()`` does in the application's code, by the server that runs this process."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from mackerel_otel_server import worker
from mackerel_otel_server.process.log import log
from mackerel_otel_server.servers import celery, runserver, uvicorn
from mackerel_otel_server.settings import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from mackerel_otel_server.settings import Arguments


def instrument(arguments: Arguments) -> None:
    """Register, and start where nothing will be forked any more. Never raises."""
    try:
        # Only a uWSGI server has this module, as a built-in one, so the path is not searched for it.
        built_in = "uwsgi" in sys.builtin_module_names
        server: Any = importlib.import_module("uwsgi") if built_in else sys.modules.get("uwsgi")
        if hasattr(server, "worker_id"):
            _in_uwsgi(arguments, has_threads=server.has_threads)
        elif "gunicorn.arbiter" in sys.modules and (found := _arbiter_and_worker()):
            _in_gunicorn(arguments, *found)
        else:
            _register(arguments)
            if not runserver.runs():
                # It may be a Celery worker that is about to fork, or a command that ends at once.
                worker.start(with_first_span=True)
            elif runserver.serves():
                runserver.instrument()
    except Exception:
        log.exception("tracing cannot start, the application serves without it")


def _register(arguments: Arguments, application: str | None = None) -> None:
    worker.register(arguments=arguments, application=application)
    uvicorn.register()
    celery.register()


def _in_uwsgi(arguments: Arguments, *, has_threads: bool) -> None:
    # Registering reads some of the variables.
    environment.take_variables_of_process()
    if has_threads:
        _register(arguments)
    from mackerel_otel_server.servers.uwsgi_signals import Held

    with Held():
        from mackerel_otel_server.servers import uwsgi

        # install() says what is wrong where threads, which sending needs, do not run.
        uwsgi.install()
    uwsgi.instrument()


def _in_gunicorn(arguments: Arguments, arbiter: Any, spawned: Any) -> None:
    from mackerel_otel_server.servers import gunicorn

    if spawned is not None and not gunicorn.speaks_for_all(spawned):
        worker.leave_reports_to_others(of_settings=True)
    _register(arguments, gunicorn.application(arbiter))
    gunicorn.instrument(arbiter.cfg, serves=spawned is not None)


def _arbiter_and_worker() -> tuple[Any, Any] | None:
    """Look for Gunicorn's arbiter among the frames of this process, and for the worker that this process is, if it is.

    Gunicorn offers no other way to code that none of its hooks called. A worker never leaves ``Arbiter.spawn_worker``
    (gunicorn/arbiter.py), so a process with a frame of that function is a worker. Should a release change these names,
    nothing is found: tracing starts with the first span, and the service name is taken from elsewhere.
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
            if caller.f_code.co_name in ("run", "__init__") and getattr(arbiter, "cfg", None) is not None:
                return arbiter, spawned
    return None


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
