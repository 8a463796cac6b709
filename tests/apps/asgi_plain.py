"""ASGI callables without a framework: a function, an instance of a class, and one of ASGI's second version."""

import asyncio
import os

from opentelemetry import trace

tracer = trace.get_tracer("asgi_plain")


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
        return
    status, body = 200, [b"hello"]
    path = scope["path"]
    if path == "/pid":
        await asyncio.sleep(0.1)
        body = [str(os.getpid()).encode()]
    elif path == "/fail":
        raise RuntimeError("this route fails")
    elif path == "/own":
        with tracer.start_as_current_span("own"):
            await asyncio.sleep(0)
    elif path == "/stream":
        body = [b"one ", b"two ", b"three"]
    elif path == "/missing":
        status, body = 404, [b"nothing here"]
    elif path == "/empty":
        status, body = 204, [b""]
    elif path == "/broken":
        body = [b"one", RuntimeError("in the middle")]
    elif path.startswith("/trace/"):
        # What is current after others had their turn.
        await asyncio.sleep(0.01)
        body = [f"{trace.get_current_span().get_span_context().trace_id:032x}".encode()]
    elif path == "/hang":
        await receive()
        await asyncio.sleep(60)
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-path", path.encode())]})
    for number, part in enumerate(body):
        if isinstance(part, Exception):
            raise part
        await send({"type": "http.response.body", "body": part, "more_body": number < len(body) - 1})
    if path == "/afterwards":
        with tracer.start_as_current_span("afterwards"):
            await asyncio.sleep(0.3)


async def websocket(scope, receive, send):
    await receive()
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    message = await receive()
    if message["text"] == "fail":
        raise RuntimeError("this session fails")
    with tracer.start_as_current_span("own"):
        await send({"type": "websocket.send", "text": message["text"]})
    await send({"type": "websocket.close"})


class Application:
    async def __call__(self, scope, receive, send):
        await application(scope, receive, send)


instance = Application()


def make_application():
    return application
