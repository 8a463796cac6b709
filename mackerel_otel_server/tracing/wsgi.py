"""One request -> one server span, around any WSGI callable.

The span itself is made by OpenTelemetry's own WSGI middleware. This module sees to it that there is one per request,
whichever of the server's hooks, a framework's class and the application's own code have wrapped what it serves.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Final

import wrapt

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import gate

if TYPE_CHECKING:
    from collections.abc import Callable

    WSGICallable = Callable[[dict[str, Any], Callable[..., Any]], Any]

_TRACED: Final = "mackerel_otel_server.traced"
_APPLICATION: Final = "mackerel_otel_server.application"
_WRAPPED: Final = "_mackerel_otel_server_wrapped"
_WSGI_ARGUMENTS: Final = 2

_middleware: WSGICallable | None = None


def prepare() -> None:
    """Import what the first request needs, so that it need not wait for it."""
    global _middleware
    if _middleware is None:
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

        _mend_propagation()

        # One for all applications: it is costly to make, and which application to call is in the environ.
        _middleware = OpenTelemetryMiddleware(_call_application)


def trace_wsgi(application: Any) -> Any:
    """Make every request to a WSGI callable a server span.

    An instance of a Python class, as the frameworks' applications are, stays what it is: its class is wrapped in place.
    Anything else, a function above all, gets a proxy that shows the callable's own attributes.

    Args:
        application: The WSGI callable.

    Returns:
        The callable to give to the server.
    """
    if wrap_class(type(application)):
        return application
    return wrap_callable(application)


def wrap_callable(application: Any) -> Any:
    """Return a proxy for ``application`` that traces, and is transparent otherwise."""
    return application if isinstance(application, _TracedCallable) else _TracedCallable(application)


def wrap_class(cls: type) -> bool:
    """Trace the WSGI calls of all instances of a class, those that exist included.

    Returns:
        False when its ``__call__`` is no Python function, so that it cannot be replaced.
    """
    owner = next((base for base in cls.__mro__ if "__call__" in vars(base)), None)
    call = vars(owner)["__call__"] if owner else None
    if hasattr(call, _WRAPPED):
        return True
    if owner is None or not isinstance(call, types.FunctionType):
        return False

    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _call(types.MethodType(call, self), args, kwargs)

    # Not functools.wraps: it would copy a mark that the function carries for another library.
    traced.__name__, traced.__qualname__, traced.__doc__ = call.__name__, call.__qualname__, call.__doc__
    traced.__module__ = call.__module__
    vars(traced)["__wrapped__"] = call  # as functools.wraps does, for inspect.signature
    vars(traced)[_WRAPPED] = True
    type.__setattr__(owner, "__call__", traced)
    return True


class _TracedCallable(wrapt.ObjectProxy):  # type: ignore[type-arg, unused-ignore]  # generic since wrapt 2
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self.__wrapped__, args, kwargs)


def _call(application: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) == _WSGI_ARGUMENTS and not kwargs and isinstance(args[0], dict) and _TRACED not in args[0]:
        environ, start_response = args
        if gate.open_for_request() and _middleware is not None:
            environ[_TRACED] = True
            environ[_APPLICATION] = application
            try:
                return _middleware(environ, start_response)
            except Exception:
                if _APPLICATION not in environ:
                    # It has been called: the exception is its own, or comes after its response.
                    raise
                del environ[_APPLICATION]
                log.warning("a request is not traced", exc_info=True)
    return application(*args, **kwargs)


def _mend_propagation() -> None:
    """Make ``OTEL_PROPAGATORS=none`` work: the library's propagator returns no context then, which nothing expects."""
    from opentelemetry import context, propagate
    from opentelemetry.propagators.composite import CompositePropagator

    if propagate.extract({}) is not None:
        return

    class NoPropagator(CompositePropagator):
        def extract(self, carrier: Any, given: Any = None, getter: Any = None) -> Any:  # noqa: ARG002
            return context.get_current() if given is None else given

    propagate.set_global_textmap(NoPropagator([]))


def _call_application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    return environ.pop(_APPLICATION)(environ, start_response)
