"""pyodbc, whose classes can be neither changed nor inherited from: connections and cursors get a transparent proxy."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any

from wrapt import ObjectProxy

from mackerel_otel_server.imitation import CallableProxy, imitates
from mackerel_otel_server.tracing.databases.connections import Driver, Place, moved
from mackerel_otel_server.tracing.databases.drivers.current_database import named_by_use
from mackerel_otel_server.tracing.databases.drivers.patching import put_in_place
from mackerel_otel_server.tracing.databases.queries import traced

# SQL_DBMS_NAME -> db.system.name, https://opentelemetry.io/docs/specs/semconv/registry/attributes/db/
_SYSTEMS = {
    "mariadb": "mariadb",
    "microsoft sql server": "microsoft.sql_server",
    "mysql": "mysql",
    "oracle": "oracle.db",
    "postgresql": "postgresql",
    "sqlite": "sqlite",
}
_OTHER = "other_sql"
# Of SQLGetInfo, which the driver answers without asking the server.
_SERVER_NAME, _DATABASE_NAME, _DBMS_NAME = 13, 16, 17
_CURRENT_CATALOG = 109  # SQL_ATTR_CURRENT_CATALOG
_PLACE = ("server", "port", "database")
_PAIR = re.compile(r"\s*([^=;]+?)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]*)")


def pyodbc(module: Any) -> None:
    """Make pyodbc.connect() return traced connections."""
    put_in_place(module.connect, _Connect(module.connect), module)
    for ours, theirs in (_Connection, module.Connection), (_Cursor, module.Cursor):
        for name, method in vars(ours).items():
            # Older releases lack some of them.
            if inspect.isfunction(method) and not name.startswith("_") and hasattr(theirs, name):
                imitates(getattr(theirs, name))(method)


def _pairs(text: Any) -> dict[str, str]:
    """Read a connection string; a braced value may hold anything."""
    if not isinstance(text, str):
        return {}
    return {name.lower(): value.strip("{} ") for name, value in _PAIR.findall(text)}


def _place(connection: Any) -> Place:
    given = connection._mackerel_otel_given  # noqa: SLF001
    name = str(connection.getinfo(_DBMS_NAME)).lower()
    system = next((system for start, system in _SYSTEMS.items() if name.startswith(start)), _OTHER)
    namespace = given.get("database") or connection.getinfo(_DATABASE_NAME)
    # SQL Server's "tcp:db.example.com,1433".
    host, _, port = str(given.get("server") or connection.getinfo(_SERVER_NAME)).partition(",")
    port = str(given.get("port") or port).strip()
    return Place(system, namespace, host.removeprefix("tcp:").strip(), int(port) if port.isdecimal() else None)


def _connection_of(cursor: Any) -> Any:
    return cursor._mackerel_otel_connection  # noqa: SLF001


_DRIVER = Driver(_OTHER, _connection_of, _place)


class _Connect(CallableProxy):
    """``pyodbc.connect``, which unlike a Python function is no method when it is the attribute of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        connection = _Connection(self.__wrapped__(*args, **kwargs))
        text = args[0] if args else kwargs.get("connstring", "")
        given = {**_pairs(text), **{name.lower(): value for name, value in kwargs.items()}}
        connection._mackerel_otel_given = {name: given[name] for name in _PLACE if name in given}  # noqa: SLF001
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

    # What the class knows is set in the proxy.
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


def _execute(self: Any, *args: Any, **kwargs: Any) -> Any:
    answer = _passed_on_execute(self, *args, **kwargs)
    if args and (database := named_by_use(args[0])) is not None:
        moved(self._mackerel_otel_connection, database)
    return answer


def _passed_on(name: str) -> Callable[..., Any]:
    """Return the method of a cursor, which often answers with the cursor itself: then the answer is the traced one."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(self.__wrapped__, name)(*args, **kwargs)
        return self if answer is self.__wrapped__ else answer

    method.__name__ = name
    return method


_passed_on_execute = _passed_on("execute")
_execute.__name__ = "execute"
for _name, _method in (("execute", _execute), ("executemany", _passed_on("executemany"))):
    setattr(_Cursor, _name, traced(_method, _DRIVER))
for _name in (
    "columns",
    "foreignKeys",
    "getTypeInfo",
    "primaryKeys",
    "procedureColumns",
    "procedures",
    "rowIdColumns",
    "rowVerColumns",
    "statistics",
    "tablePrivileges",
    "tables",
):
    setattr(_Cursor, _name, _passed_on(_name))
