"""The bytes of attributes and span names, kept for the next span that has the same ones."""

from __future__ import annotations

import sys
import threading
from typing import Any, Final

_LARGEST_IN_CACHE: Final = 1024
"""Bytes. To hash a larger value costs more than to encode it again."""
_SEEN: Final = 8192
_ENTRY: Final = 110
"""Bytes that an entry takes in a dict, at most."""
_COLUMN: Final = 450
"""Bytes of a column with its first entries, and of its entry in the dict of columns."""
MANY_MISSES: Final = 1024
"""After so many values of an attribute that were not in the cache, only one value in ONE_IN is offered to the cache."""
ONE_IN: Final = 16


class Column(dict[object, bytes]):
    """The bytes of the values of one attribute, or of the names of spans."""

    __slots__ = ("head", "misses")

    def __init__(self, head: bytes) -> None:
        self.head = head  # the bytes of the attribute's key
        self.misses = 0


class Cache:
    """Keep the bytes of attributes by key and value, up to a total size.

    A value that comes for the first time is not kept: most such values (paths, ports, ids) never come again, and to
    keep one costs more than to encode it. When the cache is full, it is emptied; the values in use come back with the
    next spans.

    A look-up takes no lock. Values are exact ``str`` and ``int`` objects, which C code hashes and compares, so that
    ``dict.get`` and ``dict[key] = value`` are one step each under the GIL; without a GIL, the dict locks itself. To add
    a value takes a lock but never waits for it: a signal handler may have interrupted the thread that holds the lock.
    Then the value is not added.
    """

    def __init__(self, limit: int) -> None:
        self.columns: dict[str | None, Column] = {}  # by attribute key; None: names of spans
        self._free = self._limit = limit
        self._adding = threading.Lock()
        self._seen = bytearray(_SEEN)  # the hash of a value gives a place here, and the byte that is noted there

    def new_column(self, key: str | None, head: bytes) -> Column:
        """Return a new column, and keep it in the cache if its key has been seen before."""
        column = Column(head)
        if len(head) <= _LARGEST_IN_CACHE and self._was_seen(key):
            self._add(self.columns, key, column, _COLUMN + sys.getsizeof(key) + sys.getsizeof(head))
        return column

    def offer(self, column: Column, value: str | int, data: bytes) -> None:
        """Keep the bytes of a value that is not in its column yet, if it may come again."""
        if len(data) <= _LARGEST_IN_CACHE and self._was_seen((column.head, value)):
            self._add(column, value, data, _ENTRY + sys.getsizeof(value) + sys.getsizeof(data))

    def _was_seen(self, key: object) -> bool:
        number = hash(key)
        place, mark = number % _SEEN, number >> 16 & 0xFF
        if self._seen[place] == mark:
            return True
        self._seen[place] = mark
        return False

    def _add(self, to: dict[Any, Any], key: object, value: object, size: int) -> None:
        if not self._adding.acquire(blocking=False):
            return
        try:
            if size > self._free:
                self.columns, self._free = {}, self._limit
            else:
                self._free -= size
                to[key] = value
        finally:
            self._adding.release()
