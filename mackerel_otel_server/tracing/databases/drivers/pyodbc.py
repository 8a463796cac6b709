"""pyodbc. Its classes can be neither changed nor inherited from, so connections and cursors get a transparent proxy."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from wrapt import ObjectProxy

from mackerel_otel_server.process.looks_like_original import CallableProxy, imitates
from mackerel_otel_server.tracing.databases.connections import moved
from mackerel_otel_server.tracing.databases.current_database import named_by_use
from mackerel_otel_server.tracing.databases.driver import Driver, Place
from mackerel_otel_server.tracing.databases.patching import put_in_place, traced_method

_SYSTEMS: Final = {
    "mariadb": "mariadb",
    "microsoft sql server": "microsoft.sql_server",
    "mysql": "mysql",
    "oracle": "oracle.db",
    "postgresql": "postgresql",
    "sqlite": "sqlite",
}
"""How the name of a database system (SQL_DBMS_NAME) begins, and its ``db.system.name``."""
# What SQLGetInfo is asked for; the ODBC driver answers without asking the server.
_SERVER_NAME, _DATABASE_NAME, _DBMS_NAME = 13, 16, 17
_CURRENT_CATALOG = 109  # SQL_ATTR_CURRENT_CATALOG
_PLACE = ("server", "port", "database")
_PAIR = re.compile(r"\s*([^=;]+?)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]*)")


def _patch(module: Any) -> None:
    """Make pyodbc.connect() return traced connections."""
    for name, execute in (("execute", _execute), ("executemany", _passed_on("executemany"))):
        setattr(_Cursor, name, traced_method(execute, DRIVER))
    for ours, theirs in (_Connection, module.Connection), (_Cursor, module.Cursor):
        for name, method in vars(ours).items():
            # Older releases lack some methods.
            if inspect.isfunction(method) and not name.startswith("_") and hasattr(theirs, name):
                imitates(getattr(theirs, name))(method)
    put_in_place(module.connect, _Connect(module.connect), module)


def _pairs(text: Any) -> dict[str, str]:
    """Read a connection string; a braced value may hold anything."""
    if not isinstance(text, str):
        return {}
    return {name.lower(): value.strip("{} ") for name, value in _PAIR.findall(text)}


def _place_of(connection: Any) -> Place:
    given = connection._mackerel_otel_given  # noqa: SLF001 - ours
    dbms = str(connection.getinfo(_DBMS_NAME)).lower()
    system = next((system for start, system in _SYSTEMS.items() if dbms.startswith(start)), None)
    namespace = given.get("database") or connection.getinfo(_DATABASE_NAME)
    # SQL Server's "tcp:db.example.com,1433".
    host, _, port = str(given.get("server") or connection.getinfo(_SERVER_NAME)).partition(",")
    port = str(given.get("port") or port).strip()
    return Place(namespace, host.removeprefix("tcp:").strip(), int(port) if port.isdecimal() else None, system)


class _Connect(CallableProxy):
    """``pyodbc.connect``, which unlike a Python function is no method when it is the attribute of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        connection = _Connection(self.__wrapped__(*args, **kwargs))
        text = args[0] if args else kwargs.get("connstring", "")
        given = {**_pairs(text), **{name.lower(): value for name, value in kwargs.items()}}
        connection._mackerel_otel_given = {name: given[name] for name in _PLACE if name in given}  # noqa: SLF001 - ours
        return connection


class _Proxy(ObjectProxy):  # type: ignore[misc, type-arg, unused-ignore]
    """What stands for an object of pyodbc: it can be copied, pickled, printed and changed as far as that can."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith(_OURS):
            super().__setattr__(name, value)
        else:
            setattr(self.__wrapped__, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__wrapped__, name)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __copy__(self) -> Any:
        return copy.copy(self.__wrapped__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)

    def __enter__(self) -> Any:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *details: object) -> Any:
        return self.__wrapped__.__exit__(*details)


_OURS = ("_mackerel_otel_", "__wrapped__")


class _Connection(_Proxy):
    """A ``pyodbc.Connection`` that makes traced cursors."""

    # A proxy keeps the attributes that its class has; all others are set in pyodbc's object.
    _mackerel_otel_given: dict[str, Any] = {}  # noqa: RUF012 - replaced, not changed
    _mackerel_otel_attributes = None
    _mackerel_otel_database = None

    def cursor(self) -> Any:
        """Return a traced cursor."""
        return _Cursor(self.__wrapped__.cursor(), self)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a query with a new cursor, and return that."""
        return self.cursor().execute(*args, **kwargs)

    def set_attr(self, *args: Any, **kwargs: Any) -> Any:
        """Set an attribute of the connection, which may be its database."""
        answer = self.__wrapped__.set_attr(*args, **kwargs)
        if args[:1] == (_CURRENT_CATALOG,) and len(args) > 1:
            moved(self, str(args[1]))
        return answer


class _Cursor(_Proxy):
    """A ``pyodbc.Cursor`` whose queries are traced."""

    _mackerel_otel_connection: Any = None

    def __init__(self, cursor: Any, connection: _Connection) -> None:
        super().__init__(cursor)
        self._mackerel_otel_connection = connection

    @property
    def connection(self) -> Any:
        """The traced connection that this cursor belongs to."""
        return self._mackerel_otel_connection

    def __iter__(self) -> Any:
        return iter(self.__wrapped__)

    def __next__(self) -> Any:
        return next(self.__wrapped__)


def _passed_on(name: str) -> Callable[..., Any]:
    """Return a method that calls pyodbc's. Where pyodbc's cursor answers with itself, the answer is the traced one."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(self.__wrapped__, name)(*args, **kwargs)
        return self if answer is self.__wrapped__ else answer

    method.__name__ = name
    return method


_passed_on_execute = _passed_on("execute")


def _execute(self: Any, *args: Any, **kwargs: Any) -> Any:
    answer = _passed_on_execute(self, *args, **kwargs)
    if args and (database := named_by_use(args[0])) is not None:
        moved(self._mackerel_otel_connection, database)
    return answer


_CATALOGUE: Final = (
    "columns foreignKeys getTypeInfo primaryKeys procedureColumns procedures rowIdColumns rowVerColumns statistics "
    "tablePrivileges tables"
)
for _name in _CATALOGUE.split():
    setattr(_Cursor, _name, _passed_on(_name))

DRIVER: Final = Driver(
    name="pyodbc",
    module="pyodbc",
    system="other_sql",
    distributions={"pyodbc": "4.0.32"},
    patches={"pyodbc": _patch},
    place_of=_place_of,
    connection_of=attrgetter("_mackerel_otel_connection"),
    dialects=("pyodbc",),
)
