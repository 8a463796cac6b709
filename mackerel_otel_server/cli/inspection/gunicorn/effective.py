"""What Gunicorn makes of its configuration, found out by Gunicorn itself in a child process."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.cli.inspection import in_a_child
from mackerel_otel_server.cli.inspection.findings import NotReadError
from mackerel_otel_server.cli.inspection.gunicorn.load import not_there
from mackerel_otel_server.cli.inspection.project import files

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS: Final = 15.0
"""A configuration that takes longer is said to hang. Gunicorn itself would wait for ever."""


@dataclass(frozen=True, kw_only=True)
class GunicornConfig:
    """The effective configuration. ``env`` may hold secrets."""

    read_from: str | None
    """The file or module; None where Gunicorn has only its defaults and ``GUNICORN_CMD_ARGS``."""
    file: str | None
    """The full name of that file."""
    application: str | None
    changed: dict[str, str | None] = field(repr=False)
    """The variables that the configuration changed while it was loaded, with their new values; None: it removed one."""
    env: dict[str, str] = field(repr=False)
    """The variables that the workers get from ``raw_env``."""
    settings: dict[str, Any]
    cwd: str
    """The working directory of the workers, from ``chdir``."""
    early: list[str]
    """Modules that the configuration has imported although gevent must patch them before anybody imports them."""
    patched: bool
    """Whether the configuration has called gevent's patches itself."""
    imports_ours: bool
    instruments: bool
    """Whether the configuration called ``instrument()`` while it was loaded."""
    provider: str | None
    """The class of the tracer provider that the configuration has set."""
    has_hooks: bool
    """Whether any hook is this package's."""
    missing: list[str]
    """The names of the hooks that are not."""
    places: dict[str, str]
    """Where the configuration defines hooks in the place of ours: name -> file:line."""
    worker_class: str
    classes: list[str]
    """The worker class and its base classes."""
    worker_error: str | None

    @property
    def roots(self) -> list[str]:
        """The folders in which Gunicorn looks for modules, beside the working directory."""
        return [str(Path(self.cwd, folder)) for folder in str(self.settings["pythonpath"] or "").split(",") if folder]

    @property
    def name(self) -> str:
        """The name of the configuration in the sentences of ``check``."""
        return self.read_from or "Gunicorn's defaults"

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
    is_default = not environ.get("GUNICORN_CMD_ARGS") and Path(folder, "gunicorn.conf.py").exists()
    file = location or ("gunicorn.conf.py" if is_default else "")
    what = file or "Gunicorn's configuration"
    # Gunicorn itself would wait for ever if the file is a pipe, so the file is read here first.
    if file and not file.startswith("python:"):
        try:
            files.content(Path(folder, file.removeprefix("file:")))
        except files.UnreadableError as unreadable:
            raise NotReadError(*not_there(what, str(unreadable))) from None
    answer = in_a_child.ask(
        "mackerel_otel_server.cli.inspection.gunicorn.load",
        "load",
        {"location": location, "what": what},
        env=environ,
        cwd=folder,
        seconds=SECONDS,
        doing="reading Gunicorn's configuration",
    )
    if answer is None:
        raise NotReadError(f"{what} ends the process that reads it", "remove what calls os._exit or kills it")
    if isinstance(answer, float):
        raise NotReadError(
            f"{what} is not read within {answer:.0f} s: it hangs",
            "look for what waits in it, such as a connection that nobody answers",
        )
    if error := answer.get("error"):
        refusal = NotReadError(error["seen"], error["cure"])
        refusal.changed, refusal.raw_env = error["changed"], error["raw_env"]
        raise refusal
    return GunicornConfig(**answer)
