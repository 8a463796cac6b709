"""ORMs and pools over the drivers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version

import pytest
from querying import REGISTER, Database, Run


@pytest.mark.parametrize("database", ["MySQLdb", "psycopg2", "psycopg", "sqlite3"], indirect=True)
def test_django_s_models_make_one_span_a_query(run: Run, need: Callable[[str], None], database: Database) -> None:
    need("django")
    engine = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite3"}[database.system]
    block = "sys.modules['psycopg'] = None\n" if database.module == "psycopg2" else ""
    result = run(
        block
        + REGISTER
        + f"""
import django
from django.conf import settings
names = {{"dbname": "NAME", "database": "NAME", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}}
database = {{names[key]: value for key, value in ADDRESS.items()}}
database["ENGINE"] = "django.db.backends.{engine}"
settings.configure(DATABASES={{"default": database}}, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
django.setup()
from django.db import connection, models
class Thing(models.Model):
    name = models.TextField()
    class Meta:
        app_label = "things"
        db_table = TABLE
with connection.schema_editor() as editor:
    editor.create_model(Thing)
try:
    Thing.objects.create(name="connected")
    with parent():
        Thing.objects.create(name=SECRET)
        found = Thing.objects.get(name=SECRET).name
        many = Thing.objects.filter(name__startswith="s3").count()
finally:
    with connection.schema_editor() as editor:
        editor.delete_model(Thing)
connection.close()
report(found=found, many=many, database=[connection.vendor, connection.Database.__name__])
""",
        database.address,
    )
    assert result.facts["found"] == "s3cret-value"
    assert result.facts["many"] == 1
    assert [span["name"] for span in result.spans] == ["INSERT", "SELECT", "SELECT"]
    assert "s3cret-value" not in json.dumps(result.spans)
    assert {span["attributes"]["db.system.name"] for span in result.spans} == {database.system}


SQLALCHEMY = """
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.orm import Session, declarative_base
Base = declarative_base()
class Thing(Base):
    __tablename__ = TABLE
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
    name = sqlalchemy.Column(sqlalchemy.String(50), unique=True)
def url(drivername):
    names = {"dbname": "database", "user": "username"}
    return sqlalchemy.engine.URL.create(drivername, **{names.get(key, key): value for key, value in ADDRESS.items()})
"""
THINGS = """
    engine = sqlalchemy.create_engine(url(DIALECT), pool_size=1, max_overflow=0, poolclass=sqlalchemy.pool.QueuePool)
    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session:
            session.connection()  # what the dialect asks at first
        statements = []
        event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        with parent():
            for _ in range(2):  # on one connection of the pool
                with Session(engine) as session:
                    found = session.scalars(sqlalchemy.select(Thing).where(Thing.name == SECRET)).all()
                    session.add_all([Thing(name=f"{SECRET}{n}") for n in range(3)])
                    session.flush()
                    session.execute(text(f"UPDATE {TABLE} SET name = :name"
                                         f" WHERE id = :id"), [{"id": n, "name": f"x{n}"} for n in (1000, 1001)])
                    try:
                        with session.begin_nested():
                            session.add(Thing(name=f"{SECRET}1"))
                            session.flush()
                    except sqlalchemy.exc.IntegrityError as error:
                        message = str(error.orig)
                    session.rollback()
        asked = list(statements)
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()
"""
DIALECTS = {
    "MySQLdb": "mysql+mysqldb",
    "pymysql": "mysql+pymysql",
    "psycopg2": "postgresql+psycopg2",
    "psycopg": "postgresql+psycopg",
    "sqlite3": "sqlite+pysqlite",
}
every_dialect = pytest.mark.parametrize("database", DIALECTS, indirect=True)


def _need_dialect(database: Database) -> None:
    if database.module == "psycopg" and version("sqlalchemy").startswith("1."):
        pytest.skip("SQLAlchemy 1.4 has no dialect for it")


@every_dialect
def test_sqlalchemy_makes_one_span_a_query(run: Run, need: Callable[[str], None], database: Database) -> None:
    need("sqlalchemy")
    _need_dialect(database)
    dialect = f"DIALECT = {DIALECTS[database.module]!r}\nif True:"
    result = run(
        REGISTER + SQLALCHEMY + dialect + THINGS + "report(message=message, statements=asked)", database.address
    )
    assert len(result.texts) >= 10
    # SQLAlchemy 1.4 gives it to psycopg2's execute_values(), which takes one placeholder for all values.
    texts = [text.replace(" VALUES %s ", " VALUES (%(name)s) ") for text in result.texts]
    assert texts == result.facts["statements"]
    assert all(database.place.items() <= span["attributes"].items() for span in result.spans)
    assert len([span for span in result.spans if span["events"]]) == 2
    assert "s3cret" not in json.dumps(result.spans)
    assert "WARNING" not in result.log


# SQLAlchemy's instrumentation refuses a SQLAlchemy that is newer than itself; then our spans are the only ones.
OWN = """
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
SQLAlchemyInstrumentor().instrument(skip_dep_check=True)
"""


@every_dialect
@pytest.mark.parametrize("first", [True, False])
def test_sqlalchemy_s_own_instrumentation_makes_the_only_span(
    run: Run, need: Callable[[str], None], database: Database, *, first: bool
) -> None:
    need("sqlalchemy")
    _need_dialect(database)
    pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
    result = run(
        (REGISTER + OWN if first else OWN + REGISTER)
        + SQLALCHEMY
        + f"DIALECT = {DIALECTS[database.module]!r}\nif True:"
        + THINGS
        + f"""
import importlib
with parent(), closing(importlib.import_module({database.module!r}).connect(**ADDRESS)) as connection:
    connection.cursor().execute("SELECT 'on its own'")
scopes = [span.instrumentation_scope.name for span in exporter.get_finished_spans() if span.name != "parent"]
report(statements=asked, scopes=scopes)
""",
        database.address,
    )
    ours = "mackerel_otel_server.databases"
    assert [scope == ours for scope in result.facts["scopes"]] == [False] * (len(result.spans) - 1) + [True]
    texts = [span["attributes"].get("db.query.text", span["attributes"].get("db.statement")) for span in result.spans]
    texts = [text for text in texts if text is not None]  # it makes spans of connecting
    assert texts[-1] == "SELECT 'on its own'"
    # Their instrumentation also records spans without a parent, here the creation of the table.
    start = texts.index(result.facts["statements"][0])
    assert texts[start : start + len(result.facts["statements"])] == result.facts["statements"]


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
@pytest.mark.parametrize("own", [False, True])
def test_sqlalchemy_for_asyncio_makes_one_span_a_query(
    run: Run, need: Callable[[str], None], database: Database, *, own: bool
) -> None:
    need("sqlalchemy")
    _need_dialect(database)
    need("greenlet")
    if own:
        pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
    result = run(
        REGISTER
        + (OWN if own else "")
        + SQLALCHEMY
        + """
import asyncio
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
async def main():
    engine = create_async_engine(url("postgresql+psycopg"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    try:
        with parent():
            async with AsyncSession(engine) as session:
                session.add(Thing(id=1, name=SECRET))
                await session.flush()
                rows = (await session.scalars(sqlalchemy.select(Thing.id))).all()
                async for row in await session.stream(sqlalchemy.select(Thing.name)):
                    pass
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        await engine.dispose()
    return rows
report(rows=asyncio.run(main()))
""",
        database.address,
    )
    assert result.facts["rows"] == [1]
    spans = [span for span in result.spans if span["attributes"].get("db.query.text")]
    if own and not spans:
        spans = [span for span in result.spans if span["attributes"].get("db.statement")]  # before 0.63b0
    children = {span["parent_id"] for span in spans}
    verbs = [span["name"].partition(" ")[0] for span in spans]
    if own:  # which makes spans without a parent, too
        parent = next(span["parent_id"] for span in spans if span["name"].startswith("INSERT"))
        verbs = [verb for verb, span in zip(verbs, spans, strict=True) if span["parent_id"] == parent]
    else:
        assert len(children) == 1
    assert verbs == ["INSERT", "SELECT", "SELECT"]
    assert "s3cret-value" not in json.dumps(result.spans)
    assert "Failed to detach" not in result.log


def test_aiosqlite_is_traced_by_way_of_sqlite3_where_its_thread_has_the_context(
    run: Run, need: Callable[[str], None]
) -> None:
    need("aiosqlite")
    result = run(
        REGISTER
        + """
import asyncio
import aiosqlite
async def main():
    async with aiosqlite.connect(":memory:") as connection:
        with parent():
            async with connection.execute("SELECT ?", (SECRET,)) as cursor:
                return await cursor.fetchone()
report(row=asyncio.run(main()))
"""
    )
    assert result.facts["row"] == ["s3cret-value"]
    # aiosqlite's thread does not know the request, also with OpenTelemetry's instrumentation of threads.
    assert result.texts == []


def test_django_s_persistent_connections_and_wrappers_make_one_span_a_query(
    run: Run, need: Callable[[str], None]
) -> None:
    need("django")
    result = run(
        REGISTER
        + """
import django
from django.conf import settings
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "d.db", "CONN_MAX_AGE": None}
settings.configure(DATABASES={"default": database})
django.setup()
from django.db import close_old_connections, connection, transaction
calls = []
def wrapper(execute, sql, params, many, context):
    calls.append(sql)
    return execute(sql, params, many, context)
with parent(), connection.execute_wrapper(wrapper):
    for number in range(2):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT %s", [number])
            first = cursor.fetchone()
        close_old_connections()
report(calls=calls, first=first)
"""
    )
    assert result.facts == {"calls": ["BEGIN", "SELECT %s"] * 2, "first": [1]}
    assert result.texts[-4:] == ["BEGIN", "SELECT ?"] * 2
