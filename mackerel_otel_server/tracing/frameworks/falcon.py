"""Falcon's WSGI and ASGI applications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.tracing.framework import Framework, after, before
from mackerel_otel_server.tracing.requests import asgi, wsgi
from mackerel_otel_server.tracing.requests.request import of

if TYPE_CHECKING:
    from types import ModuleType


def _note_route(found: Any, _app: Any, req: Any) -> None:
    """Note the route that Falcon's router has found: the last of the four values that _get_responder() returns.

    The method is private, but a middleware would show in ``falcon.inspect``, and an application can have a router of
    its own. The class of ASGI applications inherits the method.
    """
    carrier = _carrier(req)
    if found[-1] is not None and (begun := of(carrier)) is not None:
        begun.note_route(found[-1], carrier)


def _note_errors(module: ModuleType) -> None:
    """Note the exceptions that Falcon's own handler turns into its 500 page; the application's handlers replace it.

    The handler is private, but nothing else tells Falcon's own handler from those of the application.
    """

    def note(_app: Any, req: Any, _resp: Any, error: BaseException, *_args: Any, **_kwargs: Any) -> None:
        if (begun := of(_carrier(req))) is not None:
            begun.record(error)

    before(module.App, "_python_error_handler", note, "an exception is not noted")


def _carrier(req: Any) -> Any:
    # A request of ASGI has no env: it raises AttributeError.
    environ = getattr(req, "env", None)
    return req.scope if environ is None else environ


FRAMEWORK: Final = Framework(
    name="Falcon",
    package="falcon",
    distribution="falcon",
    oldest="3.0",
    instrumentation="falcon",
    wsgi={"falcon.app": lambda module: wsgi.trace_class(module.App)},
    asgi={"falcon.asgi.app": lambda module: asgi.trace_class(module.App)},
    routes={"falcon.app": lambda module: after(module.App, "_get_responder", _note_route, "no route")},
    exceptions={"falcon.app": _note_errors, "falcon.asgi.app": _note_errors},
)
