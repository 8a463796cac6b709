"""ASGI applications through real servers: Gunicorn's own worker class, uvicorn's for Gunicorn, and uvicorn itself."""

from __future__ import annotations

import http.client
import importlib.util
import inspect
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import fastapi
import pytest
import starlette
import uvicorn.server as uvicorn_server
from servers import (
    DEADLINE,
    Server,
    assert_one_server_span_per_request,
    environment,
    gunicorn,
    server_span,
    server_spans,
    uvicorn,
    wait_until,
)
from uvicorn.config import Config
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

# Gunicorn has an ASGI worker class of its own since release 25.
NATIVE = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []
WORKER_CLASSES = [*NATIVE, "uvicorn_worker.UvicornWorker"]
FASTAPI = tuple(map(int, fastapi.__version__.split(".")[:2]))
# The prefix that a router was made with counts for its WebSockets since then.
NESTED = [("asgi_fastapi", "/api/shops/acme/echo", "/api/shops/{shop}/echo")] if FASTAPI >= (0, 93) else []
# Older ones take the path that uvicorn gives them, which begins with the root path, for one of their own.
KNOWS_ROOT_PATH = tuple(map(int, starlette.__version__.split(".")[:2])) >= (0, 33)
LATE = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}

Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(params=[*WORKER_CLASSES, "uvicorn"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    """Run one worker with an application; each test runs through every kind of server."""

    @contextmanager
    def run(app: str, receiver: Receiver, **variables: str) -> Iterator[Server]:
        env = environment(receiver, **variables)
        if request.param == "uvicorn":
            (tmp_path / "door.py").write_text(
                "import mackerel_otel_server\n"
                "mackerel_otel_server.instrument()\n"
                f"from {app.partition(':')[0]} import {app.partition(':')[2]} as application\n"
                "application = mackerel_otel_server.trace_asgi(application)\n"
            )
            env["PYTHONPATH"] += f":{tmp_path}"
            with uvicorn(tmp_path, env=env, app="door:application") as server:
                yield server
        else:
            with gunicorn(tmp_path, "-k", request.param, env=env, app=app, workers=1) as server:
                yield server

    return run


def _exceptions(span: ReceivedSpan) -> list[Any]:
    return [event.attributes["exception.message"] for event in span.events if event.name == "exception"]


def _duration(span: ReceivedSpan) -> int:
    return span.end_time_unix_nano - span.start_time_unix_nano


@pytest.mark.parametrize("options", [["-k", name] for name in WORKER_CLASSES], ids=WORKER_CLASSES)
@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["plain", "preload"])
@pytest.mark.parametrize(
    "served",
    [
        ("asgi_plain:application", "GET"),
        ("asgi_plain:instance", "GET"),
        ("asgi_plain:make_application()", "GET"),
        ("asgi_starlette:application", "GET /pid"),
        ("asgi_fastapi:application", "GET /pid"),
        ("asgi_falcon:application", "GET /pid"),
        ("mysite.asgi", "GET /pid"),
    ],
)
def test_every_request_is_one_server_span_of_the_worker_that_answered(
    tmp_path: Path, receiver: Receiver, options: list[str], preload: list[str], served: tuple[str, str]
) -> None:
    app, name = served
    with gunicorn(tmp_path, *options, *preload, env=environment(receiver, **LATE), app=app) as server:
        pids = server.ask_every_worker(2, 10)
        assert receiver.spans == []
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert {span.name for span in server_spans(receiver.spans)} == {name}
    assert log.count(", lost 0") == 2, log
    assert "does not serve" not in log


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("app", ["asgi_traced:application", "traced_starlette:application"])
def test_instrument_in_the_application_loses_no_span_under_uvicorn(
    tmp_path: Path, receiver: Receiver, app: str, number: signal.Signals, workers: int
) -> None:
    (tmp_path / "traced_starlette.py").write_text(
        "import mackerel_otel_server\nmackerel_otel_server.instrument()\nfrom asgi_starlette import application\n"
    )
    env = environment(receiver, **LATE)
    env["PYTHONPATH"] += f":{tmp_path}"
    with uvicorn(tmp_path, "--workers", str(workers), env=env, app=app) as server:
        server.wait_for_log("Started server process", count=workers)
        pids = server.ask_every_worker(workers, 10)
        server.stop(number)
        server.wait_for_end_of_session()
    assert_one_server_span_per_request(receiver, server, pids)


def test_a_response_of_wsgi_that_uvicorn_does_not_close_is_a_span(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, **LATE)
    with uvicorn(tmp_path, "--interface", "wsgi", env=env, app="uvicorn_wsgi:application") as server:
        server.wait_for_log("Started server process")
        assert {server.get(f"/{number}").body for number in range(5)} == {b"error page"}
        log = server.stop()
    spans = server_spans(receiver.spans)
    assert sorted(str(span.attributes["url.path"]) for span in spans) == [f"/{number}" for number in range(5)], log
    assert {span.status_code for span in spans} == {"ERROR"}, spans


def test_a_request_has_what_mackerel_lists_it_by(serve: Serve, receiver: Receiver) -> None:
    with serve("asgi_starlette:application", receiver) as server:
        headers = {"User-Agent": "test/1.0", "Host": "shop.example.com:8080"}
        assert server.get("/acme/v/7?key=1&sig=secret", headers=headers).body == b"hello"
        server.stop()
    span = server_span(receiver, "/acme/v/7")
    assert span.name == "GET /{tenant}/v/{id:int}"
    expected = {
        "http.route": "/{tenant}/v/{id:int}",
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.query": "key=1&sig=REDACTED",
        "server.address": "shop.example.com",
        "server.port": 8080,
        "client.address": "127.0.0.1",
        "user_agent.original": "test/1.0",
        "network.protocol.version": "1.1",
    }
    assert {name: span.attributes.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "case",
    [
        ("asgi_starlette", "GET", "/files/a/b", 200, "/files/{path:path}"),
        ("asgi_starlette", "POST", "/pid", 405, "/pid"),
        ("asgi_starlette", "HEAD", "/pid", 200, "/pid"),
        ("asgi_starlette", "GET", "/acme/static/a.css", 200, "/{tenant}/static/{path}"),
        ("asgi_starlette", "GET", "/acme/none", 404, "/{tenant}/{path}"),
        ("asgi_starlette", "GET", "/none", 307, None),  # to the mount
        ("asgi_fastapi", "GET", "/api/shops/acme/items/3", 200, "/api/shops/{shop}/items/{number}"),
        ("asgi_fastapi", "GET", "/api/shops/acme/items/x", 422, "/api/shops/{shop}/items/{number}"),
        ("asgi_fastapi", "POST", "/api/shops/acme/items/3", 405, "/api/shops/{shop}/items/{number}"),
        ("asgi_fastapi", "GET", "/api/shops/acme/in/deep/4", 200, "/api/shops/{shop}/in/deep/{number}"),
        ("asgi_fastapi", "GET", "/t/acme/v/1", 200, "/t/{tenant}/v/{number}"),
        ("asgi_fastapi", "GET", "/none", 404, None),
        ("asgi_falcon", "GET", "/items/3", 200, "/items/{item:int}"),
        ("asgi_falcon", "POST", "/items/3", 405, "/items/{item:int}"),
        ("asgi_falcon", "GET", "/items/x", 404, None),
        ("mysite.asgi", "GET", "/own-async/3", 200, "/own-async/<int:number>"),
        ("mysite.asgi", "GET", "/none", 404, None),
    ],
)
def test_the_route_is_the_template_all_the_way(
    tmp_path: Path, receiver: Receiver, case: tuple[str, str, str, int, str | None]
) -> None:
    app, method, path, status, route = case
    options = ("-k", WORKER_CLASSES[0])
    with gunicorn(tmp_path, *options, env=environment(receiver), app=f"{app}:application", workers=1) as server:
        assert server.get(path, method).status == status
        server.stop()
    (span,) = server_spans(receiver.spans)
    assert span.attributes.get("http.route") == route
    assert span.name == (f"{method} {route}" if route else method)
    assert (span.attributes["url.path"], span.attributes["http.response.status_code"]) == (path, status)
    assert not span.events


def test_routes_of_another_host_are_known(serve: Serve, receiver: Receiver) -> None:
    with serve("asgi_starlette:application", receiver) as server:
        assert server.get("/host/1", headers={"Host": "api.example.com"}).status == 200
        server.stop()
    assert server_span(receiver, "/host/1").attributes["http.route"] == "/host/{id}"


@pytest.mark.parametrize("app", ["asgi_starlette:application", "asgi_fastapi:application"])
def test_the_servers_root_path_stands_before_the_route_once(tmp_path: Path, receiver: Receiver, app: str) -> None:
    (tmp_path / "door.py").write_text(
        "import mackerel_otel_server\n"
        "mackerel_otel_server.instrument()\n"
        f"from {app.partition(':')[0]} import application\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += f":{tmp_path}"
    path = "/acme/v/7" if "starlette" in app else "/t/acme/v/7"
    with uvicorn(tmp_path, "--root-path", "/behind", env=env, app="door:application") as server:
        assert server.get(path).status == (200 if KNOWS_ROOT_PATH else 404)
        server.stop()
    span = server_span(receiver, f"/behind{path}")
    if not KNOWS_ROOT_PATH:
        assert span.attributes["http.response.status_code"] == 404
        return
    assert span.attributes["http.route"] == (
        "/behind/{tenant}/v/{id:int}" if "starlette" in app else "/behind/t/{tenant}/v/{number}"
    )


@pytest.mark.parametrize(
    ("app", "path"),
    [
        ("asgi_plain:application", "/fail"),
        ("asgi_starlette:application", "/fail"),
        ("asgi_fastapi:application", "/fail"),
        ("asgi_falcon:application", "/fail"),
        ("mysite.asgi:application", "/fail"),
    ],
)
def test_an_exception_that_nobody_handles_is_an_event_of_the_span(
    serve: Serve, receiver: Receiver, app: str, path: str
) -> None:
    with serve(app, receiver) as server:
        assert server.get(path).status == 500
        server.stop()
    span = server_span(receiver, path)
    (event,) = span.events
    assert event.attributes["exception.type"] == "RuntimeError"
    assert event.attributes["exception.message"] in ("this route fails", "this view fails")
    assert any(f"in {name}\n" in event.attributes["exception.stacktrace"] for name in ("fail", "respond"))
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (500, "RuntimeError")
    assert span.status_code == "ERROR"


@pytest.mark.parametrize(
    ("app", "path", "status"),
    [
        ("asgi_starlette", "/teapot", 418),
        ("asgi_starlette", "/on-purpose", 410),
        ("asgi_fastapi", "/teapot", 418),
        ("asgi_falcon", "/teapot", 418),
    ],
)
def test_an_exception_that_the_application_handles_is_no_event(
    serve: Serve, receiver: Receiver, app: str, path: str, status: int
) -> None:
    with serve(f"{app}:application", receiver) as server:
        assert server.get(path).status == status
        server.stop()
    span = server_span(receiver, path)
    assert (span.attributes["http.response.status_code"], span.status_code, span.events) == (status, "UNSET", ())


@pytest.mark.parametrize(
    ("app", "path"),
    [
        ("asgi_plain:application", "/own"),
        ("asgi_starlette:application", "/own"),
        ("asgi_fastapi:application", "/own"),
        ("asgi_falcon:application", "/own"),
        ("mysite.asgi:application", "/own"),
        ("mysite.asgi:application", "/own-async/1"),
    ],
)
def test_spans_of_the_application_are_children_also_in_threads(
    serve: Serve, receiver: Receiver, app: str, path: str
) -> None:
    with serve(app, receiver) as server:
        assert server.get(path).status == 200
        server.stop()
    (own,) = (span for span in receiver.spans if span.name == "own")
    assert own.parent_span_id == server_span(receiver, path).span_id
    # FastAPI would make spans of its own, among them another server span.
    assert len([span for span in receiver.spans if span.name != "startup"]) == 2


@pytest.mark.parametrize("app", ["asgi_plain:application", "asgi_starlette:application"])
def test_what_runs_after_the_response_does_not_lengthen_the_span(serve: Serve, receiver: Receiver, app: str) -> None:
    with serve(app, receiver) as server:
        assert server.get("/afterwards").status == 200
        server.stop()
    span = server_span(receiver, "/afterwards")
    (after,) = (span for span in receiver.spans if span.name == "afterwards")
    assert after.parent_span_id == span.span_id
    assert _duration(after) >= 0.29e9
    assert _duration(span) < _duration(after)


def test_responses_in_parts_without_body_and_broken_ones(serve: Serve, receiver: Receiver) -> None:
    with serve("asgi_plain:application", receiver) as server:
        assert server.get("/stream").body == b"one two three"
        assert server.get("/stream", "HEAD").body == b""
        assert server.get("/empty").status == 204
        assert server.get("/missing").body == b"nothing here"
        with pytest.raises((http.client.HTTPException, AssertionError)):
            server.get("/broken")
        server.stop()
    spans = {(span.attributes["http.request.method"], span.attributes["url.path"]): span for span in receiver.spans}
    statuses = {key: span.attributes["http.response.status_code"] for key, span in spans.items()}
    assert statuses == {
        ("GET", "/stream"): 200,
        ("HEAD", "/stream"): 200,
        ("GET", "/empty"): 204,
        ("GET", "/missing"): 404,
        ("GET", "/broken"): 200,
    }
    broken = spans["GET", "/broken"]
    assert (broken.status_code, _exceptions(broken)) == ("ERROR", ["in the middle"])


def test_no_context_leaks_into_another_request(serve: Serve, receiver: Receiver) -> None:
    def ask(number: int) -> str:
        return server.get(f"/trace/{number}").body.decode()

    with serve("asgi_plain:application", receiver) as server:
        # On one connection, one after the other.
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        traces = {}
        for number in range(5):
            connection.request("GET", f"/trace/{number}")
            traces[f"/trace/{number}"] = connection.getresponse().read().decode()
        connection.close()
        # On many, at once.
        with ThreadPoolExecutor(16) as pool:
            for number, trace in zip(range(5, 100), pool.map(ask, range(5, 100)), strict=True):
                traces[f"/trace/{number}"] = trace
        server.stop()
    assert {span.attributes["url.path"]: span.trace_id for span in receiver.spans} == traces
    assert len(set(traces.values())) == 100
    assert not any(span.parent_span_id for span in receiver.spans)


def test_the_callers_trace_goes_on(serve: Serve, receiver: Receiver) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with serve("asgi_plain:application", receiver) as server:
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "tracestate": "a=b"}
        assert server.get("/trace/1", headers=headers).body.decode() == trace_id
        server.get("/trace/2", headers={"traceparent": "00-nonsense"})
        server.stop()
    first, second = server_span(receiver, "/trace/1"), server_span(receiver, "/trace/2")
    assert (first.trace_id, first.parent_span_id) == (trace_id, "b7ad6b7169203331")
    assert not second.parent_span_id


def test_excluded_urls_and_captured_headers(serve: Serve, receiver: Receiver) -> None:
    variables = {
        "OTEL_PYTHON_EXCLUDED_URLS": "own",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "x-.*",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": "x-path",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS": "x-secret",
    }
    with serve("asgi_plain:application", receiver, **variables) as server:
        server.get("/own")
        server.get("/stream", headers={"X-Shop": "caf\xe9", "X-Secret": "1"})
        server.stop()
    (span,) = receiver.spans
    assert span.attributes["http.request.header.x_shop"] == ["caf\xe9"]
    assert span.attributes["http.request.header.x_secret"] == ["[REDACTED]"]
    assert span.attributes["http.response.header.x_path"] == ["/stream"]


def test_a_client_that_leaves_is_no_error(serve: Serve, receiver: Receiver) -> None:
    with serve("asgi_starlette:application", receiver, OTEL_BSP_SCHEDULE_DELAY="50") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
            connection.sendall(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server_spans(receiver.spans), "the span", lambda: server.log)
        server.stop()
    (span,) = server_spans(receiver.spans)
    assert (span.status_code, span.events) == ("UNSET", ())


def test_a_websocket_session_is_one_span(serve: Serve, receiver: Receiver) -> None:
    with serve("asgi_plain:application", receiver) as server:
        with connect(f"ws://127.0.0.1:{server.port}/chat?a=1", open_timeout=DEADLINE) as session:
            session.send("hello")
            assert session.recv(DEADLINE) == "hello"
        with connect(f"ws://127.0.0.1:{server.port}/bad", open_timeout=DEADLINE) as session:
            session.send("fail")
            with pytest.raises(ConnectionClosed):
                session.recv(DEADLINE)
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{server.port}/refuse", open_timeout=DEADLINE)
        server.stop()
    chat, bad, refused = (server_span(receiver, path) for path in ("/chat", "/bad", "/refuse"))
    assert len(server_spans(receiver.spans)) == 3
    assert chat.name == "GET"
    assert (chat.attributes["http.request.method"], chat.attributes["http.response.status_code"]) == ("GET", 101)
    assert (chat.attributes["url.scheme"], chat.attributes["url.query"], chat.status_code) == ("ws", "a=1", "UNSET")
    assert refused.attributes["http.response.status_code"] == 403
    assert (bad.status_code, _exceptions(bad)) == ("ERROR", ["this session fails"])
    (own,) = (span for span in receiver.spans if span.name == "own")
    assert own.parent_span_id == chat.span_id


@pytest.mark.parametrize(
    ("app", "path", "route"),
    [
        ("asgi_starlette", "/echo/kitchen", "/echo/{room}"),
        ("asgi_starlette", "/acme/v/echo", "/{tenant}/v/echo"),
        ("asgi_fastapi", "/rooms/kitchen/echo", "/rooms/{room}/echo"),
        *NESTED,
        ("asgi_falcon", "/items/7", "/items/{item:int}"),
    ],
)
def test_a_websocket_session_has_a_route_and_its_end_is_no_error(
    serve: Serve, receiver: Receiver, app: str, path: str, route: str
) -> None:
    with serve(f"{app}:application", receiver, OTEL_BSP_SCHEDULE_DELAY="50") as server:
        with connect(f"ws://127.0.0.1:{server.port}{path}", open_timeout=DEADLINE) as session:
            session.send("hello")
            assert session.recv(DEADLINE) == "hello"
        wait_until(lambda: server_spans(receiver.spans), "the span", lambda: server.log)
        server.stop()
    (span,) = server_spans(receiver.spans)
    assert (span.name, span.attributes["http.route"]) == (f"GET {route}", route)
    assert (span.attributes["http.response.status_code"], span.status_code, span.events) == (101, "UNSET", ())


OTHERS = {
    "fastapi": "from asgi_fastapi import application\n"
    "from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor\n"
    "FastAPIInstrumentor.instrument_app(application, exclude_spans=['send', 'receive'])\n",
    "inside": "from asgi_starlette import application\n"
    "from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware\n"
    "application.add_middleware(OpenTelemetryMiddleware, exclude_spans=['send', 'receive'])\n",
    "outside": "from asgi_starlette import application as inner\n"
    "from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware\n"
    "application = OpenTelemetryMiddleware(inner, exclude_spans=['send', 'receive'])\n",
}


@pytest.mark.parametrize("other", OTHERS)
def test_where_the_application_is_instrumented_by_itself_that_makes_the_one_server_span(
    tmp_path: Path, receiver: Receiver, other: str
) -> None:
    (tmp_path / "door.py").write_text(OTHERS[other])
    env = environment(receiver)
    env["PYTHONPATH"] += f":{tmp_path}"
    with gunicorn(tmp_path, "-k", WORKER_CLASSES[0], env=env, app="door:application", workers=1) as server:
        assert [server.get("/own").status for _ in range(3)] == [200, 200, 200]
        log = server.stop()
    found = server_spans(receiver.spans)
    assert {span.scope.partition(".")[0] for span in found} == {"opentelemetry"}
    assert len(found) == 3
    own = [span for span in receiver.spans if span.name == "own"]
    assert {span.parent_span_id for span in own} == {span.span_id for span in found}
    assert log.count("makes the server spans of this application") == 1, log


def test_of_two_applications_in_one_only_the_instrumented_one_is_left_to_the_other(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "door.py").write_text(
        "from asgi_fastapi import application as instrumented\n"
        "from asgi_starlette import application as other\n"
        "from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor\n"
        "from starlette.applications import Starlette\n"
        "from starlette.routing import Mount\n"
        "FastAPIInstrumentor.instrument_app(instrumented, exclude_spans=['send', 'receive'], excluded_urls='teapot')\n"
        "application = Starlette(routes=[Mount('/a', instrumented), Mount('/b', other)])\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += f":{tmp_path}"
    with gunicorn(tmp_path, "-k", WORKER_CLASSES[0], env=env, app="door:application", workers=1) as server:
        for path in ["/a/own", "/b/own"] * 2:
            assert server.get(path).status == 200
        # Which requests the other one leaves out is for it to say.
        assert server.get("/a/teapot").status == 418
        server.stop()
    scopes = [span.scope.partition(".")[0] for span in server_spans(receiver.spans)]
    assert sorted(scopes) == ["mackerel_otel_server"] * 2 + ["opentelemetry"] * 2


def test_fastapi_makes_the_spans_itself_if_the_application_gave_it_a_provider(
    tmp_path: Path, receiver: Receiver
) -> None:
    if "telemetry" not in inspect.signature(fastapi.FastAPI).parameters:
        return  # This release makes none.
    (tmp_path / "door.py").write_text(
        "from fastapi import FastAPI\n"
        "from opentelemetry import trace\n"
        "application = FastAPI(telemetry={'tracer_provider': trace.get_tracer_provider()})\n"
        "application.get('/a/{b}')(lambda b: b)\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += f":{tmp_path}"
    with gunicorn(tmp_path, "-k", WORKER_CLASSES[0], env=env, app="door:application", workers=1) as server:
        assert server.get("/a/1").status == 200
        server.stop()
    (span,) = server_spans(receiver.spans)
    assert (span.scope, span.name) == ("fastapi", "GET /a/{b}")
    assert len(receiver.spans) > 1


def test_uvicorn_still_says_which_signal_ends_it() -> None:
    # What servers.uvicorn reads; without it every end of a server would end tracing in its process.
    # With a log_config, later tests in this process would miss our lines, which would go to Uvicorn's log.
    assert uvicorn_server.Server(Config("asgi_plain:application", log_config=None))._captured_signals == []  # noqa: SLF001
