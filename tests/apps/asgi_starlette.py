"""Starlette: mounts with parameters, another host's routes, a WebSocket, tasks after the response."""

import asyncio
import os
from contextlib import asynccontextmanager

import starlette
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute

tracer = trace.get_tracer("asgi_starlette")
# Of old releases, this middleware fails when a client leaves, cancels background tasks, and replaces exceptions.
HAS_SOUND_MIDDLEWARE = tuple(map(int, starlette.__version__.split(".")[:2])) >= (0, 28)


async def pid(request):
    await asyncio.sleep(0.1)
    return PlainTextResponse(str(os.getpid()))


async def hello(request):
    return PlainTextResponse("hello")


def own(request):
    """Run in a thread, as Starlette does with what is no coroutine."""
    with tracer.start_as_current_span("own"):
        return PlainTextResponse("own")


async def fail(request):
    raise RuntimeError("this route fails")


async def teapot(request):
    raise HTTPException(418)


class OnPurposeError(Exception):
    pass


async def on_purpose(request):
    raise OnPurposeError


async def afterwards(request):
    async def work():
        with tracer.start_as_current_span("afterwards"):
            await asyncio.sleep(0.3)

    return PlainTextResponse("hello", background=BackgroundTask(work))


async def echo(websocket):
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


async def pass_on(request, call_next):
    return await call_next(request)


@asynccontextmanager
async def lifespan(app):
    with tracer.start_as_current_span("startup"):
        pass
    yield


application = Starlette(
    routes=[
        Route("/pid", pid),
        Route("/own", own),
        Route("/fail", fail),
        Route("/teapot", teapot),
        Route("/on-purpose", on_purpose),
        Route("/afterwards", afterwards),
        Route("/files/{path:path}", hello),
        WebSocketRoute("/echo/{room}", echo),
        Host("api.example.com", Router([Route("/host/{id}", hello)])),
        Mount(
            "/{tenant}",
            routes=[
                Mount("/v", routes=[Route("/{id:int}", hello), WebSocketRoute("/echo", echo)]),
                Mount("/static", app=PlainTextResponse("a file")),
            ],
        ),
    ],
    exception_handlers={OnPurposeError: lambda *_: PlainTextResponse("gone", 410)},
    middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] if HAS_SOUND_MIDDLEWARE else [],
    lifespan=lifespan,
)
