"""Queries outside of the request's own thread, task and time: what is traced, as a table of docs/ says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import environment, gunicorn, server_span, uwsgi

if TYPE_CHECKING:
    from querying import Database, Run
    from servers import Server

    from mackerel_otel_server.cli.receiver.endpoint import Receiver

STARTED = """
import asyncio, concurrent.futures, threading
from mackerel_otel_server.tracing import libraries
{first}
{register}
import sqlite3
{imports}
def query():
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("SELECT 1").fetchall()
def start():
    {start}
with parent() as span:
    start()
report(parent=format(span.get_span_context().span_id, "#018x"))
"""
WITHOUT = "databases.register()"
# As the doors do: an instrumentation that is installed is applied.
WITH = "databases.register(); libraries.register()"

EXECUTOR = """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(query).result()"""
RUN_IN_EXECUTOR = """
    async def main():
        await asyncio.get_running_loop().run_in_executor(None, query)
    asyncio.run(main())"""
TASK = """
    async def task():
        query()
    async def main():
        await asyncio.create_task(task())
    asyncio.run(main())"""
TIMER = """
    timer = threading.Timer(0, query)
    timer.start()
    timer.join()"""
THREAD = """
    thread = threading.Thread(target=query)
    thread.start()
    thread.join()"""
PATCHED = "from gevent import monkey; monkey.patch_all()"

# What is started, how, what it needs, and whether its query is traced without and with
# opentelemetry-instrumentation-threading.
WAYS = [
    pytest.param("", TASK, "", True, True, id="asyncio.create_task"),
    pytest.param("", "asyncio.run(asyncio.to_thread(query))", "", True, True, id="asyncio.to_thread"),
    pytest.param("", RUN_IN_EXECUTOR, "", False, True, id="run_in_executor"),
    pytest.param("", THREAD, "", False, True, id="threading.Thread"),
    pytest.param("", TIMER, "", False, True, id="threading.Timer"),
    pytest.param("", EXECUTOR, "", False, True, id="ThreadPoolExecutor"),
    pytest.param("", "anyio.run(anyio.to_thread.run_sync, query)", "anyio.to_thread", True, True, id="anyio.to_thread"),
    pytest.param("", "asyncio.run(asgiref.sync.sync_to_async(query)())", "asgiref.sync", True, True, id="asgiref"),
    pytest.param("", "gevent.spawn(query).get()", "gevent", False, False, id="gevent.spawn"),
    pytest.param(
        "import contextvars",
        "gevent.spawn(contextvars.copy_context().run, query).get()",
        "gevent",
        True,
        True,
        id="gevent.spawn with the context",
    ),
    pytest.param("", "gevent.pool.Pool(1).spawn(query).get()", "gevent.pool", False, False, id="gevent.pool"),
    pytest.param("", "gevent.get_hub().threadpool.apply(query)", "gevent", False, False, id="gevent's threadpool"),
    pytest.param(PATCHED, THREAD, "gevent", False, True, id="threading.Thread under gevent"),
    pytest.param(PATCHED, EXECUTOR, "gevent", False, True, id="ThreadPoolExecutor under gevent"),
]


@pytest.mark.parametrize(("first", "start", "needs", "traced", "traced_with"), WAYS)
@pytest.mark.parametrize("instrumented", [False, True])
def test_a_query_in_what_a_request_starts_is_traced_where_the_context_goes_along(  # noqa: PLR0913 - as in WAYS
    run: Run, first: str, start: str, needs: str, *, traced: bool, traced_with: bool, instrumented: bool
) -> None:
    for module in (needs, "opentelemetry.instrumentation.threading") if instrumented else (needs,):
        if module and importlib.util.find_spec(module) is None:
            pytest.importorskip(module)
    script = STARTED.format(
        first=first,
        register=WITH if instrumented else WITHOUT,
        imports=f"import {needs}" if needs else "",
        start=start.strip(),
    )
    result = run(script, own=instrumented)
    expected = traced_with if instrumented else traced
    assert [span["parent_id"] for span in result.spans] == [result.facts["parent"]] * expected


@pytest.mark.parametrize("spans", ["the SDK", "ours"])
def test_a_query_whose_parent_span_has_ended_makes_no_span(run: Run, spans: str) -> None:
    result = run(
        """
databases.register()
import contextvars, sqlite3
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
OURS = """
        f"{spans == 'ours'}"
        """
from mackerel_otel_server.pipeline.spans import Provider, QuickSpan
if OURS:
    ours = Provider(lambda *arguments: True)
    ours.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = ours.get_tracer("mackerel_otel_server", "1")
else:
    tracer = trace.get_tracer("test")
def query(text):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(text).fetchall()
span = tracer.start_span("parent")
with trace.use_span(span, end_on_exit=True):
    query("SELECT 'open'")
    poller = contextvars.copy_context()
poller.run(query, "SELECT 'ended'")
remote = NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1)))
with trace.use_span(remote):
    query("SELECT 'remote'")
with parent():
    query("SELECT 'later'")
poller.run(query, "SELECT 'ended'")
report(kind=isinstance(span, QuickSpan))
"""
    )
    assert result.facts == {"kind": spans == "ours"}
    assert result.texts == ["SELECT 'open'", "SELECT 'remote'", "SELECT 'later'"]


STREAMS = """
databases.register()
import asyncio, contextvars
import psycopg
async def asynchronously():
    connection = await psycopg.AsyncConnection.connect(**ADDRESS)
    async def use():
        cursor = connection.cursor()
        await cursor.execute("SELECT 1")
        rows = [row async for row in cursor.stream("SELECT 2")]
        async with cursor.copy("COPY (SELECT 3) TO STDOUT") as copy:
            rows += [row async for row in copy.rows()]
    with parent():
        await use()
        poller = contextvars.copy_context()
    await asyncio.get_running_loop().create_task(use(), **({} if sys.version_info < (3, 11) else {"context": poller}))
    await connection.close()
def synchronously():
    with closing(psycopg.connect(**ADDRESS)) as connection:
        def use():
            cursor = connection.cursor()
            cursor.execute("SELECT 1")
            rows = list(cursor.stream("SELECT 2"))
            with cursor.copy("COPY (SELECT 3) TO STDOUT") as copy:
                rows += list(copy.rows())
        with parent():
            use()
            poller = contextvars.copy_context()
        poller.run(use)
"""


@pytest.mark.parametrize("function", ["synchronously()", "asyncio.run(asynchronously())"])
@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_streams_and_copies_of_a_request_that_has_ended_make_no_span(
    run: Run, database: Database, function: str
) -> None:
    result = run(STREAMS + function + "\nreport()\n", database.address)
    assert result.texts == ["SELECT 1", "SELECT 2", "COPY (SELECT 3) TO STDOUT"]


@pytest.mark.parametrize("database", ["mysql.connector"], indirect=True)
def test_a_poller_of_connector_for_asyncio_makes_no_span_after_the_request(run: Run, database: Database) -> None:
    pytest.importorskip("mysql.connector.aio")
    result = run(
        """
databases.register()
import asyncio
import mysql.connector.aio
async def main():
    connection = await mysql.connector.aio.connect(**ADDRESS, ssl_disabled=True)
    asked, answered = asyncio.Event(), asyncio.Event()
    async def poll():
        for number in range(3):
            async with await connection.cursor() as cursor:
                await cursor.execute(f"SELECT {number}")
                await cursor.fetchall()
            answered.set()
            await asked.wait()
    with parent():
        task = asyncio.create_task(poll())
        await answered.wait()
    asked.set()
    await task
    await connection.close()
asyncio.run(main())
report()
""",
        database.address,
    )
    assert result.texts == ["SELECT 0"]


ASGI = pytest.param("polling:application", "asgi", id="asgi")
POLLERS = [
    pytest.param("polling:wsgi", "gthread", id="gthread"),
    pytest.param("polling:wsgi", "gevent", id="gevent"),
    # Gunicorn has an ASGI worker class of its own since release 25.
    *([ASGI] if importlib.util.find_spec("gunicorn.workers.gasgi") else []),
    pytest.param("polling:application", "uvicorn_worker.UvicornWorker", id="UvicornWorker"),
]


def assert_only_the_first_request_has_a_query(server: Server, receiver: Receiver) -> None:
    for path in ("/first", "/second", "/third"):
        assert server.get(path).status == 200, server.log
    log = server.stop()
    assert {span.attributes["url.path"] for span in receiver.spans if span.kind == "SERVER"} == {
        "/first",
        "/second",
        "/third",
    }, log
    queries = [span for span in receiver.spans if span.kind == "CLIENT"]
    assert [span.parent_span_id for span in queries] == [server_span(receiver, "/first").span_id], log


@pytest.mark.parametrize(("app", "worker_class"), POLLERS)
def test_a_poller_that_the_first_request_starts_makes_no_span_after_that_request(
    tmp_path: Path, receiver: Receiver, app: str, worker_class: str
) -> None:
    env = environment(receiver)
    with gunicorn(tmp_path, "-k", worker_class, env=env, app=app, workers=1) as server:
        assert_only_the_first_request_has_a_query(server, receiver)


def test_a_poller_under_uwsgi_makes_no_span_after_the_request_that_starts_it(
    tmp_path: Path, receiver: Receiver
) -> None:
    ini = "import = mackerel_otel_server.uwsgi\nmodule = polling:wsgi\nenable-threads = true\nmaster = true\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        for path in ("/first", "/second", "/third"):
            assert server.get(path).status == 200, server.log
        server.wait_until_idle()
        server.stop()
    queries = [span for span in receiver.spans if span.kind == "CLIENT"]
    assert [span.parent_span_id for span in queries] == [server_span(receiver, "/first").span_id], server.log
