"""Installed instrumentations are applied when their library is imported: real processes, real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from servers import environment, gunicorn, server_spans, uwsgi, wait_until

from mackerel_otel_server.cli.receiver.endpoint import Receiver

HARNESS = """
import json, logging, os, sys
FAR_URL = os.environ["FAR_URL"]
BEFORE = set(sys.modules)

def start():
    global exporter, register
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from mackerel_otel_server.process.log import log, to_host
    from mackerel_otel_server.settings import environment
    from mackerel_otel_server.tracing import databases, on_or_off, libraries
    environment.set_semconv_default()
    to_host(lambda record: print(record.levelname, record.getMessage(), file=sys.stderr))
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    on_or_off.active = True
    def register():
        databases.register(environment.disabled_instrumentations)
        libraries.register(environment.disabled_instrumentations)

def parent():
    from opentelemetry import trace
    return trace.get_tracer("test").start_as_current_span("parent")

def report(**facts):
    spans = [
        json.loads(span.to_json()) | {"scope": span.instrumentation_scope.name}
        for span in exporter.get_finished_spans() if span.parent  # others are not recorded
    ]
    print(json.dumps({"spans": spans, "facts": facts}, default=repr))
"""
START = "start()\nregister()\n"


class Far(NamedTuple):
    """A server that an application calls."""

    url: str
    traceparents: list[str]


class Result(NamedTuple):
    spans: list[dict[str, Any]]
    facts: dict[str, Any]
    log: str

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.log.splitlines() if line.startswith("WARNING")]


Run = Callable[..., Result]


@pytest.fixture
def far() -> Iterator[Far]:
    traceparents: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            traceparents.append(self.headers.get("traceparent", ""))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Far(f"http://127.0.0.1:{server.server_port}/far", traceparents)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def run(tmp_path: Path, far: Far) -> Run:
    """Return a function that runs a script in a fresh interpreter and gives its spans and what it reported."""

    def run_script(body: str, **variables: str) -> Result:
        script = tmp_path / "script.py"
        script.write_text(HARNESS + body)
        result = subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            env={**environment(FAR_URL=far.url, PYTHONPATH=str(tmp_path)), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        answer = json.loads(result.stdout.splitlines()[-1])
        return Result(answer["spans"], answer["facts"], result.stderr)

    return run_script


def install(  # noqa: PLR0913 - keywords, each of its own
    site: Path,
    name: str,
    *,
    requires: str = "",
    entry_points: str = "",
    record: str | None = None,
    top_level: str | None = None,
    version: str = "1",
) -> None:
    """Make a distribution up: what an installer would leave of it."""
    information = site / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {line}\n" for line in requires.splitlines())
    )
    if entry_points:
        (information / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\n{entry_points}\n")
    for file, text in (("RECORD", record), ("top_level.txt", top_level)):
        if text is not None:
            (information / file).write_text(text)


# An instrumentor that says what becomes of it.
INSTRUMENTOR = """
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

class Made(BaseInstrumentor):
    given = []

    def instrumentation_dependencies(self):
        return {dependencies!r}

    def _instrument(self, **kwargs):
        {body}
        Made.given.append(kwargs)

    def _uninstrument(self, **kwargs):
        Made.given.append("uninstrumented")
"""


def install_instrumentation(
    site: Path, name: str, *, requires: str, body: str = "pass", dependencies: tuple[str, ...] = ()
) -> str:
    """Make up an instrumentation; return the name of its module."""
    module = f"otel_{name.replace('-', '_')}"
    install(site, f"otel-{name}", requires=requires, entry_points=f"{name} = {module}:Made")
    (site / f"{module}.py").write_text(INSTRUMENTOR.format(dependencies=dependencies, body=body))
    return module


CALLS = {
    "requests": ("requests.get(FAR_URL)", "from requests import get", "get(FAR_URL)"),
    "httpx": ("httpx.get(FAR_URL)", "from httpx import get", "get(FAR_URL)"),
    "urllib3": (
        "pool = urllib3.PoolManager(); pool.request('GET', FAR_URL); pool.clear()",
        "from urllib3 import PoolManager",
        "pool = PoolManager(); pool.request('GET', FAR_URL); pool.clear()",
    ),
    "urllib.request": (
        "urllib.request.urlopen(FAR_URL).close()",
        "from urllib.request import urlopen",
        "urlopen(FAR_URL).close()",
    ),
}
ORDERS = ("before", "after", "after `from … import`")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("library", CALLS)
def test_each_http_call_is_one_client_span_whichever_was_imported_first(
    run: Run, far: Far, library: str, order: str
) -> None:
    call, import_name, call_of_name = CALLS[library]
    script = {
        "before": f"{START}import {library}\nwith parent(): {call}\n",
        "after": f"import {library}\n{START}with parent(): {call}\n",
        "after `from … import`": f"{import_name}\n{START}with parent(): {call_of_name}\n",
    }[order]
    result = run(script + "report()")
    # requests is made of urllib3, whose instrumentation is installed as well.
    (span,) = result.spans
    assert span["kind"] == "SpanKind.CLIENT"
    assert span["attributes"]["http.request.method"] == "GET"
    assert span["attributes"]["http.response.status_code"] == 200
    (traceparent,) = far.traceparents
    assert traceparent.split("-")[2] == span["context"]["span_id"].removeprefix("0x")
    assert result.warnings == []


@pytest.mark.parametrize("order", ORDERS[:2])
def test_commands_of_redis_are_client_spans(run: Run, redis_url: str, order: str) -> None:
    imports = (START + "import redis\n") if order == "before" else ("import redis\n" + START)
    result = run(
        imports
        + """
with redis.Redis.from_url(os.environ["REDIS_URL"]) as client, parent():
    answers = [client.set("mackerel-otel-test", "s3cret"), client.get("mackerel-otel-test").decode()]
    client.delete("mackerel-otel-test")
report(answers=answers)
""",
        REDIS_URL=redis_url,
    )
    assert result.facts["answers"] == [True, "s3cret"]
    assert [(span["name"], span["kind"]) for span in result.spans] == [
        (name, "SpanKind.CLIENT") for name in ("SET", "GET", "DEL")
    ]
    assert "s3cret" not in json.dumps(result.spans)


@pytest.mark.parametrize("order", ORDERS[:2])
def test_templates_of_jinja2_are_spans(run: Run, order: str) -> None:
    imports = (START + "import jinja2\n") if order == "before" else ("import jinja2\n" + START)
    result = run(imports + "with parent(): text = jinja2.Template('{{ x }}').render(x=7)\nreport(text=text)")
    assert result.facts["text"] == "7"
    assert {span["scope"] for span in result.spans} == {"opentelemetry.instrumentation.jinja2"}
    assert "jinja2.render" in [span["name"] for span in result.spans]


@pytest.mark.parametrize("order", ORDERS[:2])
def test_a_task_of_celery_is_a_consumer_span(run: Run, order: str) -> None:
    imports = (START + "import celery\n") if order == "before" else ("import celery\n" + START)
    result = run(
        imports
        + """
app = celery.Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.task_always_eager = True

@app.task
def order(number):
    return number + 1

with parent():
    answer = order.delay(1).get()
report(answer=answer)
"""
    )
    assert result.facts["answer"] == 2
    assert "SpanKind.CONSUMER" in [span["kind"] for span in result.spans]
    assert result.warnings == []


# One query, one span.

QUERY = """
from sqlalchemy import create_engine, text
engine = create_engine("sqlite://")
with parent():
    for number in (1, 2):
        with engine.connect() as connection:
            answer = connection.execute(text("SELECT 41 + :n"), {"n": number}).scalar()
engine.dispose()
report(answer=answer)
"""
THEIRS = "from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor\nSQLAlchemyInstrumentor()"


@pytest.mark.parametrize(
    "script",
    [
        START + QUERY,
        "import sqlalchemy\n" + START + QUERY,
        START + THEIRS + ".instrument()\n" + QUERY,
        START + "import sqlalchemy\n" + THEIRS + ".instrument()\n" + QUERY,
        THEIRS + ".instrument()\n" + START + QUERY,
    ],
    ids=["we before", "we after", "they after us", "they after both", "they before us"],
)
def test_a_query_through_sqlalchemy_is_the_span_of_its_driver(run: Run, script: str) -> None:
    # Where their code comes before ours, ours cannot choose the names any more.
    result = run(script, OTEL_SEMCONV_STABILITY_OPT_IN="http,database")
    assert result.facts["answer"] == 43
    # That a connection was taken from the pool stays where their code came before ours; it is no query.
    spans = [span for span in result.spans if not script.startswith(THEIRS) or span["name"] != "connect"]
    texts = [span["attributes"]["db.query.text"] for span in spans]
    # SQLAlchemy asks a new connection about itself.
    assert [text for text in texts if not text.startswith("PRAGMA")] == ["SELECT 41 + ?"] * 2
    assert "opentelemetry.instrumentation.sqlalchemy" not in {span["scope"] for span in spans}
    assert result.warnings == []


def test_where_sqlalchemy_s_instrumentation_writes_its_span_into_the_statement_that_span_is_the_only_one(
    run: Run,
) -> None:
    if find_spec("opentelemetry.instrumentation.sqlite3"):
        pytest.skip("the instrumentation of sqlite3 is installed, and does not step aside")
    result = run(START + THEIRS + ".instrument(enable_commenter=True)\n" + QUERY)
    spans = [span for span in result.spans if "SELECT 41" in str(span["attributes"])]
    assert [span["scope"] for span in spans] == ["opentelemetry.instrumentation.sqlalchemy"] * 2


@pytest.mark.parametrize("driver", ["psycopg2", "pymysql"])
def test_a_driver_s_own_instrumentation_goes_before_that_of_sqlalchemy(
    run: Run, need: Callable[[str], None], request: pytest.FixtureRequest, driver: str
) -> None:
    need(driver)
    address = request.getfixturevalue("postgresql" if driver == "psycopg2" else "mysql")
    result = run(
        f"""{START}
from sqlalchemy import URL, create_engine, text
address = {address}
database = address.pop("dbname", None) or address.pop("database")
scheme = {"postgresql" if driver == "psycopg2" else "mysql"!r} + "+{driver}"
engine = create_engine(URL.create(
    scheme, address["user"], address["password"] or None, address["host"], address["port"], database
))
engine.connect().close()
with parent(), engine.connect() as connection:
    answer = connection.execute(text("SELECT 41 + :n"), {{"n": 1}}).scalar()
engine.dispose()
report(answer=answer)
"""
    )
    (span,) = result.spans
    names = ("db.query.text", "db.statement")  # instrumentations before 0.63 know the latter only
    assert next(span["attributes"][name] for name in names if name in span["attributes"]).startswith("SELECT 41 + %")
    own = find_spec("opentelemetry.instrumentation") and find_spec(f"opentelemetry.instrumentation.{driver}")
    assert span["scope"] == (f"opentelemetry.instrumentation.{driver}" if own else "mackerel_otel_server.databases")


def test_where_the_driver_is_not_traced_sqlalchemy_s_instrumentation_makes_the_span(run: Run) -> None:
    result = run(START + QUERY, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sqlite3")
    assert result.facts["answer"] == 43
    queries = [span for span in result.spans if "db.query.text" in span["attributes"] or "db.statement" in str(span)]
    assert len(queries) == 2
    assert {span["scope"] for span in result.spans} == {"opentelemetry.instrumentation.sqlalchemy"}


def test_the_private_names_of_sqlalchemy_s_instrumentation_are_there() -> None:
    """Without them its spans would stay beside those of the driver."""
    from opentelemetry.instrumentation.sqlalchemy import engine

    assert callable(engine.EngineTracer._before_cur_exec)  # noqa: SLF001
    assert callable(engine._wrap_connect)  # noqa: SLF001


# What the application says about instrumentations goes first.


@pytest.mark.parametrize(
    "script",
    [
        "from otel_shop import Made\n" + START + "import shop\nMade().instrument(own=1)\n",
        "from otel_shop import Made\nMade().instrument(own=1)\n" + START + "import shop\n",
        START + "from otel_shop import Made\nMade().instrument(own=1)\nimport shop\n",
        START + "import shop\nfrom otel_shop import Made\nMade().instrument(own=1)\n",
        "import shop\n" + START + "from otel_shop import Made\nMade().instrument(own=1)\n",
    ],
)
def test_what_the_application_gives_to_an_instrumentor_counts_whenever_it_does(
    run: Run, tmp_path: Path, script: str
) -> None:
    # As they do: the instrumentation's module imports the library.
    install_instrumentation(tmp_path, "shop", requires="shop; extra == 'instruments'")
    (tmp_path / "shop.py").touch()
    with (tmp_path / "otel_shop.py").open("a") as file:
        file.write("\n")
    (tmp_path / "otel_shop.py").write_text("import shop\n" + (tmp_path / "otel_shop.py").read_text())
    result = run(script + "report(given=Made.given, instrumented=Made().is_instrumented_by_opentelemetry)")
    assert result.facts["given"][-1] == {"own": 1}
    assert "uninstrumented" not in result.facts["given"][-1:]
    assert result.facts["given"].count({"own": 1}) == 1
    assert result.facts["instrumented"] is True
    assert "already instrumented" not in result.log
    assert result.warnings == []


def test_an_instrumentor_of_no_known_class_is_applied(run: Run, tmp_path: Path) -> None:
    install(tmp_path, "otel-shop", entry_points="shop = otel_shop:Made")
    (tmp_path / "otel_shop.py").write_text("class Made:\n    def instrument(self):\n        Made.done = True\n")
    (tmp_path / "shop.py").touch()
    result = run(START + "import shop\nfrom otel_shop import Made\nMade().instrument()\nreport(done=Made.done)")
    assert result.facts["done"] is True
    assert result.warnings == []


def test_a_hook_that_the_application_gives_to_requests_late_is_called(run: Run) -> None:
    result = run(
        START
        + """
import requests
from opentelemetry.instrumentation.requests import RequestsInstrumentor
RequestsInstrumentor().instrument(request_hook=lambda span, request: span.set_attribute("own", True))
with parent(): requests.get(FAR_URL)
report()
"""
    )
    (span,) = result.spans
    assert span["attributes"]["own"] is True
    assert "already instrumented" not in result.log


def test_a_driver_that_the_application_instruments_itself_is_traced_once(
    run: Run, need: Callable[[str], None], postgresql: dict[str, Any]
) -> None:
    need("psycopg2")
    result = run(
        START
        + f"""
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor  # imports the driver
Psycopg2Instrumentor().instrument()
import psycopg2
connection = psycopg2.connect(**{postgresql})
with parent():
    connection.cursor().execute("SELECT 1")
connection.close()
report()
"""
    )
    (span,) = result.spans
    assert span["scope"] == "opentelemetry.instrumentation.psycopg2"
    assert result.warnings == []
    assert "already instrumented" not in result.log


def test_under_another_tracer_provider_nothing_is_applied(run: Run, far: Far) -> None:
    result = run(
        """
start()
on_or_off = sys.modules["mackerel_otel_server.tracing.on_or_off"]
on_or_off.active = False
register()
import requests
with parent(): requests.get(FAR_URL)
report()
"""
    )
    assert result.spans == []
    assert far.traceparents == [""]


@pytest.mark.parametrize(("disabled", "expected"), [("urllib3, requests ", []), ("*", []), ("jinja2", ["GET"])])
def test_an_instrumentation_is_disabled_by_its_name_or_all_of_them(
    run: Run, disabled: str, expected: list[str]
) -> None:
    result = run(
        START + "import requests\nwith parent(): requests.get(FAR_URL)\nreport()",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled,
    )
    assert [span["name"] for span in result.spans] == expected


def test_registering_imports_no_library_and_no_instrumentation(run: Run) -> None:
    result = run(
        """
start()
before = set(sys.modules)
register()
report(new=sorted(set(sys.modules) - before))
""",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="logging,threading,asyncio",  # imported by the interpreter's own modules
    )
    roots = {name.partition(".")[0] for name in result.facts["new"]}
    assert (
        roots
        & {
            *(
                "celery",
                "django",
                "flask",
                "httpx",
                "jinja2",
                "redis",
                "requests",
                "sqlalchemy",
                "ssl",
                "urllib3",
                "grpc",
            ),
            *("concurrent", "asyncio"),
        }
        == set()
    )
    assert "urllib.request" not in result.facts["new"]
    assert [name for name in result.facts["new"] if name.startswith("opentelemetry.instrumentation.")] == []


# Which module an instrumentation waits for.


@pytest.mark.parametrize(
    ("requires", "library", "imports"),
    [
        ("shop; extra == 'instruments'", {}, ["shop"]),
        ('Shop (>=1.0) ; extra == "instruments"', {}, ["shop"]),
        (
            "python-shop>=1; python_version >= '3' and extra == 'instruments'",
            {"record": "shop/__init__.py,,\n"},
            ["shop"],
        ),
        ("python-shop; extra == 'instruments'", {"record": "shop.py,,\nREADME.md,,\n"}, ["shop"]),
        ("python-shop; extra == 'instruments'", {"record": "shop.cpython-311-x86_64-linux-gnu.so,,\n"}, ["shop"]),
        (
            "python-shop; extra == 'instruments'",
            {"record": "mall/shop/__init__.py,,\nmall/shop/x/__init__.py,,\n"},
            ["mall.shop"],
        ),
        ("python-shop; extra == 'instruments'", {"top_level": "shop\ntests\n"}, ["shop"]),
        ("python-shop; extra == 'instruments'", {"record": "shop.py,,\nother/__init__.py,,\n"}, ["shop"]),
        (
            "python-shop; extra == 'instruments-any'\nother; extra == 'instruments-any'",
            {"record": "shop.py,,\n"},
            ["shop"],
        ),
        ("shop; extra == 'instruments'\nmall; extra == 'instruments'", {}, ["mall", "shop"]),
        ("pytest; extra == 'test'", {}, ["maker"]),
        ("", {}, ["maker"]),
    ],
)
def test_the_metadata_tell_which_import_applies_an_instrumentation(
    run: Run, tmp_path: Path, requires: str, library: dict[str, str], imports: list[str]
) -> None:
    install_instrumentation(tmp_path, "maker", requires=requires)
    if library:
        install(tmp_path, "python-shop", **library)
    for module in ("shop", "maker", "other", "mall.shop" if "mall.shop" in imports else "mall"):
        *packages, name = module.split(".")
        folder = tmp_path.joinpath(*packages)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").touch()
    result = run(
        START
        + f"""
steps = []
for name in {imports}:
    __import__(name)
    steps.append(sys.modules["otel_maker"].Made.given if "otel_maker" in sys.modules else [])
report(steps=steps)
"""
    )
    assert result.facts["steps"] == [*([[]] * (len(imports) - 1)), [{}]]
    assert result.warnings == []


def test_one_distribution_for_two_libraries_gives_each_its_own(run: Run, tmp_path: Path) -> None:
    requires = "botoshop; extra == 'instruments-any'\naiobotoshop; extra == 'instruments-any'"
    install(tmp_path, "otel", requires=requires, entry_points="botoshop = otel_a:Made\naiobotoshop = otel_b:Made")
    for module in ("otel_a", "otel_b"):
        (tmp_path / f"{module}.py").write_text(INSTRUMENTOR.format(dependencies=(), body="pass"))
    for module in ("botoshop", "aiobotoshop"):
        (tmp_path / f"{module}.py").touch()
    result = run(START + "import botoshop\nreport(loaded=[m for m in ('otel_a', 'otel_b') if m in sys.modules])")
    assert result.facts["loaded"] == ["otel_a"]


# What fails is named once, and the rest goes on.

BROKEN = {
    "raises": ("raise RuntimeError('no such thing')", "RuntimeError: no such thing"),
    "cannot be imported": (None, "SyntaxError"),
    "has no such class": ("", "AttributeError"),
    "misses a dependency": ("import", "ModuleNotFoundError: No module named 'not_there'"),
    "is for another version": (("shop>=7",), "shop"),
    "is for what is not installed": (("not-there",), "not-there"),
}


def install_broken(site: Path, how: str) -> None:
    body: Any = BROKEN[how][0]
    install(site, "shop", record="shop.py,,\n")
    (site / "shop.py").write_text("VALUE = 7\n")
    dependencies = body if isinstance(body, tuple) else ()
    module = install_instrumentation(
        site,
        "shop",
        requires="shop; extra == 'instruments'",
        body=body if isinstance(body, str) and body.startswith("raise") else "pass",
        dependencies=dependencies,
    )
    file = site / f"{module}.py"
    if how == "cannot be imported":
        file.write_text("this is no Python\n")
    elif how == "has no such class":
        file.write_text("")
    elif how == "misses a dependency":
        file.write_text("import not_there\n" + file.read_text())


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("order", ORDERS[:2])
def test_an_instrumentation_that_fails_is_named_in_one_warning_and_the_rest_goes_on(
    run: Run, tmp_path: Path, how: str, order: str
) -> None:
    install_broken(tmp_path, how)
    imports = (START + "import shop, requests\n") if order == "before" else ("import shop, requests\n" + START)
    result = run(imports + "with parent(): requests.get(FAR_URL)\nregister()\nreport(value=shop.VALUE)")
    assert result.facts["value"] == 7
    assert [span["name"] for span in result.spans] == ["GET"]
    (warning,) = result.warnings
    assert "otel_shop:Made" in warning
    assert BROKEN[how][1] in warning
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS" in warning
    assert "only instruments" not in result.log.replace(warning, "")
    assert "Traceback" not in result.log


def test_where_sqlalchemy_s_instrumentation_fails_the_log_says_that_the_queries_are_traced_without_it(
    run: Run, tmp_path: Path
) -> None:
    install_instrumentation(tmp_path, "sqlalchemy", requires="", body="raise RuntimeError('no such thing')")
    result = run(START + "import sqlalchemy\nreport()\n")
    (warning,) = result.warnings
    assert "otel_sqlalchemy" in warning
    assert "no such thing): its queries are traced without it" in warning


def test_the_instrumentation_of_a_driver_that_fails_is_named_once_and_its_queries_are_traced(
    run: Run, tmp_path: Path
) -> None:
    install_instrumentation(tmp_path, "sqlite3", requires="", body="raise RuntimeError('no such thing')")
    result = run(
        START
        + """
import sqlite3
with parent():
    connection = sqlite3.connect(":memory:")
    connection.cursor().execute("SELECT 1")
    connection.close()
report()
"""
    )
    assert len(result.spans) == 1
    assert [
        line for line in result.warnings if "otel_sqlite3" in line and "traced without it" in line
    ] == result.warnings
    assert len(result.warnings) == 1


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_of_all_workers_one_names_what_fails(tmp_path: Path, receiver: Receiver, far: Far, options: list[str]) -> None:
    install_broken(tmp_path, "raises")
    (tmp_path / "selling.py").write_text("import shop\nfrom plain import application\n")
    env = environment(receiver, FAR_URL=far.url)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, *options, env=env, app="selling", workers=3) as server:
        server.ask_every_worker(3, 6)
        log = server.stop()
    assert log.count("otel_shop:Made") == 1, log
    assert len(server_spans(receiver.spans)) == server.answered


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_what_no_instrumentation_can_work_with_is_reported_as_a_wrong_setting_only(
    tmp_path: Path, receiver: Receiver, far: Far, redis_url: str, options: list[str]
) -> None:
    env = environment(receiver, FAR_URL=far.url, REDIS_URL=redis_url, OTEL_PROPAGATORS="missing")
    with gunicorn(tmp_path, *options, env=env, app="calling", workers=1) as server:
        assert server.get("/requests/httpx/redis/jinja2").body == b"done"
        log = server.stop()
    assert log.count("mackerel_otel_server:") == 1, log
    assert "OTEL_PROPAGATORS='missing'" in log
    # Also not before the settings are read, where a line goes elsewhere.
    assert "is not traced" not in log
    assert "cannot be prepared" not in log


def test_with_the_sdk_disabled_nothing_is_applied(tmp_path: Path, receiver: Receiver, far: Far) -> None:
    install_broken(tmp_path, "raises")
    (tmp_path / "selling.py").write_text("import shop\nfrom plain import application\n")
    env = environment(receiver, FAR_URL=far.url, OTEL_SDK_DISABLED="true")
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="selling", workers=1) as server:
        server.get("/")
        log = server.stop()
    assert "otel_shop" not in log


# In the servers.

EVERY = "/requests/urllib3/httpx/urllib/redis/jinja2/logging"
SCOPES = ["requests", "urllib3", "httpx", "urllib", "redis", "jinja2"]


def assert_every_library_is_traced(receiver: Receiver, log: str, requests: int) -> None:
    parents = server_spans(receiver.spans)
    assert len(parents) == requests
    for parent in parents:
        children = [span for span in receiver.spans if span.trace_id == parent.trace_id and span is not parent]
        clients = [span.scope.rpartition(".")[2] for span in children if span.kind == "CLIENT"]
        assert sorted(clients) == sorted(["requests", "urllib3", "httpx", "urllib", "redis"]), log
        assert any(span.scope.endswith(".jinja2") for span in children), log
        # The record knows the trace that the application is in, and who is speaking.
        assert f"shop: now {parent.trace_id} {parent.trace_id} shop." in log
    # Sending makes no spans: all of them belong to requests.
    assert {span.trace_id for span in receiver.spans} == {parent.trace_id for parent in parents}
    assert "Logging error" not in log


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--preload"],
        ["--preload", "--env", "OTEL_TRACES_EXPORTER=otlp,console"],
        ["-k", "gthread", "--threads", "2", "--env", "OTEL_TRACES_EXPORTER=otlp,console"],
        ["-k", "gevent"],
        ["-k", "gevent", "--preload"],
    ],
    ids=" ".join,
)
def test_a_gunicorn_worker_traces_what_the_application_calls_and_not_our_own_sending(
    tmp_path: Path, receiver: Receiver, far: Far, redis_url: str, options: list[str]
) -> None:
    env = environment(receiver, FAR_URL=far.url, REDIS_URL=redis_url, OTEL_BSP_SCHEDULE_DELAY="50")
    with gunicorn(tmp_path, *options, env=env, app="calling", workers=1) as server:
        for number in (1, 2, 3):  # with something sent in between
            assert server.get(EVERY).status == 200, server.log
            wait_until(lambda: len(server_spans(receiver.spans)) == number, "sent", lambda: server.log)  # noqa: B023
        log = server.stop()
    assert_every_library_is_traced(receiver, log, 3)
    sent = len(receiver.spans)
    assert f"sent {sent} spans" in log


@pytest.mark.parametrize("options", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_a_uwsgi_worker_traces_what_the_application_calls(
    tmp_path: Path, receiver: Receiver, far: Far, redis_url: str, options: str
) -> None:
    ini = f"master = true\nenable-threads = true\nimport = mackerel_otel_server.uwsgi\nmodule = calling\n{options}"
    with uwsgi(tmp_path, ini, env=environment(receiver, FAR_URL=far.url, REDIS_URL=redis_url), processes=1) as server:
        assert server.get(EVERY).status == 200
        server.wait_until_idle()
        log = server.stop()
    assert_every_library_is_traced(receiver, log, 1)


def test_gunicorn_s_raw_env_disables_an_instrumentation(tmp_path: Path, receiver: Receiver, far: Far) -> None:
    option = ["--env", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=requests,urllib3"]
    with gunicorn(tmp_path, *option, env=environment(receiver, FAR_URL=far.url), app="calling", workers=1) as server:
        assert server.get("/requests/httpx").status == 200, server.log
        server.stop()
    assert [span.scope.rpartition(".")[2] for span in receiver.spans if span.kind == "CLIENT"] == ["httpx"]


@pytest.mark.parametrize("framework", ["django", "flask"])
def test_an_installed_instrumentation_of_the_framework_makes_no_second_server_span(
    tmp_path: Path, receiver: Receiver, framework: str, need: Callable[[str], None]
) -> None:
    need(f"opentelemetry.instrumentation.{framework}")
    with gunicorn(tmp_path, env=environment(receiver), app=f"served:with_{framework}", workers=1) as server:
        assert server.get("/shop/").body == b"done"
        server.stop()
    (span,) = receiver.spans
    assert span.kind == "SERVER"


def test_the_application_s_own_logging_is_left_alone(run: Run) -> None:
    result = run(
        START
        + """
root = logging.getLogger()
handlers = list(root.handlers)
logging.basicConfig(format="%(message)s %(otelTraceID)s", level=logging.INFO)
logging.info("outside")
report(before=handlers, after=len(root.handlers), level=root.level)
"""
    )
    assert (result.facts["before"], result.facts["after"], result.facts["level"]) == ([], 1, 20)
    assert "outside 0\n" in result.log


def test_otel_python_log_correlation_sets_the_format(run: Run) -> None:
    result = run(START + "logging.warning('hello')\nreport()", OTEL_PYTHON_LOG_CORRELATION="true")
    assert "trace_id=0" in result.log
