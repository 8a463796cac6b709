"""What passes through us stays what it was: for the application, its middlewares and the server around it."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import json
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calling_wsgi import Body, Sent, environ, ok, tracing
from servers import ASGI_CLASSES, environment, gunicorn, server_span, server_spans, uwsgi
from simple_websocket import Client, ConnectionClosed
from typing_extensions import Self
from werkzeug.test import Client as WerkzeugClient
from werkzeug.wrappers import Response as WerkzeugResponse

from mackerel_otel_server import trace_asgi, trace_wsgi
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import log_ids, request, wsgi_body

Application = Callable[..., Any]


class Counting:
    """A body that makes a new iterator each time; pickle, copy and comparison work."""

    def __init__(self, *parts: bytes) -> None:
        self.parts: tuple[bytes, ...] = parts

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counting) and other.parts == self.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __contains__(self, part: object) -> bool:
        return part in self.parts

    def __getitem__(self, number: int) -> bytes:
        return self.parts[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.parts = ()


def _answering(body: Callable[[], Any]) -> Application:
    def application(_environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return body()

    return application


def _peek(application: Application) -> Application:
    def middleware(environ: Any, start_response: Any) -> Iterator[bytes]:
        body = iter(application(environ, start_response))
        yield next(body)
        yield from body

    return middleware


def _chain(application: Application) -> Application:
    def middleware(environ: Any, start_response: Any) -> Any:
        body = iter(application(environ, start_response))
        return itertools.chain([next(body)], body)

    return middleware


def _from_app(application: Application) -> Application:
    def middleware(environ: Any, start_response: Any) -> Any:
        return [WerkzeugResponse.from_app(application, environ).get_data()]

    return middleware


def _client(application: Application) -> Application:
    def middleware(environ: Any, start_response: Any) -> Any:
        return [WerkzeugClient(application).get("/").get_data()]

    return middleware


BODIES: dict[str, Callable[[], Any]] = {
    "list": lambda: [b"one ", b"two"],
    "tuple": lambda: (b"one ", b"two"),
    "class": lambda: Counting(b"one ", b"two"),
    "closing class": lambda: Body([b"one ", b"two"]),
    "generator": lambda: (part for part in [b"one ", b"two"]),
    "map": lambda: map(bytes, [b"one ", b"two"]),
    "kind of list": lambda: type("Parts", (list,), {})([b"one ", b"two"]),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("middleware", [_peek, _chain, _from_app, _client])
def test_a_middleware_that_takes_the_first_part_gets_each_part_once(body: str, middleware: Any) -> None:
    with tracing() as spans:
        answer = middleware(trace_wsgi(_answering(BODIES[body])))(environ(), Sent().start_response)
        assert b"".join(answer) == b"one two"
        assert len(spans.all) == 1


def test_a_body_can_do_what_it_can_without_us() -> None:
    with tracing() as spans:
        body: Any = trace_wsgi(_answering(BODIES["class"]))(environ(), Sent().start_response)
        plain = Counting(b"one ", b"two")
        assert isinstance(body, Counting)
        assert (bytes(body), b"two" in body, body[0], body.parts) == (b"one two", True, b"one ", plain.parts)
        assert (body == plain, plain == body, hash(body) == hash(plain)) == (True, True, True)
        assert {body: 1}[plain] == 1
        for made in copy.copy(body), copy.deepcopy(body), pickle.loads(pickle.dumps(body)):
            assert (type(made), made) == (Counting, plain)
        assert (body.__doc__, body.__module__) == (Counting.__doc__, Counting.__module__)
        assert repr(body).startswith(f"<{__name__}.Counting object")
        assert (hasattr(body, "__len__"), hasattr(body, "close"), callable(body)) == (False, False, False)
        two = iter(body), iter(body)
        assert two[0] is not two[1]
        assert next(two[0]) == next(two[1])
        body.parts = ()
        assert vars(body) == {"parts": ()}
        del body.parts
        assert not hasattr(body, "parts")
        with body as entered:
            assert entered is body
        assert body.parts == ()
        assert spans.all == ()
        del body, two, entered
        assert len(spans.all) == 1


def test_a_generator_can_do_what_it_can_without_us() -> None:
    with tracing() as spans:
        body: Any = trace_wsgi(_answering(BODIES["generator"]))(environ(), Sent().start_response)
        assert inspect.isgenerator(body)
        assert iter(body) is body
        assert inspect.getgeneratorstate(body) == inspect.GEN_CREATED
        assert next(body) == b"one "
        with pytest.raises(TypeError, match="generator"):
            pickle.dumps(body)
        body.close()
        assert list(body) == []
        assert len(spans.all) == 1


def test_what_holds_a_request_can_be_copied_pickled_and_printed_and_belongs_to_it() -> None:
    def inner(environ: dict[str, Any], start_response: Any) -> Any:
        begun = request.of(environ)
        assert begun is not None
        begun.note_route("/inner", environ)
        ok(start_response)
        return [b"inner"]

    traced = trace_wsgi(inner)
    copies: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "dict": dict,
        "deepcopy": copy.deepcopy,
        "pickle": lambda made: pickle.loads(pickle.dumps(made)),
        "json": lambda made: json.loads(json.dumps(made)),
    }
    for name, copied in copies.items():

        def middleware(environ: dict[str, Any], start_response: Any, copied: Any = copied) -> Any:
            plain = {key: value for key, value in environ.items() if not key.startswith("wsgi.")}
            return traced(copied(plain), start_response)

        with tracing() as spans:
            assert trace_wsgi(middleware)(environ(), Sent().start_response) == [b"inner"]
            assert spans.one.name == "GET /inner", name
    with tracing():
        made = environ()
        trace_wsgi(_answering(BODIES["list"]))(made, Sent().start_response)
        assert {type(made[key]) for key in (request.KEY, log_ids.TRACE_ID, log_ids.SPAN_ID)} == {str}


def test_a_request_that_the_application_makes_of_itself_does_not_rename_the_outer_one() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        begun = request.of(environ)
        if begun is not None:
            begun.note_route(environ["PATH_INFO"], environ)
        if environ["PATH_INFO"] == "/batch":
            for number in range(2):
                traced({**environ, "PATH_INFO": f"/{number}"}, Sent().start_response)
                WerkzeugClient(traced).get(f"/{number}")
        ok(start_response)
        return [b"done"]

    traced = trace_wsgi(application)
    with tracing() as spans:
        traced(environ(PATH_INFO="/batch"), Sent().start_response)
        assert spans.one.name == "GET /batch"


def test_start_response_is_what_the_server_or_a_middleware_has_made() -> None:
    class Own:
        """A middleware's own callable."""

        calls = 0

        def __call__(self, *args: Any) -> Any:
            self.calls += 1
            return sent.start_response(*args)

    def function(status: str, headers: Any, exc_info: Any = None) -> Any:
        return sent.start_response(status, headers, exc_info)

    seen: list[Any] = []

    def application(_environ: Any, start_response: Any) -> Any:
        seen.append(start_response)
        ok(start_response)
        return [b"x"]

    sent, own = Sent(), Own()
    with tracing() as spans:
        for given in sent.start_response, own, function:
            trace_wsgi(application)(environ(), given)
        statuses = [(span.attributes or {})["http.response.status_code"] for span in spans.all]
        assert statuses == [200, 200, 200]
    method, instance, plain = seen
    assert (method.__self__, method.__name__, inspect.ismethod(method)) == (sent, "start_response", True)
    assert inspect.signature(method) == inspect.signature(sent.start_response)
    assert inspect.getfullargspec(method) == inspect.getfullargspec(sent.start_response)
    assert (method.__qualname__, method.__module__) == ("Sent.start_response", sent.start_response.__module__)
    assert repr(method) == repr(sent.start_response)
    assert (isinstance(instance, Own), instance.calls, own.calls) == (True, 1, 1)
    assert (inspect.isfunction(plain), plain.__name__) == (True, "function")
    assert list(inspect.signature(plain).parameters) == ["status", "headers", "exc_info"]


def test_send_is_the_servers_own_method() -> None:
    import asyncio

    class Server:
        def __init__(self) -> None:
            self.sent: list[Any] = []

        async def send(self, message: Any) -> None:
            self.sent.append(message)

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        assert inspect.iscoroutinefunction(send)
        assert send.__self__ is server
        assert inspect.signature(send) == inspect.signature(server.send)
        assert (repr(send), send.__name__, copy.copy(send).__self__) == (repr(server.send), "send", server)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def of_a_middleware(_scope: Any, _receive: Any, send: Any) -> None:
        assert inspect.iscoroutinefunction(send)
        assert (getattr(send, "mark", None) or send.keywords["mark"]) == "mark"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def passed_on(message: Any, mark: Any = None) -> None:
        await server.send(message)

    passed_on.mark = "mark"  # type: ignore[attr-defined]
    server = Server()
    with tracing() as spans:
        for served, send in (
            (application, server.send),
            (of_a_middleware, passed_on),
            (of_a_middleware, functools.partial(passed_on, mark="mark")),
        ):
            scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
            asyncio.run(trace_asgi(served)(scope, None, send))
        assert len(spans.all) == 3
    assert len(server.sent) == 6


def _application(environ: Any, start_response: Any, *, more: int = 1) -> list[bytes]:
    """Serve."""
    ok(start_response)
    return [b"x"]


class _Callable:
    def __call__(self, environ: Any, start_response: Any, *, more: int = 1) -> list[bytes]:
        """Serve."""
        return _application(environ, start_response, more=more)


class _Asynchronous:
    async def __call__(self, scope: Any, receive: Any, send: Any, extra: int = 0) -> None:
        """Serve."""


@pytest.mark.parametrize("make", [_Callable, _Asynchronous])
def test_a_class_of_applications_looks_like_itself(make: Any) -> None:
    original = make.__call__
    before = (
        inspect.signature(make()),
        inspect.getfullargspec(make()),
        inspect.iscoroutinefunction(make.__call__),
        [getattr(original, name) for name in ("__name__", "__qualname__", "__module__", "__doc__")],
    )
    traced: Any = (trace_asgi if make is _Asynchronous else trace_wsgi)(make())
    assert make.__call__ is not original
    assert type(traced) is make
    assert before == (
        inspect.signature(traced),
        inspect.getfullargspec(traced),
        inspect.iscoroutinefunction(make.__call__),
        [getattr(make.__call__, name) for name in ("__name__", "__qualname__", "__module__", "__doc__")],
    )
    assert type(pickle.loads(pickle.dumps(traced))) is make
    assert pickle.loads(pickle.dumps(make.__call__)) is make.__call__


def test_a_plain_callable_looks_like_itself() -> None:
    traced = trace_wsgi(_application)
    assert traced is not _application
    assert inspect.signature(traced) == inspect.signature(_application)
    assert inspect.getfullargspec(traced) == inspect.getfullargspec(_application)
    assert (copy.copy(traced), copy.deepcopy([traced])) == (traced, [traced])
    assert copy.deepcopy({"app": traced})["app"] is traced
    assert pickle.loads(pickle.dumps(traced)) is _application
    assert (repr(traced), traced.__name__, hash(traced)) == (repr(_application), "_application", hash(_application))
    with tracing() as spans:
        copy.deepcopy(traced)(environ(), Sent().start_response)
        assert len(spans.all) == 1


class _Unhashable(type):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(cls, other: object) -> bool:
        return cls is other


def test_a_body_whose_class_has_no_hash_reaches_the_server_and_ends_the_span() -> None:
    class Odd(Counting, metaclass=_Unhashable):
        pass

    with tracing() as spans:
        assert list(trace_wsgi(_answering(lambda: Odd(b"x")))(environ(), Sent().start_response)) == [b"x"]
        assert len(spans.all) == 1


def test_a_body_that_can_be_read_is_a_stream_where_the_server_sends_no_files() -> None:
    class Readable(Counting):
        def read(self) -> bytes:
            return b""

    with tracing() as spans:
        made = environ()
        made.pop("wsgi.file_wrapper", None)
        body: Any = trace_wsgi(_answering(lambda: Readable(b"x")))(made, Sent().start_response)
        assert not hasattr(body, "close")
        assert spans.all == ()
        assert list(body) == [b"x"]
        assert len(spans.all) == 1


def test_a_complete_response_that_its_environ_leads_to_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    class Response(Counting):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

        def close(self) -> None:
            """Do nothing."""

    class Failing(Response):
        def close(self) -> None:
            raise LookupError("of its own")

    class Lazy(Response):
        def __iter__(self) -> Iterator[bytes]:
            yield b"lazy"

    def application(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        environ["response"] = response = environ["make"](b"x")
        return response

    monkeypatch.setattr(wsgi_body, "_complete_classes", (Response,))
    with tracing() as spans:
        made = environ(make=Response)
        body: Any = trace_wsgi(application)(made, Sent().start_response)
        assert (type(body), len(spans.all)) == (Response, 1)
        wsgi_body.failed_to_close(body, LookupError("late"))
        assert [span.name for span in spans.all] == ["GET", "after response"]
        # Tracing has ended meanwhile.
        monkeypatch.setattr(on_or_off, "active", False)
        wsgi_body.failed_to_close(body, LookupError("later"))
        monkeypatch.setattr(on_or_off, "active", True)
        assert len(spans.all) == 2
        forgotten = weakref.ref(body)
        del made, body
        gc.collect()
        assert forgotten() is None
        lazy = trace_wsgi(application)(environ(make=Lazy), Sent().start_response)
        assert len(spans.all) == 2
        assert list(lazy) == [b"lazy"]
        assert len(spans.all) == 3
        failing = trace_wsgi(application)(environ(make=Failing), Sent().start_response)
        assert list(failing) == [b"x"]
        with pytest.raises(LookupError, match="of its own"):
            failing.close()
        assert [span.name for span in spans.all[3:]] == ["GET", "after response"]


def test_a_class_that_others_inherit_from_as_well_is_left_alone() -> None:
    class Base:
        def __call__(self, *args: Any) -> Any:
            return _application(*args) if len(args) > 1 and callable(args[1]) else args

    class Application(Base):
        """One of those."""

    class Task(Base):
        """Another one."""

    original = Base.__call__
    with tracing() as spans:
        application, given = trace_wsgi(Application()), {"a": 1}
        assert (Base.__call__, Task.__call__) == (original, original)
        assert application(given, 2) == (given, 2) == ({"a": 1}, 2)
        assert spans.all == ()
        application(environ(), Sent().start_response)
        assert len(spans.all) == 1


DJANGO = """
import os
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

def index(request):
    return HttpResponse("Hello World!", headers={"X-A": "b"})

def stream(request):
    return StreamingHttpResponse(iter(["Hello ", "World!"]))

urlpatterns = [path("index", index), path("stream", stream), path("late", index)]
late = []

def finished(sender, **kwargs):
    if late:
        late.clear()
        raise LookupError("in a receiver")

request_finished.connect(finished)
inner = get_wsgi_application()

def application(environ, start_response):
    if environ["PATH_INFO"] == "/late":
        late.append(1)
        return inner(environ, start_response)
    return looked_at(inner(environ, start_response), environ)

def looked_at(body, environ):
    found = [body["X-A"] if "X-A" in body else "", "X-A" in body, isinstance(body, HttpResponse), body.status_code]
    body.mine = 1
    if environ["PATH_INFO"] == "/index":
        found += [bytes(body).endswith(b"World!"), type(body) is HttpResponse, vars(body)["mine"]]
    parts = iter(body)
    yield repr(found).encode()
    yield next(parts)
    yield from parts
    body.close()
"""


@pytest.mark.parametrize("server", ["sync", "gthread", "gevent", "uwsgi", "uwsgi wsgi-file"])
def test_djangos_responses_stay_what_they_are(tmp_path: Path, receiver: Receiver, server: str) -> None:
    (tmp_path / "site.wsgi.py").write_text(DJANGO)
    (tmp_path / "django_site.py").write_text(DJANGO)
    env = environment(receiver, PYTHONPATH=os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    answers = []
    for ours in False, True:
        folder = tmp_path / str(ours)
        folder.mkdir()
        if server.startswith("uwsgi"):
            what = "module = django_site" if server == "uwsgi" else f"wsgi-file = {tmp_path / 'site.wsgi.py'}"
            imported = "import = mackerel_otel_server.uwsgi\n" if ours else ""
            ini = f"{imported}enable-threads = true\nmaster = true\n{what}\n"
            started = uwsgi(folder, ini, env=env, processes=1)
        else:
            conf = "python:mackerel_otel_server.conf" if ours else None
            started = gunicorn(folder, "-k", server, env=env, conf=conf, app="django_site", workers=1)
        with started as running:
            responses = map(running.get, ["/index", "/stream", "/late"])
            answers.append([(response.status, response.body) for response in responses])
            if server.startswith("uwsgi"):
                running.wait_until_idle()
    assert answers[0] == answers[1]
    assert answers[1][0][1].endswith(b"Hello World!")
    assert len(server_spans(receiver.spans)) == 3
    span = server_span(receiver, "/late")
    assert (span.status_code, span.attributes["http.route"]) == ("UNSET", "/late")
    (late,) = (other for other in receiver.spans if other.parent_span_id == span.span_id)
    assert (late.kind, late.status_code) == ("INTERNAL", "ERROR")
    assert late.events[0].attributes["exception.message"] == "in a receiver"


FLASK = """
import mackerel_otel_server
mackerel_otel_server.instrument()
from wsgiref.util import setup_testing_defaults
from flask import Flask, make_response
from werkzeug.wsgi import ClosingIterator

app = Flask(__name__)

@app.get("/index")
def index():
    return "whole"

@app.get("/late")
def late():
    response = make_response("whole")

    @response.call_on_close
    def fail():
        raise LookupError("in call_on_close")

    return response

@app.get("/stream")
def stream():
    return (part for part in ["wh", "ole"])

for path in "/index", "/stream", "/late":
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    body = app(environ, lambda *args: None)
    print(type(body) is ClosingIterator, isinstance(body, ClosingIterator), b"".join(body).decode())
    try:
        body.close()
    except LookupError as error:
        print(error)
"""


def test_flasks_responses_are_complete_but_for_streaming_ones(tmp_path: Path, receiver: Receiver) -> None:
    command = [sys.executable, "-c", FLASK]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(receiver), capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines() == [
        "True True whole",
        "False True whole",
        "True True whole",
        "in call_on_close",
    ]
    assert len(server_spans(receiver.spans)) == 3
    span = server_span(receiver, "/late")
    assert (span.status_code, span.attributes["http.route"]) == ("UNSET", "/late")
    (late,) = (other for other in receiver.spans if other.parent_span_id == span.span_id)
    assert (late.kind, late.events[0].attributes["exception.message"]) == ("INTERNAL", "in call_on_close")


SCOPE_COPIED = """
from copy import deepcopy
from fastapi import FastAPI, Request

api = FastAPI()

@api.get("/x/{number}")
async def x(number: int, request: Request):
    return {"number": number, "client": request.client.host}

class ProxyFix:
    def __init__(self, app, copied=deepcopy):
        self.app, self.copied = app, copied

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope = self.copied(scope)
            scope["client"] = ("203.0.113.9", 1)
        await self.app(scope, receive, send)

application = ProxyFix(api)
# Within an application, what it has put into the scope cannot be copied deeply.
api.add_middleware(ProxyFix, copied=dict)
"""


@pytest.mark.parametrize("worker_class", ASGI_CLASSES)
def test_a_middleware_may_copy_the_scope(tmp_path: Path, receiver: Receiver, worker_class: str) -> None:
    (tmp_path / "copied.py").write_text(SCOPE_COPIED)
    env = environment(receiver, PYTHONPATH=str(tmp_path))
    with gunicorn(tmp_path, "-k", worker_class, env=env, app="copied", workers=1) as server:
        answer = server.get("/x/3")
    assert json.loads(answer.body) == {"number": 3, "client": "203.0.113.9"}, server.log
    assert server_span(receiver, "/x/3").name == "GET /x/{number}"


FLASK_SOCK = """
from flask import Flask
from flask_sock import Sock

application = Flask(__name__)
sock = Sock(application)

@sock.route("/ws")
def ws(ws):
    ws.send("got " + ws.receive())
    ws.close()
"""


@pytest.mark.parametrize("options", [["-k", "gthread", "--threads", "2"], ["-k", "gevent"]], ids=lambda o: o[1])
def test_a_websocket_over_wsgi_ends_as_it_should(tmp_path: Path, receiver: Receiver, options: list[str]) -> None:
    (tmp_path / "socks.py").write_text(FLASK_SOCK)
    env = environment(receiver, PYTHONPATH=str(tmp_path))
    with gunicorn(tmp_path, *options, env=env, app="socks", workers=1) as server:
        client = Client(f"ws://127.0.0.1:{server.port}/ws")
        client.send("x")
        assert client.receive(timeout=10) == "got x", server.log
        with pytest.raises(ConnectionClosed):
            client.receive(timeout=10)
        log = server.stop()
    span = server_span(receiver, "/ws")
    assert (span.status_code, span.events, span.attributes["http.response.status_code"]) == ("UNSET", (), 101), log
    assert span.name == "GET /ws"
