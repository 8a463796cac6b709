"""OpenTelemetry's own instrumentation of a framework, set up by the application's code: it makes the server span.

Inside a server span of ours it would make a second one, so that Mackerel listed the request twice. All of them (Django,
Flask, FastAPI, Pyramid …, and the WSGI and ASGI middlewares) begin theirs by one function of
``opentelemetry.instrumentation.utils``. It is private, but there is no other way that finds them early and late, and
leaves those alone that have come too late to do anything.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context

from mackerel_otel_server.imports import on_import
from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import request

if TYPE_CHECKING:
    from types import ModuleType

_BEGIN: Final = "_start_internal_or_server_span"
_PACKAGE: Final = "opentelemetry.instrumentation."
_CARRIER: Final = 3  # its position among the arguments

_told = False


def register() -> None:
    """Watch the function, whether or not it has been imported."""
    on_import(f"{_PACKAGE}utils", _watch)


def _watch(module: ModuleType) -> None:
    original = vars(module).get(_BEGIN)
    if original is None:
        log.debug("%s has no %s: a framework's own instrumentation makes a second span", module.__name__, _BEGIN)
        return

    def begin(*args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.get("context_carrier") or (args[_CARRIER] if len(args) > _CARRIER else None)
        if not isinstance(carrier, dict) or (ours := request.of(carrier)) is None or ours.span is None:
            return original(*args, **kwargs)
        # As if nobody had begun a span; what is current again at the end of the application's call is not touched.
        context.attach(context.Context())
        begun = original(*args, **kwargs)
        ours.give_way(begun[0])
        request.show_ids(begun[0], carrier)
        _tell(sys._getframe(1).f_globals.get("__name__", _PACKAGE))  # noqa: SLF001 - documented
        return begun

    for user in [module, *(m for name, m in sys.modules.copy().items() if name.startswith(_PACKAGE))]:
        if vars(user).get(_BEGIN) is original:
            setattr(user, _BEGIN, begin)


def _tell(name: str) -> None:
    global _told
    if not _told:
        _told = True
        log.info("%s makes the server spans of this application, so this package makes none", name)
