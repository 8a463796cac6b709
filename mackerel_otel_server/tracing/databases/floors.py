"""The oldest release of each driver that is tested: the oldest one that is still in use on Python 3.10."""

from __future__ import annotations

from typing import Final

_FLOORS: Final[dict[str, dict[str, str]]] = {
    # Ubuntu 22.04 has these, with Python 3.10.
    "mysqlclient": {"mysqlclient": "1.4.6"},
    "pymysql": {"PyMySQL": "1.0.2"},
    "psycopg2": {"psycopg2": "2.9.2", "psycopg2-binary": "2.9.2"},
    "pyodbc": {"pyodbc": "4.0.32"},
    # The first release for Python 3.10.
    "mysql": {"mysql-connector-python": "8.0.28"},
    # SQLAlchemy 2.0 and Django 4.2 take no older ones.
    "psycopg": {"psycopg": "3.0.7"},
    # An older one looks for tables among the variables of all Python functions that wait for the query, and takes
    # variables of ours for tables.
    "duckdb": {"duckdb": "1.1.0"},
    # A part of Python.
    "sqlite3": {},
}
"""Name as in databases._MODULES -> the distributions that bring the driver -> the release."""

OLDEST: Final[dict[str, str]] = {name: oldest for floors in _FLOORS.values() for name, oldest in floors.items()}
"""Name of a distribution -> its oldest release that is tested."""


def of_driver(name: str) -> dict[str, str]:
    """Return the part of OLDEST that is about one driver.

    Args:
        name: The driver's entry point.
    """
    return _FLOORS.get(name, {})
