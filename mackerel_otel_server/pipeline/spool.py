"""The folder of the journals: only this user's, bounded, and opened anew each time, because it may be replaced.

A file belongs to the process that holds the flock() on it, and the kernel ends that lock with the process. A file is
made under a hidden name, locked, and renamed then: whoever sees its name and gets its lock knows that its process has
ended. https://man7.org/linux/man-pages/man2/flock.2.html
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shlex
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER_BYTES: Final = 32_000_000
"""What all files may take. Docker gives /dev/shm 64 MB, which the application may need as well."""
FILES: Final = 1_000
DAY: Final = 86_400.0
"""Seconds. A file that is older is deleted: nobody looks at spans that come so late."""
SUFFIX: Final = ".journal"
_OURS: Final = re.compile(r"\.[0-9a-f]{16}|[0-9a-f]{16}\.journal")
"""The names of files that are being made, and of journals. What has another name is not touched: the operator may have
named a folder that holds other things."""
_BLOCK: Final = 512
"""Bytes of a block in the answer of stat()."""
MEMORY: Final = "/dev/shm"  # noqa: S108 - in a folder that only this user can read and write
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_VAIN: Final = 10
"""How often a file is made anew, if another process takes it for one that nobody has."""


class Left(NamedTuple):
    """A file in the folder."""

    name: str
    size: int
    """Bytes that it takes."""
    age: float
    """Seconds since it was written last."""
    user: int
    """Whom it belongs to. No other user can take it."""


class Spool:
    """The folder.

    Args:
        setting: The folder's path; empty for the default.
    """

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self._path: tuple[int, str] | None = None
        """The user for whom the path was found, and the path."""
        self._held: set[int] = set()
        """The descriptors of the files that this process owns. A forked process must close them."""

    @property
    def path(self) -> Path:
        """Where the folder is for the user that this process has now: Gunicorn changes the user after the fork."""
        return Path(self._path_of(os.geteuid()))

    def _path_of(self, user: int) -> str:
        if self._path is None or self._path[0] != user:
            self._path = user, self._setting or f"{_above()}/{default_name(user)}"
        return self._path[1]

    @contextmanager
    def open(self, *, create: bool = True) -> Iterator[int]:
        """Open the folder, and yield its descriptor.

        Raises:
            OSError: There is no such folder, or it is not this user's alone.
        """
        user = os.geteuid()
        path = self._path_of(user)
        folder = _open_or_make(path) if create else _open(path)
        try:
            state = os.fstat(folder)
            if state.st_uid != user:
                raise PermissionError(
                    errno.EPERM, f"it belongs to user {state.st_uid}, and this process to user {user}", path
                )
            if state.st_mode & 0o077:
                seen = f"others may use it (mode {stat.S_IMODE(state.st_mode):o}); {cure_of_mode(Path(path))}"
                raise PermissionError(errno.EPERM, seen, path)
            yield folder
        finally:
            os.close(folder)

    def create(self, beginning: bytes) -> tuple[int, str]:
        """Make a file that this process holds; return its descriptor and its name.

        Args:
            beginning: What is in the file from the moment on when others can see it.

        Raises:
            OSError: That is not possible.
        """
        with self.open() as folder:
            for _ in range(_IN_VAIN):
                name = secrets.token_hex(8)
                hidden = f".{name}"
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                file = os.open(hidden, flags, 0o600, dir_fd=folder)
                self._held.add(file)
                try:
                    os.fchmod(file, 0o600)  # the umask may have forbidden it to this user, too
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.write(file, beginning) != len(beginning):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - as if nothing was written
                    os.rename(hidden, name + SUFFIX, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException as error:
                    with suppress(OSError):
                        os.unlink(hidden, dir_fd=folder)
                    self.release(file)
                    # Of these two, one says that a process which tidies up was quicker with the lock.
                    if not isinstance(error, (BlockingIOError, FileNotFoundError)):
                        raise
                    continue
                return file, name + SUFFIX
        raise FileNotFoundError(errno.ENOENT, "others remove its files", str(self.path))

    def take(self, name: str) -> int | None:
        """Become the owner of a file; return its descriptor, or None if a living process has it or it is gone."""
        try:
            with self.open(create=False) as folder:
                # Without O_NONBLOCK, a FIFO that has come in the place of the file might hold this process up.
                flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = os.open(name, flags, dir_fd=folder)
                self._held.add(file)
                try:
                    state = os.fstat(file)
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    there = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if (
                        stat.S_ISREG(state.st_mode)
                        and state.st_uid == os.geteuid()
                        and (there.st_dev, there.st_ino) == (state.st_dev, state.st_ino)
                    ):
                        return file
                except BaseException:
                    self.release(file)
                    raise
                self.release(file)
        except OSError:
            pass
        return None

    def forget(self, file: int) -> None:
        """Leave a descriptor alone that the application has closed."""
        self._held.discard(file)

    def release(self, file: int) -> None:
        """Close a file, so that another process can own it."""
        self._held.discard(file)
        with suppress(OSError):
            os.close(file)

    def remove(self, name: str, file: int) -> None:
        """Remove a file that this process owns, and close it."""
        try:
            with self.open(create=False) as folder:
                os.unlink(name, dir_fd=folder)
        except OSError:
            # If the file stays, nobody must send again what is in it. It is removed as soon as that is allowed.
            with suppress(OSError):
                os.ftruncate(file, 0)
        self.release(file)

    def leave_to_parent(self) -> None:
        """Close all files in a process that was forked: the locks are its parent's, and must end with that."""
        held, self._held = self._held, set()
        for file in held:
            with suppress(OSError):
                os.close(file)

    def look_at(self, name: str) -> int | None:
        """Open a file for reading, whoever owns it; return its descriptor, or None if it is gone."""
        try:
            with self.open(create=False) as folder:
                # O_NONBLOCK is for a named pipe that somebody has put in the place of the file.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = os.open(name, flags, dir_fd=folder)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        return None

    def files(self) -> list[Left]:
        """Return the journals in the folder, the oldest first; none if there is no folder.

        Raises:
            PermissionError: The folder is not this user's alone.
        """
        found = []
        now = time.time()
        try:
            with self.open(create=False) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    if not _OURS.fullmatch(entry.name):
                        continue
                    with suppress(OSError):
                        state = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(state.st_mode):
                            size = max(state.st_size, state.st_blocks * _BLOCK)
                            found.append(Left(entry.name, size, now - state.st_mtime, state.st_uid))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda left: -left.age)

    def make_room(self, size: int, deleted: Callable[[int], None]) -> None:
        """Delete the oldest files that nobody has until a file of so many bytes fits into the folder.

        Args:
            size: Bytes.
            deleted: Is called with the descriptor of each file that is deleted, before that.

        Raises:
            OSError: The files of living processes take all the room.
        """
        files = self.files()
        total = sum(left.size for left in files)
        count = len(files)
        for left in files:
            if total + size <= FOLDER_BYTES and count < FILES:
                return
            file = self.take(left.name)
            if file is not None:
                try:
                    deleted(file)
                finally:
                    self.remove(left.name, file)
                total -= left.size
                count -= 1
        if total + size > FOLDER_BYTES or count >= FILES:
            raise OSError(errno.ENOSPC, f"its {count} files take {total / 1e6:.0f} MB", str(self.path))


def default_name(user: object) -> str:
    """Return the name of the folder that a user has by default."""
    return f"mackerel-otel-{user}"


def cure_of_mode(path: Path) -> str:
    """Return what to type where others may use a folder. A folder with other files in it must stay as it is."""
    with suppress(OSError):
        if all(_OURS.fullmatch(file.name) for file in path.iterdir()):
            return f"type chmod 700 {shlex.quote(str(path))}"
    return f"set MACKEREL_OTEL_SPOOL to a folder that only this user needs, such as {path / 'journal'}"


def _above() -> str:
    if os.access(MEMORY, os.W_OK):
        return MEMORY
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        # Nothing can be written anywhere; the error at the first file says so.
        return "/tmp"  # noqa: S108 - in a folder that only this user can read and write


def _open(path: str) -> int:
    """Open the folder.

    Raises:
        OSError: That is not possible.
    """
    try:
        return os.open(path, _FOLDER)
    except NotADirectoryError as error:
        if Path(path).is_symlink():
            seen = f"it is a symbolic link; name what it leads to, {os.path.realpath(path)}"
            raise NotADirectoryError(errno.ENOTDIR, seen, path) from error
        raise


def _open_or_make(path: str) -> int:
    """Open the folder; make it where there is none."""
    try:
        return _open(path)
    except FileNotFoundError:
        with suppress(FileExistsError):
            Path(path).mkdir(mode=0o700)
        folder = _open(path)
        if os.fstat(folder).st_uid == os.geteuid():
            os.fchmod(folder, 0o700)  # the umask may have forbidden it to this user, too
        return folder
