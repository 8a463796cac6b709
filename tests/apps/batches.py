"""Applications whose endpoint ``/batch`` makes two requests of the application itself, as batch endpoints do."""

import bottle
import falcon
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from fastapi import FastAPI, Request
from pyramid.config import Configurator
from pyramid.response import Response
from werkzeug.test import Client


def make_requests(application, environ):
    application({**environ, "PATH_INFO": "/inner", "RAW_URI": "/inner"}, lambda *args: None)
    return Client(application).get("/inner").get_data()


flask_app = flask.Flask(__name__)


@flask_app.get("/batch")
def flask_batch():
    return make_requests(flask_app, flask.request.environ)


@flask_app.get("/inner")
def flask_inner():
    return "inner"


bottle_app = bottle.Bottle()


@bottle_app.get("/batch")
def bottle_batch():
    return make_requests(bottle_app, dict(bottle.request.environ))


@bottle_app.get("/inner")
def bottle_inner():
    return "inner"


class Batch:
    def on_get(self, req, resp):
        resp.data = make_requests(falcon_app, req.env)


class Inner:
    def on_get(self, req, resp):
        resp.text = "inner"


falcon_app = falcon.App()
falcon_app.add_route("/batch", Batch())
falcon_app.add_route("/inner", Inner())


def django_batch(request):
    return HttpResponse(make_requests(django_app, request.environ))


def django_inner(request):
    return HttpResponse("inner")


urlpatterns = [path("batch", django_batch), path("inner", django_inner)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
django_app = get_wsgi_application()

with Configurator() as config:
    config.add_route("batch", "/batch")
    config.add_route("inner", "/inner")
    config.add_view(lambda request: Response(make_requests(pyramid_app, request.environ)), route_name="batch")
    config.add_view(lambda request: Response("inner"), route_name="inner")
    pyramid_app = config.make_wsgi_app()

fastapi_app = FastAPI()


@fastapi_app.get("/batch")
async def fastapi_batch(request: Request):
    parts = []

    async def send(message):
        parts.append(message.get("body", b""))

    for application in fastapi_app, fastapi_app.router:
        scope = {**request.scope, "path": "/inner", "raw_path": b"/inner"}
        await application(scope, request.receive, send)
    return b"".join(parts).decode()


@fastapi_app.get("/inner")
async def fastapi_inner():
    return "inner"
