"""A finished span becomes bytes at Mackerel. Import this after the fork only, because it imports HTTP and TLS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import TracerProvider

from mackerel_otel_server.pipeline.adoption import Adopter
from mackerel_otel_server.pipeline.encoder import Encoder
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.pipeline.journal import Journal
from mackerel_otel_server.pipeline.processor import ForkAwareSpanProcessor, Pipeline
from mackerel_otel_server.pipeline.resource import make_resource
from mackerel_otel_server.pipeline.sampler import Unless, is_sampled_by, make_sampler
from mackerel_otel_server.pipeline.sender import Sender
from mackerel_otel_server.pipeline.spans import Provider
from mackerel_otel_server.pipeline.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource

    from mackerel_otel_server.pipeline.standard import StandardSender
    from mackerel_otel_server.settings import Settings

__all__ = ["ForkAwareSpanProcessor", "make_tracer_provider"]


def make_tracer_provider(
    settings: Settings,
    started: Callable[[Pipeline], None],
    new_api_key: Callable[[], str | None],
    shut_down: Callable[[], object],
    make_exporter: Callable[[Settings], Exporter] = Exporter,
) -> tuple[TracerProvider, ForkAwareSpanProcessor]:
    """Build the provider and the processor at its end; threads and connections come with the first span.

    Args:
        settings: What to send, and where.
        started: Called with each process's pipeline once it exists.
        new_api_key: Reads the API key again, after the endpoint has refused the one in use.
        shut_down: Ends tracing in the calling process; for an application that shuts the provider down.
        make_exporter: Makes what sends, in each process that sends.
    """
    resource = make_resource(settings)

    def make_sender(own_resource: Resource) -> Sender | StandardSender:
        if settings.parts == "standard":
            # Here, because what it imports need not be installed.
            from mackerel_otel_server.pipeline.standard import StandardSender

            return StandardSender(settings, new_api_key)
        encoder, exporter = Encoder(own_resource), make_exporter(settings)
        if settings.spool is None:
            return Sender(settings, encoder, exporter, new_api_key)
        spool, destination = Spool(settings.spool), exporter.destination
        journal = Journal(spool, encoder, destination, os.getpid())
        return Sender(settings, encoder, exporter, new_api_key, journal, Adopter(spool, destination))

    def make_pipeline() -> Pipeline:
        of_this_process = resource.attributes["process.pid"] == os.getpid()
        own_resource = resource if of_this_process else make_resource(settings)
        return Pipeline(settings, own_resource, make_sender)

    processor = ForkAwareSpanProcessor(make_pipeline, started, shut_down)
    arguments: dict[str, Any] = {
        "resource": resource,
        "sampler": Unless(processor.is_closed, make_sampler(settings)),
        # Our own exit handler keeps the deadline; the SDK's would wait up to 30 s.
        "shutdown_on_exit": False,
    }
    is_standard = settings.parts == "standard"
    provider = TracerProvider(**arguments) if is_standard else Provider(is_sampled_by(settings), **arguments)
    provider.add_span_processor(processor)
    return provider, processor
