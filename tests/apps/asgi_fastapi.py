"""FastAPI: routers in routers, a sub-application, a WebSocket."""

import asyncio
import os

from fastapi import APIRouter, FastAPI, HTTPException, WebSocket
from opentelemetry import trace

tracer = trace.get_tracer("asgi_fastapi")

application = FastAPI()
inner = APIRouter(prefix="/in")
shop = APIRouter(prefix="/shops/{shop}")
echoes = APIRouter()
sub = FastAPI()


@application.get("/pid")
async def pid():
    await asyncio.sleep(0.1)
    return os.getpid()


@application.get("/own")
def own():
    with tracer.start_as_current_span("own"):
        return "own"


@application.get("/fail")
async def fail():
    raise RuntimeError("this route fails")


@application.get("/teapot")
async def teapot():
    raise HTTPException(418)


@inner.get("/deep/{number}")
def deep(number: int):
    return number


@shop.get("/items/{number}")
async def item(shop: str, number: int):
    return number


@shop.websocket("/echo")
@echoes.websocket("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


@sub.get("/v/{number}")
async def below(number: int):
    return number


shop.include_router(inner)
application.include_router(shop, prefix="/api")
application.include_router(echoes, prefix="/rooms/{room}")
application.mount("/t/{tenant}", sub)
