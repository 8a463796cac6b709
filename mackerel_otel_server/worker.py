"""One process's tracing: registered before the fork, started once in each process, stopped in time. Never raises.

In the life of a worker: register() and check() run in the process that forks (arbiter, master), start() in each worker,
stop() when the worker leaves. The modules that do the work are imported in start(), i.e. after the fork.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server import settings as settings_module
from mackerel_otel_server import worker_log
from mackerel_otel_server.process.log import log
from mackerel_otel_server.settings import Arguments, Settings, SettingsError, environment
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from mackerel_otel_server.pipeline import ForkAwareSpanProcessor
    from mackerel_otel_server.pipeline.processor import Pipeline
    from mackerel_otel_server.tracing.requests.killed import Killing

_AFTER_THE_REST: Final = -1
"""The priority of what multiprocessing runs at the end of a process: after it has closed its pools and queues."""
_END_OF_A_REQUEST: Final = 0.1
"""Seconds."""
_WHILE_THE_SERVER_GOES_ON: Final = 0.5
"""Seconds for which a leaving worker sends, while others can send what it leaves."""


@dataclass(slots=True)
class _Worker:
    """What one process has. Each pid has one; see _own()."""

    pid: int

    # A forked process takes these over.
    arguments: Arguments = field(default_factory=Arguments)
    application: str | None = None
    reports: worker_log.Reports = field(default_factory=worker_log.Reports)
    is_registered: bool = False
    settings: Settings | None = None
    processor: ForkAwareSpanProcessor | None = None
    server_goes_on: Callable[[], bool] = lambda: False
    """Whether other workers of this server stay when this one leaves."""
    traces_in_children: bool = False
    """Whether a process that is forked after the end of tracing in this one traces."""

    # A forked process begins with these values; replace() sets them again, because they are no parameters.
    # Looked up anew for each process: gevent may have replaced RLock meanwhile.
    lock: threading.RLock = field(default_factory=lambda: threading.RLock(), init=False)  # noqa: PLW0108
    """Held by the thread that starts tracing."""
    has_read_settings: bool = field(default=False, init=False)
    has_started: bool = field(default=False, init=False)
    """Whether start() has decided if this process traces."""
    has_stopped: bool = field(default=False, init=False)
    is_stopping: bool = field(default=False, init=False)
    others_serve: bool = field(default=False, init=False)
    """Whether other threads serve although this process has stopped."""
    too_late_reported: int = field(default=0, init=False)
    """How many of the spans that ended after the end of tracing are in the log."""

    @property
    def pipeline(self) -> Pipeline | None:
        """What this process sends with, if it has begun a span."""
        return self.processor.existing_pipeline() if self.processor is not None else None


_workers = {os.getpid(): _Worker(os.getpid())}
"""The record of this process, by its pid."""


def _own() -> _Worker:
    """Return the record of the calling process; a process that was forked gets its own at the first call.

    No lock is needed: signal handlers call this, and uWSGI forks without at-fork handlers, so that the first call may
    come from any thread.
    """
    pid = os.getpid()
    own = _workers.get(pid)
    if own is None:
        parent = list(_workers.values())[-1]
        # Atomic: two threads that come here at once get the same record.
        own = _workers.setdefault(pid, replace(parent, pid=pid))
        on_or_off.active = on_or_off.active or own.traces_in_children
        # The system may give the number of a process that has ended to another one.
        for other in list(_workers):
            if other != pid:
                _workers.pop(other, None)
    return own


def register(*, arguments: Arguments | None = None, application: str | None = None) -> None:
    """Prepare a process that may be forked: import hooks, no threads, no connections.

    Args:
        arguments: What the application gave to ``instrument()``; the first call's count.
        application: What the server serves (``mysite.wsgi:application``), for the service name.
    """
    try:
        worker = _own()
        worker.application = worker.application or application
        if arguments is not None and not _take_arguments(worker, arguments):
            return
        if worker.is_registered or environment.is_disabled():
            return
        worker.is_registered = True
        environment.set_semconv_default()
        on_or_off.start = start
        _register_import_hooks(worker.reports)
        if hasattr(os, "register_at_fork"):
            # So that a forked process that never calls start() traces although its parent has stopped.
            os.register_at_fork(after_in_child=_own)
    except Exception:
        log.exception("tracing cannot be prepared, the application serves without it")


def check(*, preload: bool, again: bool = False) -> bool:
    """Read the settings and log what is wrong with them; for the process that forks, before it does.

    Args:
        preload: Import now what start() needs in every worker. Workers share its memory then. And a signal that ends
            the server would otherwise meet workers that are still importing, where both Gunicorn and uWSGI miss it.
            Not where gevent patches the standard library after the fork: HTTP and TLS must be imported after that.
        again: Log also the problems that are in the log already, for an operator who may have tried to mend them.

    Returns:
        Whether tracing will start in the workers.
    """
    worker = _own()
    if again and on_or_off.refused:
        worker.reports.forget()
    if environment.is_disabled() or (settings := _read_settings(worker)) is None:
        return False
    if preload:
        try:
            _import_what_start_needs(settings)
            if settings.parts == "own":
                _say_if_sdk_is_unknown()
        except Exception:
            log.debug("the workers will say what is wrong", exc_info=True)
    return True


def read_settings() -> None:
    """Read the settings now and start later, for a worker that is about to lose the right to read the key file."""
    if not environment.is_disabled():
        worker = _own()
        worker.settings, worker.has_read_settings = _read_settings(worker), True


def start(*, with_first_span: bool = False) -> bool:
    """Start tracing in this process, unless it has started.

    Args:
        with_first_span: Make threads and connections only when the first span begins, for a process that may still
            be about to fork.

    Returns:
        Whether this process traces.
    """
    worker = _own()
    if not worker.has_started:
        with worker.lock:
            if not worker.has_started:
                try:
                    on_or_off.active = _start(worker)
                except Exception:
                    on_or_off.active = False
                    log.exception("tracing cannot start, the application serves without it")
                worker.has_started = True
    if on_or_off.active and worker.processor is not None and not with_first_span:
        try:
            worker.processor.pipeline()
        except Exception:
            on_or_off.active = False
            log.exception("tracing cannot start, the application serves without it")
    return on_or_off.active


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
        worker = _own()
        pipeline = worker.pipeline
        if pipeline is None or worker.processor is None:
            return 0
        from mackerel_otel_server.pipeline.spans import is_free
        from mackerel_otel_server.tracing.requests import killed, request

        requests = request.under_way()
        killed.report(killing, requests, is_free)
        # This comes first, because end_open() may wait for the lock of a span that the application's code has made.
        pipeline.rescue(shutdown_timeout())
        of_others = worker.processor.end_open(killing.type, killing.message)
        pipeline.rescue(shutdown_timeout())
    except Exception:
        log.exception("requests that are killed may be lost")
        return 0
    return len(requests) + of_others


def stop(timeout: float | None = None, *, others_serve: bool = False) -> bool:
    """Send what is queued, log what this process sent, and trace nothing more in it.

    Safe to call twice, in a process that never started, and in a signal handler.

    Args:
        timeout: Seconds; None for ``MACKEREL_OTEL_SHUTDOWN_TIMEOUT``.
        others_serve: Other threads go on serving until the process ends, which is about to happen. What they serve is
            traced, and what is too late to be sent is written into the journal, if there is one.

    Returns:
        Whether everything was delivered.
    """
    try:
        worker = _own()
        if worker.processor is None:
            return True
        if not others_serve and not worker.others_serve:
            # Requests are served untraced from now on. A process that is forked later traces as if nothing had ended.
            worker.processor.close()
            worker.traces_in_children = worker.traces_in_children or on_or_off.active
            on_or_off.active = False
        pipeline = worker.pipeline
        if pipeline is None:
            return True
        if worker.has_stopped:
            return _report_too_late(worker, pipeline)
        worker.others_serve = others_serve
        worker.has_stopped = True
        delivered, interruption = _stop(
            worker, pipeline, _time_to_stop(worker, pipeline) if timeout is None else timeout
        )
        worker_log.report_end(pipeline, delivered=delivered)
        worker.too_late_reported = pipeline.too_late()
    except Exception:
        log.exception("spans may be lost: the pipeline did not stop")
        return False
    if interruption is not None:
        raise interruption
    return delivered


def note_server(goes_on: Callable[[], bool]) -> None:
    """Tell this worker whether its server goes on when the worker leaves.

    Args:
        goes_on: Tells it. Other workers then send what this one leaves in its journal, so that it need not wait.
    """
    _own().server_goes_on = goes_on


def is_stopping() -> bool:
    """Tell whether this process is sending its last spans at this moment; for a signal handler."""
    return _own().is_stopping


def shutdown_timeout() -> float:
    """Return the seconds that this process may spend on sending when it leaves."""
    settings = _own().settings
    return settings.shutdown_timeout if settings is not None else 0.0


def stats() -> dict[str, Any]:
    """Return what became of this process's spans so far; see ``mackerel_otel_server.stats()``."""
    pipeline = _own().pipeline
    if pipeline is None:
        return {}
    counts = pipeline.counts()
    return {**asdict(counts), "queued": counts.queued}


def leave_reports_to_others(*, of_settings: bool) -> None:
    """Keep quiet about what is the same for all workers: one of those that were started together reports it.

    Args:
        of_settings: Also about the settings, where no process of ours is parent to all workers. Where one is, it has
            reported what was wrong then, and each worker says what has become wrong since.
    """
    reports = _own().reports
    reports.others_report_settings, reports.others_report_arguments = of_settings, True


def _take_arguments(worker: _Worker, arguments: Arguments) -> bool:
    """Keep the first arguments of ``instrument()``; return whether registering makes sense after them."""
    if worker.processor is not None and worker.processor.is_closed():
        log.warning(
            "instrument() has no effect after shutdown, which has ended tracing in this process; call "
            "mackerel_otel_server.shutdown() later, or leave it to the server"
        )
        return False
    if arguments == worker.arguments:
        return True
    if worker.has_started or worker.arguments != Arguments():
        settings = worker.settings
        in_force = settings.resource_attributes if settings else worker.arguments.as_resource_attributes()
        worker.reports.report_late_arguments(arguments, worker.arguments, in_force)
    else:
        worker.arguments = arguments
    return True


def _register_import_hooks(reports: worker_log.Reports) -> None:
    """Trace libraries as they are imported.

    Call after the choice of semantic conventions: a library that is imported already may load its instrumentation now,
    which reads the choice once.
    """
    from mackerel_otel_server.tracing import databases, frameworks, libraries, warn_once
    from mackerel_otel_server.tracing.requests import other_server_spans

    warn_once.said_by_others = lambda: reports.others_report_arguments
    databases.register(
        environment.disabled_instrumentations,
        lambda: environment.semantic_conventions("database"),
        environment.uses_standard_parts,
    )
    libraries.register(environment.disabled_instrumentations)
    frameworks.register()
    other_server_spans.register()


def _read_settings(worker: _Worker) -> Settings | None:
    """Read the settings; log their problems and warnings unless that was done in this process or its parent."""
    try:
        # Imported by register() already, unless tracing is disabled.
        from mackerel_otel_server.tracing import frameworks

        named = [name.upper() for name in frameworks.instrumentations()]
        settings = settings_module.from_process(worker.arguments, worker.application, named)
    except SettingsError as error:
        on_or_off.refused = True
        worker.reports.report_problems(error.problems)
        return None
    except Exception:
        log.exception("the settings cannot be read, so tracing is off and the application serves without it")
        return None
    on_or_off.refused = False
    worker.reports.report_warnings(settings.warnings)
    return settings


def _new_api_key() -> str | None:
    """Read the API key again; the old one stays when that fails."""
    try:
        worker = _own()
        return settings_module.from_process(worker.arguments, worker.application).api_key
    except Exception:
        log.debug("the API key cannot be read again", exc_info=True)
        return None


def _start(worker: _Worker) -> bool:
    """Start what this process lacks; what it inherited from a tracing parent stays in use."""
    if environment.is_disabled():
        log.debug("OTEL_SDK_DISABLED is true: nothing is traced")
        return False
    if worker.processor is not None:
        return True
    from opentelemetry import trace

    # Only an API without a provider answers with this class.
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        log.info(
            "another tracer provider is set (%s), so this package stays off; remove the other one to use it",
            type(trace.get_tracer_provider()).__module__,
        )
        return False
    if not worker.has_read_settings:
        read_settings()
    if worker.settings is None:
        return False
    pipeline, request = _import_what_start_needs(worker.settings)
    if worker.reports.others_report_arguments:
        pipeline.unknown_sdk.leave_to_others()
    provider, worker.processor = pipeline.make_tracer_provider(worker.settings, _started, _new_api_key, stop)
    trace.set_tracer_provider(provider)
    request.prepare(worker.settings.http, __version__)
    if worker.settings.parts == "standard":
        from mackerel_otel_server.tracing.requests import standard

        http = worker.settings.http
        environment.set_sanitized_headers_default((http.request_headers, http.response_headers))
        standard.prepare()
    atexit.register(stop)
    return True


def _import_what_start_needs(settings: Settings) -> tuple[ModuleType, ModuleType]:
    from mackerel_otel_server import pipeline

    # killed is for report_killed(), when there is no time to import anything.
    from mackerel_otel_server.tracing.requests import killed, request  # noqa: F401

    if settings.parts == "standard":
        import mackerel_otel_server.pipeline.standard
        import mackerel_otel_server.tracing.requests.standard  # noqa: F401

    return pipeline, request


def _say_if_sdk_is_unknown() -> None:
    from mackerel_otel_server.pipeline import encoder, spans, unknown_sdk

    # Said here, it is said once: the workers inherit that it was.
    if (difference := spans.sdk_difference() or encoder.sdk_difference()) is not None:
        unknown_sdk.say_once(difference)


def _started(pipeline: Pipeline) -> None:
    """Log the start of this process's pipeline, and see to its end."""
    settings = _own().settings
    assert settings is not None  # noqa: S101 - set before the pipeline can be made
    worker_log.report_start(pipeline, settings)
    if settings.parts == "standard" and not _own().reports.others_report_arguments:
        worker_log.report_standard_parts()
    # A child of multiprocessing, such as Celery's prefork workers, leaves by os._exit(). Python's atexit does not run
    # then, but multiprocessing's finalizers do, and a child begins without those of its parent.
    if util := sys.modules.get("multiprocessing.util"):
        util.Finalize(None, stop, exitpriority=_AFTER_THE_REST)


def _time_to_stop(worker: _Worker, pipeline: Pipeline) -> float:
    """Return the seconds that a leaving worker spends on sending, unless somebody says how many."""
    timeout = shutdown_timeout()
    if pipeline.keeps_what_is_left and worker.server_goes_on():
        return min(timeout, _WHILE_THE_SERVER_GOES_ON)
    return timeout


def _stop(worker: _Worker, pipeline: Pipeline, timeout: float) -> tuple[bool, BaseException | None]:
    """Stop a pipeline; return whether everything was delivered, and what a signal handler raised meanwhile.

    Ctrl-C in a terminal signals each worker twice, directly and through Gunicorn's arbiter, whose workers answer each
    signal with ``sys.exit()``: the second one must not end what the first one began.
    """
    interruption: BaseException | None = None
    deadline = time.monotonic() + timeout
    worker.is_stopping = True
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
        worker.is_stopping = False


def _let_requests_end(deadline: float) -> None:
    """Wait a moment for requests whose clients have the response already, but whose spans have not ended yet.

    A server with a thread for each request, such as Werkzeug's, does not wait for them when it leaves.
    """
    from mackerel_otel_server.tracing.requests.request import under_way

    deadline = min(deadline, time.monotonic() + _END_OF_A_REQUEST)
    while time.monotonic() < deadline and any(request.is_sending for request in under_way()):
        time.sleep(_END_OF_A_REQUEST / 20)


def _report_too_late(worker: _Worker, pipeline: Pipeline) -> bool:
    """Say what was lost since the last report, once; return whether everything was delivered."""
    if (count := pipeline.too_late() - worker.too_late_reported) > 0:
        worker_log.report_too_late(count)
        worker.too_late_reported += count
    counts = pipeline.counts()
    return counts.delivered == counts.finished
