"""The WSGI frameworks whose application classes are traced wherever they are served, without a line in the application.

Only a class is changed, and in place: the object that views and ``wsgi.py`` import stays the framework's own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import wrapt

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing.wsgi import trace_wsgi, wrap_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_CLASSES: Final = {
    "django.core.handlers.wsgi": "WSGIHandler",
    "flask.app": "Flask",
}

_registered: set[str] = set()


def register() -> None:
    """Trace the frameworks' classes as soon as the application imports them, or now where it has."""
    for module, name in _CLASSES.items():
        _on_import(module, name, _trace_class)


def register_callable(module: str, name: str) -> None:
    """Trace the callable ``name`` of ``module`` when that module is imported.

    For a server that imports the application itself and offers no hook between that and its first request.
    """
    _on_import(module, name, trace_wsgi)


def register_factory(module: str, name: str) -> None:
    """Trace what the function ``name`` of ``module`` returns, for ``module = mysite:make_application()``."""
    _on_import(module, name, _trace_factory)


def _trace_class(cls: type) -> type:
    if not wrap_class(cls):
        log.warning("%s is not traced: its __call__ is not a Python function", cls.__qualname__)
    return cls


def _trace_factory(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        return trace_wsgi(factory(*args, **kwargs))

    return make


def _on_import(module_name: str, attribute: str, trace: Callable[[Any], Any]) -> None:
    key = f"{module_name}:{attribute}"
    if key in _registered:
        return
    _registered.add(key)

    def wrap(module: ModuleType) -> None:
        try:
            value = vars(module).get(attribute)
            if callable(value):
                traced = trace(value)
                if traced is not value:
                    setattr(module, attribute, traced)
        except Exception:
            # This runs inside the application's import statement.
            log.warning("%s is not traced", key, exc_info=True)

    wrapt.register_post_import_hook(wrap, module_name)
