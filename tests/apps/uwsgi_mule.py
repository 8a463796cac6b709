"""A mule's own code. It asks to be traced where the environment says so for its number."""

import os

import mackerel_otel_server
import uwsgi
from opentelemetry import trace

if str(uwsgi.mule_id()) == os.environ.get("TRACED_MULE"):
    mackerel_otel_server.instrument()
    mackerel_otel_server.instrument()
tracer = trace.get_tracer("mule")
while True:
    uwsgi.mule_get_msg()
    with tracer.start_as_current_span("message"):
        pass
    print(f"mule {uwsgi.mule_id()} has got a message", flush=True)
