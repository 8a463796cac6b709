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
    status, body = await respond(scope["path"])
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-path", scope["path"].encode())]})
    for number, part in enumerate(body):
        if isinstance(part, Exception):
            raise part
        await send({"type": "http.response.body", "body": part, "more_body": number < len(body) - 1})
    if scope["path"] == "/afterwards":
        with tracer.start_as_current_span("afterwards"):
            await asyncio.sleep(0.3)


RESPONSES = {
    "/stream": (200, [b"one ", b"two ", b"three"]),
    "/missing": (404, [b"nothing here"]),
    "/empty": (204, [b""]),
    "/broken": (200, [b"one", RuntimeError("in the middle")]),
}


async def respond(path):
    if path == "/fail":
        raise RuntimeError("this route fails")
    if path == "/pid":
        await asyncio.sleep(0.1)
        return 200, [str(os.getpid()).encode()]
    if path == "/own":
        with tracer.start_as_current_span("own"):
            await asyncio.sleep(0)
    if path.startswith("/trace/"):
        # What is current after others had their turn.
        await asyncio.sleep(0.01)
        return 200, [f"{trace.get_current_span().get_span_context().trace_id:032x}".encode()]
    return RESPONSES.get(path, (200, [b"hello"]))


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
