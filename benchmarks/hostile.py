"""Requests that no browser would send, to each worker class and mode of uWSGI, with this package and without it.

    pip install . -r benchmarks/requirements.txt
    python benchmarks/hostile.py

Odd request lines, encodings, methods and protocols, headers of a megabyte, thousands of names, headers about trace
context that take propagators long, smuggled requests: each goes to the untouched server and to the traced one, which
are up at the same time, and the answers are compared. The servers' own limits are as high as an operator can set them,
so that more of it reaches the application. The requests are made up by a random number generator with a seed that is
printed. Prints a table: how much more memory the worker has afterwards than before, its CPU time for all requests, what
was written to the log, answers that differ, and how many requests reached the application (their spans).

Not a test: it fails only when answers differ.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import processes
import report
from server import CLASSES, TORNADO, UVICORN, UWSGI, Case, Server
from sink import Sink

_SCHEDULE_DELAY = 1000
_SECONDS = 10.0
_INCOMPLETE_SECONDS = 0.3
_SETTLE_SECONDS = 3.0
_WARM = 200
_TRIES = 20
_PLAIN = b"GET /fish/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# What two servers may say differently is the time.
_DATE = re.compile(rb"(?i)date: [^\r\n]*")
# uWSGI takes 64 kB of headers at most.
_UWSGI_LIMITS = ["--buffer-size", "65535", "--max-vars", "8192"]
_UWSGI_LARGEST = 40_000
_GUNICORN_LIMITS = [
    *("--limit-request-line", "0", "--limit-request-fields", "32768"),
    *("--limit-request-field_size", "0"),
]
_LARGEST = 1_000_000
_TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_PATTERNS = (
    b"a",
    b" \t",
    bytes(range(0x21, 0x7F)),
    bytes(range(0x80, 0x100)),
    "鯖\u202e".encode(),
    b"%C3%28",
    b"%2e%2e/",
    b"%0d%0a",
    b"\xc0\xaf",
    b"=;,=",
    b"sig=1&%53ignature=2&",
    b"<script>",
    b",".join(b"k%d=v" % number for number in range(1000)),
)
_REFUSED = (b"\x1b[31mred\x1b]0;title\x07", b"\0", b"\r", "鯖".encode("utf-32"))
"""Most servers take no such text in a header."""
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: smuggled\r\n\r\n"
# How a request may say where its body ends, and what follows its headers.
_FRAMINGS = (
    (b"Content-Length: 0", _SMUGGLED),
    (b"Content-Length: 5", b"12345" + _SMUGGLED),
    (b"Content-Length: 50", b"12345"),
    (b"Content-Length: 0\r\nContent-Length: 5", b"12345"),
    (b"Content-Length: +5", b"12345"),
    (b"Content-Length: 5_0", b"12345"),
    (b"Content-Length: %d" % 10**30, b"12345"),
    (b"Content-Length: -1", _SMUGGLED),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n" + _SMUGGLED),
    (b"Transfer-Encoding : chunked", b"0\r\n\r\n" + _SMUGGLED),
    (b"Transfer-Encoding: xchunked", b"0\r\n\r\n" + _SMUGGLED),
    (b"Transfer-Encoding:\r\n chunked", b"0\r\n\r\n" + _SMUGGLED),
    (b"Transfer-Encoding: chunked", b"FFFFFFFFFFFFFFFFF\r\n" + _SMUGGLED),
    (b"Transfer-Encoding: chunked", b"1;" + b"x" * 20_000 + b"\r\n1\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"0\r\n" + b"X-Trailer: 1\r\n" * 2000 + b"\r\n"),
    (b"Transfer_Encoding: chunked", b"0\r\n\r\n" + _SMUGGLED),
    (b"Expect: 100-continue\r\nContent-Length: 5", b"12345"),
    (b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==", b""),
    (b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b""),
)


class _OpenCase(Case):
    """A server whose own limits are as high as they can be."""

    def command(self, workers: int, listener: int) -> list[str]:
        *command, target = super().command(workers, listener)
        return [*command, *(_UWSGI_LIMITS if self.worker_class in UWSGI else _GUNICORN_LIMITS), target]


def _text(some: random.Random, longest: int) -> bytes:
    """Return text that servers take in a header, mostly; each time another one."""
    pattern = some.choice(_PATTERNS if some.randrange(8) else _REFUSED)
    size = some.choice([1, 10, 100, some.randrange(min(longest, 10_000))])
    if some.randrange(40) == 0:
        size = longest
    return (b"%x" % some.getrandbits(32) + pattern * (size // len(pattern) + 1))[:size]


def _line(some: random.Random, largest: int) -> bytes:
    targets = [b"/fish/1", b"http://other/x", b"//a//b", b"/a/../../b;c?d", b"/a?" + _text(some, 4000)]
    targets += [b"/%x" % some.getrandbits(64), b"/" + _text(some, 4000), b"/" + _text(some, largest)]
    if some.randrange(5):
        return b" ".join((some.choice([b"GET", b"GET", b"POST", b"PURGE"]), some.choice(targets), b"HTTP/1.1"))
    methods = [b"GET", b"HEAD", b"CONNECT", b"get", b"M" * 200, b"G\xffT", b"", _text(some, 30)]
    targets += [b"*", b"other:443", b"/a#b", b"/\x00", b"", b"a b c"]
    versions = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"ICY", b""]
    return b" ".join((some.choice(methods), some.choice(targets), some.choice(versions)))


def _request(some: random.Random, largest: int) -> bytes:
    """Make one up.

    Args:
        some: Decides.
        largest: Bytes of its longest header.
    """
    host = some.choice([b"localhost", b"[::1]:80", b"h%x.example:99999" % some.getrandbits(64), b""])
    headers = [
        b"User-Agent: " + _text(some, largest),
        b"baggage: " + _text(some, 8192),
        b"baggage: " + _text(some, largest),
        b"traceparent: " + some.choice([_TRACEPARENT, _text(some, 100)]) + b"\r\ntracestate: " + _text(some, 2000),
        b"b3: " + _text(some, 8000),
        b"X-Forwarded-For: " + _text(some, 2000),
        b"X-Forwarded-Proto: https\r\nForwarded: for=" + _text(some, 200),
        b"SCRIPT_NAME: /fish",
        b"Cookie: " + _text(some, largest),
        b"\r\n".join(b"X-%x: %d" % (some.getrandbits(32), number) for number in range(some.choice([5, 90, 1500]))),
        b"X-%x" % some.getrandbits(32) + b"a" * some.choice([9, largest // 100, largest // 2]) + b": 1",
    ]
    odd = [_text(some, 100) + b": 1", b"X-Folded: 1\r\n " + _text(some, 100), b"Host: a\r\nHost: b", b"Host: :"]
    chosen = [
        b"Host: " + (host if some.randrange(3) else _text(some, largest)),
        *some.sample(headers, some.randrange(4)),
    ]
    chosen += [some.choice(odd)] if some.randrange(10) == 0 else []
    framing, body = some.choice(_FRAMINGS) if some.randrange(5) == 0 else (b"", b"")
    chosen += [framing] if framing else []
    if some.randrange(50):
        # With this, servers close the connection, so that an answer has an end.
        chosen.append(b"Connection: close")
    end = b"\r\n" if some.randrange(200) else b"\n"
    return _line(some, largest) + end + end.join(chosen) + end + end + body


def _answer(port: int, request: bytes) -> bytes:
    """Return what a server answers, without what differs from moment to moment."""
    received = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        with suppress(OSError):
            connection.sendall(request)
        connection.settimeout(_INCOMPLETE_SECONDS)
        with suppress(TimeoutError):
            while part := connection.recv(65536):
                received += part
            return _DATE.sub(b"", received)
        # The server waits for the rest of a request.
        connection.settimeout(_SECONDS)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            received += part
    return _DATE.sub(b"", received)


class _Measured:
    """A server and what it has cost so far."""

    def __init__(self, server: Server, log: Path) -> None:
        self._server, self._log = server, log
        for _ in range(_WARM):
            _answer(server.port, _PLAIN)
        time.sleep(_SETTLE_SECONDS)
        self._before = self._now()

    def ask(self, request: bytes) -> bytes:
        return _answer(self._server.port, request)

    def costs(self) -> tuple[float, float, float]:
        """Return MB of memory, seconds of CPU time and kB of log."""
        time.sleep(_SETTLE_SECONDS)
        memory, cpu, log = (after - before for after, before in zip(self._now(), self._before, strict=True))
        return memory / 1e6, cpu, log / 1e3

    def _now(self) -> tuple[float, float, float]:
        (worker,) = processes.children(self._server.process_id)
        return processes.pss_bytes(worker), processes.cpu_seconds(worker), self._log.stat().st_size


def main() -> int:
    """Print the table, return the exit code."""
    classes = [*CLASSES, TORNADO, UVICORN, *UWSGI]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5000, help="to each server (default: 5000)")
    parser.add_argument("--classes", default=",".join(classes), help="comma-separated (default: all)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the requests (default: a new one)")
    arguments = parser.parse_args()
    print(f"{report.machine()}\n\n{arguments.requests} requests, --seed {arguments.seed}\n", flush=True)
    print(
        "| | memory (MB) | CPU (s) | log (kB) | answers that differ | requests that reached the application |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    differing = 0
    for worker_class in arguments.classes.split(","):
        differing += _measure(worker_class, arguments.requests, arguments.seed)
    return int(differing > 0)


def _differ(servers: list[_Measured], request: bytes, answers: list[bytes]) -> bool:
    """Tell whether two servers never answer alike.

    The answers of one server may differ, too: a long one is cut short when a server closes a connection that it has not
    read to its end, and Gunicorn's class asgi takes a long header or not, depending on how its bytes arrive.
    """
    seen = [{answer} for answer in answers]
    for _ in range(_TRIES):
        for server, of_server in zip(servers, seen, strict=True):
            of_server.add(server.ask(request))
        if not seen[0].isdisjoint(seen[1]):
            return False
    return True


def _measure(worker_class: str, requests: int, seed: int) -> int:
    some = random.Random(seed)  # noqa: S311 - no secret
    largest = _UWSGI_LARGEST if worker_class in UWSGI else _LARGEST
    differing = 0
    with ExitStack() as stack:
        sink = stack.enter_context(Sink())
        measured = {}
        for variant in ("untouched", "ours"):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            case = _OpenCase(worker_class, "generic", variant)
            server = Server(case, 1, endpoint=sink.url, folder=folder, schedule_delay=_SCHEDULE_DELAY)
            measured[variant] = _Measured(stack.enter_context(server), Path(folder, "server.log"))
        for _ in range(requests):
            request = _request(some, largest)
            answers = [one.ask(request) for one in measured.values()]
            if answers[0] != answers[1] and _differ([*measured.values()], request, answers):
                differing += 1
                print(f"{request[:200]!r}: {answers[0][:200]!r} is {answers[1][:200]!r}", file=sys.stderr)
        for variant, one in measured.items():
            memory, cpu, log = one.costs()
            ours = f"{differing} | {sink.count().distinct - 1 - _WARM}" if variant == "ours" else " | "
            print(f"| {worker_class}, {variant} | {memory:.1f} | {cpu:.1f} | {log:.0f} | {ours} |", flush=True)
    return differing


if __name__ == "__main__":
    sys.exit(main())
