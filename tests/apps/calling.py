"""A WSGI callable that uses libraries, each imported at the top, as applications do."""

import logging
import os
import urllib.request

import httpx
import jinja2
import redis
import requests
import urllib3
from opentelemetry import trace

FAR_URL = os.environ["FAR_URL"]
database = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
log = logging.getLogger("shop")
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("shop: %(message)s %(otelTraceID)s %(otelServiceName)s."))
log.addHandler(handler)


def call_urllib():
    urllib.request.urlopen(FAR_URL).close()


def call_httpx():
    httpx.get(FAR_URL)


def call_requests():
    requests.get(FAR_URL)


def call_urllib3():
    with urllib3.PoolManager() as pool:
        pool.request("GET", FAR_URL)


def call_jinja2():
    jinja2.Template("{{ x }}").render(x=1)


def call_redis():
    database.ping()


def call_logging():
    trace_id = format(trace.get_current_span().get_span_context().trace_id, "032x")
    log.warning("now %s", trace_id)


def application(environ, start_response):
    for name in filter(None, environ["PATH_INFO"].split("/")):
        globals()[f"call_{name}"]()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
