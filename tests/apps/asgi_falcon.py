"""Falcon's ASGI application: a route, an error, a WebSocket."""

import asyncio
import os

import falcon.asgi
from opentelemetry import trace

tracer = trace.get_tracer("asgi_falcon")


class Pid:
    async def on_get(self, req, resp):
        await asyncio.sleep(0.1)
        resp.text = str(os.getpid())


class Own:
    async def on_get(self, req, resp):
        with tracer.start_as_current_span("own"):
            resp.text = "own"


class Item:
    async def on_get(self, req, resp, item):
        resp.text = str(item)

    async def on_websocket(self, req, ws, item):
        await ws.accept()
        await ws.send_text(await ws.receive_text())
        await ws.receive_text()


class Fail:
    async def on_get(self, req, resp):
        fail()


class Teapot:
    async def on_get(self, req, resp):
        raise falcon.HTTPError(418)


def fail():
    raise RuntimeError("this route fails")


application = falcon.asgi.App()
application.add_route("/pid", Pid())
application.add_route("/own", Own())
application.add_route("/items/{item:int}", Item())
application.add_route("/fail", Fail())
application.add_route("/teapot", Teapot())
