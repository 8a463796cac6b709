"""The uWSGI door: ``import = mackerel_otel_server.uwsgi`` in the ini file.

uWSGI runs this module in the master, before it loads the application, or under ``lazy-apps`` in each worker, when the
post-fork hooks have run already. Without a master it runs in the one process that becomes worker 1 and forks the rest.
https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server import log as log_module
from mackerel_otel_server import settings, worker
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import uwsgi  # the module that the server itself provides to the code it runs

    from mackerel_otel_server import uwsgi_limits
except ImportError as error:
    raise ImportError(
        "mackerel_otel_server.uwsgi works inside a uWSGI server only: put `import = mackerel_otel_server.uwsgi` into "
        "its ini file; elsewhere call mackerel_otel_server.instrument()"
    ) from error

_NEVER_RESPAWNED = (0, 2**64 - 1)  # the second one without a master
_QUEUE_THRESHOLD: Final = (2, 0, 22)
"""The first release with harakiri-queue-threshold; older ones take any option, and kill."""
_LOADING_AT_MOST: Final = 600.0
"""Seconds after which nobody waits for the applications of a worker any more."""

_threads_are_reported = False
_at_exit: Callable[[], None] | None = None
"""What this module has set as ``uwsgi.atexit``."""
_prepared_in_pid = 0


def install() -> None:
    """Trace in every worker that uWSGI forks, or in this one if it has been forked already."""
    # Before anything is read, here and in mules that ask for tracing later: env lines of the ini file.
    settings.take_variables_of_process()
    if _is_no_worker():
        return
    log_module.to_host(_write)
    forked_already = uwsgi.worker_id() > 0
    # Under lazy-apps, no process of ours is parent to the workers: the first of them speaks for all, each time that it
    # is started, because a reload may have changed what there is to say.
    speaks_for_all = not forked_already or uwsgi.worker_id() == 1
    if not uwsgi.has_threads:
        # Nothing is registered: what made spans then would make them in vain.
        if speaks_for_all:
            _say_that_threads_are_missing()
        return
    callable_ = _callable()
    worker.register(application=callable_ or _folder())
    gate.on_first_request(_on_first_request)
    if not speaks_for_all:
        worker.leave_reports_to_others(of_settings=True)
    if callable_:
        _trace_on_import(callable_)
    if forked_already:
        _after_fork()
    else:
        _chain_post_fork()
        worker.check(preload="gevent" not in uwsgi.opt)


def instrument() -> None:
    """Trace a mule or the spooler, whose own code asks for it, from its first span on; what else runs is traced."""
    if not _is_no_worker():
        return
    log_module.to_host(_write)
    if not uwsgi.has_threads:
        _say_that_threads_are_missing()
    elif worker.start(with_first_span=True):
        _chain_atexit()


def _say_that_threads_are_missing() -> None:
    global _threads_are_reported
    if not _threads_are_reported:
        _threads_are_reported = True
        log.error(
            "tracing is off, the application serves without it: this uWSGI runs no Python threads, which sending "
            "needs; add this line to its ini file: enable-threads = true"
        )


def _is_no_worker() -> bool:
    """Tell whether this is a mule or the spooler: they serve no requests, and the hooks run there, too."""
    is_spooler = getattr(uwsgi, "i_am_the_spooler", None)
    return bool(uwsgi.mule_id() or (is_spooler is not None and is_spooler()))


def _is_first() -> bool:
    """Tell whether this is worker 1 for the first time since the server started."""
    return uwsgi.worker_id() == 1 and _own().get("respawn_count", 0) in _NEVER_RESPAWNED


def _own() -> dict[str, Any]:
    """Return what uWSGI tells about this worker."""
    own_id = uwsgi.worker_id()
    return next((worker for worker in uwsgi.workers() or () if worker["id"] == own_id), {})


def _applications() -> tuple[dict[str, Any], ...]:
    """Return what uWSGI tells about the applications of this worker; none while they are still being loaded."""
    return tuple(_own().get("apps", ()))


def _write(record: logging.LogRecord) -> None:
    if record.levelno >= logging.INFO:
        uwsgi.log(f"[{log_module.NAME}] [{os.getpid()}] {record.levelname.lower()}: {log_module.text(record)}")


def _option(*names: str) -> str | None:
    for name in names:
        value: Any = uwsgi.opt.get(name)
        if isinstance(value, list):
            # Given twice: the last one counts for uWSGI.
            value = value[-1]
        if isinstance(value, bytes) and value:
            return value.decode(errors="replace")
    return None


def _callable() -> str | None:
    """Return ``package.module:name`` of the ``module`` (alias ``wsgi``) option."""
    module = _option("module", "wsgi")
    if module is None:
        return None
    name = _option("callable") or "application"
    return module if ":" in module else f"{module}:{name}"


def _folder() -> str | None:
    """Return the name of the folder that holds the ``wsgi-file``."""
    file = _option("wsgi-file", "file")
    return Path(file).absolute().parent.name if file else None


def _trace_on_import(callable_: str) -> None:
    from mackerel_otel_server.tracing.frameworks import register_callable, register_factory

    module, _, name = callable_.partition(":")
    if name.endswith("()"):
        register_factory(module, name.removesuffix("()"))
    else:
        register_callable(module, name)


def _chain_post_fork() -> None:
    try:
        # Loaded now, it cannot overwrite the hook when the application loads it later.
        from uwsgidecorators import postfork

        postfork(_after_fork)
    except Exception:  # a bare Exception without a master; and Debian packages it apart
        before = getattr(uwsgi, "post_fork_hook", None)

        def hook() -> None:
            try:
                if before is not None:
                    before()
            finally:
                _after_fork()

        uwsgi.post_fork_hook = hook


def _on_first_request() -> bool:
    """Look again in each worker: the application may have set its own ``post_fork_hook`` or ``atexit`` after ours."""
    _after_fork()
    return worker.start()


def _after_fork() -> None:
    """Start tracing in a worker, and flush when it leaves. Never raises."""
    global _prepared_in_pid
    try:
        if _is_no_worker() or not worker.start():
            return
        _chain_atexit()
        if _prepared_in_pid == os.getpid():
            return
        _prepared_in_pid = os.getpid()
        _follow_requests()
        if not _spares_slow_requests():
            uwsgi_limits.watch(_option("harakiri"))
        if _is_first():
            _look_at_applications()
    except Exception:
        log.exception("tracing cannot start, the application serves without it")


def _spares_slow_requests() -> bool:
    """Tell whether the master kills a slow request only when others wait: nobody knows in advance which one."""
    threshold = _option("harakiri-queue-threshold")
    return uwsgi.version_info[:3] >= _QUEUE_THRESHOLD and threshold not in (None, "0")


def _follow_requests() -> None:
    """Tell the requests where this server mounts applications, and its log their trace ids."""
    from mackerel_otel_server.tracing import request, wsgi

    wsgi.note_connection(uwsgi.connection_fd)
    wsgi.note_mounts(lambda: [app["mountpoint"].decode("latin-1") for app in _applications()])
    # https://uwsgi-docs.readthedocs.io/en/latest/LogFormat.html
    if f"%({request.TRACE_ID})" in (_option("log-format", "logformat") or ""):
        request.announce_trace_id(lambda trace_id: uwsgi.set_logvar(request.TRACE_ID, trace_id))


def _look_at_applications() -> None:
    """Say which applications are not traced, once uWSGI has loaded them: under lazy-apps that is yet to come."""
    if _applications():
        _say_what_is_not_traced()
    else:
        threading.Thread(target=_wait_for_applications, name="mackerel_otel_server.uwsgi", daemon=True).start()


def _wait_for_applications() -> None:
    waited, step, event = 0.0, 0.05, threading.Event()
    try:
        while not _applications() and waited < _LOADING_AT_MOST:
            event.wait(step)
            waited, step = waited + step, min(step * 1.5, 1.0)
        _say_what_is_not_traced()
    except Exception:
        log.debug("nobody knows whether the applications are traced", exc_info=True)


def _say_what_is_not_traced() -> None:
    from mackerel_otel_server.tracing import frameworks, wrapping

    apps = _applications()
    if len({app["interpreter"] for app in apps}) > 1:
        log.warning(
            "only the first application is traced, because uWSGI gives each of the others a Python interpreter of its "
            "own; add this line to its ini file: single-interpreter = true"
        )
    if frameworks.are_imported():
        # What is no framework's application is most likely a middleware around one, which is traced there.
        return
    for address in {app["callable"] for app in apps}:
        name, module = _find(address)
        if module is None or wrapping.is_traced(vars(module)[name]):
            continue
        log.warning(
            "the requests to %r of %s make no server spans, because it is a plain callable that uWSGI loads by itself; "
            "end that file with these two lines:\nfrom mackerel_otel_server import trace_wsgi\n%s = trace_wsgi(%s)",
            name,
            getattr(module, "__file__", None) or module.__name__,
            name,
            name,
        )


def _find(address: int) -> tuple[str, Any]:
    """Return the name of an object that uWSGI calls, and the module that holds it: of its own making if possible."""
    modules = [module for module in sys.modules.copy().values() if module is not None]
    for module in sorted(modules, key=lambda module: not getattr(module, "__name__", "").startswith("uwsgi_file_")):
        for name, value in getattr(module, "__dict__", {}).copy().items():
            if id(value) == address:
                return name, module
    return "", None


def _chain_atexit() -> None:
    global _at_exit
    before = getattr(uwsgi, "atexit", None)
    if before is not None and before is _at_exit:
        return

    def at_exit() -> None:
        # A second signal, such as one to the whole process group, would end the process in the middle of sending.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP})
        try:
            if before is not None:
                before()
        finally:
            worker.stop()

    # Python's own atexit, which stop() is registered with as well, does not run under the gevent plugin.
    uwsgi.atexit = _at_exit = at_exit


install()
