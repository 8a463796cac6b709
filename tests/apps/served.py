"""Frameworks whose own instrumentations are installed: they would make a second server span."""

import django
import flask
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="test")
django.setup()
urlpatterns = [path("shop/", lambda _: HttpResponse("done"))]
with_django = WSGIHandler()

with_flask = flask.Flask(__name__)


@with_flask.route("/shop/")
def shop():
    return "done"
