"""OpenTelemetry's middlewares around applications: what is wrong with them does not reach the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context

from mackerel_otel_server.tracing import on_or_off
from mackerel_otel_server.tracing.requests import asgi, other_server_spans, request, wsgi

pytest.importorskip("opentelemetry.instrumentation.asgi")

from mackerel_otel_server.tracing.requests import standard

ENVIRON = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http", "wsgi.version": (1, 0)}


@pytest.fixture(autouse=True)
def standard_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (wsgi, asgi):
        for name in ("_begin", "_serve"):
            monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(other_server_spans, "_find", request.of)
    monkeypatch.setattr(on_or_off, "open_for_request", lambda: True)
    standard.prepare()
    token = context.attach(context.Context())
    yield
    context.detach(token)


def _raises(*_: Any, **__: Any) -> Any:
    raise KeyError("a header")


def _call(application: Callable[..., Any]) -> Any:
    return wsgi.call(application, (dict(ENVIRON), lambda *_: None), {})


async def _await(application: Callable[..., Any]) -> Any:
    return await asgi.call(application, ({"type": "http", "path": "/", "method": "GET"}, None, None), {})


def test_an_error_of_the_wsgi_middleware_itself_leaves_the_application_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "_wsgi", _raises)
    called: list[Any] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        called.append(environ)
        return [b"fine"]

    assert _call(application) == [b"fine"]
    assert len(called) == 1


def test_an_error_of_the_asgi_middleware_itself_leaves_the_application_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "_asgi", _raises)
    called: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope)

    asyncio.run(_await(application))
    assert len(called) == 1


def test_an_error_of_the_application_passes_and_the_application_is_called_once() -> None:
    called: list[Any] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        called.append(environ)
        raise KeyError("of the application")

    async def asgi_application(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope)
        raise KeyError("of the application")

    with pytest.raises(KeyError, match="of the application"):
        _call(application)
    with pytest.raises(KeyError, match="of the application"):
        asyncio.run(_await(asgi_application))
    assert len(called) == 2


def test_a_nested_application_is_called_without_a_middleware_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    middleware = standard._wsgi  # noqa: SLF001 - what is watched

    def watched(*args: Any) -> Any:
        begun.append(args)
        return middleware(*args)

    monkeypatch.setattr(standard, "_wsgi", watched)

    def inner(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"inner"]

    def outer(environ: Any, start_response: Any) -> Any:
        return wsgi.call(inner, (environ, start_response), {})

    assert list(_call(outer)) == [b"inner"]
    assert len(begun) == 1
