"""What a driver says about itself; each file of ``drivers`` says it about one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where a connection leads to."""

    namespace: str | None = None
    host: str | None = None
    port: int | None = None
    system: str | None = None
    """``db.system.name``, where the connection knows it better than the driver."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Driver:
    """One DB-API driver: what it is called, and how its queries are found."""

    name: str
    """The entry point of the driver's own OpenTelemetry instrumentation. ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``
    takes this name, also where no such instrumentation exists."""
    module: str
    """The module that the application imports."""
    system: str
    """``db.system.name``, see https://opentelemetry.io/docs/specs/semconv/registry/attributes/db/"""
    distributions: Mapping[str, str | None]
    """The distributions that bring the driver, each with the oldest release that is tested, or None where none is.
    The driver is a part of Python where there are none. Most oldest releases are those of Ubuntu 22.04, which has
    Python 3.10."""
    patches: Mapping[str, Callable[[Any], None]]
    """Each module that is patched, and the function that patches the module once it is imported."""
    place_of: Callable[[Any], Place]
    """Tells where a connection leads to, without asking the server."""
    connection_of: Callable[[Any], Any] = attrgetter("connection")
    """Finds the connection of a cursor."""
    calls_back: bool = False
    """Whether a query can call the application, which may then query the same connection. The queries of such a driver
    are told apart by their cursors. Elsewhere a second query of a connection that is busy is the driver's own."""
    takes_wrapped_connections: bool = True
    """Whether the driver's own functions take a connection that is wrapped in an object of another class, and queries
    are made by the cursors of PEP 249: what ``opentelemetry-instrumentation-dbapi`` needs."""
    dialects: tuple[str, ...] = ()
    """What SQLAlchemy calls the driver (``Dialect.driver``)."""
