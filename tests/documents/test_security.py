"""What the page on security says is what the code does."""

from __future__ import annotations

import inspect
import os
import re
import sqlite3
from pathlib import Path

import pytest
from documents import ENGLISH, JAPANESE, both, tables
from servers import environment, gunicorn, server_spans

from mackerel_otel_server.cli import _parser
from mackerel_otel_server.cli.receiver import http_server, web
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.pipeline import connection, oversized_spans, sender
from mackerel_otel_server.pipeline.encoder import Encoder
from mackerel_otel_server.settings.catalogue import MAX_QUEUE_SIZE
from mackerel_otel_server.settings.http_options import SECRET_HEADERS
from mackerel_otel_server.settings.masking import MARK
from mackerel_otel_server.tracing import exceptions
from mackerel_otel_server.tracing.databases import statements
from mackerel_otel_server.tracing.requests import http_attributes, propagation

SECURITY = ENGLISH["docs/security"]
PAGES = pytest.mark.parametrize("page", both("docs/security"))


def table(page: str, words: str) -> str:
    """Return the one table that holds these words."""
    (found,) = (one for one in tables(page) if words in one)
    return found


def row(page: str, words: str) -> str:
    """Return the one row of a table that holds these words."""
    (found,) = re.findall(rf"^(?=.*{re.escape(words)})\|.*$", page, re.MULTILINE)
    return str(found)


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d,]*\b(?![.:])", text)]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def test_both_languages_name_the_same() -> None:
    english, japanese = (
        sorted(set(code(page)) - {f"security{end}.md" for end in ("", ".ja")})
        for page in (SECURITY, JAPANESE["docs/security"])
    )
    assert english == japanese


@PAGES
def test_the_lengths_are_those_of_the_code(page: str) -> None:
    longest = propagation._LONGEST_OF  # noqa: SLF001
    assert numbers(table(page, "`tracestate`")) == [
        http_attributes.LONGEST_TEXT,
        http_attributes.LONGEST_ADDRESS,
        http_attributes._LONGEST_METHOD,  # noqa: SLF001
        *[http_attributes._MOST_HEADERS] * 2,  # noqa: SLF001
        longest["traceparent"],
        longest["tracestate"],
        propagation._LONGEST,  # noqa: SLF001
        propagation._MOST_MEMBERS,  # noqa: SLF001
        *exceptions._LONGEST.values(),  # noqa: SLF001
        statements.LIMIT,
        sender.BATCH_BYTES,
        oversized_spans._LONGEST,  # noqa: SLF001
        oversized_spans._MOST,  # noqa: SLF001
    ]
    assert numbers(table(page, "`OTEL_BSP_MAX_QUEUE_SIZE`")) == [
        int(MAX_QUEUE_SIZE.default),
        sender.QUEUE_BYTES,
        inspect.signature(Encoder).parameters["cache_bytes"].default,
        http_attributes._split_host.cache_parameters()["maxsize"],  # noqa: SLF001
        http_attributes.LONGEST_ADDRESS,
        statements._OPERATIONS_KEPT,  # noqa: SLF001
        statements._HEAD,  # noqa: SLF001
    ]
    assert numbers(row(page, "| `receive` |")) == [http_server.Server.most_connections]
    assert f"{connection._LARGEST_ANSWER // 1024} kB" in page  # noqa: SLF001


@PAGES
def test_the_names_that_are_masked_are_those_of_the_code(page: str) -> None:
    masked = table(page, "`AWSAccessKeyId`")
    keys = code(row(masked, "`AWSAccessKeyId`"))
    assert tuple(keys[: keys.index("REDACTED")]) == http_attributes._SECRET_KEYS  # noqa: SLF001
    headers = code(row(masked, "`Authorization`"))
    plain = {name.lower().replace("-", "_") for name in headers[1 : headers.index("[REDACTED]")]}
    assert plain == SECRET_HEADERS
    assert MARK in code(row(masked, "`OTEL_EXPORTER_OTLP_HEADERS`"))


def test_the_ports_are_those_of_the_code() -> None:
    options = _parser(["receive"]).parse_args(["receive"])
    assert f"`{options.host}:{options.port}`" in row(SECURITY, "| `mackerel-otel-server receive` |")
    assert f"`{web.HOST}:{web.DEFAULT_PORT}`" in row(SECURITY, "(`--web`)")


APPLICATION = """
import sqlite3
from flask import Flask, request
app = Flask(__name__)
@app.route("/<name>", methods=["GET", "BREW"])
def show(name):
    cursor = sqlite3.connect({file!r}).cursor()
    cursor.execute("SELECT ?", (request.form.get("field", "secret-parameter"),))
    if name == "fail":
        cursor.execute("SELECT nothing")
    return "secret-result", 200, {{"Set-Cookie": "a=secret-cookie"}}
"""


def test_what_leaves_the_machine_is_what_stands_there(tmp_path: Path, receiver: Receiver) -> None:
    sqlite3.connect(tmp_path / "shop.db").close()
    (tmp_path / "shopping.py").write_text(APPLICATION.format(file=str(tmp_path / "shop.db")))
    env = environment(receiver, SECRET="secret-environment")
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    headers = {
        "User-Agent": "curl",
        "Cookie": "a=secret-cookie",
        "X-Header": "secret-header",
        "baggage": "a=secret-baggage",
    }
    with gunicorn(tmp_path, env=env, workers=1, app="shopping:app") as server:
        for method, path in (("GET", "/fish?q=1"), ("GET", "/fail"), ("BREW", "/fish")):
            server.get(path, method, headers)
        server.stop()
    assert len(server_spans(receiver.spans)) == 3
    sent: set[str] = set()
    for span in receiver.spans:
        sent |= {*span.attributes, *span.resource}.union(*(event.attributes for event in span.events))
    documented = set(code(table(SECURITY, "`url.path`"))) - {"OTEL_RESOURCE_ATTRIBUTES"}
    assert sent == documented
    assert "secret" not in repr(receiver.spans)


CONFIGURATION = """
import sys
def _audit(event, args):
    if event == "open" and not (isinstance(args[2], int) and args[2] & 3):
        return
    if event not in ("open", "socket.bind", "subprocess.Popen", "os.fork", "os.mkdir"):
        return
    frame, files = sys._getframe(1), []
    while frame:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    if any("/mackerel_otel_server/" in file or "/opentelemetry/" in file for file in files):
        sys.stderr.write(f"AUDIT {event} {args[0]}\\n")
sys.addaudithook(_audit)
from mackerel_otel_server.gunicorn import install
install(globals())
"""


def test_a_worker_opens_no_port_writes_its_journal_only_and_starts_two_threads(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(CONFIGURATION)
    journal = os.environ["MACKEREL_OTEL_SPOOL"]
    # Without the instrumentation of threads, which is on the stack of whatever any thread of the server does.
    env = environment(receiver, PYTHONDONTWRITEBYTECODE="1", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="threading")
    with gunicorn(tmp_path, env=env, conf=None, workers=1) as server:
        for path in ("/own", "/query", "/fail"):
            server.get(path)
        threads = list(Path("/proc", server.get("/pid").body.decode(), "task").iterdir())
        log = server.stop()
    assert len(server_spans(receiver.spans)) == 4
    assert len(threads) == 1 + 2
    done = re.findall(r"^AUDIT (.*)$", log, re.MULTILINE)
    # The file's name is relative to the folder, and hidden until it is locked.
    assert [re.sub(r"[0-9a-f]{16}", "RANDOM", line) for line in done] == [f"os.mkdir {journal}", "open .RANDOM"], log
