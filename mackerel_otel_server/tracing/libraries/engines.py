"""SQLAlchemy's own instrumentation beside a traced driver: one query, one span, which is the driver's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.imports import on_import
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate

if TYPE_CHECKING:
    from collections.abc import Callable

_DRIVERS: Final = {
    "asyncpg": "asyncpg",
    "duckdb_engine": "duckdb",
    "mysqlconnector": "mysql",
    "mysqldb": "mysqlclient",
    "psycopg": "psycopg",
    "psycopg2": "psycopg2",
    "psycopg_async": "psycopg",
    "pymssql": "pymssql",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
    "pysqlite": "sqlite3",
}
"""What SQLAlchemy calls a driver (``Dialect.driver``) -> its entry point. aiosqlite calls sqlite3 in a thread of its
own, where no request is under way: there SQLAlchemy's span is the only one."""

_is_traced: Callable[[str], bool] | None = None


def register(is_traced: Callable[[str], bool]) -> None:
    """Keep SQLAlchemy's instrumentation, whoever applies it, from repeating what a driver's spans say.

    Args:
        is_traced: Tells whether the driver with an entry point of this name makes spans.
    """
    global _is_traced
    if _is_traced is None:
        on_import("opentelemetry.instrumentation.sqlalchemy.engine", _patch)
    _is_traced = is_traced


def _repeats(engine: Any) -> bool:
    name = _DRIVERS.get(getattr(engine.dialect, "driver", ""))
    return gate.active and name is not None and _is_traced is not None and _is_traced(name)


def _patch(module: Any) -> None:
    """Leave out the spans of a query, and of taking a connection from the pool, where the driver is traced.

    The names are private, but SQLAlchemy's own events come too late to tell the instrumentation that it may rest.
    """
    try:
        tracer = module.EngineTracer
        before, connect = tracer._before_cur_exec, module._wrap_connect  # noqa: SLF001 - the reason is above
    except AttributeError:
        log.debug("SQLAlchemy's spans stay beside those of the driver", exc_info=True)
        return

    @imitates(before)
    def before_cursor_execute(self: Any, conn: Any, cursor: Any, statement: Any, params: Any, *rest: Any) -> Any:
        # The commenter changes the statement, and writes its span's id into it.
        if not getattr(self, "enable_commenter", False) and _repeats(conn.engine):
            return statement, params
        return before(self, conn, cursor, statement, params, *rest)

    @imitates(connect)
    def wrap_connect(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        theirs: Callable[..., Any] = connect(*args, **kwargs)

        def wrapper(func: Callable[..., Any], engine: Any, args: Any, kwargs: Any) -> Any:
            return func(*args, **kwargs) if _repeats(engine) else theirs(func, engine, args, kwargs)

        return wrapper

    tracer._before_cur_exec = before_cursor_execute  # noqa: SLF001
    module._wrap_connect = wrap_connect  # noqa: SLF001
