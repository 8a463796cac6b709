"""Gunicorn's configuration as Mackerel's guide for Python gives it, apart from the endpoint.

https://mackerel.io/docs/entry/tracing/installations/python
"""

import os
import socket

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.resource import ResourceAttributes


def instrument():
    tracer_provider = TracerProvider(
        resource=Resource.create(
            {
                ResourceAttributes.SERVICE_NAME: "benchmark",
                ResourceAttributes.SERVICE_VERSION: "vX.Y.Z",
                ResourceAttributes.DEPLOYMENT_ENVIRONMENT: "production",
                ResourceAttributes.HOST_NAME: socket.gethostname(),
                ResourceAttributes.PROCESS_PID: os.getpid(),
            }
        )
    )
    tracer_provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(
                endpoint=os.environ["BENCHMARK_ENDPOINT"],
                headers={"Mackerel-Api-Key": os.environ["BENCHMARK_KEY"], "Accept": "*/*"},
                compression=Compression.Gzip,
            )
        )
    )
    trace.set_tracer_provider(tracer_provider)


def post_fork(server, worker):
    instrument()
