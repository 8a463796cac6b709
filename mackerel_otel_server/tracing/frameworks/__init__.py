"""The web frameworks: their applications are traced wherever they are served, without a line in the application.

Only classes are changed, and in place: the object that views and ``wsgi.py`` import stays the framework's own. Each
module here names in ``HOOKS`` which modules of one framework it changes, and how, as soon as they are imported; and in
``OLDEST`` the package that an application imports, its distribution, and the oldest release that is tested.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.imitation import imitates
from mackerel_otel_server.imports import on_import
from mackerel_otel_server.tracing.frameworks import bottle, django, falcon, flask, pyramid, starlette, werkzeug
from mackerel_otel_server.tracing.oldest import warn_if_older
from mackerel_otel_server.tracing.wsgi import trace_served

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_FRAMEWORKS: Final = (bottle, django, falcon, flask, pyramid, starlette, werkzeug)

_registered: set[str] = set()


def register() -> None:
    """Trace the frameworks as soon as the application imports them, or now where it has."""
    for framework in _FRAMEWORKS:
        for module, hook in framework.HOOKS.items():
            _on_import(module, hook, key=module)
        for package, (distribution, release) in framework.OLDEST.items():
            warn = functools.partial(_warn_if_older, distribution, release)
            _on_import(package, warn, key=f"{package} is old")


def oldest() -> dict[str, str]:
    """Return the oldest release that is tested of each framework, by distribution."""
    return {name: release for framework in _FRAMEWORKS for name, release in framework.OLDEST.values()}


def _warn_if_older(distribution: str, release: str, _module: ModuleType) -> None:
    warn_if_older(distribution, release)


def are_imported() -> bool:
    """Tell whether one of the frameworks is in use."""
    return any(module in sys.modules for framework in _FRAMEWORKS for module in framework.HOOKS)


def register_callable(module: str, name: str) -> None:
    """Trace the callable ``name`` of ``module`` when that module is imported.

    For a server that imports the application itself and offers no hook between that and its first request.
    """
    _replace_on_import(module, name, trace_served)


def register_factory(module: str, name: str) -> None:
    """Trace what the function ``name`` of ``module`` returns, for ``module = mysite:make_application()``."""
    _replace_on_import(module, name, _trace_factory)


def _trace_factory(factory: Callable[..., Any]) -> Callable[..., Any]:
    @imitates(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        return trace_served(factory(*args, **kwargs))

    return make


def _replace_on_import(module_name: str, attribute: str, trace: Callable[[Any], Any]) -> None:
    def replace(module: ModuleType) -> None:
        value = vars(module).get(attribute)
        if callable(value) and (traced := trace(value)) is not value:
            setattr(module, attribute, traced)

    _on_import(module_name, replace, key=f"{module_name}:{attribute}")


def _on_import(module_name: str, hook: Callable[[ModuleType], None], *, key: str) -> None:
    if key not in _registered:
        _registered.add(key)
        on_import(module_name, hook)
