"""A WSGI callable without a framework."""

import os
import sqlite3
import time

from opentelemetry import trace

tracer = trace.get_tracer("plain")


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise RuntimeError("this route fails")
    status, body = "200 OK", [b"hello"]
    if path == "/pid":
        time.sleep(0.1)
        body = [str(os.getpid()).encode()]
    elif path == "/own":
        with tracer.start_as_current_span("own"):
            pass
    elif path == "/query":
        connection = sqlite3.connect(":memory:")
        body = [str(connection.cursor().execute("SELECT 41 + ?", (1,)).fetchone()[0]).encode()]
        connection.close()
    elif path == "/stream":
        body = (part for part in (b"one ", b"two ", b"three"))
    elif path == "/sendfile":
        body = environ["wsgi.file_wrapper"](open(__file__, "rb"))
    elif path == "/missing":
        status, body = "404 Not Found", [b"nothing here"]
    start_response(status, [("Content-Type", "text/plain"), ("X-Path", path)])
    return body


def make_application():
    return application
