"""A request that is under way is found in the stack of whichever function of ours serves it."""

from __future__ import annotations

import ast
import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from calling_wsgi import environ, ok, tracing

from mackerel_otel_server import trace_asgi, trace_wsgi
from mackerel_otel_server.tracing.requests import stacks
from mackerel_otel_server.tracing.requests.request import under_way

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
found: list[str] = []


def look() -> None:
    """Note the stack of the request under way, as seen by a thread that reports it as killed."""
    (request,) = under_way()
    found.append(stacks.finder()(request))


def in_the_call(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    look()
    ok(start_response)
    return []


def in_a_generator(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    ok(start_response)
    look()
    yield b""


class Body:
    def __iter__(self) -> Iterator[bytes]:
        look()
        return iter([b"x"])

    def close(self) -> None:
        if under_way():
            look()


def body(environ: dict[str, Any], start_response: Callable[..., Any]) -> Body:
    ok(start_response)
    return Body()


class File(io.BytesIO):
    def close(self) -> None:
        if not self.closed:
            look()
        super().close()


def file(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    ok(start_response)
    return environ["wsgi.file_wrapper"](File())


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    look()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


async def nothing(*_: Any) -> None:
    pass


def bridge(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    asyncio.run(trace_asgi(asgi)({**SCOPE, "wsgi_environ": environ}, nothing, nothing))
    ok(start_response)
    return []


def serve(application: Any, *, client_stays: bool) -> None:
    """Serve one request as a WSGI server does."""
    answer = application(environ(**{"wsgi.file_wrapper": FileWrapper}), lambda *_: None)
    if client_stays:
        list(answer)
    if hasattr(answer, "close"):
        answer.close()


@pytest.mark.parametrize(
    ("application", "client_stays", "function"),
    [
        (in_the_call, True, "in_the_call"),
        (in_a_generator, True, "in_a_generator"),
        (body, True, "__iter__"),
        (body, False, "close"),
        (file, True, "close"),
        (bridge, True, "asgi"),
    ],
)
def test_the_stack_of_a_request_is_what_the_function_that_serves_it_has_called(
    application: Any, client_stays: bool, function: str
) -> None:
    found.clear()
    with tracing():
        serve(trace_wsgi(application), client_stays=client_stays)
    (stack,) = found
    assert f", in {function}\n" in stack
    assert ", in serve\n" not in stack, stack
    assert ", in bridge\n" not in stack, stack
    assert "mackerel_otel_server/" not in stack, stack


def test_the_stack_of_an_asgi_request_is_what_the_function_that_serves_it_has_called() -> None:
    found.clear()
    with tracing():
        asyncio.run(trace_asgi(asgi)({**SCOPE}, nothing, nothing))
    (stack,) = found
    assert stack.splitlines()[0].endswith(", in asgi"), stack


def test_each_function_that_enters_a_requests_context_is_marked_as_serving() -> None:
    folder = Path(stacks.__file__).parent
    entering, marked = set(), set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls = [one.func for one in ast.walk(node) if isinstance(one, ast.Call)]
            if any(isinstance(one, ast.Name) and one.id == "attach" for one in calls):
                entering.add(f"{path.name} {node.name}")
            if any(isinstance(one, ast.Name) and one.id == "serves" for one in node.decorator_list):
                marked.add(f"{path.name} {node.name}")
    assert entering == {"asgi.py _inside", "asgi.py serve_own", "wsgi.py serve_own", "wsgi_body.py inside"}
    assert marked == {*entering, "wsgi_body.py __call__"}


def test_a_function_without_the_variable_cannot_be_marked() -> None:
    def function(request: Any) -> None:
        pass

    with pytest.raises(TypeError, match=r"function\(\) has no variable begun"):
        stacks.serves(function)
