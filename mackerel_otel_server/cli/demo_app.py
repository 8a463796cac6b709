"""What ``mackerel-otel-server demo`` serves: plain WSGI, without a word about tracing but one span of its own."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# The rows come with the query: a demo leaves no file behind.
QUERY = "SELECT column1, column2 FROM (VALUES ('mackerel', 480), ('saury', 350)) WHERE column2 < ?"


class SoldOutError(Exception):
    """What ``/fail`` raises."""


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer ``/``, ``/slow`` and ``/fail``."""
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise SoldOutError("no mackerel left")
    pages = {"/": fish, "/slow": slow}
    status, page = ("200 OK", pages[path]()) if path in pages else ("404 Not Found", "no such page\n")
    # The demo reads here which workers have answered.
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Worker-Pid", str(os.getpid()))])
    return [page.encode()]


def fish() -> str:
    """Return a page from the database."""
    with closing(sqlite3.connect(":memory:")) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(QUERY, (500,))
        return "".join(f"{name}: {price} yen\n" for name, price in cursor)


def slow() -> str:
    """Return a page that takes its time, in a span of its own."""
    with trace.get_tracer(__name__).start_as_current_span("grill the mackerel"):
        time.sleep(0.3)
    return "grilled\n"
