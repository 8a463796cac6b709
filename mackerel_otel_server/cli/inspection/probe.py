"""Run a function of this package in a child process, which may hang, exit or print: what it returns comes as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.cli.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

_TICK: Final = 0.02
_ENDING_SECONDS: Final = 1.0
"""For a child that has answered; then it is ended."""
_SILENT_SECONDS: Final = 0.5
"""Whoever waits for longer is told what for."""
# Not `-m`, nor a file: neither the working directory nor this package's folder may shadow what is installed.
_SCRIPT: Final = """\
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import importlib, json, os
module, function, arguments, target = sys.argv[1:]
result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
with open(target + ".part", "w", encoding="utf-8") as file:
    json.dump(result, file)
os.replace(target + ".part", target)
"""


@dataclass(frozen=True)
class Silence:
    """No answer came from the child."""

    seconds: float | None
    """How long it was waited for; None when the child had ended by itself. What it wrote may be secret."""


def ask(  # noqa: PLR0913 - keywords, each of its own
    module: str,
    function: str,
    arguments: Mapping[str, Any],
    *,
    env: Mapping[str, str],
    cwd: str,
    seconds: float,
    doing: str,
) -> dict[str, Any] | Silence:
    """Call a function in a fresh interpreter, the same one as this.

    Args:
        module: Where it is.
        function: Its name. It returns what JSON can hold.
        arguments: Keywords, which JSON can hold; they are visible to other users of this machine.
        env: The child's whole environment.
        cwd: Its working directory.
        seconds: After which it is ended.
        doing: What a terminal shows meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="mackerel-check-") as folder:
        target = Path(folder) / "answer.json"
        command = [sys.executable, "-c", _SCRIPT, module, function, json.dumps(arguments), str(target)]
        with Child(command, env=env, cwd=cwd) as child, _Progress(doing) as progress:
            deadline = time.monotonic() + seconds
            while child.running() and not target.is_file() and time.monotonic() < deadline:
                time.sleep(_TICK)
                progress.tick()
            hangs = child.running()
            # A thread that the function has started may keep the child alive for ever.
            ending = time.monotonic() + _ENDING_SECONDS
            while child.running() and target.is_file() and time.monotonic() < ending:
                time.sleep(_TICK)
        if target.is_file():
            answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
            return answer
        return Silence(seconds if hangs else None)


class _Progress:
    """One line on standard error where that is a terminal, gone when it is over."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._began = time.monotonic()
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def tick(self) -> None:
        passed = time.monotonic() - self._began
        text = f"{self._doing} ... {passed:.0f} s"
        if passed > _SILENT_SECONDS and text != self._shown and sys.stderr.isatty():
            self._shown = text
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
