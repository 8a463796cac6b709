"""What an ASGI application and its server say to each other is the same with and without the span around it."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.compatibility import is_double_callable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from uvicorn import Config

import mackerel_otel_server
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import log_ids, propagation, request

Message = dict[str, Any]
Spans = Callable[[], tuple[ReadableSpan, ...]]

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
BODY: Message = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"last"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Trace this process, and return what gives the spans that have ended since the last call."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(request, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(propagation, "_propagate", propagate)
    monkeypatch.setattr(on_or_off, "active", True)
    monkeypatch.setattr(on_or_off, "_asked_in_pid", os.getpid())

    def ended() -> tuple[ReadableSpan, ...]:
        finished = exporter.get_finished_spans()
        exporter.clear()
        return finished

    yield ended
    provider.shutdown()


def scope_of(**values: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a",
        "raw_path": b"/a",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example.com")],
        "client": ("192.0.2.1", 1234),
        "server": ("127.0.0.1", 8000),
        **values,
    }


class Server:
    """As strict as the specification allows a server to be."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if "http.response.start" in [sent["type"] for sent in self.sent]:
            if message["type"] == "http.response.start":
                raise RuntimeError("two starts")
        elif message["type"].startswith("http.response.body"):
            raise RuntimeError("a body before the start")
        if message.get("client has left"):
            raise ConnectionResetError
        self.sent.append(message)

    def run(self, application: Any, scope: dict[str, Any]) -> BaseException | None:
        """Serve one request; return what the application raised."""
        try:
            asyncio.run(application(scope, self.receive, self.send))
        except BaseException as error:
            return error
        return None


def sender(*messages: Message | BaseException) -> Any:
    """Return an application that sends messages, or raises."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            if isinstance(message, BaseException):
                raise message
            await send(message)

    return application


def run(*messages: Message | BaseException, **values: Any) -> None:
    """Compare what happens without us with what happens with us."""
    plain, traced = Server(), Server()
    errors = (
        plain.run(sender(*messages), scope_of(**values)),
        traced.run(mackerel_otel_server.trace_asgi(sender(*messages)), scope_of(**values)),
    )
    assert plain.sent == traced.sent
    assert repr(errors[0]) == repr(errors[1])


def test_orders_of_messages_and_what_the_span_says(spans: Spans) -> None:
    def result(*messages: Message | BaseException) -> tuple[Any, ...]:
        run(*messages)
        (span,) = spans()
        assert span.attributes is not None
        events = [dict(event.attributes or {})["exception.type"] for event in span.events]
        return span.attributes.get("http.response.status_code"), span.status.status_code.name, events

    assert result(START, LAST) == (200, "UNSET", [])
    assert result(START, BODY, BODY, LAST) == (200, "UNSET", [])
    assert result({**START, "status": 404}, LAST) == (404, "UNSET", [])
    assert result({**START, "status": 503}, LAST) == (503, "ERROR", [])
    # The page first, then the exception, as Starlette does.
    assert result({**START, "status": 500}, LAST, ValueError()) == (500, "ERROR", ["ValueError"])
    assert result(ValueError()) == (500, "ERROR", ["ValueError"])
    assert result(START, ValueError()) == (200, "ERROR", ["ValueError"])
    assert result(START, BODY, ValueError()) == (200, "ERROR", ["ValueError"])
    assert result(LAST) == (500, "ERROR", ["RuntimeError"])
    assert result(START, START) == (200, "ERROR", ["RuntimeError"])
    assert result() == (None, "UNSET", [])
    assert result(START) == (200, "UNSET", [])
    # After disconnect: the server's own exception, and no error of the application.
    assert result(START, {**BODY, "client has left": True}) == (200, "UNSET", [])
    # Awaited, not what ends this task; before 3.11 nobody can tell.
    uncaught = (500, "ERROR", ["asyncio.exceptions.CancelledError"])
    assert result(asyncio.CancelledError()) == (uncaught if sys.version_info >= (3, 11) else (None, "UNSET", []))
    assert result(SystemExit()) == (500, "ERROR", ["SystemExit"])


def test_what_fails_after_the_response_is_a_span_of_its_own_below_the_requests(spans: Spans) -> None:
    run(START, LAST, ValueError("late"))
    request_span, late = spans()
    assert (request_span.status.status_code.name, request_span.events) == ("UNSET", ())
    assert late.parent == request_span.context
    assert (late.kind.name, late.status.status_code.name, late.name) == ("INTERNAL", "ERROR", "after response")
    assert late.attributes == {"error.type": "ValueError"}
    (event,) = late.events
    assert (event.attributes or {})["exception.message"] == "late"
    assert late.start_time == request_span.end_time
    # It says that the client has left, or ends the server: no error of the application.
    for error in (ConnectionResetError, asyncio.CancelledError, SystemExit, GeneratorExit):

        async def application(_scope: Any, _receive: Any, send: Any, error: type[BaseException] = error) -> None:
            await send(START)
            await send(LAST)
            if error is ConnectionResetError:
                await send({**BODY, "client has left": True})
            raise error

        Server().run(mackerel_otel_server.trace_asgi(application), scope_of())
        assert len(spans()) == 1, error


@pytest.mark.parametrize("status", [200, 500])
def test_the_span_ends_before_the_last_part_is_passed_on(spans: Spans, status: int) -> None:
    ended: list[ReadableSpan] = []
    passed_on: list[tuple[int, int]] = []

    class Noting(Server):
        async def send(self, message: Message) -> None:
            ended.extend(spans())
            passed_on.append((len(ended), time.time_ns()))
            await super().send(message)

    Noting().run(mackerel_otel_server.trace_asgi(sender({**START, "status": status}, BODY, LAST)), scope_of())
    # That of an error page waits for the exception, which comes after the page.
    assert [count for count, _ in passed_on] == [0, 0, int(status == 200)]
    (span,) = [*ended, *spans()]
    assert (span.end_time or 0) <= passed_on[-1][1]


@pytest.mark.parametrize(
    "messages",
    [
        [{**START, "trailers": True}, LAST, {"type": "http.response.trailers", "headers": [], "more_trailers": False}],
        [START, {"type": "http.response.pathsend", "path": "/etc/hostname"}],
        [START, {"type": "http.response.zerocopysend", "file": 3}],
        [{"type": "http.response.informational", "status": 103, "headers": []}, START, LAST],
        [{"type": "http.response.push", "path": "/b", "headers": []}, START, LAST],
        [{"type": "http.response.debug", "info": {}}, START, LAST],
    ],
    ids=["trailers", "pathsend", "zerocopysend", "informational", "push", "debug"],
)
def test_messages_of_extensions_pass_through_and_the_last_one_ends_the_span(
    spans: Spans, messages: list[Message]
) -> None:
    run(*messages)
    (span,) = spans()
    assert (span.attributes or {})["http.response.status_code"] == 200
    seen: list[int] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            seen.append(len(spans()))
            await send(message)
        seen.append(len(spans()))

    Server().run(mackerel_otel_server.trace_asgi(application), scope_of())
    assert seen == [0] * len(messages) + [1]


def test_a_request_that_is_cancelled_has_no_error(spans: Spans) -> None:
    begun = asyncio.Event()

    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def cancel() -> None:
        server = Server()
        traced = mackerel_otel_server.trace_asgi(application)
        task = asyncio.create_task(traced(scope_of(), server.receive, server.send))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    (span,) = spans()
    assert (span.status.status_code.name, span.events) == ("UNSET", ())


def test_a_coroutine_that_is_thrown_away_ends_its_span(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.Future()

    server = Server()
    coroutine = mackerel_otel_server.trace_asgi(application)(scope_of(), server.receive, server.send)

    async def begin() -> None:
        context_of_its_own = __import__("contextvars").copy_context()
        context_of_its_own.run(coroutine.send, None)

    asyncio.run(begin())
    coroutine.close()
    (span,) = spans()
    assert (span.status.status_code.name, span.events) == ("UNSET", ())
    assert caplog.records == []


def test_the_handshake_of_a_websocket_may_be_denied_with_a_response(spans: Spans) -> None:
    messages: list[Message] = [
        {"type": "websocket.http.response.start", "status": 401, "headers": []},
        {"type": "websocket.http.response.body", "body": b"who?"},
    ]
    values: dict[str, Any] = {"type": "websocket", "scheme": "wss"}
    scope = scope_of(**values)
    del scope["method"]
    Server().run(mackerel_otel_server.trace_asgi(sender(*messages)), scope)
    (span,) = spans()
    expected = {"http.response.status_code": 401, "http.request.method": "GET", "url.scheme": "wss"}
    assert {name: (span.attributes or {}).get(name) for name in expected} == expected
    run({"type": "websocket.accept"}, {"type": "websocket.close", "code": 1011}, **values)
    (span,) = spans()
    assert (span.attributes or {})["http.response.status_code"] == 101


headers = st.lists(
    st.tuples(
        st.sampled_from([b"host", b"user-agent", b"traceparent", b"tracestate", b"baggage"]) | st.binary(max_size=5),
        st.binary(max_size=20),
    ),
    max_size=6,
)
scopes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"type": st.sampled_from(["http", "websocket"]), "path": st.text(max_size=20)},
    optional={
        "http_version": st.sampled_from(["1.0", "1.1", "2", "3"]),
        "method": st.sampled_from(["GET", "HEAD", "POST", "BREW"]) | st.text(max_size=10),
        "scheme": st.sampled_from(["http", "https", "ws", "wss", ""]),
        "raw_path": st.none() | st.binary(max_size=20),
        "query_string": st.binary(max_size=20),
        "root_path": st.sampled_from(["", "/", "/root"]) | st.text(max_size=5),
        "headers": headers | headers.map(tuple) | headers.map(lambda pairs: [list(pair) for pair in pairs]),
        "client": st.none() | st.just(("", 0)) | st.tuples(st.text(max_size=8), st.integers(0, 65535)),
        "server": st.none()
        | st.just(("/run/web.sock", None))
        | st.tuples(st.sampled_from(["shop.example.com", "::1"]), st.integers(0, 65535)),
        "state": st.just({}),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scope=scopes)
def test_any_scope_reaches_the_application_as_it_was_and_makes_one_span(
    spans: Spans, caplog: pytest.LogCaptureFixture, scope: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []

    async def application(scope: Any, _receive: Any, send: Any) -> None:
        seen.append(scope)
        await send(START)
        await send(LAST)

    before = dict(scope)
    server = Server()
    assert server.run(mackerel_otel_server.trace_asgi(application), scope) is None
    assert server.sent == [START, LAST]
    assert seen[0] is scope
    added = {request.KEY, log_ids.TRACE_ID, log_ids.SPAN_ID}
    assert {name: value for name, value in scope.items() if name not in added} == before
    (span,) = spans()
    assert span.kind is trace.SpanKind.SERVER
    assert "?" not in str((span.attributes or {})["url.path"])
    # OpenTelemetry's own propagators complain.
    assert not [record for record in caplog.records if not record.name.startswith("opentelemetry.")]


def test_addresses_that_can_be_read_only_once_are_left_to_the_application(spans: Spans) -> None:
    async def application(scope: Any, _receive: Any, send: Any) -> None:
        assert [*scope["server"], *scope["client"]] == ["127.0.0.1", 8000, "192.0.2.1", 1234]
        await send(START)
        await send(LAST)

    scope = scope_of(server=iter(("127.0.0.1", 8000)), client=iter(("192.0.2.1", 1234)))
    assert Server().run(mackerel_otel_server.trace_asgi(application), scope) is None
    (span,) = spans()
    assert "client.address" not in (span.attributes or {})


def test_headers_that_can_be_read_only_once_are_left_to_the_application(spans: Spans) -> None:
    async def application(scope: Any, _receive: Any, _send: Any) -> None:
        assert list(scope["headers"]) == [(b"host", b"a")]

    Server().run(mackerel_otel_server.trace_asgi(application), scope_of(headers=iter([(b"host", b"a")])))
    (span,) = spans()
    assert (span.attributes or {})["server.address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"raw_path": b"/caf%E9?secret"}, "/caf%E9"),
        ({"raw_path": b"/caf\xe9"}, "/caf%E9"),
        ({"raw_path": b"http://shop.example.com/a"}, "/a"),
        ({"raw_path": b"", "path": "/caf\xe9 \udcff"}, "/caf%C3%A9%20%3F"),
        ({"raw_path": None, "path": ""}, "/"),
    ],
)
def test_the_path_is_the_clients(spans: Spans, values: dict[str, Any], path: str) -> None:
    run(START, LAST, **values)
    (span,) = spans()
    assert (span.attributes or {})["url.path"] == path


def test_several_lines_of_a_header_are_one_list(spans: Spans) -> None:
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    lines = [(b"traceparent", parent), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    run(START, LAST, headers=lines)
    (span,) = spans()
    assert dict(span.context.trace_state) == {"a": "1", "b": "2"}
    # Which of two parents it is nobody can tell: https://www.w3.org/TR/trace-context/#multiple-traceparent-headers
    run(START, LAST, headers=[*lines, (b"traceparent", parent)])
    (span,) = spans()
    assert span.parent is None


def test_http_2_is_named(spans: Spans) -> None:
    run(START, LAST, http_version="2")
    (span,) = spans()
    assert (span.attributes or {})["network.protocol.version"] == "2"


def test_requests_one_after_the_other_in_one_task_have_nothing_in_common(spans: Spans) -> None:
    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.sleep(0)
        await send(LAST)

    traced = mackerel_otel_server.trace_asgi(application)

    async def connection() -> None:
        before = context.get_current()
        for _ in range(2):
            server = Server()
            await traced(scope_of(), server.receive, server.send)
            assert context.get_current() is before

    asyncio.run(connection())
    first, second = spans()
    assert first.context.trace_id != second.context.trace_id
    assert second.parent is None


@pytest.mark.parametrize("positional", [0, 1, 2, 3])
def test_a_server_may_call_by_keywords_as_daphne_does(spans: Spans, positional: int) -> None:
    class Application:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await sender(START, LAST)(scope, receive, send)

    for application in sender(START, LAST), Application():
        traced, server = mackerel_otel_server.trace_asgi(application), Server()
        names, values = ("scope", "receive", "send"), (scope_of(), server.receive, server.send)
        named = dict(zip(names[positional:], values[positional:], strict=True))
        asyncio.run(traced(*values[:positional], **named))
        assert (len(server.sent), len(spans())) == (2, 1)


def test_the_lifespan_and_the_second_version_of_asgi_pass_through(spans: Spans) -> None:
    got: list[Any] = []

    class Old:
        def __init__(self, scope: Any) -> None:
            got.append(scope)

        async def __call__(self, receive: Any, send: Any) -> None:
            got.extend((receive, send))

    async def lifespan(*args: Any) -> None:
        got.extend(args)

    scope = scope_of()
    receive, send = object(), object()
    asyncio.run(mackerel_otel_server.trace_asgi(Old)(scope)(receive, send))
    assert all(one is other for one, other in zip(got, (scope, receive, send), strict=True))
    got.clear()
    scope = {"type": "lifespan"}
    asyncio.run(mackerel_otel_server.trace_asgi(lifespan)(scope, receive, send))
    assert all(one is other for one, other in zip(got, (scope, receive, send), strict=True))
    assert list(scope) == ["type"]
    assert spans() == ()


async def function(scope: Any, receive: Any, send: Any) -> None:
    """Do nothing."""


class Instance:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Do nothing."""


class Either(Instance):
    async def __call__(self, scope: Any, receive: Any = None, send: Any = None) -> None:
        """Do nothing."""


class Second:
    def __init__(self, scope: Any) -> None:
        """Do nothing."""

    async def __call__(self, receive: Any, send: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize("application", [function, Instance(), Either(), Second], ids=["function", "1", "2", "class"])
@pytest.mark.parametrize("proxy", [False, True], ids=["itself", "proxy"])
def test_servers_still_see_which_interface_it_is(
    monkeypatch: pytest.MonkeyPatch, application: Any, proxy: bool
) -> None:
    from mackerel_otel_server.tracing.requests import asgi

    def seen(application: Any) -> tuple[Any, ...]:
        config = Config(application, log_config=None, proxy_headers=False)
        config.load()
        return (
            config.interface,
            is_double_callable(application),  # type: ignore[no-untyped-call]
            inspect.iscoroutinefunction(application),
            # Nobody calls these two of a class.
            inspect.isclass(application) or inspect.iscoroutinefunction(application.__call__),
            inspect.isclass(application) or inspect.signature(application),
        )

    untouched = seen(application)
    if proxy:
        # As Gunicorn's hook does where the class cannot be changed.
        from mackerel_otel_server.tracing.requests import wrapping

        monkeypatch.setattr(wrapping, "_WRAPPED", "as if no class were changed")
        traced = asgi.trace_callable(application)
    else:
        traced = mackerel_otel_server.trace_asgi(application)
    assert seen(traced) == untouched
