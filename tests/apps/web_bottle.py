"""A Bottle application with everything that has to do with routes and errors."""

import pathlib

from bottle import Bottle, HTTPError, abort, redirect, static_file

app = Bottle()
mounted = Bottle()


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


app.mount("/mounted/", mounted)
app.mount("/plain/", plain)

from web_flask import app as flask_app  # noqa: E402

app.mount("/flask/", flask_app)
