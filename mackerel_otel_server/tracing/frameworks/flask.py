"""Flask. Its signals are not enough: before release 2.3 there are none where blinker is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import request
from mackerel_otel_server.tracing.wsgi import trace_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _hook(module: ModuleType) -> None:
    trace_class(module.Flask)
    _note_routes(module.Flask)
    _note_errors(module.Flask)


def _note_routes(cls: Any) -> None:
    """Note the route, which Flask has found before it dispatches the request.

    https://flask.palletsprojects.com/en/stable/api/#flask.Flask.full_dispatch_request
    """
    import flask.globals

    original = cls.full_dispatch_request

    @imitates(original)
    def full_dispatch_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            # Not when the request ends: Flask's request object is gone by then.
            flask_request = flask.globals.request
            rule = flask_request.url_rule
            if rule is not None and (begun := request.of(flask_request.environ)) is not None:
                begun.note_route(rule.rule, flask_request.environ)
        except Exception:
            log.debug("no route", exc_info=True)
        return original(self, *args, **kwargs)

    cls.full_dispatch_request = full_dispatch_request


def _note_errors(cls: Any) -> None:
    """Note the exceptions that no error handler of the application takes, before Flask's 500 page.

    https://flask.palletsprojects.com/en/stable/api/#flask.Flask.handle_exception
    """
    original = cls.handle_exception

    @imitates(original)
    def handle_exception(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Flask 3.2 has the context before the exception.
        _record(next((value for value in (*args, *kwargs.values()) if isinstance(value, BaseException)), None))
        return original(self, *args, **kwargs)

    cls.handle_exception = handle_exception


def _listen(module: ModuleType) -> None:
    """Note the exceptions that an extension answers itself, and sends Flask's signal for, as Flask-RESTX does.

    https://flask.palletsprojects.com/en/stable/api/#flask.got_request_exception
    """
    from werkzeug.exceptions import HTTPException

    def receive(sender: Any, exception: BaseException, **_kwargs: Any) -> None:  # noqa: ARG001 - the signal's name
        # Flask sends none for abort(404), but Flask-RESTful does.
        if not isinstance(exception, HTTPException):
            _record(exception)

    try:
        module.got_request_exception.connect(receive, weak=False)
    except RuntimeError:
        log.debug("Flask has no signals without blinker, so extensions send none", exc_info=True)


def _record(error: BaseException | None) -> None:
    import flask.globals

    try:
        if error is not None and (begun := request.of(flask.globals.request.environ)) is not None:
            begun.record(error)
    except Exception:
        log.debug("an exception is not noted", exc_info=True)


OLDEST: Final = {"flask": ("flask", "2.0")}
HOOKS: Final[dict[str, Callable[[ModuleType], None]]] = {
    "flask.app": _hook,
    "flask.signals": _listen,
}
