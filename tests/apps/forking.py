"""An application that forks by itself, in the middle of a request."""

import multiprocessing
import os
import sys

from opentelemetry import trace

tracer = trace.get_tracer("forking")


def work():
    with tracer.start_as_current_span("of the child"):
        pass


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/exit":
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        os.waitpid(pid, 0)
    if path == "/multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
