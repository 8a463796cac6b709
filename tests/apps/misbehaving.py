"""A WSGI application that does what no application should."""

import array
import os
import sys


def ok(start_response):
    return start_response("200 OK", [("Content-Type", "text/plain"), ("X-Odd", "1")])


class Closing:
    """A body of two parts."""

    def __init__(self, parts=(b"one ", b"two"), error=None):
        self.parts = iter(parts)
        self.error = error

    def __iter__(self):
        return self.parts

    def close(self):
        if self.error is not None:
            raise self.error


class Sized(Closing):
    def __len__(self):
        return 1


def raises_in_close(environ, start_response):
    ok(start_response)
    return Closing(error=ValueError("close"))


def raises_in_close_of_nothing(environ, start_response):
    start_response("204 No Content", [])
    return Closing((), error=ValueError("close"))


def raises_before_the_first_chunk(environ, start_response):
    ok(start_response)
    raise ValueError("first")
    yield b"never"


def raises_after_an_empty_chunk(environ, start_response):
    ok(start_response)
    yield b""
    raise ValueError("empty")


def raises_after_a_chunk(environ, start_response):
    ok(start_response)
    yield b"one "
    raise ValueError("midway")


def starts_twice(environ, start_response):
    ok(start_response)
    try:
        raise ValueError("twice")
    except ValueError:
        start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
    return [b"error page"]


def starts_again_too_late(environ, start_response):
    ok(start_response)
    yield b"one "
    try:
        raise ValueError("late")
    except ValueError:
        start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
    yield b"error page"


def starts_twice_without_exc_info(environ, start_response):
    ok(start_response)
    ok(start_response)
    return [b"two starts"]


def starts_late(environ, start_response):
    start_response("201 Created", [("Content-Type", "text/plain")])
    yield b"late"


def never_starts(environ, start_response):
    return [b"no status"]


def writes(environ, start_response):
    write = ok(start_response)
    write(b"written ")
    return [b"returned"]


def raises_after_writing(environ, start_response):
    write = ok(start_response)
    write(b"written ")
    raise ValueError("written")


def latin_header(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Name", "caf\xe9")])
    return [b"latin"]


def no_reason(environ, start_response):
    start_response("200 ", [("Content-Type", "text/plain")])
    return [b"no reason"]


def no_status(environ, start_response):
    start_response("well", [("Content-Type", "text/plain")])
    return [b"no status"]


def bad_header(environ, start_response):
    start_response("200 OK", [("Content-Type", 5)])
    return [b"bad header"]


def keywords(environ, start_response):
    start_response(status="200 OK", headers=[("Content-Type", "text/plain")])
    return [b"keywords"]


def sized(environ, start_response):
    ok(start_response)
    return Sized([b"sized"])


def in_a_tuple(environ, start_response):
    ok(start_response)
    return (b"tu", b"ple")


def in_a_list(environ, start_response):
    ok(start_response)
    return [b"list"]


def in_bytes(environ, start_response):
    ok(start_response)
    return b"bytes"


class Text(bytes):
    """What frameworks' signed or marked texts are."""


class Chunked(bytes):
    """Bytes that are an iterable of bytes, too."""

    def __iter__(self):
        yield bytes(self)


def in_a_kind_of_bytes(environ, start_response):
    ok(start_response)
    return Text(b"kind of bytes")


def in_chunked_bytes(environ, start_response):
    ok(start_response)
    return Chunked(b"chunked bytes")


def in_a_bytearray(environ, start_response):
    ok(start_response)
    return bytearray(b"bytearray")


def in_a_memoryview(environ, start_response):
    ok(start_response)
    return memoryview(b"memoryview")


def in_an_array(environ, start_response):
    ok(start_response)
    return array.array("b", b"array")


def buffers_in_a_list(environ, start_response):
    ok(start_response)
    return [Text(b"kind of bytes "), bytearray(b"bytearray "), memoryview(b"memoryview "), array.array("b", b"array")]


def buffers_one_by_one(environ, start_response):
    ok(start_response)
    yield Text(b"kind of bytes ")
    yield bytearray(b"bytearray ")
    yield memoryview(b"memoryview ")
    yield array.array("b", b"array")


class Undecided(bytes):
    """Bytes that do not say whether they are any, as an array of numpy does not."""

    def __bool__(self):
        raise ValueError("undecided")


def undecided_chunks(environ, start_response):
    ok(start_response)
    yield Undecided(b"one ")
    yield Undecided(b"two")


def writes_undecided_chunks(environ, start_response):
    write = ok(start_response)
    write(Undecided(b"written"))
    return []


def nothing(environ, start_response):
    ok(start_response)


def a_number(environ, start_response):
    ok(start_response)
    return 5


def no_content(environ, start_response):
    start_response("204 No Content", [])
    return []


def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"x"')])
    return []


def a_file(environ, start_response):
    start_response("200 OK", [("Content-Length", str(os.path.getsize(__file__)))])
    return environ["wsgi.file_wrapper"](open(__file__, "rb"))


def an_open_file(environ, start_response):
    ok(start_response)
    return open(__file__, "rb")


def raises(environ, start_response):
    raise ValueError("call")


PATHS = {f"/{name}": value for name, value in list(globals().items()) if getattr(value, "__code__", None)}
del PATHS["/ok"]


def application(environ, start_response):
    return PATHS[environ["PATH_INFO"]](environ, start_response)
