"""A WSGI application that tells what it sees, and sends files and streams."""

import json
import os
import threading

from opentelemetry import baggage, context, trace

tracer = trace.get_tracer("echo")
FILE = os.environ.get("BIG_FILE", "")
sendfile = os.sendfile


def noting_sendfile(*args):
    print("os.sendfile was called", flush=True)
    return sendfile(*args)


os.sendfile = noting_sendfile


def stream():
    with tracer.start_as_current_span("streaming"):
        for _ in range(10_000):
            yield b"x" * 10_000


def application(environ, start_response):
    path = environ["PATH_INFO"]
    headers = [("Content-Type", "application/json"), ("X-Answer", "a"), ("X-Answer", "b"), ("X-Secret", "s3cret")]
    if path == "/file":
        start_response("200 OK", [("Content-Length", str(os.path.getsize(FILE)))])
        return environ["wsgi.file_wrapper"](open(FILE, "rb"))
    start_response("200 OK", headers)
    if path == "/stream":
        return stream()
    before = [context.get_value("leak"), threading.get_ident()]
    with tracer.start_as_current_span("own", attributes={"of": path}):
        pass
    if path.startswith("/leak"):
        context.attach(context.set_value("leak", path))
        context.attach(trace.set_span_in_context(tracer.start_span("leak")))
    ids = trace.get_current_span().get_span_context()
    seen = {
        "span": f"{ids.span_id:016x}",
        "user": baggage.get_baggage("user"),
        "scheme": environ["wsgi.url_scheme"],
        "protocol": environ["SERVER_PROTOCOL"],
        "before": before,
    }
    return [json.dumps(seen).encode()]
