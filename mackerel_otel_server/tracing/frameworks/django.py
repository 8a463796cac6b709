"""Django and what stands on it, such as Django REST framework."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import asgi, bodies, wsgi
from mackerel_otel_server.tracing.request import of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from mackerel_otel_server.tracing.request import Request


def _trace_wsgi_handler(module: ModuleType) -> None:
    wsgi.trace_class(module.WSGIHandler)


def _trace_asgi_handler(module: ModuleType) -> None:
    asgi.trace_class(module.ASGIHandler)


def _leave_responses_alone(module: ModuleType) -> None:
    """Let the server have Django's own responses, which are complete but for streaming ones."""
    bodies.add_complete_class(module.HttpResponse)
    # A receiver of the signal request_finished may fail in it.
    bodies.follow_close(module.HttpResponseBase)


def _note_route(module: ModuleType) -> None:
    """Note the route when Django's handler has found it: BaseHandler.resolve_request() of django/core/handlers."""
    original = module.BaseHandler.resolve_request

    @imitates(original)
    def resolve_request(self: Any, request: Any) -> Any:
        match = original(self, request)
        try:
            if (begun := _request(request)) is not None:
                begun.note_route(_template(match.route), _carrier(request))
        except Exception:
            log.debug("no route", exc_info=True)
        return match

    module.BaseHandler.resolve_request = resolve_request


def _note_errors(module: ModuleType) -> None:
    """Note the exceptions that Django turns into its 500 page; it handles others, such as Http404, without the signal.

    https://docs.djangoproject.com/en/stable/ref/signals/#got-request-exception
    """

    def receive(sender: Any, request: Any = None, **_kwargs: Any) -> None:  # noqa: ARG001 - the signal's names
        try:
            error = sys.exc_info()[1]
            if error is not None and (begun := _request(request)) is not None:
                begun.record(error)
        except Exception:
            log.debug("an exception is not noted", exc_info=True)

    module.got_request_exception.connect(receive, weak=False)


def _request(request: Any) -> Request | None:
    return of(_carrier(request))


def _carrier(request: Any) -> Any:
    return getattr(request, "environ", None) or getattr(request, "scope", None) or {}


@functools.lru_cache(maxsize=1024)
def _template(route: str) -> str:
    """Return ``/shop/<int:id>`` for ``shop/<int:id>``, and for the ``^shop/(?P<id>[0-9]+)$`` of re_path()."""
    return "/" + route.removeprefix("^").removesuffix("$").removeprefix("/")


OLDEST: Final = {"django": ("django", "3.2"), "rest_framework": ("djangorestframework", "3.12")}
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "django.core.handlers.asgi": _trace_asgi_handler,
    "django.core.handlers.base": _note_route,
    "django.core.handlers.wsgi": _trace_wsgi_handler,
    "django.core.signals": _note_errors,
    "django.http.response": _leave_responses_alone,
}
