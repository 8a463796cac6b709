"""Run a command in a process group of its own, and leave none of its processes behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from contextlib import suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

# A demo never logs as much. Of a command that writes without end, the last lines are kept.
_MOST_LINES = 2000
_LONGEST_LINE = 8192
_TERM_SECONDS = 10.0
_REST_SECONDS = 2.0


class Child:
    """Start a command, collect what it writes, and end it with the ``with`` block; OSError: it cannot be executed.

    ``env`` is the command's whole environment, ``cwd`` its working directory.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str) -> None:
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        # In a session of its own, the command does not get the terminal's Ctrl-C; this process ends it in order.
        self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - stdout=PIPE
        # A pipe that nobody reads would stop the server once it is full.
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the command: TERM, a deadline, then KILL for whatever is left of its group."""
        self.stop()

    @property
    def lines(self) -> list[str]:
        """What the command has written so far."""
        return list(self._lines)

    def running(self) -> bool:
        """Return whether the command itself still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the command and its group; the second call does nothing."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERM_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            # macOS answers EPERM for a group of zombies.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(_REST_SECONDS)

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            while line := pipe.readline(_LONGEST_LINE):
                self._lines.append(line.rstrip())
