"""How an application is wrapped: one call of ours around each of its own, and the rest of it as it was."""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import CallableProxy, imitates

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_WRAPPED: Final = "_mackerel_otel_server_wrapped"


def wrap(application: Any, call: Call) -> Any:
    """Trace the calls of an application.

    An instance of a Python class, as the frameworks' applications are, stays what it is: its class is wrapped in place.
    Anything else, a function above all, gets a proxy that shows the callable's own attributes.

    Args:
        application: A WSGI or ASGI callable.
        call: Gets the callable and the arguments of each call.

    Returns:
        The callable to give to the server.
    """
    if wrap_class(type(application), call):
        return application
    return wrap_callable(application, call)


def wrap_callable(application: Any, call: Call) -> Any:
    """Return a proxy for ``application`` that traces, and is transparent otherwise; itself if it is traced already."""
    if is_traced(application):
        return application
    # uvicorn (config.py) and asgiref (compatibility.py) tell the versions of ASGI apart by that. Of the type: what a
    # class of ASGI's second version makes is another thing than its instances do.
    is_async = inspect.iscoroutinefunction(getattr(type(application), "__call__", None))  # noqa: B004 - which kind it is
    return (_TracedCoroutineCallable if is_async else _TracedCallable)(application, call)


def is_traced(application: Any) -> bool:
    """Tell whether the calls of an application are traced."""
    call = getattr(type(application), "__call__", None)  # noqa: B004 - not whether it is callable
    return isinstance(application, _TracedCallable) or hasattr(call, _WRAPPED)


def unwrapped(application: Any) -> Any:
    """Return what a proxy of wrap_callable() stands for; anything else itself."""
    return application.__wrapped__ if isinstance(application, _TracedCallable) else application


def wrap_class(cls: type, call: Call) -> bool:
    """Trace the calls of all instances of a class, those that exist included.

    Returns:
        False when its ``__call__`` is no Python function, so that it cannot be replaced.
    """
    original: Any = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    if hasattr(original, _WRAPPED):
        return True
    if not _is_function(original):
        return False

    traced: Callable[..., Any]
    # Without its attributes, which may mark it for another library.
    if inspect.iscoroutinefunction(original):
        # uvicorn takes a callable that can be called without arguments for a factory.
        @imitates(original, with_attributes=False)
        async def traced(self: Any, scope: Any, *args: Any, **kwargs: Any) -> Any:
            return await call(types.MethodType(original, self), (scope, *args), kwargs)
    else:

        @imitates(original, with_attributes=False)
        def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(types.MethodType(original, self), args, kwargs)

    vars(traced)[_WRAPPED] = True
    # Not in the class that it is inherited from, which other callables may inherit from as well.
    type.__setattr__(cls, "__call__", traced)
    return True


def _is_function(method: Any) -> bool:
    # Falcon 3 is compiled with Cython, whose functions are bound like Python's.
    return isinstance(method, types.FunctionType) or type(method).__name__ == "cython_function_or_method"


class _TracedCallable(CallableProxy):
    def __init__(self, application: Any, call: Call) -> None:
        super().__init__(application)
        self._self_call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_call(self.__wrapped__, args, kwargs)

    def _self_again(self, copied: Any) -> Any:
        return self if copied is self.__wrapped__ else type(self)(copied, self._self_call)


class _TracedCoroutineCallable(_TracedCallable):
    async def __call__(self, scope: Any, *args: Any, **kwargs: Any) -> Any:
        return await self._self_call(self.__wrapped__, (scope, *args), kwargs)


def identity(application: Any) -> int:
    """Return what stays the same of an application from call to call: a method is made anew with each."""
    return id(getattr(application, "__self__", application))
