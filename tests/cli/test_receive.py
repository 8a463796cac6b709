from __future__ import annotations

import argparse
import fcntl
import gzip
import http.client
import json
import os
import re
import resource
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import environment, gunicorn, wait_until

from mackerel_otel_server import settings
from mackerel_otel_server.cli import main
from mackerel_otel_server.cli import receive as receive_command
from mackerel_otel_server.cli.receiver import addresses
from mackerel_otel_server.cli.receiver.http_server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 30.0


class Running:
    """A ``mackerel-otel-server receive`` whose output can be waited for."""

    def __init__(self, process: subprocess.Popen[str], output: IO[str]) -> None:
        self.process = process
        # Some tests write megabytes: adding each line to one text would copy that text as often.
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        # A pseudo-terminal ends with an error.
        with suppress(OSError):
            self._lines.extend(output)

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + TIMEOUT
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"no {pattern!r} within {TIMEOUT} s in:\n{self.text}"
            threading.Event().wait(0.02)
        return match

    @property
    def port(self) -> int:
        return int(self.wait_for(r"receiving on http://127\.0\.0\.1:(\d+)/v1/traces")[1])

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        status = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return status


@contextmanager
def receive(folder: Path, *arguments: str, **env: str) -> Iterator[Running]:
    with subprocess.Popen(
        [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0", *arguments],
        cwd=folder,
        # As in an ordinary shell: with PYTHONUNBUFFERED a missing flush would not show.
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": ""} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        running = Running(process, process.stdout)
        try:
            yield running
        finally:
            running.end(signal.SIGKILL)  # before Popen closes the pipe that is read from


def send(port: int, *spans: tuple[str, int, int], trace: int = 1, path: str = "/v1/traces", key: str = "") -> int:
    """Send spans, each (name, its id, its parent's id or 0), and return the status."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "shop"
    resource_spans.resource.attributes.add(key="process.pid").value.int_value = 4711
    scope_spans = resource_spans.scope_spans.add()
    for name, number, parent in spans:
        span = scope_spans.spans.add(name=name, kind=2 if not parent else 3, trace_id=bytes([trace]) * 16)
        span.span_id = bytes([number]) * 8
        span.parent_span_id = bytes([parent]) * 8 if parent else b""
        span.start_time_unix_nano, span.end_time_unix_nano = number * 1_000_000, number * 3_000_000
    headers = {"Content-Type": "application/x-protobuf"} | ({"Mackerel-Api-Key": key} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("POST", path, request.SerializeToString(), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_trace_that_comes_in_parts_is_printed_as_one_tree(tmp_path: Path) -> None:
    with receive(tmp_path) as running:
        assert send(running.port, ("SELECT", 2, 1)) == 200
        assert send(running.port, ("GET /", 1, 0)) == 200
        running.wait_for(r"└─ CLIENT SELECT\n")
        assert re.search(r"shop  pid 4711 .*\n +2\.00 ms  SERVER GET /\n +4\.00 ms  └─ CLIENT SELECT", running.text)
        assert running.text.count("trace 0101") == 1
        assert running.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_what_is_still_held_and_the_counts(tmp_path: Path, number: signal.Signals) -> None:
    with receive(tmp_path) as running:
        port = running.port
        send(port, ("a", 1, 0), ("b", 2, 1), trace=1)
        send(port, ("c", 1, 0), trace=2)
        send(port, ("c", 1, 0), path="/elsewhere")
        assert running.end(number) == 0
        assert "SERVER a\n" in running.text
        assert "SERVER c\n" in running.text
        assert running.text.endswith("received 3 spans in 2 requests, refused 1 request\n")
        assert "Traceback" not in running.text


def test_a_connection_that_stays_open_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    with receive(tmp_path) as running, socket.create_connection(("127.0.0.1", running.port), timeout=TIMEOUT):
        assert running.end() == 0
        assert "received 0 spans in 0 requests\n" in running.text


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", port],
            cwd=tmp_path,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    for word in (port, "in use", "nothing is received", "mackerel-otel-server receive --port"):
        assert word in result.stderr


def test_without_require_key_no_key_is_needed(tmp_path: Path) -> None:
    with receive(tmp_path) as running:
        assert send(running.port, ("a", 1, 0)) == 200


def test_require_key_with_a_key_accepts_only_this_one_and_shows_none(tmp_path: Path) -> None:
    with receive(tmp_path, "--require-key", "the-right-key") as running:
        assert send(running.port, ("a", 1, 0), key="the-wrong-key") == 400
        running.wait_for(r"refused POST /v1/traces with 400: Invalid API Key \(it is not the one of --require-key\)\n")
        assert send(running.port, ("a", 1, 0)) == 400
        running.wait_for(r"Invalid API Key \(the request has no Mackerel-Api-Key\)\n")
        assert send(running.port, ("a", 1, 0), key="the-right-key") == 200
        assert running.end() == 0
        assert "received 1 span in 1 request, refused 2 requests\n" in running.text
        assert "the-wrong-key" not in running.text
        assert "the-right-key" not in running.text


def test_require_key_without_a_key_accepts_any(tmp_path: Path) -> None:
    with receive(tmp_path, "--require-key") as running:
        assert send(running.port, ("a", 1, 0)) == 400
        assert send(running.port, ("a", 1, 0), key="any") == 200


def test_a_refused_path_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with receive(tmp_path) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=TIMEOUT) as connection:
            connection.sendall(b"POST /\x1b[2J HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert b" 404 " in connection.recv(1000)
        running.wait_for(r"refused POST /\\x1b\[2J with 404")


def test_an_output_that_only_carries_ascii_gets_ascii(tmp_path: Path) -> None:
    with receive(tmp_path, PYTHONIOENCODING="ascii") as running:
        send(running.port, ("鯖", 1, 0), ("b", 2, 1))
        running.wait_for(r"SERVER \\u9bd6\n.*`- CLIENT b\n")


def test_a_reader_that_leaves_ends_it_without_a_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            match = re.search(r":(\d+)/v1", process.stdout.readline())
            assert match
            while process.stdout.readline().strip():
                pass
            process.stdout.close()
            send(int(match[1]), ("a", 1, 0))
            assert process.wait(TIMEOUT) == 1
            assert process.stderr.read() == ""
        finally:
            process.kill()


# A shell function that waits for a word in the file "out", and not for ever.
WAIT = "wait_for() { for _ in {1..600}; do grep -qs $1 out && break; sleep 0.05; done; }"


def in_shell(folder: Path, script: str, timeout: float = TIMEOUT) -> tuple[int, str]:
    """Run a script with ``$RECEIVE`` and return its status and what it and its children have written."""
    command = f"{shlex.quote(sys.executable)} -m mackerel_otel_server receive --port 0"
    result = subprocess.run(
        ["bash", "-c", f"{WAIT}\n{script}".replace("$RECEIVE", command)],
        cwd=folder,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return result.returncode, result.stdout


def test_a_reader_that_takes_one_line_and_leaves_ends_it_though_no_trace_comes(tmp_path: Path) -> None:
    status, output = in_shell(tmp_path, "set -o pipefail; $RECEIVE | head -1")
    assert (status, output.count("\n")) == (1, 1), output
    assert output.startswith("receiving on ")


@pytest.mark.parametrize("arguments", ["", "--json", "--web-port 0"])
def test_a_standard_output_that_is_closed_is_one_clear_line(tmp_path: Path, arguments: str) -> None:
    assert in_shell(tmp_path, f"$RECEIVE {arguments} >&-") == (
        1,
        "standard output is closed: nothing was done. Send it elsewhere, e.g. > /dev/null\n",
    )


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    line = "cannot write the output (No space left on device): make room, or send it elsewhere\n"
    assert in_shell(tmp_path, "$RECEIVE > /dev/full") == (1, line)


def test_a_disk_that_fills_up_later_is_one_clear_line(tmp_path: Path) -> None:
    with (
        (tmp_path / "out").open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0", "--json"],
            cwd=tmp_path,
            # Python would leave cut files in __pycache__, with which nothing could import that module any more.
            env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=output,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process,
    ):
        assert process.stderr is not None
        running = Running(process, process.stderr)
        try:
            port = running.port
            send(port, ("a", 1, 0))
            wait_until((tmp_path / "out").read_bytes, "the first span is written")
            # What a process may write to files is limited as on a disk. Python ignores SIGXFSZ.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
            send(port, ("b", 1, 0), trace=2)
            assert process.wait(TIMEOUT) == 1
            running.wait_for(r"cannot write the output \(File too large\): make room, or send it elsewhere\n")
            assert "Traceback" not in running.text
        finally:
            process.kill()


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-", "2> /dev/full"])
def test_other_streams_that_are_closed_or_full_do_no_harm(tmp_path: Path, closed: str) -> None:
    script = f"$RECEIVE {closed} > out & p=$!; wait_for terminal; kill -TERM $p; wait $p"
    assert in_shell(tmp_path, script) == (0, "")
    assert (tmp_path / "out").read_text().endswith("received 0 spans in 0 requests\n")


def test_it_outlives_its_terminal_under_nohup(tmp_path: Path) -> None:
    script = "nohup setsid $RECEIVE <&- > out 2>&1 & p=$!; wait_for terminal; kill -HUP $p; kill -TERM $p; wait $p"
    assert in_shell(tmp_path, script) == (0, "")
    assert (tmp_path / "out").read_text().endswith("received 0 spans in 0 requests\n")


@contextmanager
def receive_on_terminal(folder: Path, columns: int, **env: str) -> Iterator[Running]:
    """Run it on a pseudo-terminal of that width."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # How the tests themselves are run says nothing about that terminal.
    inherited = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS"}}
    with (
        os.fdopen(master, encoding="utf-8") as output,
        subprocess.Popen(
            [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0"],
            cwd=folder,
            env=inherited | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", "TERM": "xterm"} | env,
            stdout=slave,
            stderr=slave,
        ) as process,
    ):
        os.close(slave)
        running = Running(process, output)  # type: ignore[arg-type]
        try:
            yield running
        finally:
            running.end(signal.SIGKILL)


def test_a_terminal_gets_trees_in_colour(tmp_path: Path) -> None:
    with receive_on_terminal(tmp_path, 120) as running:
        send(running.port, ("GET /", 1, 0), ("SELECT", 2, 1))
        running.wait_for(r"\x1b\[1mSERVER GET /\x1b\[0m")
        running.wait_for(r"CLIENT SELECT")
        assert running.end() == 0


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_a_terminal_that_wants_no_colour_gets_none(tmp_path: Path, env: dict[str, str]) -> None:
    with receive_on_terminal(tmp_path, 120, **env) as running:
        send(running.port, ("GET /", 1, 0))
        running.wait_for(r"SERVER GET /")
        assert running.end() == 0
        assert "\x1b" not in running.text


def test_twenty_columns_are_enough(tmp_path: Path) -> None:
    with receive_on_terminal(tmp_path, 20, NO_COLOR="1") as running:
        send(running.port, ("GET /さば/{id}/and/more", 1, 0), ("SELECT", 2, 1))
        running.wait_for(r"2\.00 ms  GET /[^\n]*\.\.\.\r?\n")
        running.wait_for(r"4\.00 ms  └─ SELECT\r?\n")
        assert running.end() == 0
        assert "Traceback" not in running.text


def test_json_is_one_line_for_each_span_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0", "--json", "--web-port", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stderr is not None
        running = Running(process, process.stderr)
        try:
            port = running.port
            send(port, ("GET /鯖", 1, 0), ("SELECT", 2, 1))
            send(port, ("a\nb\x1b[2J", 3, 0), trace=2)
            send(port, ("a", 1, 0), path="/elsewhere")
            running.wait_for("refused POST /elsewhere with 404")
            assert running.end() == 0
            assert process.stdout is not None
            lines = process.stdout.read().split("\n")
        finally:
            process.kill()
    assert lines.pop() == ""
    spans = [json.loads(line) for line in lines]
    assert [span["name"] for span in spans] == ["GET /鯖", "SELECT", "a\nb\x1b[2J"]
    assert "鯖" in lines[0]
    assert "\x1b" not in lines[2]
    assert spans[1]["parent_span_id"] == spans[0]["span_id"]
    assert spans[0]["resource"] == {"service.name": "shop", "process.pid": 4711}


def test_web_serves_a_page_with_what_is_received(tmp_path: Path) -> None:
    with receive(tmp_path, "--web-port", "0") as running:
        page = int(running.wait_for(r"in a browser on this machine: http://127\.0\.0\.1:(\d+)/\n")[1])
        send(running.port, ("GET /", 1, 0))
        connection = http.client.HTTPConnection("127.0.0.1", page, timeout=TIMEOUT)
        connection.request("GET", "/traces")
        (trace,) = json.loads(connection.getresponse().read())["traces"]
        connection.close()
        assert (trace["name"], trace["worker"]["pid"]) == ("GET /", "4711")
        running.wait_for("SERVER GET /\n")
        assert running.end() == 0
        assert "Traceback" not in running.text


def test_a_port_of_the_page_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with receive(tmp_path, "--web-port", port) as running:
            assert running.process.wait(TIMEOUT) == 1
            running.wait_for(rf"cannot listen on 127\.0\.0\.1 port {port} \(Address already in use\): there is no page")
            assert "mackerel-otel-server receive --web-port 0\n" in running.text
            assert running.text.count("\n") == 1


@pytest.mark.parametrize("option", ["--port", "--web-port"])
@pytest.mark.parametrize("value", ["65536", "-1", "http", "", "²"])
def test_what_is_no_port_is_a_usage_error(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["receive", f"{option}={value}"])
    assert raised.value.code == 2
    assert "is no port: expected 0 to 65535" in capsys.readouterr().err


def ask(port: int, *parts: bytes) -> int:
    """Send bytes, as many as are taken, and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.read()
        return response.status


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /v1/traces HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def test_whatever_comes_instead_of_spans_is_one_line_and_the_next_request_is_received(tmp_path: Path) -> None:
    protobuf, gzipped = "Content-Type: application/x-protobuf", "Content-Encoding: gzip"
    bomb = gzip.compress(b"\0" * 100_000_000, 1)
    with receive(tmp_path) as running:
        port = running.port
        for status, message, parts in (
            (400, "the body is no ExportTraceServiceRequest", [head(protobuf, "Content-Length: 5"), b"hello"]),
            (400, "Content-Type must be", [head("Content-Type: application/json", "Content-Length: 2"), b"{}"]),
            (
                413,
                "more than 6000000 bytes",
                [head(protobuf, f"Content-Length: {len(bomb)}", gzipped), bomb],
            ),
            (400, "", [head(protobuf, "Transfer-Encoding: chunked"), b"zz\r\n"]),
        ):
            assert ask(port, *parts) == status
            running.wait_for(f"refused POST /v1/traces with {status}: .*{message}")
        assert send(port, ("a", 1, 0)) == 200
        assert running.end() == 0
        assert "refused 4 requests\n" in running.text
        assert "Traceback" not in running.text


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_hundred_megabytes_are_refused_and_not_held(tmp_path: Path, chunked: bool) -> None:
    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000000"
    part = b"x" * 1_000_000
    with receive(tmp_path) as running:
        port = running.port
        send(port, ("a", 1, 0))
        before = most_memory(running.process)
        parts = [b"%x\r\n%s\r\n" % (len(part), part) if chunked else part] * 100
        assert ask(port, head("Content-Type: application/x-protobuf", framing), *parts) == 413
        assert most_memory(running.process) - before < 30_000_000
        running.wait_for("with 413: the request has more than 6000000 bytes")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
@pytest.mark.parametrize("key", [False, True], ids=["any key", "this key"])
def test_the_command_that_it_shows_leads_to_it(tmp_path: Path, host: str, key: bool) -> None:
    arguments = ["--host", host, *(["--require-key", "made-up"] if key else [])]
    with receive(tmp_path, *arguments, "--web-port", "0") as running:
        page = running.wait_for(r"in a browser on this machine: (http://127\.0\.0\.1:\d+/)\n")[1]
        shown = running.wait_for(r"\n  (\w+=http://.*) gunicorn -c python:mackerel_otel_server\.conf mysite\.wsgi\n")[1]
        with urllib.request.urlopen(f"{page}traces", timeout=TIMEOUT) as answer:
            assert json.load(answer)["variables"] == shown
        variables = dict(word.split("=", 1) for word in shown.replace("=...", "=made-up").split())
        assert set(variables) == {"MACKEREL_OTEL_ENDPOINT", "MACKEREL_APIKEY"}
        assert "other machine" not in running.text
        with gunicorn(tmp_path, env=environment(None, OTEL_BSP_SCHEDULE_DELAY="100", **variables), workers=1) as server:
            server.get("/pid")
            running.wait_for("SERVER GET /pid")


class Told:
    """An output, of which only what it is told is looked at."""

    def __init__(self) -> None:
        self.text = ""

    def tell(self, line: str = "", *_styles: str) -> None:
        self.text += f"{line}\n"


OTHERS = ["0.0.0.0", "::", "", "192.0.2.7", "2001:db8::7", "traces.example.com"]


def greeting(*arguments: str) -> tuple[str, str, receive_command.Key]:
    """Return what it says with these arguments, without listening: tests listen on loopback only."""
    parser = argparse.ArgumentParser()
    receive_command.add_arguments(parser)
    args = parser.parse_args(arguments)
    key = receive_command.key_of(args)
    endpoint = addresses.url(receive_command.host_of(args, key), 4318)
    told = Told()
    receive_command.greet(told, endpoint, None, key, args)  # type: ignore[arg-type]
    assert urlsplit(endpoint).hostname not in {"0.0.0.0", "::", ""}
    assert ("and every other address of this machine" in told.text) == (args.host in {"0.0.0.0", "::", ""})
    return told.text, endpoint, key


@pytest.mark.parametrize("host", OTHERS)
def test_with_no_key_the_command_is_one_for_other_machines(host: str) -> None:
    text, endpoint, key = greeting("--host", host, "--no-key")
    assert key.required is None
    alone = urlsplit(endpoint).hostname in {"127.0.0.1", "::1"}  # a machine without a network
    assert ("or on another machine" in text) != alone
    # No key goes to another machine over http: an application that had one would be off.
    name = "MACKEREL_OTEL_ENDPOINT" if alone else "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    assert f"\n  {name}={endpoint} " in text
    assert ("MACKEREL_APIKEY=" in text) == alone
    assert settings.read({name: endpoint, **({"MACKEREL_APIKEY": "made-up"} if alone else {})}).endpoint == endpoint


@pytest.mark.parametrize("host", OTHERS)
@pytest.mark.parametrize("arguments", [(), ("--require-key", "the-key"), ("--require-key",)])
def test_where_other_machines_reach_it_a_key_is_asked_for(host: str, arguments: tuple[str, ...]) -> None:
    text, endpoint, key = greeting("--host", host, "--port", "4444", *arguments)
    assert key.required is not None
    is_typed = len(arguments) > 1
    assert key.required == arguments[1] if is_typed else len(key.required) == 44
    assert "the-key" not in text
    assert f"need the header Mackerel-Api-Key: {'...' if is_typed else key.required}\n" in text
    quoted = host or "''"
    assert f"\n  mackerel-otel-server receive --host {quoted} --port 4444 --no-key\n" in text
    # A command is shown only where the key goes.
    on_this_machine = urlsplit(endpoint).hostname in {"127.0.0.1", "::1"}
    command = f"\n  MACKEREL_OTEL_ENDPOINT={endpoint} MACKEREL_APIKEY={'...' if is_typed else key.required} gunicorn"
    assert (command in text) == on_this_machine == (host in {"0.0.0.0", "::", ""})
    assert ("gunicorn" in text) == on_this_machine


@pytest.mark.parametrize(("typed", "meant"), [("0", "0.0.0.0"), ("0x0", "0.0.0.0"), ("0.0", "0.0.0.0"), ("::0", "::")])
def test_every_spelling_of_all_addresses_is_greeted_as_the_usual_one(typed: str, meant: str) -> None:
    text, endpoint, _ = greeting("--host", typed, "--no-key")
    assert (text, endpoint) == greeting("--host", meant, "--no-key")[:2]
    assert " and every other address of this machine, " in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_on_loopback_no_key_is_asked_for(host: str) -> None:
    text, _, key = greeting("--host", host)
    assert key.required is None
    assert "other machine" not in text


def test_a_key_that_nobody_else_knows_is_made_anew_each_time() -> None:
    assert greeting("--host", "0.0.0.0")[2] != greeting("--host", "0.0.0.0")[2]


def test_an_empty_key_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["receive", "--host", "0.0.0.0", "--require-key", ""])
    assert raised.value.code == 2
    assert "the key is empty" in capsys.readouterr().err


def test_a_key_and_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["receive", "--require-key", "a", "--no-key"])
    assert raised.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


# Loopback by a name that says nothing of it, as an address of another machine's network says nothing.
ELSEWHERE = "127.1"


def test_the_key_that_it_has_made_is_the_one_that_is_taken(tmp_path: Path) -> None:
    with receive(tmp_path, "--host", ELSEWHERE) as running:
        port = int(running.wait_for(r"receiving on http://127\.1:(\d+)/v1/traces, Ctrl-C ends\.\n")[1])
        key = running.wait_for(r"need the header Mackerel-Api-Key: ([\w-]{44})\n")[1]
        assert send(port, ("a", 1, 0)) == 400
        running.wait_for(r"Invalid API Key \(the request has no Mackerel-Api-Key\)\n")
        assert send(port, ("a", 1, 0), key="another") == 400
        running.wait_for(r"Invalid API Key \(it is not the one shown above\)\n")
        assert send(port, ("a", 1, 0), key=key) == 200


def test_no_key_takes_everybodys_spans(tmp_path: Path) -> None:
    with receive(tmp_path, "--host", ELSEWHERE, "--no-key") as running:
        port = int(running.wait_for(r"receiving on http://127\.1:(\d+)/v1/traces")[1])
        assert send(port, ("a", 1, 0)) == 200


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["trees", "json"])
def test_an_output_that_nobody_reads_holds_up_nobody_and_what_is_left_out_is_counted(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = Running(process, process.stderr)
        try:
            first = errors.wait_for(r".*\n")[0] if arguments else process.stdout.readline()
            port = int(re.search(r":(\d+)/v1/traces", first)[1])  # type: ignore[index]
            body = many_traces(60, "x" * 10_000)
            assert post(port, body) == 200
            before = most_memory(process)
            for _ in range(99):
                assert post(port, body) == 200
            assert most_memory(process) - before < 40_000_000
            output = Running(process, process.stdout)
            told = errors if arguments else output
            gap = told.wait_for(r"(\d+) traces? \((\d+) spans\) were not shown: they came faster than .* was read\.")
            # A trace that comes after the gap is shown again.
            assert send(port, ("afterwards", 1, 0), trace=7) == 200
            output.wait_for("afterwards")
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT) == 0
            told.wait_for(r"received 6001 spans in 101 requests\n")
            assert int(gap[1]) == 60
            assert output.text.count("GET /many") == 6_000 - int(gap[2])
        finally:
            process.kill()


def many_traces(number: int, text: str) -> bytes:
    """Return a request with a span of each of so many traces."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for trace in range(1, number + 1):
        span = spans.add(name="GET /many", trace_id=trace.to_bytes(16, "big"), span_id=trace.to_bytes(8, "big"))
        span.attributes.add(key="text").value.string_value = text
    body: bytes = request.SerializeToString()
    return body


def post(port: int, body: bytes, *, gzipped: bool = False) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    headers = {"Content-Type": "application/x-protobuf"} | ({"Content-Encoding": "gzip"} if gzipped else {})
    try:
        connection.request("POST", "/v1/traces", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def most_memory(process: subprocess.Popen[str]) -> int:
    """Return the most memory that a process has had, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def test_a_thousand_connections_that_say_nothing_stop_nobody(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    silent: list[socket.socket] = []
    try:
        with receive(tmp_path) as running:
            port = running.port
            silent += [socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) for _ in range(1000)]
            assert send(port, ("a", 1, 0)) == 200
            running.wait_for("SERVER a\n")
            threads = re.search(r"Threads:\s+(\d+)", Path(f"/proc/{running.process.pid}/status").read_text())
            assert threads
            assert int(threads[1]) <= Server.most_connections + 10
            assert running.end() == 0
            assert "Traceback" not in running.text
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def with_spans(number: int, service: str = "shop", scope: str = "tests") -> tuple[ExportTraceServiceRequest, Any]:
    """Return a request and its spans."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = service
    resource_spans.scope_spans.add().scope.name = scope
    spans = resource_spans.scope_spans[0].spans
    for _ in range(number):
        spans.add(name="GET /", kind=2, trace_id=b"\1" * 16, span_id=os.urandom(8))
    return request, spans


def of_many(number: int, **shared: str) -> bytes:
    body: bytes = with_spans(number, **shared)[0].SerializeToString()
    return body


def of_one_span(text: str, attributes: int) -> bytes:
    request, (span,) = with_spans(1)
    for number in range(attributes):
        span.attributes.add(key=f"k{number}").value.string_value = text
    body: bytes = request.SerializeToString()
    return body


# Each has 6 to 10 kB of gzip. Before there were limits: seconds of CPU, gigabytes of output or of memory.
AMPLIFIED = {
    "service": lambda: of_many(400, service="x" * 5_000_000),
    "scope": lambda: of_many(400, scope="x" * 5_000_000),
    "texts": lambda: of_one_span("x" * 58_000, 100),
    "control characters": lambda: of_one_span("\1" * 58_000, 100),
    "wide characters": lambda: of_one_span("\N{FISH}" + "x" * 5_800_000, 1),
}


def used(process: subprocess.Popen[str]) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("arguments", [("--json",), (), ("--web-port", "0")], ids=["json", "trees", "web"])
@pytest.mark.parametrize("kind", AMPLIFIED)
def test_a_few_kilobytes_cost_no_more_than_kilobytes_may(tmp_path: Path, kind: str, arguments: tuple[str, ...]) -> None:
    body = gzip.compress(AMPLIFIED[kind]())
    assert len(body) < 11_000
    with (
        (tmp_path / "out").open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "mackerel_otel_server", "receive", "--port", "0", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            said = (tmp_path / "out").read_text
            wait_until(lambda: "/v1/traces" in said() and said().count("\n") > 2, "it receives")
            port = int(re.findall(r":(\d+)/v1/traces", said())[0])
            send(port, ("first", 1, 0), trace=9)
            memory, cpu = most_memory(process), used(process)
            # Without bounds it would write until the disk is full.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
            answers: list[int] = []
            senders = [
                threading.Thread(target=lambda: answers.append(post(port, body, gzipped=True))) for _ in range(24)
            ]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join(TIMEOUT)
            assert answers == [200] * 24
            if page := re.search(r"browser on this machine: (http://\S+)", said()):
                with urllib.request.urlopen(f"{page[1]}traces", timeout=TIMEOUT) as answer:
                    news = answer.read()
                assert len(news) < 100_000
                with urllib.request.urlopen(f"{page[1]}traces/{'01' * 16}", timeout=TIMEOUT) as answer:
                    assert len(answer.read()) < 30_000_000
            process.send_signal(signal.SIGINT)
            # Everything is printed before it ends.
            deadline = time.monotonic() + TIMEOUT
            memory_after, cpu_after = memory, cpu
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError, AssertionError):
                    memory_after, cpu_after = most_memory(process), used(process)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
            assert process.returncode == 0
            assert memory_after - memory < 200_000_000
            assert cpu_after - cpu < 10
            # An escaped character has six times as many.
            assert (tmp_path / "out").stat().st_size < 24 * (6 * 150 * len(body) + 1_000_000)
            assert re.search(r"received \d+ spans? in 25 requests\n", said()[-1000:])
        finally:
            process.kill()


def test_text_is_cut_on_every_output_unless_all_is_asked_for(tmp_path: Path) -> None:
    request, (span,) = with_spans(1)
    span.name = "n" * 60_000
    body = request.SerializeToString()
    for arguments, length in (((), 50_000), (("--full",), 60_000)):
        with receive(tmp_path, "--json", "--web-port", "0", *arguments) as running:
            page = running.wait_for(r"browser on this machine: (http://\S+)")[1]
            assert post(running.port, body) == 200
            running.wait_for(rf'"name": "n{{{length}}}["\.]')
            assert ("... (10000 more characters)" in running.text) == (not arguments)
            with urllib.request.urlopen(f"{page}traces/{'01' * 16}", timeout=TIMEOUT) as answer:
                (got,) = json.load(answer)["spans"]
            assert got["name"].count("n") == length
        with receive(tmp_path, *arguments) as running:
            assert post(running.port, body) == 200
            running.wait_for(r"SERVER n{60000}\n" if arguments else r"SERVER n{97}\.\.\.\n")


def test_large_bodies_that_do_not_end_are_not_held_and_stop_nobody(tmp_path: Path) -> None:
    opening = head("Content-Type: application/x-protobuf", "Content-Length: 6000000")
    slow: list[socket.socket] = []
    with receive(tmp_path) as running:
        port = running.port
        assert send(port, ("a", 1, 0)) == 200
        before = most_memory(running.process)
        try:
            for _ in range(60):
                connection = socket.create_connection(("127.0.0.1", port), timeout=0.3)
                slow.append(connection)
                # As much as is taken: all of the first few, of the others what the system keeps.
                with suppress(OSError):
                    connection.sendall(opening + b"x" * 5_900_000)
            assert post(port, of_one_span("x" * 10_000, 100)) == 200
            assert most_memory(running.process) - before < 100_000_000
        finally:
            for connection in slow:
                connection.close()
        assert running.end() == 0
        assert "Traceback" not in running.text
