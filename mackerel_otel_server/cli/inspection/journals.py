"""The folder of the journals: whether this user can use it, and what lies in it."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import shutil
import stat
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding, ok, warn
from mackerel_otel_server.cli.text import counted, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mackerel_otel_server.pipeline.fingerprint import Destination
    from mackerel_otel_server.pipeline.journal_file import Contents
    from mackerel_otel_server.pipeline.spool import Left, Spool
    from mackerel_otel_server.settings import Settings

# The pipeline is imported in functions: it needs much time, and `check` does without it where settings have errors.

COMMAND: Final = "mackerel-otel-server"
WITH_CHANGED_KEY: Final = f"{COMMAND} flush --changed-key"
_LONGEST_URL: Final = 200
_SOON: Final = 60.0
"""Seconds."""
_MOST_NAMED: Final = 5
"""How many workers a line names."""


class Whose(Enum):
    """Who may send the spans of a file."""

    RUNNING = "a process that runs"
    PRESENT = "whoever has the present settings"
    OTHER_USER = "another user than the one whose folder it is in"
    OTHER_KEY = "who has another key, or other headers, for the present endpoint"
    ELSEWHERE = "who sends to another endpoint"
    UNKNOWN = "nobody here: it is no journal that this release can read"


@dataclass(frozen=True)
class File:
    """One journal: its size in bytes, its age in seconds; worker and endpoint are as its process has written them."""

    name: str
    size: int
    age: float
    user: int
    whose: Whose
    spans: int
    worker: str
    endpoint: str


def names(spool: Spool) -> Iterator[Left]:
    """Yield the name, the size and the age of each journal, the oldest first.

    Raises:
        OSError: This user cannot use the folder.
    """
    from mackerel_otel_server.pipeline.spool import SUFFIX

    yield from (one for one in spool.files() if one.name.endswith(SUFFIX) and one.name[0] != ".")


def described(found: Left, contents: Contents, destination: Destination, *, is_running: bool) -> File:
    """Say whose a file is and what it holds."""
    endpoint = contents.about.get("endpoint")
    if found.user != os.geteuid():
        whose = Whose.OTHER_USER
    elif is_running:
        whose = Whose.RUNNING
    elif contents.is_foreign:
        whose = Whose.UNKNOWN
    elif destination.is_of(contents.about):
        whose = Whose.PRESENT
    else:
        whose = Whose.OTHER_KEY if endpoint == destination.shown else Whose.ELSEWHERE
    pid = contents.about.get("pid")
    worker = str(pid) if isinstance(pid, int) else "?"
    return File(*found, whose, len(contents), worker, one_line(endpoint or "?", _LONGEST_URL))


def look(spool: Spool, destination: Destination) -> list[File]:
    """Return what lies in the folder: no file of a process that has ended whose spans are all sent.

    Raises:
        OSError: This user cannot use the folder.
    """
    from mackerel_otel_server.pipeline.adoption import contents_of

    found = []
    for entry in names(spool):
        taken = spool.take(entry.name)
        if taken is None:
            one = look_at(spool, entry, destination)
        else:
            try:
                one = described(entry, contents_of(taken), destination, is_running=False)
            finally:
                spool.release(taken)
        if one is not None and (one.spans or one.whose in {Whose.RUNNING, Whose.UNKNOWN, Whose.OTHER_USER}):
            found.append(one)
    return found


def look_at(spool: Spool, found: Left, destination: Destination) -> File | None:
    """Describe a file that this process cannot own; return None if it is gone."""
    from mackerel_otel_server.pipeline.adoption import contents_of
    from mackerel_otel_server.pipeline.journal_file import Contents

    file = spool.look_at(found.name)
    if file is not None:
        try:
            return described(found, contents_of(file), destination, is_running=True)
        finally:
            spool.release(file)
    return None if found.user == os.geteuid() else described(found, Contents(b""), destination, is_running=False)


def in_words(files: Sequence[File]) -> str:
    """Return ``312 spans in 2 files (worker 4711, 4712)``."""
    workers = list(dict.fromkeys(one.worker for one in files))
    more = f" and {len(workers) - _MOST_NAMED} more" if len(workers) > _MOST_NAMED else ""
    spans = counted(sum(one.spans for one in files), "span")
    return f"{spans} in {counted(len(files), 'file')} (worker {', '.join(workers[:_MOST_NAMED])}{more})"


def left_for_others(files: Iterable[File]) -> Iterator[Finding]:
    """Say which files cannot be sent with the present settings, and what to type."""
    by_kind: dict[tuple[Whose, str], list[File]] = defaultdict(list)
    for one in files:
        if one.whose in {Whose.OTHER_KEY, Whose.ELSEWHERE, Whose.UNKNOWN}:
            by_kind[one.whose, one.endpoint].append(one)
        elif one.whose is Whose.OTHER_USER:
            by_kind[one.whose, user(one.user)].append(one)
    stay = "they stay for a day at most, then a worker deletes them"
    for (whose, of), some in by_kind.items():
        if whose is Whose.OTHER_KEY:
            yield warn(
                f"{in_words(some)} were to go to {of} with another key or other headers than the present ones",
                stay,
                f"if the key or a header was changed since, send them with the present ones: {WITH_CHANGED_KEY}",
            )
        elif whose is Whose.ELSEWHERE:
            yield warn(
                f"{in_words(some)} are for another endpoint, {of}",
                stay,
                "type mackerel-otel-server flush with the variables set that name that endpoint and its key",
            )
        elif whose is Whose.OTHER_USER:
            yield warn(
                f"{counted(len(some), 'file')} of user {of} in the folder of user {user(os.geteuid())} "
                f"({_named(some)})",
                "no process sends or deletes them",
                f"give them to user {user(os.geteuid())} with chown as root, or remove them",
            )
        else:
            yield warn(
                f"{counted(len(some), 'file')} cannot be read ({_named(some)})",
                stay,
                "if another release of this package runs here, too, type flush with that one",
            )


def _named(files: Sequence[File]) -> str:
    return ", ".join(one.name for one in files[:_MOST_NAMED]) + ", …" * (len(files) > _MOST_NAMED)


def findings(settings: Settings) -> Iterator[Finding]:
    """Say where the journal is, whether this user can write it, and what lies there."""
    if settings.spool is None:
        follows = "the last spans of a worker that is killed are lost"
        yield ok("MACKEREL_OTEL_SPOOL=none: the workers write no journal", follows)
        return
    if settings.parts == "standard":
        yield ok("MACKEREL_OTEL_PARTS=standard: OpenTelemetry's own parts write no journal")
        return
    from mackerel_otel_server.pipeline.fingerprint import Destination
    from mackerel_otel_server.pipeline.spool import FOLDER_BYTES, MEMORY, Spool

    spool = Spool(settings.spool)
    files: list[File] = []
    obstacle = unusable(spool, "mackerel-otel-server check")
    if obstacle is None:
        files = look(spool, Destination(settings, settings.api_key))
        yield _contents(spool, files)
        # A server of the same user that sends elsewhere sends its own within seconds.
        yield from left_for_others([one for one in files if one.age > _SOON])
    else:
        yield obstacle
    yield from of_others(spool, settings.spool, "mackerel-otel-server check")
    free = _free(spool.path) + sum(one.size for one in files)
    if obstacle is None and free < FOLDER_BYTES:
        in_docker = " (docker run --shm-size=128m)" if spool.path.is_relative_to(MEMORY) else ""
        yield warn(
            f"the journal in {spool.path} has {free / 1e6:.1f} MB, and may need {FOLDER_BYTES / 1e6:.0f} MB",
            "spans of a worker that is killed may be lost while the endpoint is down",
            f"make room{in_docker}, or set MACKEREL_OTEL_SPOOL to a folder that has more",
        )


def _contents(spool: Spool, files: Sequence[File]) -> Finding:
    where = f"the journal is written to {spool.path} as user {user(os.geteuid())}"
    if not files:
        return ok(f"{where}: nothing lies there")
    megabytes = sum(one.size for one in files) / 1e6
    spans = sum(one.spans for one in files)
    seen = f"{where}: {counted(spans, 'span')} in {counted(len(files), 'file')} ({megabytes:.2f} MB) lie there"
    waiting = [one for one in files if one.whose is Whose.PRESENT]
    running = [one for one in files if one.whose is Whose.RUNNING]
    if running:
        seen += f"; processes that run hold {in_words(running)}"
    if others := [one for one in files if one.whose in {Whose.OTHER_KEY, Whose.ELSEWHERE}]:
        seen += f"; {in_words(others)} have another destination"
    if waiting:
        seen += f"; processes that have ended have left {in_words(waiting)}"
        follows = "a worker that runs sends what ended processes have left, and deletes what is older than a day"
        return ok(seen, follows, "to send it at once, type mackerel-otel-server flush")
    return ok(seen)


def unusable(spool: Spool, command: str) -> Finding | None:
    """Return why this user cannot use the folder, or None. A folder that is not there yet can be made by a worker.

    Args:
        spool: The folder.
        command: What the user who can use it is to type.
    """
    path = spool.path
    try:
        with spool.open(create=False):
            pass
    except OSError as error:
        seen, cure = _reason(path, error, command)
    else:
        seen, cure = f"{path} cannot be written by user {user(os.geteuid())}", _elsewhere()
        if os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            return None
    if not seen:
        return None
    return warn(f"the journal cannot be used: {seen}", "the last spans of a worker that is killed are lost", cure)


def is_missing(spool: Spool) -> bool:
    """Tell whether the folder is not there, as far as this user can see."""
    try:
        spool.path.lstat()
    except PermissionError:
        return False
    except OSError:
        return True
    return False


def of_others(spool: Spool, setting: str, command: str) -> Iterator[Finding]:
    """Say which other users have a folder, where the folder is the default one: it has the user's number in its name.

    Args:
        spool: The folder.
        setting: What MACKEREL_OTEL_SPOOL says.
        command: What those users are to type.
    """
    if setting:
        return
    prefix = spool.path.name.rpartition("-")[0] + "-"
    with suppress(OSError):
        for path in sorted(spool.path.parent.glob(f"{prefix}*")):
            state = path.lstat()
            # A folder with this user's number that is somebody else's is said to be unusable.
            if stat.S_ISDIR(state.st_mode) and state.st_uid != os.geteuid() and path != spool.path:
                yield ok(
                    f"user {user(state.st_uid)} has a journal, too, in {path}",
                    "no other user can look into it",
                    as_user(user(state.st_uid), command),
                )


def user(number: int) -> str:
    """Return a user's name, as sudo takes it: #1234 where the user has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"


def as_user(name: str, command: str) -> str:
    """Return what to type to run one of our commands as another user, with the variables of this one.

    The command gets its path, because sudo has a PATH of its own, which leads into no virtual environment.
    """
    script = Path(sys.executable).with_name(COMMAND)
    path = (
        f"{shlex.quote(sys.executable)} -m mackerel_otel_server" if _state(script) is None else shlex.quote(str(script))
    )
    return f"sudo -u {shlex.quote(name)} --preserve-env {command.replace(COMMAND, path, 1)}"


def _reason(path: Path, error: OSError, command: str) -> tuple[str, str]:
    """Return what is wrong with the folder and what to type; empty texts where it is only not there yet."""
    from mackerel_otel_server.pipeline.spool import cure_of_mode, default_name

    me = os.geteuid()
    state = _state(path)
    if state is None:
        return _reason_above(path, error, command)
    if not stat.S_ISDIR(state.st_mode):
        if stat.S_ISLNK(state.st_mode):
            cure = f"set MACKEREL_OTEL_SPOOL to what it leads to, {os.path.realpath(path)}"
            return f"{path} is a symbolic link, which is not followed", cure
        return f"{path} is no folder", _elsewhere()
    if state.st_uid != me:
        seen = f"{path} belongs to user {user(state.st_uid)}, and this command runs as user {user(me)}"
        # With this user's number in its name, the folder was made by somebody who wants to have what is written there.
        return seen, _elsewhere() if path.name == default_name(me) else as_user(user(state.st_uid), command)
    if stat.S_IMODE(state.st_mode) & 0o077:
        seen = f"others may use {path} (mode {stat.S_IMODE(state.st_mode):o})"
        return seen, cure_of_mode(path).removeprefix("type ")
    return f"{path} cannot be opened ({error.strerror or error})", _elsewhere()


def _reason_above(path: Path, error: OSError, command: str) -> tuple[str, str]:
    """Return what is wrong with the folder in which the folder of the journals is not there, or cannot be seen."""
    me = os.geteuid()
    above = next(folder for folder in path.parents if _state(folder) is not None)
    try:
        state = above.stat()
    except (OSError, RuntimeError):
        return f"{above} is a symbolic link that leads nowhere", _elsewhere()
    if error.errno == errno.EACCES:
        seen = f"{above} of user {user(state.st_uid)} is closed to user {user(me)}"
        return seen, as_user(user(state.st_uid), command)
    if not stat.S_ISDIR(state.st_mode):
        return f"{above} is no folder, so nothing can be below it", _elsewhere()
    if above != path.parent:
        cure = f"sudo install -d -m 700 -o {shlex.quote(user(me))} {shlex.quote(str(path))}"
        return f"{path.parent} is no folder, so no worker can make {path.name} in it", cure
    if not os.access(above, os.W_OK | os.X_OK, effective_ids=True):
        return f"user {user(me)} cannot make {path.name} in {above}", _elsewhere()
    return "", ""


def _elsewhere() -> str:
    return f"set MACKEREL_OTEL_SPOOL to a folder that user {user(os.geteuid())} can write, or to none"


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _free(path: Path) -> int:
    """Return the free bytes where the folder is, or is going to be."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0
