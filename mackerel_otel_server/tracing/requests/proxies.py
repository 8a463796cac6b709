"""Objects that replace an object of the application and pass on to it whatever is asked of them."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

_OWN: Final = frozenset(
    {"__class__", "__init__", "__new__", "__del__", "__getattribute__", "__getattr__", "__setattr__", "__delattr__"}
    | {"__init_subclass__", "__subclasshook__", "__class_getitem__", "__set_name__"}
    | {"__annotate__", "__annotate_func__"}
    | {"__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__"}
)
"""Special methods that StandIn defines itself, or that Python calls for a class instead of an object."""

_classes: dict[type, WeakKeyDictionary[type, type]] = {}


class StandIn:
    """An object that replaces ``original`` and has all its attributes and special methods.

    Subclasses add what is to happen in addition. Their own attributes are slots that begin with ``_mackerel_otel_``.
    """

    __slots__ = ("__weakref__", "_mackerel_otel_original")

    def __getattr__(self, name: str) -> Any:
        """Return the original's."""
        return getattr(original_of(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the original's."""
        setattr(original_of(self), name, value)

    def __delattr__(self, name: str) -> None:
        """Delete the original's."""
        delattr(original_of(self), name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What isinstance() sees."""
        return original_of(self).__class__

    def __copy__(self) -> Any:
        """Copy the original."""
        copied = copy.copy(original_of(self))
        return self if copied is original_of(self) else copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the original deeply."""
        copied = copy.deepcopy(original_of(self), memo)
        return self if copied is original_of(self) else copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the original."""
        # The pickle can be loaded without this package.
        return copy.copy, (original_of(self),)


_set_original: Final = StandIn._mackerel_otel_original.__set__  # type: ignore[attr-defined]  # noqa: SLF001
original_of: Final[Callable[[Any], Any]] = StandIn._mackerel_otel_original.__get__  # type: ignore[attr-defined]  # noqa: SLF001
"""Return what a StandIn stands for."""


def stand_in(base: type[StandIn], original: Any) -> Any:
    """Return an object of a subclass of ``base`` that has the special methods which the original's class has."""
    kind = type(original)
    known = _classes.get(base)
    if known is None:
        known = _classes.setdefault(base, WeakKeyDictionary())
    cls = known.get(kind)
    if cls is None:
        cls = known[kind] = _class_like(kind, base)
    made: Any = object.__new__(cls)
    _set_original(made, original)
    return made


def _class_like(kind: type, base: type[StandIn]) -> type:
    own = {name for cls in base.__mro__[:-1] for name in vars(cls)}
    special = [name for name in dir(kind) if name.startswith("__") and name.endswith("__")]
    passed_on = {name for name in special if callable(getattr(kind, name, None))} - _OWN - own
    methods = {name: _passed_on(name) for name in passed_on}
    unhashable: dict[str, Any] = {"__hash__": None} if kind.__hash__ is None else {}
    # Each class has these two attributes, so that __getattr__() is not called for them.
    attributes = {name: property(attrgetter(f"_mackerel_otel_original.{name}")) for name in ("__doc__", "__module__")}
    return type(kind.__name__, (base,), {"__slots__": (), **attributes, **methods, **unhashable})


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = original_of(self)
        result = getattr(type(original), name)(original, *args, **kwargs)
        return self if result is original else result

    method.__name__ = name
    return method


class _Callable(StandIn):
    __slots__ = ("_mackerel_otel_function",)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function_of(self)(*args, **kwargs)


_set_function: Final = _Callable._mackerel_otel_function.__set__  # type: ignore[attr-defined]  # noqa: SLF001
_function_of: Final[Callable[[Any], Any]] = _Callable._mackerel_otel_function.__get__  # type: ignore[attr-defined]  # noqa: SLF001


def stand_in_callable(original: Any, function: Any) -> Any:
    """Return an object that looks like one callable and calls another one."""
    made = stand_in(_Callable, original)
    _set_function(made, function)
    return made
