"""A WSGI application within an ASGI one, and the other way round, by the bridges there are."""

import sqlite3

from a2wsgi import ASGIMiddleware
from a2wsgi import WSGIMiddleware as A2WsgiMiddleware
from asgiref.wsgi import WsgiToAsgi
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware.wsgi import WSGIMiddleware as StarletteMiddleware
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

inner_wsgi = Flask(__name__)


def query():
    connection = sqlite3.connect(":memory:")
    (answer,) = connection.execute("select 'inner'").fetchone()
    connection.close()
    return answer


@inner_wsgi.get("/things/<int:number>")
def thing(number):
    return f"{number} {query()}"


@inner_wsgi.get("/wrong")
def wrong():
    raise LookupError("within")


inner_asgi = FastAPI()


@inner_asgi.get("/things/{number}")
async def asgi_thing(number: int):
    return f"{number} {query()}"


@inner_asgi.get("/wrong")
async def asgi_wrong():
    raise LookupError("within")


wsgi_by_asgiref = WsgiToAsgi(inner_wsgi)
wsgi_by_a2wsgi = A2WsgiMiddleware(inner_wsgi)
wsgi_by_starlette = StarletteMiddleware(inner_wsgi)

mounted_wsgi_by_a2wsgi = FastAPI()
mounted_wsgi_by_a2wsgi.mount("/old", A2WsgiMiddleware(inner_wsgi))
mounted_wsgi_by_starlette = Starlette(routes=[Mount("/old", StarletteMiddleware(inner_wsgi))])
mounted_wsgi_by_asgiref = Starlette(routes=[Mount("/old", WsgiToAsgi(inner_wsgi))])

asgi_by_a2wsgi = ASGIMiddleware(inner_asgi)
mounted_asgi_by_a2wsgi = DispatcherMiddleware(inner_wsgi, {"/new": ASGIMiddleware(inner_asgi)})
