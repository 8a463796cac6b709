"""Requests to the frameworks' applications, and what is to be seen of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

if TYPE_CHECKING:
    from servers import Server


@dataclass(frozen=True)
class Case:
    """One request, and what is to be seen of it."""

    path: str
    status: int
    route: str | None
    error: str | None = None
    """The type of the exception that makes an issue."""
    method: str = "GET"


DJANGO = (
    Case("/", 200, "/"),
    Case("/items/7/", 200, "/items/<int:item>/"),
    Case("/items/7", 301, None),  # APPEND_SLASH
    Case("/old/2024/", 200, "/old/(?P<year>[0-9]{4})/"),
    Case("/mixed/12/", 200, "/mixed/(?P<id>[0-9]+)/"),
    Case("/nested/1999/party/", 200, "/nested/<int:year>/<slug:slug>/"),
    Case("/ja/greet/taro/", 200, "/ja/greet/<name>/"),
    Case("/nowhere", 404, None),
    Case("/fail/404", 404, "/fail/<kind>"),
    Case("/fail/denied", 403, "/fail/<kind>"),
    Case("/fail/suspicious", 400, "/fail/<kind>"),
    Case("/fail/503", 503, "/fail/<kind>"),
    Case("/fail/redirect", 302, "/fail/<kind>"),
    Case("/fail/value", 500, "/fail/<kind>", "ValueError"),
    Case("/file", 200, "/file"),
    Case("/stream", 200, "/stream"),
    Case("/api/", 200, "/api/"),
    Case("/api/users/", 200, "/api/users/"),
    Case("/api/users/", 400, "/api/users/", method="POST"),  # ValidationError
    Case("/api/users/5/", 200, "/api/users/(?P<pk>[^/.]+)/"),
    Case("/api/users/404/", 404, "/api/users/(?P<pk>[^/.]+)/"),
    Case("/api/users/denied/", 403, "/api/users/(?P<pk>[^/.]+)/"),
    Case("/api/users/broken/", 500, "/api/users/(?P<pk>[^/.]+)/", "ValueError"),
    Case("/api/users/5/friends/", 200, "/api/users/(?P<pk>[^/.]+)/friends/"),
    Case("/api/users/5/", 405, "/api/users/(?P<pk>[^/.]+)/", method="DELETE"),
)


FLASK = (
    Case("/items/7", 200, "/items/<int:item>"),
    Case("/items/x", 404, None),
    Case("/items/7", 405, None, method="POST"),
    Case("/items/7", 200, "/items/<int:item>", method="HEAD"),
    Case("/with-slash", 308, None),
    Case("/fail/handled", 409, "/fail/<kind>"),
    Case("/fail/abort", 403, "/fail/<kind>"),
    Case("/fail/503", 503, "/fail/<kind>"),
    Case("/fail/redirect", 302, "/fail/<kind>"),
    Case("/fail/teapot", 500, "/fail/<kind>", "web_flask.AnotherTeapotError"),
    Case("/things/a/b", 200, "/things/<path:thing>"),
    Case("/things/a/b", 200, "/things/<path:thing>", method="PUT"),
    Case("/outer/ja/inner/12345678-1234-5678-1234-567812345678", 200, "/outer/<lang>/inner/<uuid:id>"),
    Case("/file", 200, "/file"),
    Case("/memory", 200, "/memory"),
    Case("/stream", 200, "/stream"),
)


FALCON = (
    Case("/items/7", 200, "/items/{item:int}"),
    Case("/items/7", 405, "/items/{item:int}", method="POST"),
    Case("/items/x", 404, None),
    Case("/complete", 200, None),
    Case("/fail/handled", 409, "/fail/{kind}"),
    Case("/fail/404", 404, "/fail/{kind}"),
    Case("/fail/503", 503, "/fail/{kind}"),
    Case("/fail/redirect", 302, "/fail/{kind}"),
    Case("/fail/value", 500, "/fail/{kind}", "ValueError"),
    Case("/sink/any/thing", 200, None),
    Case("/static/web_falcon.py", 200, None),
)


BOTTLE = (
    Case("/items/7", 200, "/items/<item:int>"),
    Case("/items/7", 405, None, method="POST"),
    Case("/items/x", 404, None),
    Case("/fail/404", 404, "/fail/<kind>"),
    Case("/fail/503", 503, "/fail/<kind>"),
    Case("/fail/redirect", 303, "/fail/<kind>"),
    Case("/fail/value", 500, "/fail/<kind>", "ValueError"),
    Case("/fail/stream", 500, "/fail/<kind>", "ValueError"),
    Case("/static/web_bottle.py", 200, "/static/<name>"),
    Case("/mounted/hello/taro", 200, "/mounted/hello/<name>"),
    Case("/wrapped/deep/hello/taro", 200, "/wrapped/deep/hello/<name>"),
    Case("/wrapped/deep/none", 404, "/wrapped/deep/<:re:.*>"),
    Case("/wrapped/none", 404, "/wrapped/<:re:.*>"),
    Case("/wrapped", 404, "/wrapped"),
    Case("/wrapped/flask/items/7", 200, "/wrapped/flask/items/<int:item>"),
    Case("/plain/any/thing", 200, "/plain/<:re:.*>"),
    Case("/flask/items/7", 200, "/flask/items/<int:item>"),
)


PYRAMID = (
    Case("/items/7", 200, "/items/{item}"),
    Case("/items/7", 404, "/items/{item}", method="POST"),
    Case("/fail/handled", 409, "/fail/{kind}"),
    Case("/fail/403", 403, "/fail/{kind}"),
    Case("/fail/503", 503, "/fail/{kind}"),
    Case("/fail/redirect", 302, "/fail/{kind}"),
    Case("/fail/value", 500, "/fail/{kind}", "ValueError"),
    Case("/part/x/7", 200, "/part/x/{item}"),
    Case("/place", 200, None),
    Case("/nowhere", 404, None),
)


APPLICATIONS = {
    "web_django.wsgi:application": DJANGO,
    "web_flask:app": FLASK,
    "web_falcon:app": FALCON,
    "web_bottle:app": BOTTLE,
    "web_pyramid:app": PYRAMID,
}


def check(span: ReceivedSpan, case: Case, prefix: str = "") -> None:
    """Compare a span with what Mackerel needs of the request."""
    assert span.kind == "SERVER"
    method, route = case.method, None if case.route is None else prefix + case.route
    assert span.name == (method if route is None else f"{method} {route}"), case
    assert span.attributes.get("http.route") == route, case
    assert span.attributes["http.request.method"] == method
    assert span.attributes["url.path"] == prefix + case.path
    assert span.attributes["http.response.status_code"] == case.status, case
    failed = case.status >= 500
    assert span.status_code == ("ERROR" if failed else "UNSET"), case
    assert span.attributes.get("error.type") == ((case.error or str(case.status)) if failed else None)
    assert [event.name for event in span.events] == (["exception"] if case.error else []), (case, span.events)
    for event in span.events:
        assert event.attributes["exception.type"] == case.error
        assert event.attributes["exception.message"] in (case.path.rstrip("/").rpartition("/")[2], "no text")
        stacktrace = str(event.attributes["exception.stacktrace"])
        assert stacktrace.startswith("Traceback"), stacktrace
        assert "/apps/web_" in stacktrace, stacktrace


def ask(server: Server, cases: Sequence[Case], prefix: str = "") -> None:
    for case in cases:
        assert server.get(prefix + case.path, case.method).status == case.status, (case, server.log)


def check_all(receiver: Receiver, cases: Sequence[Case], log: str, prefix: str = "") -> None:
    spans = [span for span in receiver.spans if span.kind != "CLIENT"]
    assert len(spans) == len(cases), log
    for span, case in zip(sorted(spans, key=lambda span: span.start_time_unix_nano), cases, strict=True):
        check(span, case, prefix)
    assert " is not traced" not in log, log
