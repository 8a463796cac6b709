"""The id of this process, without a system call each time that a request or a span asks for it."""

from __future__ import annotations

import os
import sys
from typing import Final

_pid = os.getpid()


def _note_fork() -> None:
    global _pid
    _pid = os.getpid()


def _known_pid() -> int:
    return _pid


# uWSGI forks in C and runs no at-fork handlers. The module ``uwsgi`` exists in its own processes only, built in.
_FORKS_IN_C: Final = "uwsgi" in sys.builtin_module_names or "uwsgi" in sys.modules
if not _FORKS_IN_C:
    os.register_at_fork(after_in_child=_note_fork)

pid: Final = os.getpid if _FORKS_IN_C else _known_pid
"""Return the process id, as os.getpid() does."""
