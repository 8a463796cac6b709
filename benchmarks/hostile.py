"""Requests that no browser would send, to each worker class with this package and without it: what do they cost?

    pip install . -r benchmarks/requirements.txt
    python benchmarks/hostile.py

Odd request lines, encodings, methods and protocols, headers of up to a megabyte, thousands of names, headers about
trace context that take propagators long, smuggled requests: each goes to the untouched server and to the traced one,
which are up at the same time, and the answers are compared. The requests are made up by a random number generator with
a seed that is printed. Prints a table: how much more memory the worker has afterwards than before, its CPU time for all
requests, what was written to the log, answers that differ.

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
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import processes
import report
from server import CLASSES, UVICORN, Case, Server
from sink import Sink

_SCHEDULE_DELAY = 1000
_SECONDS = 10.0
_INCOMPLETE_SECONDS = 0.5
_SETTLE_SECONDS = 3.0
_WARM = 200
_PLAIN = b"GET /fish/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# What two servers may say differently: the time.
_DATE = re.compile(rb"(?i)date: [^\r\n]*")
_TRACEPARENT = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


def _text(some: random.Random, longest: int) -> bytes:
    kinds: tuple[Callable[[int], bytes], ...] = (
        lambda size: bytes(some.choices(range(0x21, 0x7F), k=size)),
        lambda size: bytes(some.choices(range(0x80, 0x100), k=size)),
        lambda size: b"a" * size,
        lambda size: (b" \t" * size)[:size],
        lambda size: b"%C3%28" * (size // 6),
        lambda size: b"\x1b[31mred\x1b]0;title\x07" * (size // 20),
        lambda size: ("鯖" * (size // 3)).encode(),
        lambda size: b"=;,=" * (size // 4),
        lambda size: b",".join(b"k%d=v" % number for number in range(size // 8)),
    )
    return some.choice(kinds)(some.choice([1, 10, 100, some.randrange(longest), longest]))


def _request(some: random.Random) -> bytes:
    """Make one up."""
    method = some.choice([b"GET", b"POST", b"get", b"M" * 200, b"PURGE", b"G\xffT", _text(some, 30)])
    target = some.choice(
        [b"/fish/1", b"*", b"//a//b", b"http://other/x", b"/a?" + _text(some, 4000), b"/" + _text(some, 4000)]
    )
    version = some.choice([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"ICY", b""])
    host = some.choice([b"localhost", b"[::1]:80", b":", b"h%d.example" % some.randrange(10**9), b"x" * 1_000_000, b""])
    headers = [
        b"Host: " + host,
        b"User-Agent: " + _text(some, 8000),
        b"baggage: " + _text(some, 8192),
        b"traceparent: " + _text(some, 100),
        b"tracestate: " + _text(some, 2000),
        b"b3: " + _text(some, 8000),
        b"X-Forwarded-For: " + _text(some, 2000),
        b"X-Forwarded-Proto: https",
        b"SCRIPT_NAME: /fish",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 0\r\nContent-Length: 5",
        b"Cookie: " + _text(some, 60_000),
        b"\r\n".join(b"X-%d: %d" % (some.randrange(10**9), number) for number in range(some.choice([5, 90, 3000]))),
        _text(some, 100) + b": 1",
        _TRACEPARENT.strip(),
    ]
    chosen = some.sample(headers, some.randrange(1, 6))
    if some.randrange(10):
        # Servers close the connection then, so that an answer has an end.
        chosen.append(b"Connection: close")
    return b" ".join((method, target, version)) + b"\r\n" + b"\r\n".join(chosen) + b"\r\n\r\n"


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
    classes = [*CLASSES, UVICORN]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5000, help="to each server (default: 5000)")
    parser.add_argument("--classes", default=",".join(classes), help="comma-separated (default: all)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the requests (default: a new one)")
    arguments = parser.parse_args()
    print(f"{report.machine()}\n\n{arguments.requests} requests, --seed {arguments.seed}\n", flush=True)
    print(
        "| | memory (MB) | CPU (s) | log (kB) | answers that differ |\n| --- | ---: | ---: | ---: | ---: |", flush=True
    )
    differing = 0
    for worker_class in arguments.classes.split(","):
        differing += _measure(worker_class, arguments.requests, arguments.seed)
    return int(differing > 0)


def _measure(worker_class: str, requests: int, seed: int) -> int:
    some = random.Random(seed)  # noqa: S311 - no secret
    differing = 0
    with ExitStack() as stack:
        sink = stack.enter_context(Sink())
        measured = {}
        for variant in ("untouched", "ours"):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            case = Case(worker_class, "generic", variant)
            server = Server(case, 1, endpoint=sink.url, folder=folder, schedule_delay=_SCHEDULE_DELAY)
            measured[variant] = _Measured(stack.enter_context(server), Path(folder, "server.log"))
        for _ in range(requests):
            request = _request(some)
            answers = [one.ask(request) for one in measured.values()]
            if answers[0] != answers[1]:
                differing += 1
                print(f"{request[:200]!r}: {answers[0][:200]!r} is {answers[1][:200]!r}", file=sys.stderr)
        for variant, one in measured.items():
            memory, cpu, log = one.costs()
            differ = str(differing) if variant == "ours" else ""
            print(f"| {worker_class}, {variant} | {memory:.1f} | {cpu:.1f} | {log:.0f} | {differ} |", flush=True)
    return differing


if __name__ == "__main__":
    sys.exit(main())
