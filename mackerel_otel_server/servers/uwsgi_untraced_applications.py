"""Which of a uWSGI worker's applications are not traced: the first worker says so, with the lines to type."""

from __future__ import annotations

import sys
from typing import Any, Final

from mackerel_otel_server.process import threads
from mackerel_otel_server.process.log import log
from mackerel_otel_server.servers.running_uwsgi import applications

_LOADING_AT_MOST: Final = 600.0
"""Seconds after which nobody waits for the applications of a worker any more."""


def look() -> None:
    """Say which applications are not traced, once uWSGI has loaded them: under lazy-apps that is yet to come."""
    if applications():
        _say_what_is_not_traced()
    else:
        # Not a threading.Thread: once gevent has patched the standard library, it would not find itself at its end.
        threads.start_thread(_wait_for_applications)


def _wait_for_applications() -> None:
    waited, step, sleep = 0.0, 0.05, threads.original("time", "sleep")
    try:
        while not applications() and waited < _LOADING_AT_MOST:
            sleep(step)
            waited, step = waited + step, min(step * 1.5, 1.0)
        _say_what_is_not_traced()
    except Exception:
        log.debug("nobody knows whether the applications are traced", exc_info=True)


def _say_what_is_not_traced() -> None:
    from mackerel_otel_server.tracing import frameworks
    from mackerel_otel_server.tracing.requests import wrapping

    apps = applications()
    if len({app["interpreter"] for app in apps}) > 1:
        log.warning(
            "only the first application is traced, because uWSGI gives each of the others a Python interpreter of its "
            "own; add this line to its ini file: single-interpreter = true"
        )
    if frameworks.are_imported():
        # A callable that is no framework's object is most likely a middleware around one, and that one is traced.
        return
    for address in {app["callable"] for app in apps}:
        name, module = _find(address)
        if module is None or wrapping.is_traced(vars(module)[name]):
            continue
        log.warning(
            "the requests to %r of %s make no server spans, because it is a plain callable that uWSGI loads by itself; "
            "end that file with these two lines:\nfrom mackerel_otel_server import trace_wsgi\n%s = trace_wsgi(%s)",
            name,
            getattr(module, "__file__", None) or module.__name__,
            name,
            name,
        )


def _find(address: int) -> tuple[str, Any]:
    """Return the name of an object that uWSGI calls, and its module; one that uWSGI made from a file goes first."""
    modules = [module for module in sys.modules.copy().values() if module is not None]
    for module in sorted(modules, key=lambda module: not getattr(module, "__name__", "").startswith("uwsgi_file_")):
        for name, value in getattr(module, "__dict__", {}).copy().items():
            if id(value) == address:
                return name, module
    return "", None
