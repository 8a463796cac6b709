"""Werkzeug, on which Flask stands: its dispatcher, and its responses.

The paths at which the dispatcher mounts applications belong to their routes:
https://werkzeug.palletsprojects.com/en/stable/middleware/dispatcher/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.tracing.framework import Framework, after, before
from mackerel_otel_server.tracing.requests import wsgi_body
from mackerel_otel_server.tracing.requests.request import of
from mackerel_otel_server.tracing.requests.wsgi import trace_class

if TYPE_CHECKING:
    from types import ModuleType


def _note_mount(dispatcher: Any, environ: Any, *_args: Any, **_kwargs: Any) -> None:
    if (begun := of(environ)) is not None:
        begun.prefix += _mount(dispatcher.mounts, environ.get("PATH_INFO", ""))


def _mount(mounts: Any, path: str) -> str:
    """Return the longest path in ``mounts`` that ``path`` begins with, as the dispatcher finds it."""
    while "/" in path:
        if path in mounts:
            return path
        path = path.rpartition("/")[0]
    return ""


def _know_complete_bodies(module: ModuleType) -> None:
    """Tell the request that a body is a list of parts, although Werkzeug returns an iterator, as for most of Flask's.

    https://werkzeug.palletsprojects.com/en/stable/wrappers/#werkzeug.wrappers.Response.get_app_iter
    """

    def note(body: Any, response: Any, environ: Any) -> None:
        if response.is_sequence and (begun := of(environ)) is not None:
            begun.complete_body = body

    after(module.Response, "get_app_iter", note, "nobody knows whether a body is complete")


def _follow_close(module: ModuleType) -> None:
    """Note what fails when a complete body is closed, such as a function of Response.call_on_close()."""
    wsgi_body.follow_close(module.ClosingIterator)


FRAMEWORK: Final = Framework(
    name="Werkzeug",
    package="werkzeug",
    distribution="werkzeug",
    oldest="2.0",
    wsgi={"werkzeug.middleware.dispatcher": lambda module: trace_class(module.DispatcherMiddleware)},
    routes={
        "werkzeug.middleware.dispatcher": lambda module: before(
            module.DispatcherMiddleware, "__call__", _note_mount, "no mount"
        )
    },
    responses={"werkzeug.wrappers.response": _know_complete_bodies, "werkzeug.wsgi": _follow_close},
)
