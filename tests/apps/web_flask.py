"""A Flask application with everything that has to do with routes and errors."""

import io

from flask import Blueprint, Flask, Response, abort, redirect, request, send_file
from flask.views import MethodView

app = Flask(__name__)


class HandledError(Exception):
    pass


class AnotherTeapotError(Exception):
    __module__ = "web_flask"  # also where uWSGI has loaded this file by itself

    def __str__(self):
        return "no text"


@app.errorhandler(HandledError)
def handled(error):
    return "handled", 409


@app.get("/items/<int:item>")
def item(item):
    return str(item)


@app.get("/fail/<kind>")
def fail(kind):
    if kind == "handled":
        raise HandledError("on purpose")
    if kind == "abort":
        abort(403)
    if kind == "503":
        abort(503)
    if kind == "redirect":
        return redirect("/items/1")
    raise AnotherTeapotError(kind)


@app.get("/with-slash/")
def with_slash():
    return "slash"


@app.get("/file")
def file():
    return send_file(__file__)


@app.get("/memory")
def memory():
    return send_file(io.BytesIO(b"memory"), mimetype="text/plain")


@app.get("/stream")
def stream():
    def parts():
        yield b"one "
        yield b"two"

    return Response(parts())


class Things(MethodView):
    def get(self, thing):
        return thing

    def put(self, thing):
        return request.get_data()


app.add_url_rule("/things/<path:thing>", view_func=Things.as_view("things"))

inner = Blueprint("inner", __name__, url_prefix="/inner")
outer = Blueprint("outer", __name__)


@inner.get("/<uuid:id>")
def by_id(lang, id):
    return str(id)


outer.register_blueprint(inner)
app.register_blueprint(outer, url_prefix="/outer/<lang>")
