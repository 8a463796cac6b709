"""A script that shows what becomes of requests and queries; it prints what it has found as one line of JSON."""

import json
import sqlite3
import sys
from contextlib import closing, suppress

import mackerel_otel_server

mackerel_otel_server.instrument()

import flask  # noqa: E402
import sqlalchemy  # noqa: E402 - this package applies its instrumentation, which is installed
from opentelemetry import trace  # noqa: E402

found = {"read": []}
QUOTED = "/no-such-folder/topsecret"
"""The value of a parameter; the stack trace shows the line where it is used."""
STANDARD = (
    "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry.instrumentation.asgi",
    "opentelemetry.instrumentation.dbapi",
    "opentelemetry.instrumentation.wsgi",
    "requests",
)


class File:
    """The ``wsgi.file_wrapper`` of a server, which looks for its own class and sends such a file by sendfile()."""

    def __init__(self, *_):
        pass

    def __iter__(self):
        return iter([b"a file"])

    def close(self):
        pass


class CloseRaises(list):
    """A response that the server has sent when the application fails."""

    def close(self):
        raise BlockingIOError("close")


def call(application, path, *, query="", read=True, **environ):
    """Do what a server does with one request."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "RAW_URI": f"{path}?{query}" if query else path,
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": sys.stdin.buffer,
        "wsgi.errors": sys.stderr,
        "wsgi.file_wrapper": File,
        **environ,
    }
    body = application(environ, lambda *_: lambda _: None)
    try:
        if read:
            list(body)
            found["read"].append(path)
    finally:
        if hasattr(body, "close"):
            body.close()
    return body


@mackerel_otel_server.trace_wsgi
def plain(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/exit":
        raise SystemExit(1)
    if environ["PATH_INFO"] == "/fails":
        raise ValueError("fails")
    if environ["PATH_INFO"] == "/file":
        return environ["wsgi.file_wrapper"](None)
    if environ["PATH_INFO"] == "/queries":
        connection = sqlite3.connect(":memory:")
        connection.cursor().execute("SELECT 1")
        connection.execute("SELECT 2")
        connection.close()
    if environ["PATH_INFO"] == "/sqlalchemy":
        with sqlalchemy.create_engine("sqlite://").connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 3"))
    if environ["PATH_INFO"] == "/surrogate":
        with trace.get_tracer("compared").start_as_current_span("\ud800"):
            pass
    if environ["PATH_INFO"] == "/quoted":
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.cursor().execute("ATTACH ? AS other", (QUOTED,))
    if environ["PATH_INFO"] == "/close-raises":
        return CloseRaises()
    if environ["PATH_INFO"] == "/nested":
        return inner(environ, start_response)
    return [b"plain"]


@mackerel_otel_server.trace_wsgi
def inner(environ, start_response):
    start_response("200 OK", [])
    return [b"inner"]


app = flask.Flask(__name__)


@app.route("/items/<int:number>")
def items(number):
    return str(number)


@app.route("/page-500")
def page_500():
    raise LookupError("Flask answers this")


for path in ("/plain", "/nested", "/excluded", "/queries", "/sqlalchemy"):
    call(plain, path)
call(plain, "/closed", read=False)
call(plain, "/secret", query="sig=topsecret", HTTP_USER_AGENT="x" * 10_000)
found["file"] = isinstance(call(plain, "/file"), File)
for path, error in (
    ("/fails", ValueError),
    ("/exit", SystemExit),
    ("/quoted", sqlite3.Error),
    ("/close-raises", BlockingIOError),
):
    with suppress(error):
        call(plain, path)
call(app, "/items/1")
call(app, "/page-500")
trace.get_tracer_provider().force_flush()
call(plain, "/surrogate")
call(plain, "/beside-the-surrogate")
mackerel_otel_server.shutdown()
found["stats"] = mackerel_otel_server.stats()
found["modules"] = [name for name in STANDARD if name in sys.modules]
print(json.dumps(found))
