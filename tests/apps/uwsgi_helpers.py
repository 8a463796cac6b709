"""A site that gives work to mules and to the spooler, in which only what asks for it is traced."""

import os

import uwsgi
from opentelemetry import trace
from plain import application as plain

tracer = trace.get_tracer("site")


def spool(task):
    if task.get(b"traced"):
        import mackerel_otel_server

        mackerel_otel_server.instrument()
    with tracer.start_as_current_span("task"):
        pass
    print(f"spooler {os.getpid()} has done a task", flush=True)
    return uwsgi.SPOOL_OK


uwsgi.spooler = spool


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/mules":
        uwsgi.mule_msg(b"work", 1)
        uwsgi.mule_msg(b"work", 2)
    if path == "/spool":
        uwsgi.spool({b"traced": environ["QUERY_STRING"].encode()})
    return plain(environ, start_response)
