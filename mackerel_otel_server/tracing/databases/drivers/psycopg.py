"""psycopg 3, asyncio included."""

from __future__ import annotations

import inspect
from typing import Any, Final

from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import patch_methods


def _patch(module: Any) -> None:
    """Patch the cursors; connections execute by way of a cursor."""
    # The import stands here for the reason that patching.traced_method() gives.
    from mackerel_otel_server.tracing.databases.methods import traced_manager

    roots = module.Cursor, module.AsyncCursor
    for cursor_class in [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, roots)]:
        patch_methods(cursor_class, DRIVER)
        if copy := vars(cursor_class).get("copy"):
            asynchronous = issubclass(cursor_class, module.AsyncCursor)
            cursor_class.copy = traced_manager(copy, DRIVER, asynchronous=asynchronous)  # type: ignore[attr-defined]


def place_of(connection: Any) -> Place:
    """Return what libpq knows of a connection, of psycopg 3 or of psycopg2."""
    info = connection.info
    return Place(info.dbname, info.host, info.port)


DRIVER: Final = Driver(
    name="psycopg",
    module="psycopg",
    system="postgresql",
    # SQLAlchemy 2.0 and Django 4.2 take no older one.
    distributions={"psycopg": "3.0.7"},
    patches={"psycopg": _patch},
    place_of=place_of,
    dialects=("psycopg", "psycopg_async"),
)
