"""A receiver in a process of its own that costs next to nothing: it keeps each body as it is and answers 200.

As a program it prints its port, and a line of counts for each line that it reads; it ends with its standard input.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Counts:
    """What has arrived so far."""

    spans: int
    distinct: int
    requests: int
    unreadable: int


class Sink:
    """Run the receiver while the ``with`` block runs."""

    def __enter__(self) -> Self:
        """Start it and learn its port."""
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C reaches only the benchmark, which ends this process in order.
            start_new_session=True,
        )
        self.url = f"http://127.0.0.1:{int(self._ask(None))}/v1/traces"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        try:
            self._process.communicate(timeout=_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def count(self) -> Counts:
        """Decode what has arrived since the last time and return the sums."""
        return Counts(**json.loads(self._ask("count\n")))

    def _ask(self, line: str | None) -> str:
        assert self._process.stdin is not None  # noqa: S101 - PIPE
        assert self._process.stdout is not None  # noqa: S101 - PIPE
        if line:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the benchmark's receiver has ended")
        return answer


def main() -> None:
    """Receive until standard input ends."""
    bodies: deque[tuple[str, bytes]] = deque()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listener, bodies), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    identities: set[bytes] = set()
    spans = requests = unreadable = 0
    for _ in sys.stdin:
        while bodies:
            requests += 1
            try:
                found = _identities(*bodies.popleft())
            except Exception:
                unreadable += 1
                continue
            spans += len(found)
            identities.update(found)
        print(json.dumps(vars(Counts(spans, len(identities), requests, unreadable))), flush=True)
    # Connections that are still open are not waited for.
    os._exit(0)


def _accept(listener: socket.socket, bodies: deque[tuple[str, bytes]]) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(connection, bodies), daemon=True).start()


def _serve(connection: socket.socket, bodies: deque[tuple[str, bytes]]) -> None:
    with connection, connection.makefile("rb") as stream:
        while stream.readline():
            headers: dict[str, str] = {}
            while line := stream.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            bodies.append((headers.get("content-encoding", ""), stream.read(int(headers["content-length"]))))
            connection.sendall(_ANSWER)


def _identities(encoding: str, body: bytes) -> list[bytes]:
    # Not needed before the first count, i.e. not while something is measured.
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
    return [
        span.trace_id + span.span_id
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


if __name__ == "__main__":
    main()
