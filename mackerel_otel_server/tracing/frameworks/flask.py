"""Flask, by the signals that it sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.request import of
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _trace_class(module: ModuleType) -> None:
    trace_class(module.Flask)


def _listen(module: ModuleType) -> None:
    """Note routes, and the exceptions that no error handler of the application takes, before Flask's 500 page.

    https://flask.palletsprojects.com/en/stable/api/#signals
    """
    from flask.globals import request

    def note_route(sender: Any, **_kwargs: Any) -> None:  # noqa: ARG001 - the signal's name
        try:
            # Not when the request ends: the request object is gone by then.
            rule = request.url_rule
            if rule is not None and (begun := of(request.environ)) is not None:
                begun.note_route(rule.rule, request.environ)
        except Exception:
            log.debug("no route", exc_info=True)

    def note_error(sender: Any, exception: BaseException, **_kwargs: Any) -> None:  # noqa: ARG001 - the same
        try:
            if (begun := of(request.environ)) is not None:
                begun.record(exception)
        except Exception:
            log.debug("an exception is not noted", exc_info=True)

    module.request_started.connect(note_route, weak=False)
    module.got_request_exception.connect(note_error, weak=False)


HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "flask.app": _trace_class,
    "flask.signals": _listen,
}
