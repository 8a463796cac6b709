"""What Gunicorn makes of its configuration, found out by Gunicorn itself in a child process."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.cli.inspection import files, probe
from mackerel_otel_server.cli.inspection.not_read import NotReadError

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNKNOWN: Final = "Gunicorn's configuration"
SECONDS: Final = 15.0
"""After which a configuration hangs; Gunicorn itself would wait for ever."""


@dataclass(frozen=True, kw_only=True)
class GunicornConfig:
    """The effective configuration. ``env`` may hold secrets."""

    read_from: list[str]
    """The file or module; none where Gunicorn has only its defaults and ``GUNICORN_CMD_ARGS``."""
    files: list[str]
    """Their full names."""
    application: str | None
    changed: dict[str, str | None] = field(repr=False)
    """What it has done to the variables while it was loaded: the new value, None for one that it has removed."""
    env: dict[str, str] = field(repr=False)
    """``raw_env``: variables that the workers get."""
    settings: dict[str, Any]
    cwd: str
    """``chdir``, where the workers are."""
    early: list[str]
    """Modules that it has imported and that gevent has to patch first."""
    patched: bool
    """It has called gevent's patches itself."""
    imports_ours: bool
    instruments: bool
    """It has called ``instrument()`` while it was loaded."""
    provider: str | None
    """The class of the tracer provider that it has set."""
    hooks: list[str]
    """Those that are ours."""
    missing: list[str]
    places: dict[str, str]
    """Where the configuration defines hooks in the place of ours: name -> file:line."""
    worker_class: str
    classes: list[str]
    """The worker class and those it is made of."""
    worker_error: str | None

    @property
    def roots(self) -> list[str]:
        """Where modules are looked for beside the working directory."""
        return [str(Path(self.cwd, folder)) for folder in str(self.settings["pythonpath"] or "").split(",") if folder]

    @property
    def name(self) -> str:
        """The configuration, as a sentence may name it."""
        return ", ".join(self.read_from) or "Gunicorn's defaults"

    def is_worker(self, *modules: str) -> bool:
        """Tell whether the worker class, or one that it is made of, comes from one of these modules."""
        return any(f"{name}.".startswith(f"{module}.") for name in self.classes for module in modules)


def read(location: str | None, environ: Mapping[str, str], folder: str) -> GunicornConfig:
    """Let Gunicorn load its configuration.

    Args:
        location: What ``-c`` is given: a path, ``file:`` or ``python:``; None for what Gunicorn finds by itself.
        environ: The environment of the server.
        folder: Its working directory.

    Raises:
        NotReadError: It cannot be loaded.
    """
    if find_spec("gunicorn") is None:
        raise NotReadError(
            "Gunicorn is not installed for this Python, so its configuration cannot be read",
            "pip install gunicorn, or run this command with the server's own Python",
            "nothing is known about the server",
        )
    what = location or _found_by_itself(environ, folder)
    is_file = what != _UNKNOWN and not what.startswith("python:")
    # Before Gunicorn itself waits for a pipe.
    if is_file and (words := files.problem(Path(folder, what.removeprefix("file:")))):
        raise _not_there(what, words)
    answer = probe.ask(
        "mackerel_otel_server.cli.inspection.gunicorn_probe",
        "load",
        {"location": location},
        env=environ,
        cwd=folder,
        seconds=SECONDS,
        doing="reading Gunicorn's configuration",
    )
    if isinstance(answer, probe.Silence):
        if answer.seconds is None:
            raise NotReadError(f"{what} ends the process that reads it", "remove what calls os._exit or kills it")
        raise NotReadError(
            f"{what} is not read within {answer.seconds:.0f} s: it hangs",
            "look for what waits in it, such as a connection that nobody answers",
        )
    if error := answer.get("error"):
        refusal = _refusal(what, error, location, folder)
        refusal.changed, refusal.raw_env = error["changed"], error["raw_env"]
        raise refusal
    return GunicornConfig(**{field.name: answer[field.name] for field in fields(GunicornConfig)})


def _found_by_itself(environ: Mapping[str, str], folder: str) -> str:
    default = "gunicorn.conf.py"
    alone = not environ.get("GUNICORN_CMD_ARGS") and Path(folder, default).exists()
    return default if alone else _UNKNOWN


def _not_there(what: str, words: str) -> NotReadError:
    return NotReadError(
        f"{what} cannot be read: {words}",
        "name a file that exists and may be read: mackerel-otel-server check --config FILE",
    )


def _refusal(what: str, error: Mapping[str, Any], location: str | None, folder: str) -> NotReadError:
    kind, words = error["kind"], error["words"]
    if kind == "chdir":
        return NotReadError(
            f"{what}: chdir leads to no folder that can be entered ({words})",
            f"make that folder, or correct chdir; a relative one begins at {folder}",
        )
    if kind == "raw_env":
        return NotReadError(
            f"{what}: an item of raw_env or -e is not of the form NAME=value (it is not shown, it may be a secret)",
            "type raw_env = ['NAME=value']",
        )
    if kind == "arguments":
        return NotReadError(
            "GUNICORN_CMD_ARGS holds options that Gunicorn does not know", "gunicorn --help lists those it knows"
        )
    missing = "doesn't exist" in words or kind in ("FileNotFoundError", "IsADirectoryError", "PermissionError")
    if missing and error["file"] is None:
        return _not_there(what, words.partition(": ")[2] or words)
    if kind == "ModuleNotFoundError" and what.startswith("python:") and error["file"] is None:
        return NotReadError(
            f"{what}: {words}",
            "name a module that can be imported from the working directory, such as python:mackerel_otel_server.conf",
        )
    place = f"{error['file']}:{error['line']}" if error["file"] else what
    command = "gunicorn --check-config" + (f" -c {location}" if location else "")
    return NotReadError(f"{place}: {words}", f"correct it; {command} says more")
