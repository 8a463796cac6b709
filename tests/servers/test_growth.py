"""Nothing that a client sends stays in a worker: its memory is that of the untouched server, whatever was sent."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from servers import Server, environment, gunicorn, wait_until

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.settings.http_options import HttpOptions
from mackerel_otel_server.tracing.requests.http_attributes import request_attributes

MB = 1_000_000
REQUESTS = 300
MORE = 5 * MB
"""Bytes that a traced worker may grow by more than an untouched one."""
ALL_HEADERS = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST"


@contextmanager
def serving(folder: Path, receiver: Receiver | None, **variables: str) -> Iterator[Server]:
    """Run a worker that takes headers of any length, as uvicorn's does where httptools is installed."""
    folder.mkdir()
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="100", **variables)
    options = ("--worker-class", "uvicorn_worker.UvicornWorker")
    conf = None if receiver is None else "python:mackerel_otel_server.conf"
    with gunicorn(folder, *options, env=env, conf=conf, app="asgi_plain:application", workers=1) as server:
        yield server


def memory(pid: int) -> int:
    """Return the bytes of a process that are its own."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def growth(server: Server, receiver: Receiver | None, requests: Iterator[Mapping[str, str]]) -> int:
    """Return by how many bytes a worker has grown when all is answered and all spans have arrived."""
    pid = int(server.get("/pid").body)
    before = memory(pid)
    for headers in requests:
        assert server.get("/", headers=headers).status == 200
    if receiver is not None:
        wait_until(lambda: len(receiver.spans) >= server.answered, "all spans arrive", lambda: server.log)
    return memory(pid) - before


def hosts() -> Iterator[Mapping[str, str]]:
    for number in range(REQUESTS):
        yield {"Host": f"{number}.{'x' * MB}"}


def test_hosts_of_a_megabyte_are_not_kept(tmp_path: Path, receiver: Receiver) -> None:
    with serving(tmp_path / "untouched", None) as server:
        untouched = growth(server, None, hosts())
    with serving(tmp_path / "traced", receiver) as server:
        traced = growth(server, receiver, hosts())
    # As long as whole hosts were kept, 300 of them took a worker from 30 to 603 MB.
    assert traced - untouched < MORE, (traced, untouched)


def many_names() -> Iterator[Mapping[str, str]]:
    for number in range(16):
        few = {f"X-{number}-{name}-{'x' * (MB // 4)}": "1" for name in range(4)}
        yield few | {f"Y-{number}-{name}": "y" * 4000 for name in range(1000)}


def test_thousands_of_names_neither_fill_the_log_nor_drive_out_what_a_span_says(
    tmp_path: Path, receiver: Receiver
) -> None:
    with serving(tmp_path / "traced", receiver, **{ALL_HEADERS: ".*"}) as server:
        growth(server, receiver, many_names())
        log = server.stop()
    for span in receiver.spans:
        assert {"http.request.method", "url.path", "http.response.status_code"} <= set(span.attributes)
        assert len(span.attributes) < 128
        assert max(map(len, span.attributes)) < 300
    # The SDK wrote a line for each attribute that it dropped: 15,000 of these requests.
    assert len(log) < 5_000


def test_the_memory_for_hosts_is_bounded() -> None:
    most = {name: name[0] * MB for name in ("method", "scheme", "path", "query", "client", "version", "user_agent")}
    tracemalloc.start()
    for number in range(REQUESTS):
        request_attributes(HttpOptions(), host=f"{number}.{'é' * MB}:{number}", is_unix=False, **most)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 512 whole hosts were 512 MB.
    assert size < 200_000
