"""Django, and what is built on Django, such as Django REST framework."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing.framework import Framework, after
from mackerel_otel_server.tracing.requests import asgi, wsgi, wsgi_body
from mackerel_otel_server.tracing.requests.request import of

if TYPE_CHECKING:
    from types import ModuleType


def _leave_responses_alone(module: ModuleType) -> None:
    """Give Django's own responses to the server as they are. All of them are complete, except streaming responses."""
    wsgi_body.add_complete_class(module.HttpResponse)
    # close() sends the signal request_finished, whose receivers are the application's and may fail.
    wsgi_body.follow_close(module.HttpResponseBase)


def _note_route(match: Any, _handler: Any, request: Any) -> None:
    """Note the route when Django's handler has found it: BaseHandler.resolve_request() of django/core/handlers."""
    carrier = _carrier(request)
    if (begun := of(carrier)) is not None:
        begun.note_route(_template(match.route), carrier)


def _note_errors(module: ModuleType) -> None:
    """Note the exceptions that Django turns into its 500 page. For others, such as Http404, Django sends no signal.

    https://docs.djangoproject.com/en/stable/ref/signals/#got-request-exception
    """

    def receive(sender: Any, request: Any = None, **_kwargs: Any) -> None:  # noqa: ARG001 - the signal's names
        try:
            error = sys.exc_info()[1]
            if error is not None and (begun := of(_carrier(request))) is not None:
                begun.record(error)
        except Exception:
            log.debug("an exception is not noted", exc_info=True)

    module.got_request_exception.connect(receive, weak=False)


def _carrier(request: Any) -> Any:
    return getattr(request, "environ", None) or getattr(request, "scope", None) or {}


@functools.lru_cache(maxsize=1024)
def _template(route: str) -> str:
    """Return ``/shop/<int:id>`` for ``shop/<int:id>``, and for the ``^shop/(?P<id>[0-9]+)$`` of re_path()."""
    return "/" + route.removeprefix("^").removesuffix("$").removeprefix("/")


FRAMEWORK: Final = Framework(
    name="Django",
    package="django",
    distribution="django",
    oldest="3.2",
    instrumentation="django",
    wsgi={"django.core.handlers.wsgi": lambda module: wsgi.trace_class(module.WSGIHandler)},
    asgi={"django.core.handlers.asgi": lambda module: asgi.trace_class(module.ASGIHandler)},
    routes={
        "django.core.handlers.base": lambda module: after(
            module.BaseHandler, "resolve_request", _note_route, "no route"
        )
    },
    exceptions={"django.core.signals": _note_errors},
    responses={"django.http.response": _leave_responses_alone},
)
