"""Where a connection leads to, and the attributes that say so in the spans of its queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mackerel_otel_server.log import log

Constants = dict[str, str | int]
_NEW = ("db.system.name", "db.namespace", "server.address", "server.port", "db.query.text", "db.operation.name")
_OLD = ("db.system", "db.name", "net.peer.name", "net.peer.port", "db.statement", "db.operation")


class Place(NamedTuple):
    """Where a connection leads to."""

    system: str
    namespace: str | None = None
    host: str | None = None
    port: int | None = None


class Driver(NamedTuple):
    """How to learn from a cursor where its queries go, without asking the server."""

    system: str
    connection_of: Callable[[Any], Any]
    place_of: Callable[[Any], Place]
    calls_back: bool = False
    """Whether a query can call the application, which may query the same connection: its queries are told apart by
    their cursors. Elsewhere a second query of a connection that is under way is the driver's own."""


_place_names: tuple[tuple[str, ...], ...] = ()
_text_names: tuple[str, ...] = ()
_operation_names: tuple[str, ...] = ()


def use_conventions(mode: str) -> None:
    """Choose the names of the attributes of all queries to come on connections to come.

    Args:
        mode: ``new``, ``old`` or ``both``; see settings.semantic_conventions().
    """
    global _place_names, _text_names, _operation_names
    names = {"new": (_NEW,), "old": (_OLD,), "both": (_NEW, _OLD)}[mode]
    _place_names = tuple(name[:4] for name in names)
    _text_names = tuple(name[4] for name in names)
    _operation_names = tuple(name[5] for name in names)


use_conventions("new")

KEPT = "_mackerel_otel_attributes"
"""Where a connection keeps the attributes that the spans of its queries have in common."""
_MOVED_TO = "_mackerel_otel_database"
"""Where it keeps the database that the application has changed to."""
_constants_of_others: WeakKeyDictionary[Any, Constants] = WeakKeyDictionary()


def attributes_of(connection: Any, driver: Driver, text: str, operation: str) -> Constants:
    """Return the attributes of a query's span."""
    attributes = _constants(connection, driver).copy()
    for name in _text_names:
        attributes[name] = text
    if operation:
        for name in _operation_names:
            attributes[name] = operation
    return attributes


def _constants(connection: Any, driver: Driver) -> Constants:
    """Return what all spans of a connection have in common, kept in the connection or, where that cannot be, beside."""
    known: Constants | None = getattr(connection, KEPT, None)
    if known is not None:
        return known
    try:
        known = _constants_of_others.get(connection)
    except TypeError:  # cannot be referenced weakly, or a subclass with an __eq__ of its own has no hash
        known = None
    if known is not None:
        return known
    try:
        place = driver.place_of(connection)
    except Exception:  # closed, or a release with other attributes: the query is worth a span all the same
        log.debug("a connection does not say where it leads to", exc_info=True)
        return _constants_of(Place(driver.system))
    if (database := getattr(connection, _MOVED_TO, None)) is not None:
        place = place._replace(namespace=database)
    known = _constants_of(place)
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


def _constants_of(place: Place) -> Constants:
    return {name: value for names in _place_names for name, value in zip(names, place, strict=True) if value}
