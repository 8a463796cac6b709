"""Load a Gunicorn configuration as Gunicorn does. Runs in a child process: a configuration is a program."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_EARLY: Final = ("ssl", "requests", "urllib3")
"""Modules that gevent must patch before anybody imports them."""
_NOT_THERE: Final = (FileNotFoundError, IsADirectoryError, PermissionError)
_SETTINGS: Final = ("timeout", "graceful_timeout", "preload_app", "user", "pythonpath")


def load(location: str | None, what: str) -> dict[str, Any]:
    """Return what Gunicorn would make of its configuration in this process's environment and working directory.

    Args:
        location: What ``-c`` is given; None leaves it to ``GUNICORN_CMD_ARGS`` and the default file.
        what: How to call the configuration in sentences.

    Returns:
        ``error``: what went wrong, and what to type; or the effective settings, the hooks, and what the configuration
        has done to this process.
    """
    from gunicorn.app.base import Application

    class Probe(Application):  # type: ignore[misc, unused-ignore] # Gunicorn has no types
        app_uri: str | None = None
        read_from: str | None = None

        def init(self, parser: Any, opts: Any, args: Any) -> None:  # noqa: ARG002 - Gunicorn's own
            self.app_uri = args[0] if args else None

        def do_load_config(self) -> None:
            self.load_default_config()
            self.load_config()
            # Only newer releases of Gunicorn have this check of settings that do not fit each other.
            if hasattr(type(self.cfg), "validate"):
                self.cfg.validate()

        def load_config_from_module_name_or_filename(self, location: str) -> Any:
            self.read_from = location
            return super().load_config_from_module_name_or_filename(location)

        def load(self) -> None:
            """Load nothing: an application may do anything."""

    environ, folder = dict(os.environ), str(Path.cwd())
    sys.argv = ["gunicorn"] if location is None else ["gunicorn", "-c", location]
    sys.dont_write_bytecode = True
    before = set(sys.modules)
    try:
        return {**_report(Probe(), before), "changed": _changed(environ)}
    except BaseException as error:
        seen, cure = _refusal(error, location, what, folder)
        return {"error": {"seen": seen, "cure": cure, "changed": _changed(environ), "raw_env": _raw_env()}}


def _report(probe: Any, before: set[str]) -> dict[str, Any]:
    cfg = probe.cfg
    early = [name for name in _EARLY if name in sys.modules and name not in before]
    monkey = sys.modules.get("gevent.monkey")
    patched = bool(monkey and monkey.is_module_patched("ssl"))
    return {
        "read_from": probe.read_from,
        "file": _file(probe.read_from or ""),
        "application": probe.app_uri or cfg.wsgi_app,
        "env": cfg.env,
        "settings": {name: cfg.settings[name].get() for name in _SETTINGS},
        "cwd": str(cfg.chdir),
        "early": [] if patched else early,
        "patched": patched,
        "imports_ours": "mackerel_otel_server.gunicorn" in sys.modules,
        # Only instrument() imports this module.
        "instruments": "mackerel_otel_server.servers.instrument" in sys.modules,
        "provider": _provider(),
        **_hooks(cfg),
        # This comes last because it imports the worker class, and with it gevent or tornado.
        **_worker_class(cfg),
    }


def _changed(before: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables whose values have changed, with None for those that were removed."""
    from mackerel_otel_server.settings.catalogue import SEMCONV

    names = sorted(name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name))
    # This package sets the default of that variable when it is imported; the configuration did not do that.
    ours = [SEMCONV.name] if os.environ.get(SEMCONV.name) == SEMCONV.default and not before.get(SEMCONV.name) else []
    return {name: os.environ.get(name) for name in names if name not in ours}


def _raw_env() -> dict[str, str]:
    """Return raw_env of a file that raised an error. The error's text may hold one of these values, maybe a secret."""
    raw = getattr(sys.modules.get("__config__"), "raw_env", ())
    items = [item.partition("=") for item in raw if isinstance(item, str)] if isinstance(raw, list | tuple) else []
    return {name: value for name, _, value in items}


def _file(location: str) -> str | None:
    """Return the full name of the file that the configuration was loaded from."""
    module = sys.modules.get(location.removeprefix("python:") if location.startswith("python:") else "__config__")
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if file else None  # noqa: PTH100


def _hooks(cfg: Any) -> dict[str, Any]:
    from mackerel_otel_server.servers import gunicorn as ours

    missing = sorted(name for name in ours.HOOKS if not hasattr(cfg.settings[name].get(), ours.INSTALLED))
    places = {}
    for name in missing:
        code = getattr(cfg.settings[name].get(), "__code__", None)
        if code is not None and f"{os.sep}gunicorn{os.sep}config.py" not in code.co_filename:
            places[name] = f"{code.co_filename}:{code.co_firstlineno}"
    return {"missing": missing, "has_hooks": len(missing) < len(ours.HOOKS), "places": places}


def _worker_class(cfg: Any) -> dict[str, Any]:
    classes, failed = [], None
    try:
        classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in cfg.worker_class.__mro__]
    except BaseException as error:
        # Gunicorn's message is a whole traceback; its last line says what is wrong.
        lines = [line.strip() for line in str(error).splitlines() if line.strip() not in ("", "]")]
        failed = lines[-1] if lines else type(error).__name__
    return {"worker_class": str(cfg.worker_class_str), "classes": classes, "worker_error": failed}


def _provider() -> str | None:
    """Return the tracer provider that the configuration has set."""
    trace = sys.modules.get("opentelemetry.trace")
    provider = getattr(trace, "_TRACER_PROVIDER", None)
    name = f"{type(provider).__module__}.{type(provider).__qualname__}"
    # instrument() sets a provider of this package, which is not a fault.
    return None if provider is None or name.startswith("mackerel_otel_server.") else name


def not_there(what: str, why: str) -> tuple[str, str]:
    """Return what to say of a configuration that cannot be opened, and what to type."""
    return (
        f"{what} cannot be read: {why}",
        "name a file that exists and may be read: mackerel-otel-server check --config FILE",
    )


def _refusal(  # noqa: PLR0911 - each mistake has its own words
    error: BaseException, location: str | None, what: str, folder: str
) -> tuple[str, str]:
    """Return what stopped the configuration, with its place, and what to type."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename if frames else ""
    if isinstance(error, SystemExit):
        if last.endswith(os.path.join("gunicorn", "app", "base.py")) and error.__context__ is not None:  # noqa: PTH118
            # Gunicorn caught another exception and exits because of it.
            return _refusal(error.__context__, location, what, folder)
        if last.endswith("argparse.py"):
            return (
                "GUNICORN_CMD_ARGS holds options that Gunicorn does not know",
                "gunicorn --help lists those it knows",
            )
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    words = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if f"{os.sep}gunicorn{os.sep}" in last and frames[-1].name in ("chdir", "validate_chdir"):
        return (
            f"{what}: chdir leads to no folder that can be entered ({words})",
            f"make that folder, or correct chdir; a relative one begins at {folder}",
        )
    if f"{os.sep}gunicorn{os.sep}" in last and frames[-1].name == "env":
        return (
            f"{what}: an item of raw_env or -e is not of the form NAME=value (it is not shown, it may be a secret)",
            "type raw_env = ['NAME=value']",
        )
    place = _place(error, frames)
    if place is None and ("doesn't exist" in text or isinstance(error, _NOT_THERE)):
        return not_there(what, text or words)
    if place is None and isinstance(error, ModuleNotFoundError) and what.startswith("python:"):
        return (
            f"{what}: {words}",
            "name a module that can be imported from the working directory, such as python:mackerel_otel_server.conf",
        )
    if isinstance(error, SystemExit):
        words = f"it calls sys.exit({error.code!r})"
    if setting := _setting(error):
        words = f"{setting}: {words}"
    command = "gunicorn --check-config" + (f" -c {location}" if location else "")
    return f"{place or what}: {words}", f"correct it; {command} says more"


def _setting(error: BaseException) -> str:
    """Return the name of the setting whose value Gunicorn refuses."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load_config_from_module_name_or_filename" and "k" in frame.f_locals:
            return str(frame.f_locals["k"])
    return ""


def _place(error: BaseException, frames: traceback.StackSummary) -> str | None:
    """Return the first place of the traceback that is in the user's own code, as file:line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}" if error.filename else None
    foreign = (f"{os.sep}gunicorn{os.sep}", f"{os.sep}mackerel_otel_server{os.sep}cli{os.sep}", "<frozen ", "<string>")
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    for frame in frames:
        if not frame.filename.startswith(library) and not any(part in frame.filename for part in foreign):
            return f"{frame.filename}:{frame.lineno}"
    return None
