"""What a web framework says about itself, each file of ``frameworks`` about one; and ways to follow its methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.looks_like_original import imitates

Hooks = Mapping[str, Callable[[Any], None]]
"""The name of a module, and the function that changes the module as soon as the application has imported it."""


@dataclass(frozen=True, kw_only=True)
class Framework:
    """One web framework: what it is called, and how its requests are traced."""

    name: str
    """What people call it."""
    package: str
    """The package that an application imports."""
    distribution: str
    """Its name on the package index."""
    oldest: str
    """The oldest release that is tested."""
    instrumentation: str = ""
    """The entry point of OpenTelemetry's own instrumentation, which is not applied because the requests have spans of
    ours. Its variable ``OTEL_PYTHON_<INSTRUMENTATION>_EXCLUDED_URLS`` is obeyed. Empty: there is none."""
    wsgi: Hooks = field(default_factory=dict)
    """These make spans of the requests that come by WSGI."""
    asgi: Hooks = field(default_factory=dict)
    """These make spans of the requests that come by ASGI."""
    routes: Hooks = field(default_factory=dict)
    """These tell a request its route, as soon as the framework has found it."""
    exceptions: Hooks = field(default_factory=dict)
    """These tell a request about exceptions that the framework answers with its own page for status 500."""
    responses: Hooks = field(default_factory=dict)
    """These tell which responses are complete when the application returns them."""


def before(cls: Any, name: str, note: Callable[..., None], lost: str) -> None:
    """Call ``note`` with the arguments of a method or coroutine method, before each call of it; see after()."""
    original = getattr(cls, name)
    method: Callable[..., Any]
    if inspect.iscoroutinefunction(original):

        @imitates(original)
        async def method(*args: Any, **kwargs: Any) -> Any:
            try:
                note(*args, **kwargs)
            except Exception:
                log.debug(lost, exc_info=True)
            return await original(*args, **kwargs)
    else:

        @imitates(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            try:
                note(*args, **kwargs)
            except Exception:
                log.debug(lost, exc_info=True)
            return original(*args, **kwargs)

    _put_in_place(cls, name, method)


def after(cls: Any, name: str, note: Callable[..., None], lost: str) -> None:
    """Call ``note`` with the answer and the arguments of a method, after each call of it.

    Args:
        cls: The class whose method is replaced.
        name: The name of the method.
        note: What it raises does not reach the framework.
        lost: What the log says then.
    """
    original = getattr(cls, name)

    @imitates(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        try:
            note(answer, *args, **kwargs)
        except Exception:
            log.debug(lost, exc_info=True)
        return answer

    _put_in_place(cls, name, method)


def _put_in_place(cls: Any, name: str, method: Any) -> None:
    # A traceback has this name for the call, and the application's log shows the traceback.
    method.__code__ = method.__code__.replace(co_name=name)
    setattr(cls, name, method)
