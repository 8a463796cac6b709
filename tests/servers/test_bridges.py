"""A WSGI application within an ASGI one and the other way round: one server span, with the inner route and error."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import ASGI_CLASSES, environment, gunicorn, server_spans

from mackerel_otel_server.cli.receiver.endpoint import Receiver


@pytest.mark.parametrize(
    ("name", "worker_class", "prefix", "route"),
    [
        ("wsgi_by_asgiref", ASGI_CLASSES[0], "", "/things/<int:number>"),
        ("wsgi_by_a2wsgi", ASGI_CLASSES[0], "", "/things/<int:number>"),
        ("wsgi_by_starlette", ASGI_CLASSES[0], "", "/things/<int:number>"),
        ("wsgi_by_a2wsgi", ASGI_CLASSES[-1], "", "/things/<int:number>"),
        ("mounted_wsgi_by_asgiref", ASGI_CLASSES[0], "/old", "/things/<int:number>"),
        ("mounted_wsgi_by_a2wsgi", ASGI_CLASSES[0], "/old", "/things/<int:number>"),
        ("mounted_wsgi_by_starlette", ASGI_CLASSES[0], "/old", "/things/<int:number>"),
        ("asgi_by_a2wsgi", "sync", "", "/things/{number}"),
        ("asgi_by_a2wsgi", "gthread", "", "/things/{number}"),
        ("mounted_asgi_by_a2wsgi", "sync", "/new", "/things/{number}"),
    ],
)
def test_one_span_with_the_inner_route_and_exception(  # noqa: PLR0913, PLR0917
    tmp_path: Path, receiver: Receiver, name: str, worker_class: str, prefix: str, route: str
) -> None:
    options = ["-k", worker_class]
    with gunicorn(tmp_path, *options, env=environment(receiver), app=f"bridges:{name}", workers=1) as server:
        good = server.get(f"{prefix}/things/7")
        bad = server.get(f"{prefix}/wrong")
        missing = server.get(f"{prefix}/nowhere")
    assert (good.status, bad.status, missing.status) == (200, 500, 404), server.log
    spans = {span.attributes["url.path"]: span for span in server_spans(receiver.spans)}
    assert len(spans) == len(server_spans(receiver.spans)) == 3, server.log
    span = spans[f"{prefix}/things/7"]
    assert (span.name, span.attributes["http.route"]) == (f"GET {prefix}{route}", f"{prefix}{route}")
    assert span.attributes["http.response.status_code"] == 200
    (query,) = (other for other in receiver.spans if other.kind == "CLIENT")
    assert query.parent_span_id == span.span_id
    span = spans[f"{prefix}/wrong"]
    assert (span.attributes["http.route"], span.status_code) == (f"{prefix}/wrong", "ERROR")
    assert [event.attributes["exception.message"] for event in span.events] == ["within"]
    assert spans[f"{prefix}/nowhere"].attributes["http.response.status_code"] == 404
