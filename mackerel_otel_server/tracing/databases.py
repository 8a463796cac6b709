"""Stand-in."""

from collections.abc import Container


def register(disabled: Container[str] = ()) -> None:
    pass
