"""A load generator in a process of its own: one connection per request, many at a time, one thread.

Closed loop (``rate`` 0): as many requests in flight as given, the next one when one is answered. Open loop: a request
each 1/rate seconds however long the others take, so that a stall of the server shows in all that arrive meanwhile.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

_REST_SECONDS = 10.0
"""For what is in flight at the end."""
_MOST_IN_FLIGHT = 500
_PATHS = 50


@dataclass(frozen=True)
class Load:
    """What the client saw. Latency is the time from the connection's begin to its end."""

    answered: int
    failed: int
    seconds: float
    p50: float
    p99: float


def drive(port: int, *, seconds: float, connections: int = 1, rate: float = 0, requests: int = 10**9) -> Load:
    """Load a server from another process.

    Args:
        port: The server's port on 127.0.0.1.
        seconds: How long requests are sent.
        connections: Requests in flight, for the closed loop.
        rate: Requests per second, for the open loop.
        requests: How many requests are sent at most.
    """
    numbers = [port, seconds, connections, rate, requests]
    with subprocess.Popen(
        [sys.executable, __file__, *map(str, numbers)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds + 2 * _REST_SECONDS)
        except BaseException:
            process.kill()
            process.wait()  # after Ctrl-C, __exit__ does not
            raise
    if process.returncode:
        raise RuntimeError("the benchmark's client has failed")
    return Load(**json.loads(output))


def main() -> None:
    """Load a server and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("port", int), ("seconds", float), ("connections", int), ("rate", float), ("requests", int)):
        parser.add_argument(name, type=kind)
    print(json.dumps(vars(_drive(**vars(parser.parse_args())))))


def _drive(port: int, seconds: float, connections: int, rate: float, requests: int) -> Load:
    latencies: list[float] = []
    sent = failed = 0
    # The timeout of select() has microseconds, that of epoll milliseconds.
    with selectors.SelectSelector() as selector:
        begin = now = time.perf_counter()
        end = begin + seconds
        while now < end + _REST_SECONDS:
            in_flight = len(selector.get_map())
            more = now < end and sent < requests
            if not more and not in_flight:
                break
            next_at = begin + sent / rate if rate else begin
            if more and next_at <= now and in_flight < (_MOST_IN_FLIGHT if rate else connections):
                selector.register(_send(port, sent), selectors.EVENT_READ, [now, b""])
                sent += 1
            else:
                wait_until = next_at if more and rate and in_flight < _MOST_IN_FLIGHT else end + _REST_SECONDS
                for key, _ in selector.select(max(wait_until - now, 0)):
                    assert isinstance(key.fileobj, socket.socket)  # noqa: S101 - as registered
                    started, beginning = key.data
                    ended, beginning = _read(key.fileobj, beginning)
                    key.data[1] = beginning
                    if not ended:
                        continue
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    if beginning.startswith(b"HTTP/1.1 200"):
                        latencies.append(time.perf_counter() - started)
                    else:
                        failed += 1
            now = time.perf_counter()
        failed += len(selector.get_map())
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * part)] if latencies else 0.0 for part in (0.5, 0.99))
    return Load(len(latencies), failed, now - begin, p50, p99)


def _send(port: int, number: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_REST_SECONDS)
    connection.sendall(
        f"GET /fish/{number % _PATHS} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: benchmark/1.0\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n".encode()
    )
    return connection


def _read(connection: socket.socket, beginning: bytes) -> tuple[bool, bytes]:
    """Return whether the response is complete, and how it begins."""
    try:
        data = connection.recv(65536)
    except OSError:
        return True, b""
    return not data, beginning or data


if __name__ == "__main__":
    main()
