"""Requests that do not end by themselves, in each way that there is to be stuck."""

import ctypes
import hashlib
import socket
import threading
import time
from pydoc import locate

from opentelemetry import trace

tracer = trace.get_tracer("shop")
_FOR_EVER = 60.0


def sleep():
    time.sleep(_FOR_EVER)


def spin():
    end = time.monotonic() + _FOR_EVER
    while time.monotonic() < end:
        pass


def read():
    first, second = socket.socketpair()
    with first, second:
        first.recv(1)


def hash_():
    """Be in C, without the GIL, where no signal is answered."""
    hashlib.pbkdf2_hmac("sha512", b"x", b"y", 2**31 - 1)


def native_sleep():
    """Block the thread itself: gevent knows nothing of it."""
    ctypes.CDLL(None).usleep(int(_FOR_EVER * 1e6))
    ctypes.CDLL(None).usleep(int(_FOR_EVER * 1e6))


def lock():
    gate = threading.Lock()
    gate.acquire()
    gate.acquire()


STUCK = {
    "/sleep": sleep,
    "/spin": spin,
    "/read": read,
    "/hash": hash_,
    "/native": native_sleep,
    "/lock": lock,
}


def work(path):
    """Hang inside a span of the application's own, after one that has ended."""
    print(f"under way: {path}", flush=True)
    with tracer.start_as_current_span("before"):
        pass
    with tracer.start_as_current_span("stuck"):
        STUCK[path]()


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path in STUCK:
        work(path)
    if path == "/raise":
        raise locate(environ["QUERY_STRING"])
    if path == "/late":
        print(f"under way: {path}", flush=True)
        time.sleep(float(environ["QUERY_STRING"]))
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(float(environ["QUERY_STRING"] or _FOR_EVER))
    body = b"ok\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def stream(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield b"x\n"
        time.sleep(0.1)
