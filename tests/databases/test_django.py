"""Django's ORM through a real Gunicorn, on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from servers import environment, gunicorn, query_text, server_spans

from mackerel_otel_server.cli.receiver.endpoint import Receiver

SYSTEMS = {"default": "sqlite", "mysql": "mysql", "postgresql": "postgresql"}


@pytest.mark.parametrize("database", SYSTEMS)
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_each_query_of_the_orm_is_one_child_of_the_requests_span(  # noqa: PLR0913, PLR0917 - fixtures
    tmp_path: Path,
    receiver: Receiver,
    request: pytest.FixtureRequest,
    parts: str,
    database: str,
    options: list[str],
) -> None:
    if database != "default":
        request.getfixturevalue(database)
    table = uuid.uuid4().hex[:12]
    env = environment(receiver, SQLITE_FILE=str(tmp_path / "db.sqlite3"))
    with gunicorn(tmp_path, *options, env=env, app="mysite.wsgi", workers=1) as server:
        response = server.get(f"/orm/{database}?table={table}")
        log = server.stop()
    assert (response.status, response.body) == (200, b"secret-value"), log
    (parent,) = server_spans(receiver.spans)
    queries = [span for span in receiver.spans if span.kind == "CLIENT"]
    assert {span.parent_span_id for span in queries} == {parent.span_id}
    systems = {span.attributes.get("db.system.name") or span.attributes["db.system"] for span in queries}
    assert systems == {SYSTEMS[database]}
    texts = [query_text(span) for span in queries]
    for verb in ("INSERT INTO", "SELECT", "DROP TABLE"):
        assert len([text for text in texts if text.startswith(verb) and table in text]) == 1, texts
    assert "secret-value" not in repr([span.attributes for span in receiver.spans])


def test_queries_at_start_up_make_no_span(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "querying.py").write_text(
        "from mysite.wsgi import application\n"
        "from django.db import connection\n"
        "with connection.cursor() as cursor:\n"
        "    cursor.execute('SELECT 1')\n"
    )
    with gunicorn(
        tmp_path, "--pythonpath", str(tmp_path), env=environment(receiver), app="querying:application", workers=1
    ) as server:
        server.get("/own")
        server.stop()
    assert [span.name for span in receiver.spans if span.kind == "CLIENT"] == []


def test_an_exception_that_nobody_handles_shows_no_value_of_its_query_either(
    tmp_path: Path, receiver: Receiver, mysql: object
) -> None:
    (tmp_path / "failing.py").write_text(
        "import mysite.wsgi\n"
        "from django.db import connections\n"
        "def application(environ, start_response):\n"
        "    with connections['mysql'].cursor() as cursor:\n"
        "        cursor.execute('CREATE TEMPORARY TABLE t (name VARCHAR(50) UNIQUE)')\n"
        "        for _ in range(2):\n"
        "            cursor.execute('INSERT INTO t VALUES (%s)', (environ['HTTP_X_NAME'],))\n"
    )
    with gunicorn(
        tmp_path, "--pythonpath", str(tmp_path), env=environment(receiver), app="failing:application", workers=1
    ) as server:
        server.get(headers={"X-Name": "secret-value"})
        log = server.stop()
    (span,) = server_spans(receiver.spans)
    (event,) = span.events
    assert event.attributes["exception.type"] == "django.db.utils.IntegrityError", log
    assert event.attributes["exception.message"] == """(1062, "Duplicate entry '?' for key 'name'")"""
    assert "in application" in event.attributes["exception.stacktrace"]
    assert "secret-value" not in repr(receiver.spans)
