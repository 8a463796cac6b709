"""Run a function of this package in a child process, which may hang, exit or print: what it returns comes as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.cli.output import waiting
from mackerel_otel_server.cli.process_group import Child

if TYPE_CHECKING:
    from collections.abc import Mapping

_TICK: Final = 0.02
_ENDING_SECONDS: Final = 1.0
"""How long a child that has answered may take to end by itself. Then it is killed."""
# The child runs this text. With `python -m` or a file, modules of the working directory or of this package's folder
# would be found before the installed ones of the same name.
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


def ask(  # noqa: PLR0913 - keywords, each of its own
    module: str,
    function: str,
    arguments: Mapping[str, Any],
    *,
    env: Mapping[str, str],
    cwd: str,
    seconds: float,
    doing: str,
) -> dict[str, Any] | float | None:
    """Call a function in a fresh interpreter, the same one as this.

    Args:
        module: Where it is.
        function: Its name. It returns what JSON can hold.
        arguments: Keywords, which JSON can hold; they are visible to other users of this machine.
        env: The child's whole environment.
        cwd: Its working directory.
        seconds: After which it is ended.
        doing: What a terminal shows meanwhile.

    Returns:
        What the function has returned; the seconds that this process has waited for a child that gave no answer; None
        for a child that ended by itself without one.
    """
    with tempfile.TemporaryDirectory(prefix="mackerel-check-") as folder:
        target = Path(folder) / "answer.json"
        command = [sys.executable, "-c", _SCRIPT, module, function, json.dumps(arguments), str(target)]
        with Child(command, env=env, cwd=cwd) as child, waiting(doing) as tick:
            deadline, answered = time.monotonic() + seconds, False
            while child.running() and time.monotonic() < deadline:
                if target.is_file() and not answered:
                    # Threads that the function has started may keep the child alive for ever.
                    deadline, answered = time.monotonic() + _ENDING_SECONDS, True
                time.sleep(_TICK)
                tick()
            hangs = child.running()
        if target.is_file():
            answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
            return answer
        return seconds if hangs else None
