"""A Flask application whose page comes from one SQL query."""

import sqlite3
from contextlib import closing

from flask import Flask

QUERY = "SELECT column1, column2 FROM (VALUES ('mackerel', 480), ('saury', 350), ('tuna', 1200)) WHERE column2 < ?"

application = Flask(__name__)


@application.get("/fish/<int:price>")
def fish(price):
    # Not connection.execute(): trace_integration() sees the queries of cursors only.
    with closing(sqlite3.connect(":memory:")) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(QUERY, (400 + price,))
        return {"fish": cursor.fetchall()}


def traced():
    from opentelemetry.instrumentation.dbapi import trace_integration
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    trace_integration(sqlite3, "connect", "sqlite")
    application.wsgi_app = OpenTelemetryMiddleware(application.wsgi_app)
    return application
