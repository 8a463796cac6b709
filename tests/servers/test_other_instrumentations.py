"""With an instrumentation that the application's own code has set up: one server span a request, theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import APPS, environment, gunicorn, uwsgi

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

THEIRS = "opentelemetry.instrumentation."
FAILS, ITEM, ANOTHER = "/fail/value", "/items/7", "/items/8"
DJANGO = {"/fail/value": "/fail/<kind>", "/items/7/": "/items/<int:item>/", "/items/8/": "/items/<int:item>/"}
FLASK = {FAILS: "/fail/<kind>", ITEM: "/items/<int:item>", ANOTHER: "/items/<int:item>"}
FALCON = {FAILS: "/fail/{kind}", ITEM: "/items/{item:int}", ANOTHER: "/items/{item:int}"}
PYRAMID = {"/fail/handled": "/fail/{kind}", ITEM: "/items/{item}", ANOTHER: "/items/{item}"}
LINE = "makes the server spans of this application, so this package makes none"


def spans_by_path(receiver: Receiver) -> dict[str, ReceivedSpan]:
    """Return the one span of each request that Mackerel would list as such."""
    # The older instrumentations have the older names.
    spans = [span for span in receiver.spans if {"http.request.method", "http.method"} & set(span.attributes)]
    found = {str(span.attributes.get("url.path") or span.attributes["http.target"]): span for span in spans}
    assert len(found) == len(spans), spans
    assert {span.kind for span in spans} == {"SERVER"}
    assert {span.parent_span_id for span in spans} == {""}
    return found


@pytest.mark.parametrize(
    ("kind", "routes", "scope"),
    [
        ("flask", FLASK, "flask"),
        ("flask app", FLASK, "flask"),
        ("flask middleware", FLASK, "wsgi"),
        ("middleware", FLASK, "wsgi"),
        ("django", DJANGO, "django"),
        ("falcon", FALCON, "falcon"),
        ("pyramid", PYRAMID, "pyramid"),
    ],
)
def test_theirs_makes_the_one_server_span_from_the_first_request_on(
    tmp_path: Path, receiver: Receiver, kind: str, routes: dict[str, str], scope: str
) -> None:
    pytest.importorskip(f"opentelemetry.instrumentation.{scope}")
    env = environment(receiver, KIND=kind)
    with gunicorn(tmp_path, "--preload", env=env, app="web_others", workers=1) as server:
        for path in routes:
            server.get(path)
        log = server.stop()
    found = spans_by_path(receiver)
    assert set(found) == set(routes), log
    for path, span in found.items():
        assert span.scope.startswith(THEIRS + scope)
        if scope != "wsgi":  # the middleware knows no routes
            assert str(span.attributes["http.route"]).strip("/^$") == routes[path].strip("/"), span
    assert log.count(LINE) == 1, log
    assert f"{THEIRS}{scope}" in log
    assert log.count(f"sent {len(routes)} spans") == 1, log


def test_theirs_that_comes_too_late_leaves_the_spans_to_us(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, KIND="django late")
    with gunicorn(tmp_path, "--preload", env=env, app="web_others", workers=1) as server:
        for path in DJANGO:
            server.get(path)
        log = server.stop()
    assert {path: span.attributes["http.route"] for path, span in spans_by_path(receiver).items()} == DJANGO
    assert LINE not in log


def test_their_middleware_outside_of_a_framework_makes_the_one_server_span(tmp_path: Path, receiver: Receiver) -> None:
    ini = (
        "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\n"
        f"wsgi-file = {APPS / 'web_others.py'}\n"
    )
    with uwsgi(tmp_path, ini, env=environment(receiver, KIND="middleware"), processes=1) as server:
        for path in FLASK:
            server.get(path)
        server.wait_until_idle()
        server.stop()
    assert {span.scope for span in spans_by_path(receiver).values()} == {f"{THEIRS}wsgi"}
    assert set(spans_by_path(receiver)) == set(FLASK)


def test_one_application_with_theirs_does_not_take_the_spans_of_another(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver, KIND="mounted"), app="web_others", workers=1) as server:
        # Their own code excludes the one with the slash.
        for path in (ITEM, "/falcon" + ITEM, "/with-slash/", ANOTHER, "/falcon" + ANOTHER):
            assert server.get(path).status == 200
        server.stop()
    found = {path: (span.scope, span.attributes["http.route"]) for path, span in spans_by_path(receiver).items()}
    assert found == {
        ITEM: (f"{THEIRS}flask", "/items/<int:item>"),
        ANOTHER: (f"{THEIRS}flask", "/items/<int:item>"),
        "/falcon" + ITEM: ("mackerel_otel_server", "/falcon/items/{item:int}"),
        "/falcon" + ANOTHER: ("mackerel_otel_server", "/falcon/items/{item:int}"),
    }


def test_what_their_own_code_excludes_stays_excluded(tmp_path: Path, receiver: Receiver) -> None:
    with gunicorn(tmp_path, env=environment(receiver, KIND="flask app"), app="web_others", workers=1) as server:
        for path in (ITEM, "/with-slash/", ANOTHER):
            assert server.get(path).status == 200
        server.stop()
    assert set(spans_by_path(receiver)) == {ITEM, ANOTHER}


def test_the_function_that_all_of_them_begin_their_spans_by_is_where_it_was() -> None:
    from opentelemetry.instrumentation import utils

    # Without it, a framework's own instrumentation would make a second span per request.
    assert callable(utils._start_internal_or_server_span)  # noqa: SLF001
