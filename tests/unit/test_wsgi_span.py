"""The server span of a WSGI request, in this process: what no server lets through, and what none of them does."""

from __future__ import annotations

import gc
import io
import re
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from calling_wsgi import Body, Sent, environ, ok, tracing
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from mackerel_otel_server import trace_wsgi
from mackerel_otel_server.settings.catalogue import REQUEST_HEADERS, RESPONSE_HEADERS
from mackerel_otel_server.settings.http_options import HttpOptions, read_http_options
from mackerel_otel_server.settings.reader import Reader
from mackerel_otel_server.tracing.requests import log_ids, request

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"

Application = Callable[..., Any]


def serve(application: Application, made: dict[str, Any]) -> Sent:
    """Serve one request as PEP 3333 has it."""
    sent = Sent()
    try:
        body = application(made, sent.start_response)
        try:
            for chunk in body:
                sent.write(chunk)
        finally:
            if hasattr(body, "close"):
                body.close()
    except BaseException as error:
        sent.error = error
    return sent


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    ok(start_response)
    return [b"hello"]


def test_the_attributes_of_an_ordinary_request() -> None:
    with tracing() as spans:
        serve(trace_wsgi(hello), environ(PATH_INFO="/a b", QUERY_STRING="q=1&sig=secret", HTTP_USER_AGENT="curl/8"))
    assert spans.attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/a%20b",
        "url.query": "q=1&sig=REDACTED",
        "network.protocol.version": "1.1",
        "server.address": "shop.example.com",
        "server.port": 8000,
        "client.address": "192.0.2.1",
        "user_agent.original": "curl/8",
        "http.response.status_code": 200,
    }
    assert (spans.one.name, spans.one.kind) == ("GET", trace.SpanKind.SERVER)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"REQUEST_METHOD": "X" * 4096}, {"http.request.method": "_OTHER", "http.request.method_original": "X" * 64}),
        ({"REQUEST_METHOD": "get"}, {"http.request.method": "_OTHER", "http.request.method_original": "get"}),
        ({"RAW_URI": "/caf\xc3\xa9?q=\xff#x"}, {"url.path": "/caf%C3%A9"}),
        ({"RAW_URI": "/\xff\xfe%zz"}, {"url.path": "/%FF%FE%zz"}),
        ({"RAW_URI": "http://other.example.com/x?y"}, {"url.path": "/x"}),
        ({"RAW_URI": "*"}, {"url.path": "*"}),
        ({"RAW_URI": f"/{'a' * 3000}?b"}, {"url.path": f"/{'a' * 2047}"}),
        ({"RAW_URI": ..., "PATH_INFO": "/" + "\xff" * 3000}, {"url.path": ("/" + "%FF" * 3000)[:2048]}),
        ({"QUERY_STRING": "q" * 3000}, {"url.query": "q" * 2048}),
        ({"HTTP_USER_AGENT": "u" * 3000}, {"user_agent.original": "u" * 2048}),
        ({"HTTP_HOST": "h" * 3000}, {"server.address": "h" * 255, "server.port": 80}),
        ({"REMOTE_ADDR": "1" * 3000}, {"client.address": "1" * 255}),
        ({"RAW_URI": "//x//y"}, {"url.path": "//x//y"}),
        ({"REQUEST_URI": "/uwsgi?x"}, {"url.path": "/uwsgi"}),
        ({"PATH_INFO": "/\xff", "SCRIPT_NAME": "/s"}, {"url.path": "/s/%FF"}),
        ({"QUERY_STRING": "q=\xe3\x81\x82"}, {"url.query": "q=%E3%81%82"}),
        ({"SERVER_PORT": ..., "HTTP_HOST": ...}, {"server.address": "127.0.0.1", "server.port": 80}),
        ({"SERVER_PORT": "odd", "HTTP_HOST": ...}, {"server.address": "127.0.0.1", "server.port": 80}),
        ({"HTTP_HOST": "[::1]:8000"}, {"server.address": "::1", "server.port": 8000}),
        ({"SERVER_PROTOCOL": "HTTP/2.0"}, {"network.protocol.version": "2"}),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, {"network.protocol.version": "1.0"}),
        ({"SERVER_PROTOCOL": ...}, {"network.protocol.version": ""}),
        ({"HTTP_X_FORWARDED_FOR": "203.0.113.9"}, {"client.address": "192.0.2.1"}),
        ({"HTTP_X_FORWARDED_PROTO": "https"}, {"url.scheme": "http"}),
        ({"wsgi.url_scheme": "https", "HTTP_HOST": "shop"}, {"url.scheme": "https", "server.port": 443}),
        ({"HTTP_TRACEPARENT": "0" * 1_000_000}, {"url.path": "/"}),
        ({"HTTP_TRACEPARENT": TRACEPARENT, "HTTP_TRACESTATE": "a=b," * 250_000}, {"url.path": "/"}),
        ({"HTTP_BAGGAGE": "a=b," * 250_000}, {"url.path": "/"}),
        ({"HTTP_TRACEPARENT": "00-é-ü-01", "HTTP_TRACESTATE": "\xff", "HTTP_BAGGAGE": "%zz=;;,=,"}, {"url.path": "/"}),
    ],
)
def test_odd_requests(more: dict[str, Any], expected: dict[str, Any]) -> None:
    made = environ(**more)
    began = time.perf_counter()
    with tracing() as spans:
        assert serve(trace_wsgi(hello), made).body == b"hello"
        assert {name: spans.attributes[name] for name in expected} == expected
    assert time.perf_counter() - began < 1
    assert "?" not in spans.attributes["url.path"]
    assert spans.one.name == ("HTTP" if expected.get("http.request.method") == "_OTHER" else "GET")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("SIG=s3cret", "SIG=REDACTED"),
        ("a=1;Signature=s3cret&b=2", "a=1;Signature=REDACTED&b=2"),
        ("x-amz-signature=s3cret", "x-amz-signature=REDACTED"),
        ("s%69g=s3cret", "s%69g=REDACTED"),
        ("%53%49%47=s3cret&awsaccesskeyid=s3cret", "%53%49%47=REDACTED&awsaccesskeyid=REDACTED"),
        ("X%2DGoog%2dSignature=s3cret&X%2damz%2Dcredential=s3cret%26", None),
        ("a?sig=s3cret", "a?sig=REDACTED"),
        ("design=1&sigma=2&mysig=3&sig", "design=1&sigma=2&mysig=3&sig"),
    ],
)
def test_the_value_of_a_signature_is_redacted_however_its_name_is_written(typed: str, shown: str | None) -> None:
    with tracing(HttpOptions(old_names=True)) as spans:
        serve(trace_wsgi(hello), environ(QUERY_STRING=typed))
        attributes = spans.attributes
    assert "s3cret" not in f"{attributes}"
    assert shown in {None, attributes["url.query"]}
    assert attributes["http.target"] == f"/?{attributes['url.query']}"


CREDENTIALS = ("Authorization", "Cookie", "Set-Cookie", "Proxy-Authorization", "X-Api-Key")


def captured(request_pattern: str, response_pattern: str) -> dict[str, Any]:
    """Return the attributes of a request, and a response, with all headers that hold credentials."""
    options = read_http_options(
        Reader({REQUEST_HEADERS.name: request_pattern, RESPONSE_HEADERS.name: response_pattern}), (), ()
    )

    def application(_: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("X-Shop", "2"), *((name.lower(), "s3cret") for name in CREDENTIALS)])
        return [b""]

    sent = {f"HTTP_{name.upper().replace('-', '_')}": "s3cret" for name in CREDENTIALS}
    with tracing(options) as spans:
        serve(trace_wsgi(application), environ(HTTP_X_SHOP="1", **sent))
        return spans.attributes


@pytest.mark.parametrize("pattern", [".*", "a.*,c.*,s.*,p.*,x.*", ".*,authorization.*,.*cookie,proxy-\\w+,x-api-?key"])
def test_headers_that_hold_credentials_are_redacted_where_a_pattern_captures_them(pattern: str) -> None:
    attributes = captured(pattern, pattern)
    for kind, value in (("request", "1"), ("response", "2")):
        assert attributes[f"http.{kind}.header.x_shop"] == (value,)
        for name in CREDENTIALS:
            assert attributes[f"http.{kind}.header.{name.lower().replace('-', '_')}"] == ("[REDACTED]",)
    assert "s3cret" not in f"{attributes}"


def test_headers_that_hold_credentials_are_shown_where_they_are_named_one_by_one() -> None:
    attributes = captured(".*,cookie,X-API-KEY", "Set-Cookie,x-.*")
    shown = {name for name, value in attributes.items() if value == ("s3cret",)}
    assert shown == {
        "http.request.header.cookie", "http.request.header.x_api_key", "http.response.header.set_cookie"
    }  # fmt: skip


def test_a_signature_in_a_header_s_url_is_redacted() -> None:
    with tracing(HttpOptions(request_headers=re.compile("REFERER"))) as spans:
        serve(trace_wsgi(hello), environ(HTTP_REFERER="https://shop.example.com/x?sig=s3cret&y=1"))
        assert spans.attributes["http.request.header.referer"] == ("https://shop.example.com/x?sig=REDACTED&y=1",)


text = st.text(st.characters(max_codepoint=0xFF), max_size=40)
anything = st.one_of(text, st.text(max_size=20), st.none(), st.integers(), st.binary(max_size=5), st.just(...))
KEYS = [
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
    "RAW_URI",
    "REQUEST_URI",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "REMOTE_ADDR",
    "HTTP_HOST",
    "HTTP_USER_AGENT",
    "HTTP_TRACEPARENT",
    "HTTP_TRACESTATE",
    "HTTP_BAGGAGE",
    "CONTENT_LENGTH",
    "wsgi.url_scheme",
]


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(KEYS), text))
def test_every_request_of_text_is_one_span(more: dict[str, str]) -> None:
    with tracing() as spans:
        sent = serve(trace_wsgi(hello), environ(**more))
        assert (sent.body, sent.error) == (b"hello", None)
        attributes = spans.attributes
    assert attributes["http.response.status_code"] == 200
    assert attributes["url.path"].isascii()
    assert "?" not in attributes["url.path"]
    assert spans.one.name in {"GET", "HTTP", *request.options.known_methods}


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(KEYS), anything), st.dictionaries(st.text(max_size=9), anything))
def test_no_request_whatever_it_holds_is_answered_otherwise(more: dict[str, Any], odd: dict[str, Any]) -> None:
    capture = HttpOptions(request_headers=re.compile(".*"))
    with tracing(capture):
        sent = serve(trace_wsgi(hello), environ(**odd, **more) if not set(odd) & set(more) else environ(**more))
    assert (sent.body, sent.error) == (b"hello", None)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, ValueError, StopIteration])
def test_an_exception_that_leaves_the_application_passes_and_is_noted(kind: type[BaseException]) -> None:
    error = kind("leaving")

    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        raise error

    with tracing() as spans:
        assert serve(trace_wsgi(application), environ()).error is error
    assert spans.errors == [kind.__name__]
    assert spans.attributes["error.type"] == kind.__name__
    assert spans.attributes["http.response.status_code"] == 500
    assert spans.one.status.status_code is trace.StatusCode.ERROR


def test_the_end_of_a_greenlet_is_noted() -> None:
    greenlet = pytest.importorskip("greenlet")

    def application(environ: Any, start_response: Any) -> Any:
        raise greenlet.GreenletExit

    with tracing() as spans:
        assert isinstance(serve(trace_wsgi(application), environ()).error, greenlet.GreenletExit)
    assert spans.attributes["http.response.status_code"] == 500
    assert spans.errors == ["greenlet.GreenletExit"]


def test_an_exception_whose_text_fails_is_noted_too() -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def application(environ: Any, start_response: Any) -> Any:
        raise Mute

    with tracing() as spans:
        assert isinstance(serve(trace_wsgi(application), environ()).error, Mute)
    assert len(spans.errors) == 1


@pytest.mark.parametrize("parts", [[b"one ", b"two"], (b"one ", b"two")])
def test_a_body_that_is_closed_before_it_is_iterated_ends_the_span_once(parts: Any) -> None:
    made: list[Body] = []

    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        made.append(Body(parts))
        return made[0]

    with tracing() as spans:
        body = trace_wsgi(application)(environ(), Sent().start_response)
        assert spans.all == ()
        body.close()
        body.close()
        assert spans.attributes["http.response.status_code"] == 200
    assert made[0].closed == 2  # as often as without us


@pytest.mark.parametrize("body", [[b"one"], (b"one",), b"one", []])
def test_a_complete_body_is_left_alone_and_the_span_ends_when_it_is_returned(body: Any) -> None:
    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return body

    with tracing() as spans:
        assert trace_wsgi(application)(environ(), Sent().start_response) is body
        assert spans.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("make", [iter, Body])
def test_a_body_that_nobody_iterates_or_closes_ends_the_span_when_it_is_forgotten(make: Callable[..., Any]) -> None:
    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return make([b"one"])

    with tracing() as spans:
        made = environ()
        body = trace_wsgi(application)(made, Sent().start_response)
        assert spans.all == ()
        del body, made
        assert spans.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("make", [iter, Body])
@pytest.mark.parametrize("is_read", [True, False])
def test_a_body_that_is_forgotten_ends_the_span_once_whoever_holds_the_request(
    make: Callable[..., Any], is_read: bool
) -> None:
    sent, made = Sent(), environ()

    def application(environ: Any, start_response: Any) -> Any:
        try:
            int("page")
        except ValueError as error:
            start_response("500 Oops", [], (type(error), error, error.__traceback__))
        return make([b"one"])

    with tracing() as spans:
        body = trace_wsgi(application)(made, sent.start_response)
        if is_read:
            assert list(body) == [b"one"]
        assert len(spans.all) == is_read
        del body
        assert spans.attributes["http.response.status_code"] == 500
        # The traceback there leads to the request.
        assert sent.starts
        assert request.of(made) is None


def test_a_file_that_is_forgotten_ends_the_span_whoever_holds_the_request() -> None:
    made = environ(**{"wsgi.file_wrapper": FileWrapper})

    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    with tracing() as spans:
        body = trace_wsgi(application)(made, Sent().start_response)
        assert list(body) == [b"file"]
        assert spans.all == ()
        del body
        assert spans.attributes["http.response.status_code"] == 200
        assert request.of(made) is None


@pytest.mark.parametrize("make", [list, tuple, iter, Body])
def test_a_body_that_is_iterated_twice_gives_what_it_gives_without_us(make: Callable[..., Any]) -> None:
    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return make([b"one", b"two"])

    plain = application(environ(), Sent().start_response)
    with tracing() as spans:
        traced = trace_wsgi(application)(environ(), Sent().start_response)
        assert [list(traced), list(traced)] == [list(plain), list(plain)]
        assert len(spans.all) == 1


def test_a_middleware_finds_in_a_body_what_it_finds_without_us() -> None:
    parts = [b"one", b"two"]

    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return environ["make"](parts)

    class Response(Body):
        status_code = 200

    with tracing() as spans:
        traced = trace_wsgi(application)
        found = traced(environ(make=list), Sent().start_response)
        assert isinstance(found, list)
        assert (found, found[0], len(found), [b"zero", *found]) == (parts, b"one", 2, [b"zero", *parts])
        generator = traced(environ(make=iter), Sent().start_response)
        assert next(generator) == b"one"
        assert list(generator) == [b"two"]
        assert not hasattr(generator, "close")
        response = traced(environ(make=Response), Sent().start_response)
        assert response.status_code == 200
        with pytest.raises(TypeError):
            len(response)
        response.close()
        assert len(traced(environ(make=tuple), Sent().start_response)) == 2
        assert len(spans.all) == 4


def test_what_is_no_body_fails_in_the_server_as_without_us() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return environ["body"]

    for body in (5, None, object()):
        with tracing() as spans:
            error = serve(trace_wsgi(application), environ(body=body)).error
            assert type(error) is TypeError
            assert str(error) == str(serve(application, environ(body=body)).error)
            assert len(spans.all) == 1


def test_a_file_reaches_the_server_untouched_and_the_span_ends_when_it_is_closed() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return environ["wsgi.file_wrapper"](environ["file"])

    with open(__file__, "rb") as file, tracing() as spans:  # noqa: PTH123
        body = trace_wsgi(application)(environ(file=file, **{"wsgi.file_wrapper": FileWrapper}), Sent().start_response)
        assert type(body) is FileWrapper
        assert body.filelike is file
        assert spans.all == ()
        body.close()
        assert file.closed
        assert spans.attributes["http.response.status_code"] == 200
    # uWSGI's: a function that returns the very file.
    with tracing() as spans:
        file = open(__file__, "rb")  # noqa: PTH123, SIM115
        wrapper: Any = lambda file, _size=0: file  # noqa: E731
        body = trace_wsgi(application)(environ(file=file, **{"wsgi.file_wrapper": wrapper}), Sent().start_response)
        assert body is file
        body.close()
        assert file.closed
        assert len(spans.all) == 1
        assert vars(file) == {}
    # Nothing can be noted on this one.
    with tracing() as spans:
        rigid = type("Rigid", (), {"__slots__": (), "read": lambda _self: b""})()
        given = environ(file=rigid, **{"wsgi.file_wrapper": wrapper})
        assert trace_wsgi(application)(given, Sent().start_response) is rigid
        assert len(spans.all) == 1


def test_the_span_of_a_streamed_body_lasts_until_its_end_and_is_current_in_it_only() -> None:
    seen = []

    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        seen.append(trace.get_current_span())
        for part in (b"one ", b"two"):
            seen.append(trace.get_current_span())
            yield part

    with tracing() as spans:
        body = trace_wsgi(application)(environ(), Sent().start_response)
        iterator = iter(body)
        for _ in range(2):
            next(iterator)
            assert trace.get_current_span() is trace.INVALID_SPAN
            assert spans.all == ()
        assert list(iterator) == []
        body.close()
        assert {span.get_span_context().span_id for span in seen} == {spans.one.context.span_id}


def test_a_span_of_the_generators_own_stays_current_in_it_from_chunk_to_chunk() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        with request._tracer.start_as_current_span("own") as own:  # noqa: SLF001
            yield b"one "
            assert trace.get_current_span() is own
            yield b"two"

    with tracing() as spans:
        sent = serve(trace_wsgi(application), environ())
        assert (sent.body, sent.error) == (b"one two", None)
        own, server = spans.all
        assert own.parent is not None
        assert own.parent.span_id == server.context.span_id


def test_a_context_that_the_application_never_detaches_ends_with_the_request() -> None:
    def leaking(environ: Any, start_response: Any) -> Any:
        context.attach(context.set_value("leak", 1))
        context.attach(trace.set_span_in_context(request._tracer.start_span("leak")))  # noqa: SLF001
        ok(start_response)
        return environ["make"]([b"leak"])

    def never_finished(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        with request._tracer.start_as_current_span("endless"):  # noqa: SLF001
            yield b"one"
            yield b"two"

    with tracing() as spans:
        traced = trace_wsgi(lambda environ, start_response: environ["app"](environ, start_response))
        for _ in range(2):
            serve(traced, environ(app=leaking, make=list))
            serve(traced, environ(app=leaking, make=iter))
            kept = traced(environ(app=never_finished), Sent().start_response)
            next(iter(kept))
            assert context.get_value("leak") is None
            assert trace.get_current_span() is trace.INVALID_SPAN
            kept.close()
        servers = [span for span in spans.all if span.kind is trace.SpanKind.SERVER]
        assert len(servers) == 6
        assert len({span.context.trace_id for span in servers}) == 6
        assert not [span for span in servers if span.parent]


def test_a_leaked_span_of_the_users_own_middleware_keeps_no_request_from_being_traced() -> None:
    with tracing() as spans:
        token = context.attach(trace.set_span_in_context(request._tracer.start_span("leak")))  # noqa: SLF001
        serve(trace_wsgi(hello), environ())
        assert spans.one.kind is trace.SpanKind.SERVER
        context.detach(token)


def test_parent_and_baggage_come_with_the_request() -> None:
    seen = []

    def application(environ: Any, start_response: Any) -> Any:
        seen.append(baggage.get_baggage("user"))
        return hello(environ, start_response)

    with tracing() as spans:
        made = environ(HTTP_TRACEPARENT=TRACEPARENT, HTTP_TRACESTATE="vendor=1", HTTP_BAGGAGE="user=taro")
        serve(trace_wsgi(application), made)
        assert spans.one.parent is not None
        assert f"{spans.one.parent.trace_id:032x}-{spans.one.parent.span_id:016x}" == f"{TRACE_ID}-{PARENT_ID}"
        assert spans.one.parent.trace_state == {"vendor": "1"}
    assert seen == ["taro"]
    assert made["otel_trace_id"] == TRACE_ID
    assert made["otel_span_id"] == f"{spans.one.context.span_id:016x}"


def test_an_unsampled_request_makes_nothing_and_is_served() -> None:
    with tracing(sampler=ALWAYS_OFF) as spans:
        for error in (None, ValueError("x")):
            body = Body([b"one"], error)
            serve(trace_wsgi(lambda _environ, start_response, body=body: (ok(start_response), body)[1]), environ())
        assert spans.all == ()


def test_an_excluded_request_makes_no_span_and_none_of_its_own_code() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        with request._tracer.start_as_current_span("own"):  # noqa: SLF001
            return hello(environ, start_response)

    with tracing(HttpOptions(excluded_urls={"WSGI": re.compile("health")}), ParentBased(ALWAYS_ON)) as spans:
        serve(trace_wsgi(application), environ(PATH_INFO="/health"))
        serve(trace_wsgi(application), environ(PATH_INFO="/health", HTTP_TRACEPARENT=TRACEPARENT))
        assert spans.all == ()
        serve(trace_wsgi(application), environ(PATH_INFO="/shop"))
        assert len(spans.all) == 2


def test_a_callback_for_trace_ids_that_raises_ends_nothing() -> None:
    def fail(_trace_id: str) -> None:
        raise ValueError("no log")

    with tracing() as spans, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_ids, "tell", fail)
        assert serve(trace_wsgi(hello), environ()).body == b"hello"
        assert len(spans.all) == 1


def test_exc_info_of_a_page_that_is_no_servers_error_is_no_exception() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        error = LookupError("none such")
        start_response("404 Not Found", [], (LookupError, error, None))
        return [b"none"]

    with tracing() as spans:
        serve(trace_wsgi(application), environ())
        assert spans.errors == []


@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
def test_wsgirefs_validator_finds_nothing_around_us_and_below_us() -> None:
    for make in (list, iter, Body):
        for path in ("/", "/write"):

            def application(environ: Any, start_response: Any, make: Callable[..., Any] = make) -> Any:
                write = ok(start_response)
                if environ["PATH_INFO"] == "/write":
                    write(b"written ")
                return make([b"one"])

            with tracing() as spans:
                made = environ(PATH_INFO=path)
                made |= {"SERVER_PORT": "80", "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO()}
                traced = validator(trace_wsgi(validator(application)))
                sent = _Strict()
                body = traced(made, sent.start_response)
                assert b"".join(body) == b"one"
                body.close()  # type: ignore[attr-defined]
                assert len(spans.all) == 1


class _Strict(Sent):
    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        return super().start_response(status, headers, exc_info)


def test_a_request_leaves_nothing_behind() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/fail":
            raise ValueError("fails")
        ok(start_response)
        return environ["make"]([b"one"])

    with tracing(sampler=ALWAYS_OFF):
        traced = trace_wsgi(application)

        def some() -> None:
            for make in (list, iter, Body):
                serve(traced, environ(make=make))
            with suppress(ValueError):
                traced(environ(PATH_INFO="/fail"), Sent().start_response)

        # Without a garbage collector: no cycles.
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            used = []
            for _ in range(12):
                for _ in range(50):
                    some()
                used.append(tracemalloc.get_traced_memory()[0])
            # What is left behind is left behind each time; caches of the interpreter grow now and then, and so does
            # what threads of other tests have.
            assert min(after - before for before, after in pairwise(used)) < 1000, used
        finally:
            tracemalloc.stop()
            gc.enable()
