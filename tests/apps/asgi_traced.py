"""A plain callable with the Python door, for a server that has no other."""

import mackerel_otel_server
from asgi_plain import application as plain

mackerel_otel_server.instrument()
application = mackerel_otel_server.trace_asgi(plain)
