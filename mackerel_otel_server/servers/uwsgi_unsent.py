"""What a uWSGI worker had not sent when it ended without a chance to: the next worker in its place says how much.

A busy worker that gets SIGTERM or SIGINT runs no code of Python any more (``uwsgi_python_atexit()`` in
plugins/python/python_plugin.c), and neither does one that is killed. Two numbers in a small file outlive the worker.
They also outlive a reload, at which the master executes itself anew and keeps its process id.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import uwsgi

from mackerel_otel_server import worker
from mackerel_otel_server.process.log import log

_FIELDS: Final = 3
"""The process id of a worker, and how many spans it has finished and settled: 64 bits each."""
_SIZE: Final = _FIELDS * 8
_own: tuple[int, Path] | None = None
"""The process that has a file, and where that lies."""


def begin() -> None:
    """Worker: say what the last one in this place had not sent, and let the next one know about this one.

    Raises:
        OSError: There is no place for the file.
    """
    global _own
    if not uwsgi.masterpid():
        # Nobody takes a worker's place.
        return
    folder = _folder()
    path = folder / f"{uwsgi.masterpid()}.{uwsgi.worker_id()}"
    counts = _open(path)
    pid, finished, settled = counts
    counts[0] = os.getpid()
    worker.share_counts(counts[1:])
    _own = os.getpid(), path
    _speak_for_others(folder)
    if finished > settled:
        log.warning(
            "worker %d, whose place this one takes, lost %d spans: it was killed, or got TERM or INT in the middle of "
            "a request, and then uWSGI lets it send nothing; reload with HUP, touch-reload or `r` in the master FIFO, "
            "which let requests end",
            pid,
            finished - settled,
        )


def end() -> None:
    """Worker: there is nothing that the next one has to say; this one has told what became of its spans."""
    if _own is not None and _own[0] == os.getpid():
        with suppress(OSError):
            _own[1].unlink()


def _folder() -> Path:
    memory = Path("/dev/shm")  # noqa: S108 - in a folder that only this user can read and write
    above = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    folder = above / f"mackerel_otel_server-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _speak_for_others(folder: Path) -> None:
    """Say what workers of servers that are gone had not sent, once, and remove their files."""
    for path in folder.glob("*.*"):
        if Path("/proc", path.stem).exists():
            # The master is there, so that the next worker in that place will say it.
            continue
        with suppress(OSError), path.open("rb") as file:
            # A container may share the folder, and see no processes of others. The kernel ends a lock with its process.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = file.read(_SIZE)
            if not os.fstat(file.fileno()).st_nlink or len(found) < _SIZE:
                continue
            path.unlink()
            pid, finished, settled = memoryview(found).cast("Q")
            if finished > settled:
                log.warning(
                    "worker %d of a server that has ended lost %d spans: it was killed, or got TERM or INT in the "
                    "middle of a request, and then uWSGI lets it send nothing; stop the server with `q` in the master "
                    "FIFO, which lets requests end",
                    pid,
                    finished - settled,
                )


def _open(path: Path) -> memoryview:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with suppress(OSError):
            # A process that a worker has left behind may have it still.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Memory that is only promised would end this process by SIGBUS when there is none.
        os.posix_fallocate(file, 0, _SIZE)
        # It keeps a descriptor of its own, and with it the lock.
        return memoryview(mmap.mmap(file, _SIZE)).cast("Q")
    finally:
        os.close(file)
