"""Wrap an application: a function of ours runs around each call of it, and all the rest stays as it was."""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.looks_like_original import CallableProxy, imitates

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
    try:
        trace_class(type(application), call)
    except TypeError:
        return wrap_callable(application, call)
    return application


def wrap_callable(application: Any, call: Call) -> Any:
    """Return a transparent proxy that traces the calls of ``application``; the application itself if it is traced."""
    if is_traced(application):
        return application
    # uvicorn (config.py) and asgiref (compatibility.py) tell ASGI 2 from ASGI 3 by that. The type is asked, because an
    # application of ASGI 2 is a class, and calling a class is not the same as calling its instances.
    is_async = inspect.iscoroutinefunction(getattr(type(application), "__call__", None))  # noqa: B004 - which kind it is
    return (_TracedCoroutineCallable if is_async else _TracedCallable)(application, call)


def is_traced(application: Any) -> bool:
    """Tell whether the calls of an application are traced."""
    call = getattr(type(application), "__call__", None)  # noqa: B004 - not whether it is callable
    return isinstance(application, _TracedCallable) or hasattr(call, _WRAPPED)


def unwrapped(application: Any) -> Any:
    """Return the application behind a proxy of wrap_callable(); return anything else as it is."""
    return application.__wrapped__ if isinstance(application, _TracedCallable) else application


def trace_class(cls: type, call: Call) -> None:
    """Trace the calls of all instances of a class, those that exist included.

    Raises:
        TypeError: Its ``__call__`` is no Python function, so it cannot be replaced.
    """
    original: Any = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    if hasattr(original, _WRAPPED):
        return
    # Falcon 3 is compiled with Cython, whose functions are bound like Python's.
    if not isinstance(original, types.FunctionType) and type(original).__name__ != "cython_function_or_method":
        raise TypeError(f"{cls.__qualname__}.__call__ is not a Python function")

    traced: Callable[..., Any]
    # The attributes of the original are not copied, because they may mark it for another library.
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
    # If __call__ is inherited, the class that defines it is not touched: other callables may inherit from that class.
    type.__setattr__(cls, "__call__", traced)


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
    """Return an id that stays the same from call to call, also for a method, which is a new object each time."""
    return id(getattr(application, "__self__", application))
