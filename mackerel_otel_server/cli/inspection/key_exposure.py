"""Look for the API key where every user of this machine can read it: on the command lines of its processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PROC: Final = Path("/proc")
_SHORTEST: Final = 8
"""Characters; a shorter text may stand anywhere by chance."""


def findings(keys: Iterable[str]) -> list[Finding]:
    """Look at all processes; where there is no ``/proc``, nothing is found.

    Args:
        keys: The API keys in use.
    """
    wanted = [key.encode("utf-8", "surrogateescape") for key in set(keys) if len(key) >= _SHORTEST]
    return [
        Finding(
            "WARN",
            f"the API key is on the command line of process {pid} ({name})",
            "every user of this machine can read it there",
            "set it in the environment of the server, or MACKEREL_APIKEY_FILE to a file that holds it; make a new key "
            "if others use this machine",
        )
        for pid, name, line in _command_lines()
        if any(key in line for key in wanted)
    ]


def _command_lines() -> Iterator[tuple[int, str, bytes]]:
    for folder in sorted(_PROC.glob("[0-9]*"), key=lambda folder: int(folder.name)):
        try:
            line = (folder / "cmdline").read_bytes()
            name = (folder / "comm").read_text(errors="replace").strip()
        except OSError:  # it has ended, or is not for us to see
            continue
        yield int(folder.name), name, line
