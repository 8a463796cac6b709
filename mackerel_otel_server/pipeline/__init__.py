"""A finished span becomes bytes at Mackerel. Imported after the fork only: it brings HTTP and TLS along."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mackerel_otel_server.pipeline.processor import ForkAwareSpanProcessor, Pipeline
from mackerel_otel_server.pipeline.resource import make_resource
from mackerel_otel_server.pipeline.sampler import UntilClosed, is_sampled_by, make_sampler
from mackerel_otel_server.pipeline.spans import Provider

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import TracerProvider

    from mackerel_otel_server.settings import Settings

__all__ = ["ForkAwareSpanProcessor", "make_tracer_provider"]


def make_tracer_provider(
    settings: Settings,
    started: Callable[[Pipeline], None],
    new_api_key: Callable[[], str | None],
    shut_down: Callable[[], object],
) -> tuple[TracerProvider, ForkAwareSpanProcessor]:
    """Build the provider and the processor at its end; threads and connections come with the first span.

    Args:
        settings: What to send, and where.
        started: Called with each process's pipeline once it exists.
        new_api_key: Reads the API key again, after the endpoint has refused the one in use.
        shut_down: Ends tracing in the calling process; for an application that shuts the provider down.
    """
    resource = make_resource(settings)

    def make_pipeline() -> Pipeline:
        of_this_process = resource.attributes["process.pid"] == os.getpid()
        return Pipeline(settings, resource if of_this_process else make_resource(settings), new_api_key)

    processor = ForkAwareSpanProcessor(make_pipeline, started, shut_down)
    provider = Provider(
        is_sampled_by(settings),
        resource=resource,
        sampler=UntilClosed(make_sampler(settings), processor.is_closed),
        # Our own exit handler keeps the deadline; the SDK's would wait up to 30 s.
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    return provider, processor
