"""A WSGI callable that counts its requests, and tells what became of their spans."""

import json

import mackerel_otel_server

served = 0


def application(environ, start_response):
    global served
    path = environ["PATH_INFO"]
    body = f"hello {path}"
    if path == "/stats":
        # Before this request is counted: its span has not ended.
        body = json.dumps({"served": served, **mackerel_otel_server.stats()})
    served += 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]
