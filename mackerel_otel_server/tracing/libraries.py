"""Every installed instrumentation of OpenTelemetry is applied when its library is imported, before or after us.

Which library that is stands in the metadata of the instrumentation's distribution: nothing is imported to find out.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any, Final

from wrapt import register_post_import_hook

from mackerel_otel_server.log import log
from mackerel_otel_server.tracing import databases, engines, gate, instrumentors

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

_COVERED: Final = frozenset({"django", "flask", "fastapi", "starlette", "falcon", "pyramid"})
"""Their requests get a server span of ours. Those of Tornado's and aiohttp's own servers and of gRPC do not."""

_WITHOUT_SPANS: Final = frozenset({"system_metrics"})
"""They make metrics only, which nothing here sends."""

_MODULES: Final = {
    "aiohttp-server": "aiohttp.web",  # which `import aiohttp` does not import
    "urllib": "urllib.request",
}
"""Entry point -> the module to wait for, where the metadata would tell too little."""

# As pip writes it, such as: Requires-Dist: psycopg2-binary>=2.7.3.1; extra == 'instruments-any'
_INSTRUMENTS: Final = re.compile(r"""\s*([\w.-]+)[^;]*;.*\bextra\s*==\s*["']instruments(-any)?["']""")
# As in RECORD: package/__init__.py,… or module.py,… or module.cpython-311-x86_64-linux-gnu.so,…
_PACKAGE: Final = re.compile(r"^([A-Za-z]\w*(?:/\w+)*)/__init__\.\w+,", re.MULTILINE)
_SINGLE_MODULE: Final = re.compile(r"^([A-Za-z]\w*)\.(?:py|[\w.-]*so|pyd),", re.MULTILINE)

_registered: set[str] = set()
_applied: set[str] = set()


def register(
    disabled: Callable[[], Container[str]] = tuple, reported_by_others: Callable[[], bool] = lambda: False
) -> None:
    """Apply the installed instrumentations to the libraries that the application has imported or is going to import.

    Imports no library, starts nothing, and may be called before a fork and more than once. The instrumentations of the
    database drivers are left to ``databases``.

    Args:
        disabled: Returns names as in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, ``*`` for all. Asked when a library is
            imported: Gunicorn's ``raw_env`` comes later than this call. (A library that was imported before this call
            cannot wait for that.)
        reported_by_others: Returns whether another worker of this server says what fails.
    """
    engines.register(lambda name: name in databases.traced or name in _applied)
    for entry_point in entry_points(group=instrumentors.GROUP):
        name = entry_point.name
        if name in _registered or name in _COVERED or name in _WITHOUT_SPANS or name in databases.names():
            continue
        _registered.add(name)
        try:
            for modules in _modules_of(entry_point):
                waiting = set(modules)
                for module in modules:
                    hook = functools.partial(_imported, entry_point, module, waiting, disabled, reported_by_others)
                    register_post_import_hook(hook, module)
        except Exception as error:
            _warn(entry_point, f"{type(error).__name__}: {error}", reported_by_others)


def _imported(
    entry_point: EntryPoint,
    name: str,
    waiting: set[str],
    disabled: Callable[[], Container[str]],
    reported_by_others: Callable[[], bool],
    _module: Any,
) -> None:
    """Apply an instrumentation once all that it needs is imported. Never raises: the import is the application's."""
    try:
        waiting.discard(name)
        names = disabled()
        if waiting or entry_point.name in _applied or entry_point.name in names or "*" in names or _traced_by_others():
            return
        cause = instrumentors.apply(entry_point, **_options(entry_point.name))
        if cause is None:
            _applied.add(entry_point.name)
        else:
            _warn(entry_point, cause, reported_by_others)
    except Exception:
        log.debug("%s is not applied", entry_point.value, exc_info=True)


def _warn(entry_point: EntryPoint, cause: str, reported_by_others: Callable[[], bool]) -> None:
    write = log.debug if gate.refused or reported_by_others() else log.warning
    write(
        "%s is not traced: %s does not work (%s); the rest is traced. Install a version that fits, or add %s to "
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        entry_point.name,
        entry_point.value,
        cause,
        entry_point.name,
    )


def _traced_by_others() -> bool:
    """Tell whether another tracer provider is set: what is instrumented then is not for us to say."""
    from opentelemetry import trace

    return not gate.active and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _options(name: str) -> dict[str, Any]:
    if name != "logging":
        return {}
    # Trace ids in each record, which releases before 0.60 always gave. Never the handler that newer ones put at the
    # root logger, for log records that nothing here sends: it would turn the application's basicConfig() into nothing.
    return {"inject_trace_context": True, "enable_log_auto_instrumentation": False, "log_hook": _name_service}


def _name_service(_span: Any, record: Any) -> None:
    """Correct what the instrumentation remembers from before the fork, when there was no resource."""
    from opentelemetry import trace

    if resource := getattr(trace.get_tracer_provider(), "resource", None):
        record.otelServiceName = resource.attributes.get("service.name", "")


def _modules_of(entry_point: EntryPoint) -> Iterator[frozenset[str]]:
    """Yield sets of modules; when all of one set are imported, the instrumentation can be applied."""
    if module := _MODULES.get(entry_point.name):
        yield frozenset({module})
        return
    requirements = [found for line in _requirements(entry_point) if (found := _INSTRUMENTS.match(line))]
    own_name = _as_module(entry_point.name)
    all_of = [name for name, any_of in (found.groups() for found in requirements) if not any_of]
    one_of = [name for name, any_of in (found.groups() for found in requirements) if any_of]
    if own_name in map(_as_module, one_of):
        # One distribution for two libraries, such as botocore and aiobotocore, with an entry point for each.
        one_of = [name for name in one_of if _as_module(name) == own_name]
    if not requirements:
        # A part of the standard library, or no word about what it is for: the library of the same name.
        yield frozenset({own_name})
    elif not one_of:
        yield frozenset(module for name in all_of for module in _modules_in(name))
    else:
        for alternative in one_of:
            yield frozenset(module for name in (*all_of, alternative) for module in _modules_in(name))


def _requirements(entry_point: EntryPoint) -> Iterable[str]:
    dist = entry_point.dist
    return (dist.requires or ()) if dist is not None else ()


def _as_module(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


@functools.cache
def _modules_in(requirement: str) -> frozenset[str]:
    """Return the top modules that a distribution brings, or just the one with its name."""
    guess = frozenset({_as_module(requirement)})
    try:
        dist = distribution(requirement)
    except PackageNotFoundError:
        return guess  # not installed; should the module come from elsewhere, the instrumentor says what it thinks of it
    record = dist.read_text("RECORD")
    if record is None:  # as Debian packages it
        modules = frozenset((dist.read_text("top_level.txt") or "").split())
    else:
        packages = {path.replace("/", ".") for path in _PACKAGE.findall(record)}
        modules = frozenset(_SINGLE_MODULE.findall(record)) | {
            name for name in packages if not any(name.startswith(f"{other}.") for other in packages)
        }
    return guess if guess <= modules else (modules - {"test", "tests"}) or guess
