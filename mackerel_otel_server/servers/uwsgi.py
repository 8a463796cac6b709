"""uWSGI: what is traced in which process of the server, from the fork to the exit.

Registers: ``import = mackerel_otel_server.uwsgi`` in the ini file, or ``instrument()`` in the application.
Starts: after the fork; under lazy-apps at the import; in a mule or the spooler with the first span.
Stops: in ``uwsgi.atexit``. Where that does not run, the journal keeps what was queued.
Kills: at harakiri; see uwsgi_limits.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from typing import TYPE_CHECKING

import uwsgi

from mackerel_otel_server import worker
from mackerel_otel_server.process import log as log_module
from mackerel_otel_server.process.log import log
from mackerel_otel_server.servers import running_uwsgi as facts
from mackerel_otel_server.servers import uwsgi_limits, uwsgi_rules, uwsgi_untraced_applications
from mackerel_otel_server.servers.uwsgi_signals import Held
from mackerel_otel_server.settings import environment
from mackerel_otel_server.tracing import on_or_off

if TYPE_CHECKING:
    from collections.abc import Callable

_at_exit: Callable[[], None] | None = None
"""What this module has set as ``uwsgi.atexit``."""
_prepared_in_pid = 0


@functools.cache  # once
def install() -> None:
    """Trace in every worker that uWSGI forks, or in this one if it has been forked already."""
    # First: the settings that are read after this, here and in mules, may stand in env lines of the ini file.
    environment.take_variables_of_process()
    if facts.is_mule_or_spooler():
        return
    log_module.to_host(_write)
    if not uwsgi.has_threads:
        # Nothing is registered, because no span could be sent.
        if facts.speaks_for_all():
            _say_that_threads_are_missing()
        return
    callable_ = facts.options().callable_to_load()
    worker.register(application=callable_ or facts.folder_of_file())
    on_or_off.start = _on_first_request
    if not facts.speaks_for_all():
        worker.leave_reports_to_others(of_settings=True)
    if callable_:
        _trace_on_import(callable_)
    if not facts.is_forked() or facts.is_first():
        uwsgi_rules.report(facts.options(), uwsgi.version_info[:3], has_master=uwsgi.masterpid() > 0)
    if facts.is_forked():
        _after_fork()
    else:
        _chain_post_fork()
        worker.check(preload="gevent" not in uwsgi.opt)


def instrument() -> None:
    """Trace a mule or the spooler whose own code calls ``instrument()``; install() has done the rest."""
    if not facts.is_mule_or_spooler():
        return
    log_module.to_host(_write)
    if not uwsgi.has_threads:
        _say_that_threads_are_missing()
    elif worker.start(with_first_span=True):
        _chain_atexit()


@functools.cache  # once
def _say_that_threads_are_missing() -> None:
    log.error(
        "tracing is off, the application serves without it: this uWSGI runs no Python threads, which sending needs; "
        "add this line to its ini file: enable-threads = true"
    )


def _write(record: logging.LogRecord) -> None:
    if record.levelno >= logging.INFO:
        uwsgi.log(f"[{log_module.NAME}] [{os.getpid()}] {record.levelname.lower()}: {log_module.text(record)}")


def _trace_on_import(callable_: str) -> None:
    from mackerel_otel_server.tracing.frameworks import register_callable

    module, _, name = callable_.partition(":")
    register_callable(module, name)


def _chain_post_fork() -> None:
    try:
        # This module sets uWSGI's hook when it is imported. Imported now, it cannot overwrite our hook later.
        from uwsgidecorators import postfork

        postfork(_after_fork_of_master)
    except Exception:  # without a master it raises a bare Exception; Debian has it in a package of its own
        before = getattr(uwsgi, "post_fork_hook", None)

        def hook() -> None:
            try:
                if before is not None:
                    before()
            finally:
                _after_fork_of_master()

        uwsgi.post_fork_hook = hook


def _on_first_request() -> bool:
    """Look again in each worker: the application may have set its own ``post_fork_hook`` or ``atexit`` after ours."""
    _prepare()
    return worker.start()


def _after_fork_of_master() -> None:
    """Prepare a worker of a master that has registered; what is the same for all workers, the first one says once."""
    with Held():
        if not facts.is_first():
            worker.leave_reports_to_others(of_settings=False)
        _prepare()


def _after_fork() -> None:
    """Prepare a worker that does not serve yet. Raises only what ends the process."""
    with Held():
        _prepare()


def _prepare() -> None:
    """Start tracing in a worker, and flush when it leaves. Never raises."""
    global _prepared_in_pid
    try:
        if facts.is_mule_or_spooler() or not worker.start():
            return
        _chain_atexit()
        if _prepared_in_pid == os.getpid():
            return
        _prepared_in_pid = os.getpid()
        _follow_requests()
        if not facts.spares_slow_requests():
            uwsgi_limits.watch(facts.options().last("harakiri"))
        if facts.is_first():
            uwsgi_untraced_applications.look()
    except Exception:
        log.exception("tracing cannot start, the application serves without it")


def _follow_requests() -> None:
    """Tell the requests where this server mounts applications, and its log their trace ids."""
    from mackerel_otel_server.tracing.requests import log_ids, wsgi

    wsgi.find_connection = uwsgi.connection_fd
    wsgi.find_mounts = functools.cache(lambda: [app["mountpoint"].decode("latin-1") for app in facts.applications()])
    # https://uwsgi-docs.readthedocs.io/en/latest/LogFormat.html
    if f"%({log_ids.TRACE_ID})" in (facts.options().last("log-format", "logformat") or ""):
        log_ids.tell = lambda trace_id: uwsgi.set_logvar(log_ids.TRACE_ID, trace_id)


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
            worker.stop(others_serve=facts.serves_in_threads())

    # Python's own atexit, which stop() is registered with as well, does not run under the gevent plugin.
    uwsgi.atexit = _at_exit = at_exit
