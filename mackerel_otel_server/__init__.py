"""OpenTelemetry traces from Gunicorn and uWSGI workers to Mackerel.

This module is the Python door. Gunicorn's is ``mackerel_otel_server.conf``, uWSGI's is ``mackerel_otel_server.uwsgi``.
"""

from __future__ import annotations

from mackerel_otel_server.version import __version__

# The import of typing would take longer than all the rest here, at a time when no signal must come: see
# servers/uwsgi_signals.py. Type checkers take this for the constant of that name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["__version__", "instrument", "shutdown", "stats", "trace_asgi", "trace_wsgi"]


def instrument(
    *,
    service_name: str | None = None,
    service_version: str | None = None,
    environment: str | None = None,
    resource_attributes: Mapping[str, str | bool | int | float] | None = None,
) -> None:
    """Trace this process, and every worker that it forks.

    For ``wsgi.py``, ``asgi.py``, ``manage.py`` or a script; call it before the application is imported. May be called
    twice and beside the server's hooks: a process has one pipeline. Never raises; what is wrong with the settings is
    logged, and the application serves without tracing.

    The arguments win over the environment.

    Args:
        service_name: ``service.name``, else ``OTEL_SERVICE_NAME``.
        service_version: ``service.version``.
        environment: ``deployment.environment.name``, such as ``production``.
        resource_attributes: Further attributes of the resource.
            https://opentelemetry.io/docs/specs/semconv/resource/
    """
    from mackerel_otel_server.servers import instrument as by_server
    from mackerel_otel_server.settings import Arguments

    by_server.instrument(
        Arguments(
            service_name=service_name,
            service_version=service_version,
            environment=environment,
            resource_attributes=resource_attributes or {},
        )
    )


def shutdown(timeout: float | None = None) -> bool:
    """Send what is queued and end tracing in this process; the servers' hooks and Python's exit do it by themselves.

    Spans that are under way are lost, requests that begin later are served untraced, and nothing starts tracing again.
    A process that is forked later traces.

    Args:
        timeout: Seconds that this may take; None for ``MACKEREL_OTEL_SHUTDOWN_TIMEOUT``.

    Returns:
        Whether every finished span was delivered.
    """
    from mackerel_otel_server import worker

    return worker.stop(timeout)


def stats() -> dict[str, Any]:
    """Tell what became of the spans that this process finished: finished = delivered + lost + queued.

    Returns:
        ``finished``, ``delivered``, ``queued``: numbers of spans; ``lost``: numbers of spans by reason; ``requests``:
        those that the endpoint took spans from; ``attempts``, ``retried``: all requests, and those that repeated a
        failed one; ``bytes_sent``: their compressed bytes; ``unanswered``: spans among the queued ones that were sent
        and have no answer yet. Empty in a process that does not trace, or has not begun a span.
    """
    from mackerel_otel_server import worker

    return worker.stats()


def trace_asgi(application: Any) -> Any:
    """Make every request and every WebSocket session of an ASGI callable a server span, if this process traces.

    Args:
        application: The ASGI callable: ``application = trace_asgi(application)``.

    Returns:
        A framework's application object itself, or a proxy with a plain callable's own attributes.
    """
    from mackerel_otel_server.tracing.requests import asgi

    return asgi.trace_asgi(application)


def trace_wsgi(application: Any) -> Any:
    """Make every request to a WSGI callable a server span, if this process traces.

    Args:
        application: The WSGI callable: ``application = trace_wsgi(application)``.

    Returns:
        A framework's application object itself, or a proxy with a plain callable's own attributes.
    """
    from mackerel_otel_server.tracing.requests import wsgi

    return wsgi.trace_wsgi(application)
