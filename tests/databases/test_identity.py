"""What a driver's users hold stays what it was: functions, classes, connections, cursors, and classes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from querying import Database, every_driver

if TYPE_CHECKING:
    from querying import Run

LOOK = """
import copy, dataclasses, inspect, pickle
def outcome(function):
    try:
        return repr(function())
    except Exception as error:
        return type(error).__name__
def look(value):
    # Addresses differ between two interpreters, but not within one.
    return {
        "name": outcome(lambda: value.__name__),
        "qualified": outcome(lambda: value.__qualname__),
        "module": outcome(lambda: value.__module__),
        "documentation": outcome(lambda: value.__doc__),
        "class": outcome(lambda: value.__class__.__name__),
        "callable": outcome(lambda: callable(value)),
        "kinds": [outcome(lambda: is_one(value)) for is_one in KINDS],
        "signature": outcome(lambda: inspect.signature(value)),
        "is a wrapper": outcome(lambda: hasattr(value, "__wrapped__")),
        "arguments": outcome(lambda: inspect.getfullargspec(value)),
        "equal": outcome(lambda: (value == value, value != value, hash(value) == hash(value))),
        "copied": outcome(lambda: copy.copy(value) is value),
        "copied deeply": outcome(lambda: copy.deepcopy({"it": value})["it"] is value),
        "pickled": [outcome(lambda: pickle.loads(pickle.dumps(value, p)) is value) for p in range(6)],
        "as a dict": outcome(lambda: dataclasses.asdict(Settings(value))["connect"] is value),
    }
KINDS = (inspect.isbuiltin, inspect.isfunction, inspect.isroutine, inspect.iscoroutinefunction,
         inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.ismethod)
@dataclasses.dataclass
class Settings:
    connect: object
"""

FUNCTIONS = {
    "sqlite3": ["sqlite3.connect", "sqlite3.dbapi2.connect"],
    "pyodbc": ["pyodbc.connect"],
    "duckdb": ["duckdb.connect", "duckdb.execute", "duckdb.executemany"],
    "psycopg2": [
        "psycopg2.connect",
        "psycopg2.extras.execute_values",
        "psycopg2.extras.execute_batch",
        "psycopg2.extras.DictCursor.execute",
    ],
    "psycopg": [
        "psycopg.connect",
        *[f"psycopg.{kind}.{name}" for kind in ("Cursor", "AsyncCursor") for name in ("execute", "executemany")],
        *[f"psycopg.{kind}.{name}" for kind in ("Cursor", "AsyncCursor") for name in ("copy", "stream")],
    ],
    "pymysql": [
        "pymysql.connect",
        *[f"pymysql.cursors.Cursor.{name}" for name in ("execute", "executemany", "callproc")],
        *[f"pymysql.connections.Connection.{name}" for name in ("select_db", "query", "connect")],
    ],
    "MySQLdb": [
        "MySQLdb.connect",
        *[f"MySQLdb.cursors.Cursor.{name}" for name in ("execute", "executemany", "callproc")],
        *[f"MySQLdb.connections.Connection.{name}" for name in ("__init__", "query")],
    ],
    "mysql.connector": [
        "mysql.connector.connect",
        *[f"mysql.connector.cursor.MySQLCursor.{name}" for name in ("execute", "executemany", "callproc")],
        *[
            f"mysql.connector.connection.MySQLConnection.{name}"
            for name in ("cmd_init_db", "cmd_query", "cmd_change_user", "connect")
        ],
    ],
}


@pytest.mark.parametrize("module", list(FUNCTIONS))
def test_what_is_replaced_looks_like_the_original_to_inspect_copy_and_pickle(run: Run, module: str) -> None:
    pytest.importorskip(module)
    imports = {
        "MySQLdb": "MySQLdb.cursors, MySQLdb.connections",
        "mysql.connector": "mysql.connector.cursor",
        "psycopg2": "psycopg2.extras",
        "pymysql": "pymysql.cursors",
        "sqlite3": "sqlite3.dbapi2",
    }
    result = run(
        LOOK
        + f"""
import {module}, {imports.get(module, module)}
functions = lambda: {{name: look(eval(name)) for name in {FUNCTIONS[module]!r}}}
printed = lambda: [repr(f) for f in map(eval, {FUNCTIONS[module]!r}) if not inspect.isfunction(f)]
before, words = functions(), printed()
databases.register()
report(before=before, after=functions(), words=words, words_after=printed())
"""
    )
    before, after = result.facts["before"], result.facts["after"]
    for name in before:
        if before[name].pop("arguments") != after[name].pop("arguments"):
            # A wrapper has the arguments of what it wraps. inspect cannot tell those of DuckDB's functions.
            assert before[name].pop("is a wrapper") == "True" or module == "duckdb"
            after[name].pop("is a wrapper")
        if module == "duckdb":
            # DuckDB's functions cannot be pickled in some releases, with or without us. In 1.1, pickle does not even
            # find them by their names.
            was = set(before[name].pop("pickled"))
            assert was in ({"TypeError"}, {"True"})
            is_found = "PyCapsule" not in before[name]["qualified"]
            assert set(after[name].pop("pickled")) == ({"True"} if is_found else was)
        before[name].pop("is a wrapper", None)
        after[name].pop("is a wrapper", None)
    assert after == before
    assert result.facts["words_after"] == result.facts["words"]


@pytest.mark.parametrize("module", ["sqlite3", "pyodbc"])
def test_a_pickled_function_is_read_by_a_process_without_us_and_is_traced_in_one_with_us(run: Run, module: str) -> None:
    pytest.importorskip(module)
    result = run(
        f"""
import pickle, subprocess
databases.register()
import {module}
pickled = pickle.dumps({module}.connect)
untraced = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])), 'wrapt' in sys.modules)"
command = [sys.executable, "-c", untraced, pickled.hex()]
report(same=pickle.loads(pickled) is {module}.connect, elsewhere=subprocess.check_output(command, text=True))
"""
    )
    assert result.facts == {"same": True, "elsewhere": "<built-in function connect> False\n"}


@every_driver
def test_connections_and_cursors_refuse_and_take_what_they_did(run: Run, database: Database) -> None:
    result = run(
        f"""
import copy, pickle, weakref
import {database.module} as driver
def outcome(function, *arguments):
    try:
        return type(function(*arguments)).__name__
    except Exception as error:
        return "raises " + type(error).__name__
def look():
    with closing(driver.connect(**ADDRESS)) as connection:
        cursor = connection.cursor()
        facts = [
            [
                type(value).__name__ == value.__class__.__name__ or value.__class__.__name__,
                outcome(copy.copy, value),
                outcome(copy.deepcopy, value),
                outcome(pickle.dumps, value),
                outcome(weakref.ref, value),
                outcome(setattr, value, "no_such_attribute", 1),
                outcome(setattr, value, "execute", 1),
                outcome(delattr, value, "cursor"),
                outcome(getattr, value, "no_attribute_at_all"),
                outcome(vars, value),
                outcome(hash, value),
                value == value,
                repr(value).split(" at 0x")[0],
            ]
            for value in (connection, cursor)
        ]
        vars(cursor).pop("execute", None) if hasattr(cursor, "__dict__") else None
        cursor.close()
        return facts
before = look()
databases.register()
report(before=before, after=look())
""",
        database.address,
    )
    before, after = result.facts["before"], result.facts["after"]
    if database.module == "pyodbc":
        # A proxy has a type of its own, but isinstance() says the same of it as of the original.
        assert [facts[0] for facts in after] == ["Connection", "Cursor"]
        before[0][0], before[1][0] = "Connection", "Cursor"
        # pyodbc's objects take no weak reference, and have no __dict__; a proxy does.
        for facts in (*before, *after):
            facts[4] = facts[9] = None
    assert after == before


MADE = """
made = []
class Meta(type):
    def __init__(cls, *arguments):
        super().__init__(*arguments)
        made.append(f"meta {cls.__name__}")
    def __setattr__(cls, name, value):
        made.append(f"set {name}")
        super().__setattr__(name, value)
class Field:
    def __set_name__(self, owner, name):
        made.append(f"name {owner.__name__}.{name}")
def classes(connection_class, cursor_class):
    class Connection(connection_class, metaclass=Meta):
        field = Field()
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            made.append(f"subclass {cls.__name__}")
        def hello(self):
            return "hello"
    class Own(Connection):
        __slots__ = ()
        def commit(self):
            committed.append(type(self))
            return super().commit()
    class Cursor(cursor_class, metaclass=Meta):
        field = Field()
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            made.append(f"subclass {cls.__name__}")
    class OwnCursor(Cursor):
        def execute(self, query, *arguments):
            return super().execute(query + " + 1", *arguments)
    return Connection, Own, Cursor, OwnCursor
committed = []
"""

OWN_CLASSES = {
    "sqlite3": ("driver.Connection, driver.Cursor", "factory=Own", "factory=OwnCursor"),
    "psycopg2": (
        "driver.extensions.connection, driver.extensions.cursor",
        "connection_factory=Own",
        "cursor_factory=OwnCursor",
    ),
}


@pytest.mark.parametrize("database", list(OWN_CLASSES), indirect=True)
def test_a_class_of_the_application_s_is_made_once_and_is_the_class_of_its_objects(
    run: Run, database: Database
) -> None:
    bases, connection_factory, cursor_factory = OWN_CLASSES[database.module]
    result = run(
        f"""
databases.register()
import {database.module} as driver
{MADE}
Connection, Own, Cursor, OwnCursor = classes({bases})
earlier = [list(made), [cls.__subclasses__() for cls in (Connection, Own, Cursor, OwnCursor)], Own.__mro__[:2]]
with parent():
    for _ in range(2):
        with closing(driver.connect(**ADDRESS, {connection_factory})) as connection:
            cursor = connection.cursor({cursor_factory})
            cursor.execute("SELECT 1")
            rows = [tuple(row) for row in cursor.fetchall()]
            connection.commit()
later = [list(made), [cls.__subclasses__() for cls in (Connection, Own, Cursor, OwnCursor)], Own.__mro__[:2]]
report(
    rows=rows,
    made=made,
    same=earlier == later,
    types=[type(connection) is Own, type(cursor) is OwnCursor, committed == [Own, Own], connection.hello()],
    plain=[isinstance(connection, cls) for cls in ({bases.split(",")[0]}, Connection)],
)
""",
        database.address,
    )
    assert result.facts["same"] is True
    assert result.facts["made"] == [
        "name Connection.field",
        "meta Connection",
        "subclass Own",
        "meta Own",
        "name Cursor.field",
        "meta Cursor",
        "subclass OwnCursor",
        "meta OwnCursor",
    ]
    assert result.facts["types"] == [True, True, True, "hello"]
    assert result.facts["plain"] == [True, True]
    assert result.facts["rows"] == [[2]]
    assert result.texts == ["SELECT 1 + 1"] * 2
    assert all(database.place.items() <= span["attributes"].items() for span in result.spans)


def test_a_class_with_slots_of_its_own_is_traced_as_it_is(run: Run) -> None:
    result = run(
        """
databases.register()
import sqlite3
class Slotted(sqlite3.Connection):
    __slots__ = ("mine",)
class Mixed(Slotted, sqlite3.Connection):
    __slots__ = ()
kinds = []
with parent():
    for factory in Slotted, Mixed, Slotted:
        with closing(sqlite3.connect("a.db", factory=factory)) as connection:
            connection.mine = 7
            connection.execute("SELECT 1")
            kinds.append([type(connection) is factory, connection.mine, hasattr(connection, "__dict__")])
report(kinds=kinds)
"""
    )
    assert result.facts["kinds"] == [[True, 7, False]] * 3
    assert result.texts == ["SELECT 1"] * 3


def test_a_class_whose_base_cannot_be_changed_works_without_spans(run: Run) -> None:
    result = run(
        """
databases.register()
import sqlite3
from mackerel_otel_server.tracing.databases.patching import lay_below
class Fields(sqlite3.Connection):
    __slots__ = ("a", "b")
class Own(sqlite3.Connection):
    pass
report(same=lay_below(Own, sqlite3.Connection, Fields) is Own, bases=Own.__bases__ == (sqlite3.Connection,))
"""
    )
    assert result.facts == {"same": True, "bases": True}


def test_a_class_of_connections_that_resists_is_opened_all_the_same(run: Run) -> None:
    result = run("""
import sqlite3
databases.register()
class Strict(sqlite3.Connection):
    def __setattr__(self, name, value):
        raise ValueError(name)
class Meta(type):
    def mro(cls):
        found = super().mro()
        if found[1] is not sqlite3.Connection:
            raise LookupError("another base")
        return found
class Own(sqlite3.Connection, metaclass=Meta):
    pass
answers = []
for factory in Strict, Own:
    with closing(sqlite3.connect(":memory:", factory=factory)) as connection, parent():
        answers.append([type(connection) is factory, connection.execute("SELECT 1").fetchone()[0]])
report(answers=answers)
""")
    assert result.facts["answers"] == [[True, 1], [True, 1]]
