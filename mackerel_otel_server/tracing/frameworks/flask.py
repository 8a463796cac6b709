"""Flask. Its signals are not enough: before release 2.3, Flask has none where blinker is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.log import log
from mackerel_otel_server.tracing.framework import Framework, before
from mackerel_otel_server.tracing.requests import request
from mackerel_otel_server.tracing.requests.wsgi import trace_class

if TYPE_CHECKING:
    from types import ModuleType


def _note_route(module: ModuleType) -> None:
    """Note the route, which Flask has found before it dispatches the request.

    https://flask.palletsprojects.com/en/stable/api/#flask.Flask.full_dispatch_request
    """
    import flask.globals

    def note(*_args: Any, **_kwargs: Any) -> None:
        # Now, because Flask's request object is gone when the request ends.
        flask_request = flask.globals.request
        rule = flask_request.url_rule
        if rule is not None and (begun := request.of(flask_request.environ)) is not None:
            begun.note_route(rule.rule, flask_request.environ)

    before(module.Flask, "full_dispatch_request", note, "no route")


def _note_errors(module: ModuleType) -> None:
    """Note the exceptions that no error handler of the application handles, so that Flask answers with its 500 page.

    https://flask.palletsprojects.com/en/stable/api/#flask.Flask.handle_exception
    """

    def note(_app: Any, *args: Any, **kwargs: Any) -> None:
        # The exception is the first argument; from Flask 3.2 on, the second one.
        _record(next((value for value in (*args, *kwargs.values()) if isinstance(value, BaseException)), None))

    before(module.Flask, "handle_exception", note, "an exception is not noted")


def _listen(module: ModuleType) -> None:
    """Note the exceptions that an extension answers itself, and for which it sends Flask's signal, as Flask-RESTX does.

    https://flask.palletsprojects.com/en/stable/api/#flask.got_request_exception
    """
    from werkzeug.exceptions import HTTPException

    def receive(sender: Any, exception: BaseException, **_kwargs: Any) -> None:  # noqa: ARG001 - the signal's name
        # Flask sends no signal for abort(404), but Flask-RESTful does.
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


FRAMEWORK: Final = Framework(
    name="Flask",
    package="flask",
    distribution="flask",
    oldest="2.0",
    instrumentation="flask",
    wsgi={"flask.app": lambda module: trace_class(module.Flask)},
    routes={"flask.app": _note_route},
    exceptions={"flask.app": _note_errors, "flask.signals": _listen},
)
