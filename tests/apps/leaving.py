"""Applications that flush, and end tracing, by their own code: at exit, or in the middle of a request."""

import asyncio
import atexit
import json
import os
import threading
import time

from opentelemetry import trace

import mackerel_otel_server

if os.environ.get("STOP_FAILS"):
    from mackerel_otel_server.pipeline.processor import Pipeline

    def fail(*_):
        raise RuntimeError("the stop fails")

    Pipeline.stop = fail

tracer = trace.get_tracer("leaving")


def flush():
    trace.get_tracer_provider().force_flush()


def shut_provider_down():
    trace.get_tracer_provider().shutdown()


ACTS = {"flush": flush, "shutdown": mackerel_otel_server.shutdown, "provider": shut_provider_down}


@atexit.register
def at_exit():
    """Do everything, and say how long it took; untouched there is nothing to flush."""
    if not hasattr(trace.get_tracer_provider(), "force_flush"):
        return
    for name, act in ACTS.items():
        began = time.monotonic()
        act()
        os.write(2, f"at exit, {name} took {time.monotonic() - began:.2f} s\n".encode())


def respond(path):
    name = path.strip("/")
    if name in ACTS:
        ACTS[name]()
    if name == "thread":
        # Python waits for it when the process ends.
        threading.Thread(target=time.sleep, args=(60,)).start()
    if name == "instrument":
        mackerel_otel_server.instrument()
    if name == "query":
        import sqlite3

        connection = sqlite3.connect(":memory:")
        connection.execute("SELECT 1").fetchall()
        connection.close()
    with tracer.start_as_current_span("own"):
        return json.dumps(mackerel_otel_server.stats()).encode()


def application(environ, start_response):
    body = respond(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    body = await asyncio.to_thread(respond, scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
