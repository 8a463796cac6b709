"""Load a Gunicorn configuration as Gunicorn does. Runs in a child process: a configuration is a program."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_EARLY: Final = ("ssl", "requests", "urllib3")
"""What gevent must patch before it is imported."""
_SETTINGS: Final = (
    "workers",
    "threads",
    "timeout",
    "graceful_timeout",
    "preload_app",
    "wsgi_app",
    "user",
    "pythonpath",
)


def load(location: str | None) -> dict[str, Any]:
    """Return what Gunicorn would make of its configuration in this process's environment and working directory.

    Args:
        location: What ``-c`` is given; None leaves it to ``GUNICORN_CMD_ARGS`` and the default file.

    Returns:
        ``error``: what went wrong, with its place; or the effective settings, the hooks, and what the configuration
        has done to this process.
    """
    from gunicorn.app.base import Application

    class Probe(Application):  # type: ignore[misc, unused-ignore] # Gunicorn has no types
        app_uri: str | None = None
        read_from: tuple[str, ...] = ()

        def init(self, parser: Any, opts: Any, args: Any) -> None:  # noqa: ARG002 - Gunicorn's own
            self.app_uri = args[0] if args else None

        def do_load_config(self) -> None:
            self.load_default_config()
            self.load_config()
            # Before the release that has this, there is nothing that two settings together can do wrong.
            if hasattr(type(self.cfg), "validate"):
                self.cfg.validate()

        def load_config_from_module_name_or_filename(self, location: str) -> Any:
            self.read_from = (location,)
            return super().load_config_from_module_name_or_filename(location)

        def load(self) -> None:
            """Load nothing: an application may do anything."""

    environ = dict(os.environ)
    sys.argv = ["gunicorn"] if location is None else ["gunicorn", "-c", location]
    sys.dont_write_bytecode = True
    before = set(sys.modules)
    probe = None
    try:
        probe = Probe()
        return {**_report(probe, before), "changed": _changed(environ)}
    except BaseException as error:
        return {"error": {**_explain(error, location), "changed": _changed(environ), "raw_env": _raw_env()}}


def _report(probe: Any, before: set[str]) -> dict[str, Any]:
    cfg = probe.cfg
    early = [name for name in _EARLY if name in sys.modules and name not in before]
    patched = False
    if monkey := sys.modules.get("gevent.monkey"):
        patched = bool(monkey.is_module_patched("ssl"))
    return {
        "read_from": list(probe.read_from),
        "files": _files(probe.read_from),
        "application": probe.app_uri or cfg.wsgi_app,
        "env": cfg.env,
        "settings": {name: _plain(cfg.settings[name].get()) for name in _SETTINGS},
        "cwd": str(cfg.chdir),
        "early": [] if patched else early,
        "patched": patched,
        "imports_ours": "mackerel_otel_server.gunicorn" in sys.modules,
        # Nobody else imports it.
        "instruments": "mackerel_otel_server.hosts" in sys.modules,
        "provider": _provider(),
        **_hooks(cfg),
        # Last: it imports gevent, tornado …
        **_worker_class(cfg),
    }


def _changed(before: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that are another now, with None for those that are gone."""
    from mackerel_otel_server.settings.catalogue import SEMCONV

    names = sorted(name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name))
    # The doors of this package set their default when they are imported.
    ours = [SEMCONV.name] if os.environ.get(SEMCONV.name) == SEMCONV.default and not before.get(SEMCONV.name) else []
    return {name: os.environ.get(name) for name in names if name not in ours}


def _raw_env() -> dict[str, str]:
    """Return what a file that stopped had given to raw_env: the words of its error may hold a secret."""
    raw = getattr(sys.modules.get("__config__"), "raw_env", ())
    items = [item.partition("=") for item in raw if isinstance(item, str)] if isinstance(raw, list | tuple) else []
    return {name: value for name, _, value in items}


def _files(read_from: Iterable[str]) -> list[str]:
    """Return the files that the configuration was loaded from."""
    found = []
    for location in read_from:
        module = sys.modules.get(location.removeprefix("python:") if location.startswith("python:") else "__config__")
        if file := getattr(module, "__file__", None):
            found.append(os.path.abspath(file))  # noqa: PTH100
    return found


def _hooks(cfg: Any) -> dict[str, Any]:
    from mackerel_otel_server import gunicorn as ours

    marked = {name for name in ours._HOOKS if hasattr(cfg.settings[name].get(), ours._INSTALLED)}  # noqa: SLF001 - see there
    places = {}
    for name in sorted(set(ours._HOOKS) - marked):  # noqa: SLF001
        code = getattr(cfg.settings[name].get(), "__code__", None)
        if code is not None and f"{os.sep}gunicorn{os.sep}config.py" not in code.co_filename:
            places[name] = f"{code.co_filename}:{code.co_firstlineno}"
    return {"hooks": sorted(marked), "missing": sorted(set(ours._HOOKS) - marked), "places": places}  # noqa: SLF001


def _worker_class(cfg: Any) -> dict[str, Any]:
    name = str(cfg.worker_class_str)
    try:
        classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in cfg.worker_class.__mro__]
    except BaseException as error:
        # Gunicorn puts the whole traceback into one message.
        lines = [line.strip() for line in str(error).splitlines() if line.strip() not in ("", "]")]
        return {"worker_class": name, "classes": [], "worker_error": lines[-1] if lines else type(error).__name__}
    return {"worker_class": name, "classes": classes, "worker_error": None}


def _provider() -> str | None:
    """Return the tracer provider that the configuration has set."""
    trace = sys.modules.get("opentelemetry.trace")
    provider = getattr(trace, "_TRACER_PROVIDER", None)
    name = f"{type(provider).__module__}.{type(provider).__qualname__}"
    # Ours is what instrument() sets.
    return None if provider is None or name.startswith("mackerel_otel_server.") else name


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _explain(error: BaseException, location: str | None) -> dict[str, Any]:
    """Return kind, words, and the place in the configuration, of what stopped it."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SystemExit):
        last = frames[-1].filename if frames else ""
        if last.endswith(os.path.join("gunicorn", "app", "base.py")) and error.__context__ is not None:  # noqa: PTH118
            # Gunicorn has printed the traceback of what it caught.
            return _explain(error.__context__, location)
        if last.endswith("argparse.py"):
            return {"kind": "arguments", "words": "", "file": None, "line": None}
    if frames and f"{os.sep}gunicorn{os.sep}" in frames[-1].filename:
        if frames[-1].name in ("chdir", "validate_chdir"):
            return {"kind": "chdir", "words": _words(error), "file": None, "line": None}
        if frames[-1].name == "env":
            return {"kind": "raw_env", "words": "", "file": None, "line": None}
    file, line = _place(error, frames)
    words = f"it calls sys.exit({error.code!r})" if isinstance(error, SystemExit) else _words(error)
    if setting := _setting(error):
        words = f"{setting}: {words}"
    return {"kind": type(error).__name__, "words": words, "file": file, "line": line}


def _setting(error: BaseException) -> str:
    """Return the name of the setting whose value Gunicorn refuses."""
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if frame.f_code.co_name == "load_config_from_module_name_or_filename" and "k" in frame.f_locals:
            return str(frame.f_locals["k"])
        step = step.tb_next
    return ""


def _words(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, frames: traceback.StackSummary) -> tuple[str | None, int | None]:
    """Return where the user's own code is: not Gunicorn, not the import system, not this package, nor what it calls."""
    if isinstance(error, SyntaxError):
        return error.filename, error.lineno
    foreign = (f"{os.sep}gunicorn{os.sep}", f"{os.sep}mackerel_otel_server{os.sep}cli{os.sep}", "<frozen ", "<string>")
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    for frame in frames:
        if not frame.filename.startswith(library) and not any(part in frame.filename for part in foreign):
            return frame.filename, frame.lineno
    return None, None
