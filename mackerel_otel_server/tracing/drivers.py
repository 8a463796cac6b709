"""How each driver is patched: its classes stay what they are, so ``isinstance`` and C code see nothing unusual."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from wrapt import CallableObjectProxy

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.queries import Driver, Place, traced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_connection_of = attrgetter("connection")
_METHODS = ("execute", "executemany", "callproc")
_REMEMBERED = "_mackerel_otel_remembered"  # what a connection was opened with, in the connection itself


# Drivers whose cursors are Python classes: the methods are replaced in place, which reaches every way to import them
# and every object that exists already.


def _patch_methods(cursor_class: type, driver: Driver) -> None:
    """Trace the synchronous methods that this class defines itself."""
    for name in _METHODS:
        method = vars(cursor_class).get(name)
        if inspect.isfunction(method) and not inspect.iscoroutinefunction(method):
            setattr(cursor_class, name, traced(method, driver))


def _mysqlclient_connections(module: Any) -> None:
    original = module.Connection.__init__
    names = ("host", "user", "password", "database", "port", "unix_socket")  # their order in the C class

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        vars(self)[_REMEMBERED] = {
            "database": given.get("database") or given.get("db"),
            "socket": given.get("unix_socket"),
        }

    module.Connection.__init__ = init


def _mysqlclient_place(connection: Any) -> Place:
    given = vars(connection).get(_REMEMBERED, {})
    # Opened before we came: releases from 2.2.5 on keep the name themselves.
    database = _str(given.get("database") or getattr(connection, "database", None))
    # "db.example.com via TCP/IP" or "Localhost via UNIX socket": right also when a my.cnf names the host.
    host, _, way = connection.get_host_info().partition(" via ")
    if way.startswith("TCP"):
        return Place("mysql", database, host, connection.port)
    return Place("mysql", database, _str(given.get("socket")) or "localhost")


def _mysqlclient_cursors(module: Any) -> None:
    if hasattr(module, "BaseCursor"):  # else it is PyMySQL's
        _patch_methods(module.BaseCursor, Driver(_connection_of, _mysqlclient_place))


def _pymysql_cursors(module: Any) -> None:
    """Patch ``pymysql.cursors``, and the second copy that ``import MySQLdb.cursors`` makes of it.

    The copy appears after ``pymysql.install_as_MySQLdb()``: the parent's path leads to PyMySQL's files.
    """
    if not hasattr(module, "BaseCursor"):  # else it is mysqlclient's
        _patch_methods(module.Cursor, Driver(_connection_of, _pymysql_place))


def _pymysql_place(connection: Any) -> Place:
    if connection.unix_socket:
        return Place("mysql", _str(connection.db), _str(connection.unix_socket))
    return Place("mysql", _str(connection.db), _str(connection.host), connection.port)


def _mysql_connector_cursors(module: Any) -> None:
    for cursor_class in [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]:
        _patch_methods(cursor_class, Driver(_mysql_connector_connection, _mysql_connector_place))


def _mysql_connector_connection(cursor: Any) -> Any:
    return cursor._connection.get_self()  # noqa: SLF001 - a cursor has no public way to its connection


def _mysql_connector_place(connection: Any) -> Place:
    # The property `database` asks the server.
    database = getattr(connection, "_database", None)
    if connection.unix_socket:
        return Place("mysql", _str(database), _str(connection.unix_socket))
    return Place("mysql", _str(database), _str(connection.server_host), connection.server_port)


def _psycopg(module: Any) -> None:
    for cursor_class in [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, module.Cursor)]:
        _patch_methods(cursor_class, Driver(_connection_of, _postgresql_place))


def _postgresql_place(connection: Any) -> Place:
    info = connection.info
    return Place("postgresql", info.dbname, info.host, info.port)


# Drivers whose classes are written in C: connect() and cursor() are given subclasses. Ours is the last base but the
# driver's own, so that the application's class runs first and its super() calls arrive at ours.


def _lay_below(factory: Any, driver_class: type, ours: type) -> Any:
    """Return ``factory`` as a subclass of ``ours``; a function, or what is no such class at all, as it is."""
    if factory is driver_class:
        return ours
    if not isinstance(factory, type) or not issubclass(factory, driver_class) or issubclass(factory, ours):
        return factory
    made = vars(factory).get("_mackerel_otel_traced")
    if made is None:
        names = {name: getattr(factory, name) for name in ("__module__", "__qualname__", "__doc__")}
        try:
            made = types.new_class(factory.__name__, (factory, ours), exec_body=lambda ns: ns.update(names))
            # Kept in the class itself: in a table of ours it would never be freed.
            factory._mackerel_otel_traced = made  # type: ignore[attr-defined]  # noqa: SLF001
        except Exception:
            log.debug("%s cannot have a traced subclass", factory, exc_info=True)
            return factory
    return made


def _subclass(driver_class: type, methods: Mapping[str, Any]) -> type:
    names = {name: getattr(driver_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(driver_class.__name__, (driver_class,), {**names, **methods})


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, replace: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with one of them replaced; ``replace`` gets Ellipsis for one that was not given."""
    if len(args) > position:
        return (*args[:position], replace(args[position]), *args[position + 1 :]), kwargs
    return args, {**kwargs, name: replace(kwargs.get(name, ...))}


def _psycopg2(module: Any) -> None:
    connection_class, cursor_class = module.extensions.connection, module.extensions.cursor
    driver = Driver(_connection_of, _postgresql_place)
    traced_cursor = _subclass(cursor_class, {name: traced(getattr(cursor_class, name), driver) for name in _METHODS})

    @functools.wraps(connection_class.cursor)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        def below(factory: Any) -> Any:
            if factory is None or factory is ...:
                factory = cursor_class if self.cursor_factory is None else self.cursor_factory
            return _lay_below(factory, cursor_class, traced_cursor)

        args, kwargs = _replaced(args, kwargs, 1, "cursor_factory", below)
        return connection_class.cursor(self, *args, **kwargs)

    traced_connection = _subclass(connection_class, {"cursor": cursor})

    # What connect() looks up at each call, so that an earlier `from psycopg2 import connect` meets it too.
    name = "_connect" if hasattr(module, "_connect") else "connect"
    original = getattr(module, name)

    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        def below(factory: Any) -> Any:
            given = factory is not None and factory is not ...
            return _lay_below(factory if given else connection_class, connection_class, traced_connection)

        args, kwargs = _replaced(args, kwargs, 1, "connection_factory", below)
        return original(*args, **kwargs)

    setattr(module, name, connect)


def _sqlite3(module: Any) -> None:
    connection_class, cursor_class = module.Connection, module.Cursor
    driver = Driver(_connection_of, _sqlite3_place)
    methods = (*_METHODS[:2], "executescript")
    traced_cursor = _subclass(cursor_class, {name: traced(getattr(cursor_class, name), driver) for name in methods})

    @functools.wraps(connection_class.cursor)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        def below(factory: Any) -> Any:
            return _lay_below(cursor_class if factory is ... else factory, cursor_class, traced_cursor)

        args, kwargs = _replaced(args, kwargs, 0, "factory", below)
        return connection_class.cursor(self, *args, **kwargs)

    def shortcut(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(connection_class, name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(connection_class.cursor(self, traced_cursor), name)(*args, **kwargs)

        return method

    # Python 3.10 calls the cursor() of the subclass in execute() and its siblings, later ones that of the driver.
    shortcuts = {} if sys.version_info < (3, 11) else {name: shortcut(name) for name in methods}
    traced_connection = _subclass(connection_class, {"cursor": cursor, **shortcuts})

    class Connect(CallableObjectProxy):  # type: ignore[misc, type-arg, unused-ignore]
        """``sqlite3.connect``, which unlike a Python function is no method when it is the attribute of a class."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            def below(factory: Any) -> Any:
                return _lay_below(connection_class if factory is ... else factory, connection_class, traced_connection)

            args, kwargs = _replaced(args, kwargs, 5, "factory", below)
            connection = self.__wrapped__(*args, **kwargs)
            if isinstance(connection, traced_connection):
                vars(connection)[_REMEMBERED] = _sqlite3_name(args[0] if args else kwargs.get("database"))
            return connection

    # Django and SQLAlchemy call sqlite3.dbapi2.connect().
    module.connect = module.dbapi2.connect = Connect(module.connect)


def _sqlite3_place(connection: Any) -> Place:
    return Place("sqlite", vars(connection).get(_REMEMBERED))


def _sqlite3_name(database: Any) -> str:
    """Return the file's name without the path to it."""
    try:
        path = os.fsdecode(database)
        if path.startswith("file:"):  # a name for the operator, so not worth asking whether `uri` was set
            url = urlsplit(path)
            path = ":memory:" if parse_qs(url.query).get("mode") == ["memory"] else unquote(url.path)
    except (TypeError, ValueError):
        return ""
    return os.path.basename(path)  # noqa: PTH119 - a Path would need a valid path


def _str(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# Entry-point name of the driver's own instrumentation -> module that is patched once it is imported -> how.
PATCHES: dict[str, dict[str, Callable[[Any], None]]] = {
    "mysqlclient": {"MySQLdb.connections": _mysqlclient_connections, "MySQLdb.cursors": _mysqlclient_cursors},
    "pymysql": {"pymysql.cursors": _pymysql_cursors, "MySQLdb.cursors": _pymysql_cursors},
    "mysql": {
        "mysql.connector.cursor": _mysql_connector_cursors,
        "mysql.connector.cursor_cext": _mysql_connector_cursors,
    },
    "psycopg": {"psycopg": _psycopg},
    "psycopg2": {"psycopg2": _psycopg2},
    "sqlite3": {"sqlite3": _sqlite3},
}
