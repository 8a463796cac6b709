"""Durations that are read at a glance, from nanoseconds to days."""

from __future__ import annotations

_MICROSECOND, _MILLISECOND, _SECOND = 1_000, 1_000_000, 1_000_000_000
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_MINUTE = 60


def took(nanoseconds: int, *, micro: str = "µ") -> str:
    """Return a duration: milliseconds, as a column of them is easy to compare, unless they say too little or too much.

    Args:
        nanoseconds: How long; negative where a clock was set back.
        micro: ``u`` where the output has no ``µ``.
    """
    if nanoseconds < 0:
        return f"-{took(-nanoseconds, micro=micro)}"
    if nanoseconds < _MICROSECOND:
        return f"{nanoseconds} ns"
    if nanoseconds < 10 * _MICROSECOND:
        return f"{nanoseconds / _MICROSECOND:.1f} {micro}s"
    if nanoseconds < _SECOND:
        return f"{nanoseconds / _MILLISECOND:.2f} ms"
    if nanoseconds < _MINUTE * _SECOND:
        return f"{nanoseconds / _SECOND:.2f} s"
    return _two_units(nanoseconds // _SECOND)


def _two_units(seconds: int) -> str:
    place = next(place for place, (_, length) in enumerate(_UNITS) if seconds >= length)
    (unit, length), (smaller, part) = _UNITS[place : place + 2]
    rest = seconds % length // part
    return f"{seconds // length} {unit}" + (f" {rest} {smaller}" if rest else "")
