"""A WSGI application under uvicorn, which closes no response and keeps what an error page is about."""

import gc
import sys

import mackerel_otel_server

mackerel_otel_server.instrument()
# What only the collector would find stays.
gc.disable()


def application(environ, start_response):
    try:
        raise ValueError(environ["PATH_INFO"])
    except ValueError:
        start_response("500 Oops", [("Content-Type", "text/plain"), ("Content-Length", "10")], sys.exc_info())
    return [b"error page"]


application = mackerel_otel_server.trace_wsgi(application)
