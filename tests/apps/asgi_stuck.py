"""The same for an event loop: blocked, or waiting for ever."""

import asyncio

from stuck import STUCK, tracer, work


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"]
    if path in STUCK:
        work(path)
    if path == "/wait":
        with tracer.start_as_current_span("waiting"):
            print(f"under way: {path}", flush=True)
            await wait()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while path == "/stream":
        await send({"type": "http.response.body", "body": b"x\n", "more_body": True})
        await asyncio.sleep(0.1)
    await send({"type": "http.response.body", "body": b"ok\n"})


async def wait():
    await asyncio.sleep(60)
