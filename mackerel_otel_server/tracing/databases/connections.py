"""Where a connection leads to, and the attributes that say so in the spans of its queries."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing.databases.driver import Driver, Place

Constants = dict[str, str | int]
_NEW = ("db.system.name", "db.namespace", "server.address", "server.port", "db.query.text", "db.operation.name")
_OLD = ("db.system", "db.name", "net.peer.name", "net.peer.port", "db.statement", "db.operation")

_conventions: tuple[tuple[str, ...], ...] = (_NEW,)


def use_conventions(mode: str) -> None:
    """Choose the names of the attributes of all queries to come on connections to come.

    Args:
        mode: ``new``, ``old`` or ``both``, as settings.environment.semantic_conventions() returns it.
    """
    global _conventions
    _conventions = {"new": (_NEW,), "old": (_OLD,), "both": (_NEW, _OLD)}[mode]


KEPT = "_mackerel_otel_attributes"
"""The attribute in which a connection keeps what the spans of its queries have in common."""
_MOVED_TO = "_mackerel_otel_database"
"""The attribute in which a connection keeps the database that the application has changed to."""
_constants_of_others: WeakKeyDictionary[Any, Constants] = WeakKeyDictionary()


def attributes_of(connection: Any, driver: Driver, text: str, operation: str) -> Constants:
    """Return the attributes of a query's span."""
    attributes = _constants(connection, driver).copy()
    for names in _conventions:
        attributes[names[4]] = text
        if operation:
            attributes[names[5]] = operation
    return attributes


def _constants(connection: Any, driver: Driver) -> Constants:
    """Return what all spans of a connection have in common: asked once, and kept in the connection if it takes that."""
    known: Constants | None = getattr(connection, KEPT, None)
    if known is not None:
        return known
    try:
        known = _constants_of_others.get(connection)
    except TypeError:
        # The connection takes no weak reference, or has no hash because its class has an __eq__ of its own.
        known = None
    if known is not None:
        return known
    try:
        place = driver.place_of(connection)
    except Exception:
        # The connection is closed, or the driver's release has other attributes. The query gets a span all the same.
        log.debug("a connection does not say where it leads to", exc_info=True)
        return _constants_of(driver, Place())
    if (database := getattr(connection, _MOVED_TO, None)) is not None:
        place = place._replace(namespace=database)
    known = _constants_of(driver, place)
    try:
        setattr(connection, KEPT, known)
    except (AttributeError, TypeError):
        try:
            _constants_of_others[connection] = known
        except TypeError:
            log.debug("%s is asked with each query where it leads to", type(connection))
    return known


def moved(connection: Any, database: str | None) -> None:
    """Note that the queries of a connection go to another database from now on.

    Args:
        connection: One that takes attributes.
        database: Its name, empty for none; None for the one that the connection was opened with.
    """
    setattr(connection, _MOVED_TO, database)
    setattr(connection, KEPT, None)


def _constants_of(driver: Driver, place: Place) -> Constants:
    values = (place.system or driver.system, place.namespace, place.host, place.port)
    return {name: value for names in _conventions for name, value in zip(names, values, strict=False) if value}
