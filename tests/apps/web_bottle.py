"""A Bottle application with everything that has to do with routes and errors."""

import pathlib

from bottle import Bottle, HTTPError, abort, redirect, static_file

app = Bottle()
mounted = Bottle()
wrapped = Bottle()
deep = Bottle()


@app.get("/items/<item:int>")
def item(item):
    return str(item)


@app.get("/fail/<kind>")
def fail(kind):
    if kind == "404":
        abort(404)
    if kind == "503":
        raise HTTPError(503, "later")
    if kind == "redirect":
        redirect("/items/1")
    if kind == "stream":
        return parts()
    raise ValueError(kind)


def parts():
    raise ValueError("stream")
    yield b"never"


@app.get("/static/<name>")
def static(name):
    return static_file(name, pathlib.Path(__file__).parent)


@mounted.get("/hello/<name>")
def hello(name):
    return name


def plain(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]


@deep.get("/hello/<name>")
def deep_hello(name):
    return name


app.mount("/mounted/", mounted)
# Without the slash, Bottle 0.13 mounts it as it mounts any WSGI application, as 0.12 does with all.
app.mount("/wrapped", wrapped)
wrapped.mount("/deep", deep)
app.mount("/plain/", plain)

from web_flask import app as flask_app  # noqa: E402

app.mount("/flask/", flask_app)
wrapped.mount("/flask", flask_app)
