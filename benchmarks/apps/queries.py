"""A WSGI callable without a framework, which makes as many queries as BENCHMARK_QUERIES says."""

import os
import sqlite3

QUERIES = int(os.environ["BENCHMARK_QUERIES"])
_connection = None


def application(environ, start_response):
    global _connection
    if _connection is None:
        _connection = sqlite3.connect(":memory:", check_same_thread=False)
    # Not connection.execute(): trace_integration() sees the queries of cursors only.
    cursor = _connection.cursor()
    for number in range(QUERIES):
        cursor.execute("SELECT ?, name FROM sqlite_master WHERE name <> ?", (number, "fish"))
        cursor.fetchall()
    cursor.close()
    body = b"fish\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def traced():
    from opentelemetry.instrumentation.dbapi import trace_integration
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    trace_integration(sqlite3, "connect", "sqlite")
    return OpenTelemetryMiddleware(application)
