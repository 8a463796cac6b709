"""A WSGI callable whose requests end in unusual ways."""

import errno
import socket

from gunicorn.workers.base_async import ALREADY_HANDLED


class Failing:
    """A body whose ``close()`` fails."""

    def __iter__(self):
        yield b"whole"

    def close(self):
        raise ValueError("in close()")


class FailingList(list):
    def close(self):
        raise ValueError("in close()")


def take_over(environ):
    connection = environ["gunicorn.socket"]
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nbye")
    connection.shutdown(socket.SHUT_RDWR)


def already_handled(environ, start_response):
    take_over(environ)
    return ALREADY_HANDLED


def stop_iteration(environ, start_response):
    take_over(environ)
    raise StopIteration


def headers_sent(environ, start_response):
    take_over(environ)
    response = start_response.__self__
    response.status, response.status_code, response.headers_sent = "101 Switching Protocols", 101, True
    response.must_close = True
    return []


def database_is_gone(environ, start_response):
    raise ConnectionResetError(errno.ECONNRESET, "the database")


def ok(start_response):
    return start_response("200 OK", [("Content-Type", "text/plain")])


def read(environ, start_response):
    environ["wsgi.input"].read()
    ok(start_response)
    return [b"read"]


def write(environ, start_response):
    theirs = ok(start_response)
    for _ in range(1000):
        theirs(b"x" * 100_000)
    return []


def response(environ, start_response):
    ok(start_response)
    theirs = start_response.__self__
    return [f"{type(theirs).__name__} {theirs.status} {start_response.__name__}".encode()]


def force_close(environ, start_response):
    ok(start_response)
    start_response.__self__.force_close()
    return [b"closed"]


def close(environ, start_response):
    ok(start_response)
    return Failing()


def close_list(environ, start_response):
    ok(start_response)
    return FailingList([b"whole"])


def ordinary(environ, start_response):
    ok(start_response)
    return [b"ordinary"]


def application(environ, start_response):
    view = globals().get(environ["PATH_INFO"].removeprefix("/"), ordinary)
    return view(environ, start_response)
