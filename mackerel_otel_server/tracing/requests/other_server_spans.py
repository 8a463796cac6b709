"""OpenTelemetry's own instrumentation of a framework, set up by the application's code: it makes the server span.

Inside a server span of ours it would make a second one, so that Mackerel would list the request twice. All these
instrumentations (Django, Flask, FastAPI, Pyramid …, and the WSGI and ASGI middlewares) begin their spans with one
function of ``opentelemetry.instrumentation.utils``. The function is private. But no other way finds both early and late
instrumentations, and ignores those that are set up too late to have an effect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.on_import import on_import
from mackerel_otel_server.tracing.requests import log_ids, request

if TYPE_CHECKING:
    from types import ModuleType

_BEGIN: Final = "_start_internal_or_server_span"
_PACKAGE: Final = "opentelemetry.instrumentation."
_CARRIER: Final = 3  # its position among the arguments

_told = False
_find: Callable[[dict[str, Any]], Any] = request.of


def look_for(find: Callable[[dict[str, Any]], Any]) -> None:
    """Let another function find the request under way that gives way.

    Args:
        find: Gets the environ or scope; returns an object with ``span`` and ``give_way()``, or None.
    """
    global _find
    _find = find


def register() -> None:
    """Watch the function, whether or not it has been imported."""
    on_import(f"{_PACKAGE}utils", _watch, "a framework's own instrumentation makes a second server span")


def _watch(module: ModuleType) -> None:
    original = vars(module)[_BEGIN]

    def begin(*args: Any, **kwargs: Any) -> Any:
        global _told
        carrier = kwargs.get("context_carrier") or (args[_CARRIER] if len(args) > _CARRIER else None)
        if not isinstance(carrier, dict) or (ours := _find(carrier)) is None or ours.span is None:
            return original(*args, **kwargs)
        # Their span begins as if there were no span of ours. Our own detach() restores the context later.
        context.attach(context.Context())
        begun = original(*args, **kwargs)
        ours.give_way(begun[0])
        log_ids.show(begun[0], carrier)
        if not _told:
            _told = True
            name = sys._getframe(1).f_globals.get("__name__", _PACKAGE)  # noqa: SLF001 - documented
            log.info("%s makes the server spans of this application, so this package makes none", name)
        return begun

    for user in [module, *(m for name, m in sys.modules.copy().items() if name.startswith(_PACKAGE))]:
        if vars(user).get(_BEGIN) is original:
            setattr(user, _BEGIN, begin)
