"""Callables that replace others look like the originals to ``inspect``, ``copy`` and ``pickle``, and when printed."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import wrapt

from mackerel_otel_server.process.log import log

_Function = TypeVar("_Function", bound=Callable[..., Any])


def imitates(original: Any, *, with_attributes: bool = True) -> Callable[[_Function], _Function]:
    """Return a decorator for a Python function that is going to stand in the place of ``original``.

    It does what functools.wraps() does, and sets ``__signature__``, because inspect.getfullargspec() ignores
    ``__wrapped__``.

    Args:
        original: The function that is replaced.
        with_attributes: Copy what others have set as attributes of ``original``, such as marks of other libraries.
    """

    def decorate(function: _Function) -> _Function:
        functools.update_wrapper(function, original, updated=("__dict__",) if with_attributes else ())
        try:
            function.__signature__ = _signature(original)  # type: ignore[attr-defined]
        except Exception:
            # The original has none, for example because it is written in C. The function must have none then, either.
            vars(function).pop("__signature__", None)
            log.debug("%r has no signature", original)
        return function

    return decorate


def _signature(function: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        # An annotation may name what is imported for type checkers only. It stays a name.
        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


class CallableProxy(wrapt.CallableObjectProxy):  # type: ignore[misc, type-arg, unused-ignore]  # generic since wrapt 2
    """A callable that stands in the place of another one, which a Python function cannot imitate."""

    def __repr__(self) -> str:
        """Return the original's."""
        return repr(self.__wrapped__)

    def __copy__(self) -> Any:
        """Copy the original."""
        return self._self_again(copy.copy(self.__wrapped__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the original deeply."""
        return self._self_again(copy.deepcopy(self.__wrapped__, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the original, by reference where this proxy stands in its place."""
        name = getattr(self.__wrapped__, "__qualname__", "")
        if _is_found_as(self, getattr(self.__wrapped__, "__module__", None), name):
            # By reference, as pickle does with functions.
            return name
        # Whoever unpickles the original need not have this package.
        return copy.copy, (self.__wrapped__,)

    def _self_again(self, copied: Any) -> Any:
        """Return the copy; or this proxy, if the copy is the original itself, as copies of functions are."""
        return self if copied is self.__wrapped__ else copied


def _is_found_as(value: Any, module: str | None, qualified_name: str) -> bool:
    found: Any = sys.modules.get(module or "")
    for name in qualified_name.split("."):
        found = getattr(found, name, None)
    return found is value
