"""One process's tracing: registered before the fork, started once per pid, stopped in time. Never raises.

In the life of a worker: register() and check() in the process that forks (arbiter, master), start() in each worker,
stop() when it leaves. What does the work is imported in start(), i.e. after the fork.
"""

from __future__ import annotations

import atexit
import mmap
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server import __version__
from mackerel_otel_server import settings as settings_module
from mackerel_otel_server.log import log
from mackerel_otel_server.settings import Arguments, Settings, SettingsError
from mackerel_otel_server.tracing import gate

if TYPE_CHECKING:
    from types import ModuleType

    from mackerel_otel_server.pipeline import ForkAwareSpanProcessor
    from mackerel_otel_server.pipeline.processor import Pipeline
    from mackerel_otel_server.tracing.inflight import Killing

_AFTER_THE_REST: Final = -1
"""Of what runs at the end of a process of multiprocessing: pools and queues have been closed."""
_END_OF_A_REQUEST: Final = 0.1
"""Seconds."""
_arguments = Arguments()
_application: str | None = None
_registered = False
_reported: set[str] = set()
"""Problems that are in the log; inherited through the fork, so that the workers do not repeat the arbiter."""
_mended: mmap.mmap | None = None
"""One byte that a process shares with those it forks, from its first report on: 1 once one of them could read settings
without a problem, because the same problem is news then."""

_others_report_settings = False
_others_report_arguments = False
"""Whether another worker writes to the log what is the same for all workers. The parent process writes it where this
package runs in the parent, too."""

_lock = threading.RLock()
_started_in_pid = 0
_settings: Settings | None = None
_settings_of_pid = 0
_processor: ForkAwareSpanProcessor | None = None
_stopped_in_pid = 0
_is_stopping = False
_traces_in_children = False
"""Whether a process that is forked after the end of tracing in this one traces."""
_too_late_told = 0


def register(*, arguments: Arguments | None = None, application: str | None = None) -> None:
    """Prepare a process that may be forked: import hooks, no threads, no connections.

    Args:
        arguments: What the application gave to ``instrument()``; the first call's count.
        application: What the server serves (``mysite.wsgi:application``), for the service name.
    """
    global _registered, _arguments, _application
    try:
        if application and not _application:
            _application = application
        if arguments is not None and _processor is not None and _processor.is_closed():
            log.warning(
                "instrument() has no effect after shutdown, which has ended tracing in this process; call "
                "mackerel_otel_server.shutdown() later, or leave it to the server"
            )
            return
        if arguments is not None and arguments != _arguments:
            if _started_in_pid == os.getpid() or _arguments != Arguments():
                _warn_about_late(arguments)
            else:
                _arguments = arguments
        if _registered or settings_module.is_disabled():
            return
        _registered = True
        settings_module.set_semconv_default()
        gate.on_first_request(start)
        # After the variable is set: these may import instrumentations at once.
        from mackerel_otel_server.tracing import databases, frameworks, libraries, oldest, others

        oldest.register(lambda: _others_report_arguments)
        databases.register(
            settings_module.disabled_instrumentations, lambda: settings_module.semantic_conventions("database")
        )
        libraries.register(settings_module.disabled_instrumentations, lambda: _others_report_arguments)
        frameworks.register()
        others.register()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_be_a_child)
    except Exception:
        log.exception("tracing cannot be prepared, the application serves without it")


def check(*, preload: bool, again: bool = False) -> bool:
    """Read the settings and log what is wrong with them; for the process that forks, before it does.

    Args:
        preload: Import now what start() needs in every worker: its memory is shared then, and a signal that ends the
            server does not meet a worker that is still importing, which both Gunicorn and uWSGI would let it miss.
            Not where gevent patches the standard library after the fork: HTTP and TLS must be imported after that.
        again: Log also the problems that are in the log already, for an operator who may have tried to mend them.

    Returns:
        Whether tracing will start in the workers.
    """
    if again and gate.refused:
        _reported.clear()
    if settings_module.is_disabled() or _read_settings() is None:
        return False
    if preload:
        try:
            _import_what_start_needs()
        except Exception:
            log.debug("the workers will say what is wrong", exc_info=True)
    return True


def read_settings() -> None:
    """Read the settings now and start later, for a worker that is about to lose the right to read the key file."""
    global _settings, _settings_of_pid
    if not settings_module.is_disabled():
        _settings, _settings_of_pid = _read_settings(), os.getpid()


def start(*, with_first_span: bool = False) -> bool:
    """Start tracing in this process, unless it has started.

    Args:
        with_first_span: Make threads and connections only when the first span begins, for a process that may still
            be about to fork.

    Returns:
        Whether this process traces.
    """
    global _started_in_pid
    if _started_in_pid != os.getpid():
        with _lock:
            if _started_in_pid != os.getpid():
                try:
                    gate.active = _start()
                except Exception:
                    gate.active = False
                    log.exception("tracing cannot start, the application serves without it")
                _started_in_pid = os.getpid()
    if gate.active and _processor is not None and not with_first_span:
        try:
            _processor.pipeline()
        except Exception:
            gate.active = False
            log.exception("tracing cannot start, the application serves without it")
    return gate.active


def report_killed(killing: Killing) -> int:
    """Send what is queued and what is under way, because the server is about to kill this process. Never raises.

    Call from a thread of the operating system that does nothing else: the main thread may be stuck anywhere, and hold
    any lock.

    Args:
        killing: Who kills, and at which limit.

    Returns:
        How many requests were under way.
    """
    try:
        pipeline = _processor.existing_pipeline() if _processor is not None else None
        if pipeline is None or _processor is None or _settings is None:
            return 0
        from mackerel_otel_server.tracing import inflight

        killed = inflight.requests()
        inflight.report(killing, killed)
        # First, as the next step may meet the lock of a span that the application's own code has made.
        pipeline.rescue(_settings.shutdown_timeout)
        _processor.end_open(killing.type, killing.message)
        pipeline.rescue(_settings.shutdown_timeout)
    except Exception:
        log.exception("requests that are killed may be lost")
        return 0
    return len(killed)


def stop(timeout: float | None = None) -> bool:
    """Send what is queued, log what this process sent, and trace nothing more in it.

    Safe to call twice, in a process that never started, and in a signal handler.

    Args:
        timeout: Seconds; None for ``MACKEREL_OTEL_SHUTDOWN_TIMEOUT``.

    Returns:
        Whether everything was delivered.
    """
    global _stopped_in_pid
    try:
        if _processor is None or _settings is None:
            return True
        _begin_no_more(_processor)
        pipeline = _processor.existing_pipeline()
        if pipeline is None:
            return True
        if _stopped_in_pid == os.getpid():
            return _log_what_was_too_late(pipeline)
        _stopped_in_pid = os.getpid()
        delivered, interruption = _stop(pipeline, _settings.shutdown_timeout if timeout is None else timeout)
        _log_end(pipeline, delivered=delivered)
    except Exception:
        log.exception("spans may be lost: the pipeline did not stop")
        return False
    if interruption is not None:
        raise interruption
    return delivered


def _stop(pipeline: Pipeline, timeout: float) -> tuple[bool, BaseException | None]:
    """Stop a pipeline; return whether everything was delivered, and what a signal handler raised meanwhile.

    Ctrl-C in a terminal signals each worker twice, directly and through Gunicorn's arbiter, whose workers answer each
    signal with ``sys.exit()``: the second one must not end what the first one began.
    """
    global _is_stopping
    interruption: BaseException | None = None
    deadline = time.monotonic() + timeout
    _is_stopping = True
    try:
        while True:
            try:
                _let_requests_end(deadline)
                return pipeline.stop(max(deadline - time.monotonic(), 0.0)), interruption
            except (SystemExit, KeyboardInterrupt) as error:  # noqa: PERF203 - hardly ever more than once
                interruption = error
            except Exception:
                log.exception("spans may be lost: the pipeline did not stop")
                return False, interruption
    finally:
        # Also after an error: a signal handler that waits for the end of this would ignore all signals for ever.
        _is_stopping = False


def _begin_no_more(processor: ForkAwareSpanProcessor) -> None:
    """Serve requests untraced from now on; a process that is forked later traces as if nothing had ended here."""
    global _traces_in_children
    processor.close()
    _traces_in_children = _traces_in_children or gate.active
    gate.active = False


def is_stopping() -> bool:
    """Tell whether this process is sending its last spans at this moment; for a signal handler."""
    return _is_stopping


def _let_requests_end(deadline: float) -> None:
    """Wait a moment for requests whose client has its response already, while their spans do not end yet.

    A server with a thread for each request, such as Werkzeug's, does not wait for them when it leaves.
    """
    from mackerel_otel_server.tracing import inflight

    deadline = min(deadline, time.monotonic() + _END_OF_A_REQUEST)
    while time.monotonic() < deadline and any(request.is_sending for request in inflight.requests()):
        time.sleep(_END_OF_A_REQUEST / 20)


def _start() -> bool:
    """Start what this process lacks; what it inherited from a tracing parent stays in use."""
    global _processor
    if settings_module.is_disabled():
        log.debug("OTEL_SDK_DISABLED is true: nothing is traced")
        return False
    if _processor is not None:
        return True
    from opentelemetry import trace

    # Only an API without a provider answers with this class.
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        log.info(
            "another tracer provider is set (%s), so this package stays off; remove the other one to use it",
            type(trace.get_tracer_provider()).__module__,
        )
        return False
    if _settings_of_pid != os.getpid():
        read_settings()
    if _settings is None:
        return False
    pipeline, request = _import_what_start_needs()
    provider, _processor = pipeline.make_tracer_provider(_settings, _started, _new_api_key, stop)
    trace.set_tracer_provider(provider)
    request.prepare(_settings.http, __version__)
    atexit.register(stop)
    return True


def _import_what_start_needs() -> tuple[ModuleType, ModuleType]:
    from mackerel_otel_server import pipeline
    from mackerel_otel_server.tracing import request

    return pipeline, request


def _read_settings() -> Settings | None:
    """Read the settings; log their problems and warnings unless that was done in this process or its parent."""
    try:
        settings = settings_module.from_process(_arguments, _application)
    except SettingsError as error:
        _report_problems(error.problems)
        return None
    except Exception:
        log.exception("the settings cannot be read, so tracing is off and the application serves without it")
        return None
    gate.refused = False
    if _mended is not None:
        _mended[0] = 1
    # What is mended is reported again if it comes again.
    _reported.intersection_update(settings.warnings)
    for warning in settings.warnings:
        if warning not in _reported and not _others_report_settings:
            _reported.add(warning)
            log.warning("%s", warning)
    return settings


def _report_problems(problems: tuple[str, ...]) -> None:
    global _mended
    gate.refused = True
    if _mended is None:
        _mended = mmap.mmap(-1, 1)
    elif _mended[0]:
        _mended[0] = 0
        _reported.clear()
    _reported.intersection_update(problems)
    if _others_report_settings or _reported.issuperset(problems):
        return
    _reported.update(problems)
    log.error(
        "tracing is off, the application serves without it: %s",
        problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems),
    )


def leave_reports_to_others(*, of_settings: bool) -> None:
    """Keep quiet about what is the same for all workers: one of those that were started together reports it.

    Args:
        of_settings: Also about the settings, where no process of ours is parent to all workers. Where one is, it has
            reported what was wrong then, and each worker says what has become wrong since.
    """
    global _others_report_settings, _others_report_arguments
    _others_report_settings, _others_report_arguments = of_settings, True


def shutdown_timeout() -> float:
    """Return the seconds that this process may spend on sending when it leaves."""
    return _settings.shutdown_timeout if _settings is not None else 0.0


def stats() -> dict[str, Any]:
    """Return what became of this process's spans so far; see ``mackerel_otel_server.stats()``."""
    pipeline = _processor.existing_pipeline() if _processor is not None else None
    if pipeline is None:
        return {}
    counts = pipeline.counts()
    return {**asdict(counts), "queued": counts.queued}


def _log_end(pipeline: Pipeline, *, delivered: bool) -> None:
    """Say what became of the spans of this process; what is still under way is lost, too."""
    global _too_late_told
    counts = pipeline.counts()
    lost = Counter({"unconfirmed": counts.unanswered})
    lost.update(counts.lost)
    lost[pipeline.why_unsent] += counts.queued - counts.unanswered
    lost = +lost
    reasons = ", ".join(f"{reason} {count}" for reason, count in lost.items())
    in_words = f"{sum(lost.values())} ({reasons})" if lost else "0"
    if pipeline.gave_up and lost[pipeline.why_unsent]:
        log.warning(
            "sent %d spans in %d requests, lost %s; the last attempt to send had failed, so the worker waited no "
            "longer: see the line 'the endpoint takes no spans' before this one",
            counts.delivered,
            counts.requests,
            in_words,
        )
    else:
        write = log.info if delivered else log.warning
        write("sent %d spans in %d requests, lost %s", counts.delivered, counts.requests, in_words)
    _too_late_told = pipeline.too_late()


def _log_what_was_too_late(pipeline: Pipeline) -> bool:
    """Say what was lost since _log_end(), once; return whether everything was delivered."""
    global _too_late_told
    if (too_late := pipeline.too_late()) > _too_late_told:
        log.warning(
            "lost %d spans that ended after shutdown; call mackerel_otel_server.shutdown() when all requests have "
            "ended, or leave it to the server",
            too_late - _too_late_told,
        )
        _too_late_told = too_late
    counts = pipeline.counts()
    return counts.delivered == counts.finished


def _new_api_key() -> str | None:
    """Read the API key again; the old one stays when that fails."""
    try:
        return settings_module.from_process(_arguments, _application).api_key
    except Exception:
        log.debug("the API key cannot be read again", exc_info=True)
        return None


def _started(pipeline: Pipeline) -> None:
    _log_start(pipeline)
    # A child of multiprocessing, Celery's prefork workers among them, leaves by os._exit() without Python's atexit, but
    # with its own: https://docs.python.org/3/library/multiprocessing.html. It has forgotten what its parent had there.
    if util := sys.modules.get("multiprocessing.util"):
        util.Finalize(None, stop, exitpriority=_AFTER_THE_REST)


def _log_start(pipeline: Pipeline) -> None:
    assert _settings is not None  # noqa: S101 - set before the pipeline can be made
    shown = {"otlp": _settings.shown_endpoint, "console": "the console"}
    log.info(
        "worker %d sends traces as %r to %s",
        pipeline.pid,
        _settings.service_name,
        " and ".join(shown[name] for name in _settings.exporters) or "nowhere (OTEL_TRACES_EXPORTER=none)",
    )


def _warn_about_late(arguments: Arguments) -> None:
    variables = {
        "service_name": "OTEL_SERVICE_NAME",
        "service_version": "OTEL_RESOURCE_ATTRIBUTES=service.version=…",
        "environment": "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=…",
        "resource_attributes": "OTEL_RESOURCE_ATTRIBUTES",
    }
    in_force = _settings.resource_attributes if _settings is not None else _arguments.as_resource_attributes()
    given = arguments.as_resource_attributes()
    if _others_report_arguments or all(in_force.get(name) == value for name, value in given.items()):
        return
    different = [
        name for name in variables if getattr(arguments, name) and getattr(arguments, name) != getattr(_arguments, name)
    ]
    log.warning(
        "instrument(%s) comes too late: tracing was set up before with other values, which stay; set %s instead",
        ", ".join(f"{name}={getattr(arguments, name)!r}" for name in different),
        " and ".join(variables[name] for name in different),
    )


def _be_a_child() -> None:
    """Forget, in a process that was forked, what concerns its parent alone."""
    global _lock, _is_stopping, _too_late_told
    # Another thread of the parent may have held it.
    _lock = threading.RLock()
    _is_stopping = False
    _too_late_told = 0
    gate.active = gate.active or _traces_in_children
