"""The page's server, asked as browsers and others ask."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from making import exception, span

from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.receiver.web import POLL_SECONDS, Web

TIMEOUT = 30.0
ENDPOINT = "http://127.0.0.1:4318/v1/traces"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(Traces(), ENDPOINT) as running:
        yield running


def port(web: Web) -> int:
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", web.url)
    assert match
    return int(match[1])


def get(web: Web, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port(web), timeout=TIMEOUT)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def news(web: Web, query: str = "") -> dict[str, Any]:
    status, _, body = get(web, f"/traces{query}")
    assert status == 200
    value: dict[str, Any] = json.loads(body)
    return value


def test_the_page_is_one_file_that_asks_nobody_else(web: Web) -> None:
    status, headers, body = get(web)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    # The namespace of the icon's SVG is a name, not an address.
    assert set(re.findall(rb"https?://[^'\"\s)]*", body)) <= {b"http://www.w3.org/2000/svg"}
    assert not re.search(rb"<(link rel=.?stylesheet|script src|iframe|img)", body)


def test_only_what_stands_in_the_page_may_run(web: Web) -> None:
    _, headers, body = get(web)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")
    for tag in ("script", "style"):
        match = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), body, re.DOTALL)
        assert match
        digest = base64.b64encode(hashlib.sha256(match[1]).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_every_answer_is_for_this_page_alone(web: Web) -> None:
    web.traces.add([span("a", "1")])
    for path, host in (("/", "localhost"), ("/traces", "localhost"), ("/nothing", "localhost"), ("/", "evil.example")):
        _, answered, _ = get(web, path, Host=host)
        assert answered["X-Content-Type-Options"] == "nosniff"
        assert answered["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answered["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in answered


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:4319"])
def test_loopback_by_any_name_is_served(web: Web, host: str) -> None:
    assert get(web, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.0.0.1:80:80", "192.0.2.1"]
)
@pytest.mark.parametrize("path", ["/", "/traces", "/traces/t1"])
def test_another_name_is_refused_as_dns_rebinding_needs_one(web: Web, host: str, path: str) -> None:
    web.traces.add([span("secret", "1")])
    status, _, body = get(web, path, Host=host)
    assert (status, b"secret" in body) == (403, False)
    assert body.startswith(b"the page is for this machine: open it as http://127.0.0.1")


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_the_page_of_another_site_gets_no_traces(web: Web, headers: dict[str, str]) -> None:
    web.traces.add([span("secret", "1")])
    for path in ("/traces", "/traces/t1"):
        status, _, body = get(web, path, **headers)
        assert (status, b"secret" in body) == (403, False)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(web: Web, method: str) -> None:
    status, headers, _ = get(web, method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_has_the_length_and_no_body(web: Web) -> None:
    _, headers, body = get(web, method="HEAD")
    assert (int(headers["Content-Length"]) > 10_000, body) == (True, b"")


@pytest.mark.parametrize("path", ["/nothing", "/traces/", "/traces/none", "/traces/../../etc/passwd", "/page.html"])
def test_nothing_else_is_served(web: Web, path: str) -> None:
    assert get(web, path)[0] == 404


@pytest.mark.parametrize(
    "query", ["", "?after=0", "?after=9999&store=another", "?after=x", "?after=-1&store=", "?after=%C2%B2"]
)
def test_who_knows_nothing_of_this_store_gets_everything_at_once(web: Web, query: str) -> None:
    web.traces.add([span("a", "1")])
    got = news(web, query)
    assert ([trace["name"] for trace in got["traces"]], got["endpoint"]) == (["a"], ENDPOINT)


def test_who_knows_everything_waits_until_something_comes(web: Web) -> None:
    web.traces.add([span("a", "1")])
    first = news(web)
    got: list[dict[str, Any]] = []
    query = f"?store={first['store']}&after={first['version']}"
    waiting = threading.Thread(target=lambda: got.append(news(web, query)))
    waiting.start()
    web.traces.add([span("b", "1", trace_id="t2")])
    waiting.join(TIMEOUT)
    assert [trace["name"] for trace in got[0]["traces"]] == ["b"]


def test_a_trace_has_its_spans(web: Web) -> None:
    web.traces.add([span("<b>", "1", attributes={"k": "<script>"})])
    status, headers, body = get(web, "/traces/t1")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    (got,) = json.loads(body)["spans"]
    assert (got["name"], got["attributes"]) == ("<b>", [["k", "<script>"]])


@pytest.mark.parametrize("nasty", [*map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)), "\x1b"])
def test_what_turns_the_direction_of_text_is_an_escape(web: Web, nasty: str) -> None:
    text = f"a{nasty}b"
    told: dict[str, Any] = {
        "attributes": {text: [text], "db.query.text": text, "http.route": text},
        "resource": {"service.name": text},
    }
    web.traces.add([span(text, "1", events=exception(text, text), status_code="ERROR", status_message=text, **told)])
    escape = nasty.encode("unicode_escape").decode()
    for path in ("/traces", "/traces/t1"):
        answer = json.dumps(json.loads(get(web, path)[2]), ensure_ascii=False)
        assert nasty not in answer
        assert f"a{json.dumps(escape)[1:-1]}b" in answer


def test_white_space_and_every_script_stay_as_they_are(web: Web) -> None:
    text = "a\n\tb 鯖 שלום مرحبا 👩\u200d💻"
    web.traces.add([span(text, "1", attributes={"k": text})])
    (got,) = json.loads(get(web, "/traces/t1")[2])["spans"]
    assert (got["name"], got["attributes"]) == (text, [["k", text]])


def test_a_body_is_refused_and_not_read(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", port(web)), timeout=TIMEOUT) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_many_who_wait_for_news_stop_nobody(web: Web) -> None:
    web.traces.add([span("a", "1")])
    first = news(web)
    head = f"GET /traces?store={first['store']}&after={first['version']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    waiting = [socket.create_connection(("127.0.0.1", port(web)), timeout=TIMEOUT) for _ in range(100)]
    try:
        for connection in waiting:
            # The oldest of those that were answered have been closed.
            with suppress(ConnectionError):
                connection.sendall(head)
        before = time.monotonic()
        assert get(web)[0] == 200
        assert time.monotonic() - before < POLL_SECONDS / 2
    finally:
        for connection in waiting:
            connection.close()


def test_leaving_the_block_ends_who_waits_for_news() -> None:
    with Web(Traces(), ENDPOINT) as web:
        first = news(web)
        connection = http.client.HTTPConnection("127.0.0.1", port(web), timeout=TIMEOUT)
        connection.request("GET", f"/traces?store={first['store']}&after={first['version']}")
        before = time.monotonic()
    assert time.monotonic() - before < 5
    connection.close()


def test_a_port_that_is_taken_is_an_error(web: Web) -> None:
    with pytest.raises(OSError, match="in use"), Web(Traces(), "", port(web)):
        pass
