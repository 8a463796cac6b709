"""The current database of a connection after the application has changed it, found without asking the server."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing.databases.connections import moved
from mackerel_otel_server.tracing.databases.statements import given_query

DatabaseOf = Callable[[Any, tuple[Any, ...], dict[str, Any]], "str | None"]
"""Finds the new database in a connection and the arguments of its method.

The answer is empty where the connection has no database any more, and None where the call changes nothing.
"""

_FIRST = frozenset("uU \t\r\n/-#") | frozenset((b"u", b"U", b" ", b"\t", b"\r", b"\n", b"/", b"-", b"#"))
"""What a statement ``USE ...`` may begin with: its first letter, white space or a comment. Most queries begin with
something else, and cost no more than this comparison."""
_USE = re.compile(
    # The pattern of a comment stops at the first end of a comment. One that could go on takes exponential time.
    r"(?:\s|/\*(?:[^*]|\*(?!/))*\*/|(?:--|#)[^\n]*\n)*use\s+(?:`((?:[^`]|``)+)`|\[([^\]]+)\]|\"([^\"]+)\"|([^\s;]+))",
    re.DOTALL | re.IGNORECASE,
)
_LONGEST = 1024
_MARK = "_mackerel_otel_follows"


def named_by_use(query: Any) -> str | None:
    """Return the database that a statement ``USE ...`` of MySQL, MariaDB or SQL Server names; None for any other."""
    try:
        if type(query) is bytearray:
            query = bytes(query[:_LONGEST])
        if query[:1] not in _FIRST:
            return None
        query = query[:_LONGEST]
        found = _USE.match(query if isinstance(query, str) else query.decode("utf-8", "replace"))
    except Exception:
        log.debug("a query of %s is not read", type(query))
        return None
    if found is None:
        return None
    return next(name for name in found.groups() if name is not None).replace("``", "`")


def of_query(_connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Find the database in a method that takes a query."""
    return named_by_use(given_query(args, kwargs))


def of_argument(position: int, name: str) -> DatabaseOf:
    """Find the database in a method that takes it as an argument, which may be left out."""

    def database_of(_connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        given = args[position] if len(args) > position else kwargs.get(name)
        return given.decode("utf-8", "replace") if isinstance(given, bytes) else given or ""

    return database_of


def follow(connection_class: Any, name: str, database_of: DatabaseOf | None) -> None:
    """Note the database when a method of a connection has changed it.

    Args:
        connection_class: A class of Python whose objects take attributes.
        name: The name of a method or of a property, which the class may lack.
        database_of: Finds the new database; None for a method that opens the connection anew.
    """
    owner = next((cls for cls in connection_class.__mro__ if name in vars(cls)), None)
    method = getattr(owner, name, None)
    changes = method.fset if isinstance(method, property) else method
    if changes is None or hasattr(changes, _MARK):
        return
    follower: Any = _following(changes, database_of)
    setattr(follower, _MARK, True)
    if isinstance(method, property):
        follower = property(method.fget, follower, method.fdel, method.__doc__)
    try:
        # The follower replaces the method in the class that defines it: pickle finds a method by its qualified name.
        setattr(owner, name, follower)
    except TypeError:
        # That class is written in C.
        setattr(connection_class, name, follower)


def _following(method: Callable[..., Any], database_of: DatabaseOf | None) -> Callable[..., Any]:
    def note(connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            if database_of is None:
                moved(connection, None)
            elif (database := database_of(connection, args, kwargs)) is not None:
                moved(connection, database)
        except Exception:
            log.debug("the database of a connection is not known", exc_info=True)

    if inspect.iscoroutinefunction(method):

        @imitates(method)
        async def follow_coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
            answer = await method(self, *args, **kwargs)
            note(self, args, kwargs)
            return answer

        return follow_coroutine

    @imitates(method)
    def follow_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = method(self, *args, **kwargs)
        note(self, args, kwargs)
        return answer

    return follow_call
