"""The folder of the journals: this user's alone, bounded, and each file with one owner. With real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mackerel_otel_server.pipeline import spool as module
from mackerel_otel_server.pipeline.adoption import Adopter
from mackerel_otel_server.pipeline.fingerprint import Destination
from mackerel_otel_server.pipeline.spool import DAY, Spool
from mackerel_otel_server.settings import read

NOBODY = 65534
HOLDER = """
import sys
from mackerel_otel_server.pipeline.spool import Spool
spool = Spool(sys.argv[1])
print(spool.create(b"beginning")[1], flush=True)
sys.stdin.read()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Spool:
    return Spool(str(folder))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that runs a script in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        with process:
            pass


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leave(spool: Spool, data: bytes = b"left", age: float = 0.0) -> str:
    """Make a file that nobody has, as a killed process leaves it."""
    file, name = spool.create(data)
    spool.release(file)
    when = time.time() - age
    os.utime(spool.path / name, (when, when))
    return name


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir() would keep the descriptor that it reads from


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o177, 0o777])
def test_only_this_user_can_use_the_folder_and_the_files_whatever_the_umask(
    spool: Spool, folder: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        file, name = spool.create(b"beginning")
    finally:
        os.umask(before)
    assert (mode(folder), mode(folder / name)) == (0o700, 0o600)
    assert (folder / name).read_bytes() == b"beginning"
    spool.remove(name, file)
    assert list(folder.iterdir()) == []


def test_by_default_it_is_the_users_own_folder_in_memory_or_among_the_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"mackerel-otel-{os.geteuid()}"
    monkeypatch.setattr(module, "MEMORY", tmp_path)
    assert Spool("").path == tmp_path / name
    monkeypatch.setattr(module, "MEMORY", tmp_path / "is not there")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/the/temporary/folder")
    assert Spool("").path == Path("/the/temporary/folder") / name


def test_a_symbolic_link_is_no_folder(spool: Spool, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError, match=f"symbolic link; name what it leads to, {elsewhere}"):
        spool.create(b"")
    assert spool.files() == []
    assert list(elsewhere.iterdir()) == []


def test_a_link_that_leads_nowhere_is_no_folder(spool: Spool, folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="symbolic link"):
        spool.create(b"")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("below", [".", "spool"], ids=["the folder", "what is above it"])
def test_a_link_that_leads_to_itself_is_no_folder(folder: Path, below: str) -> None:
    folder.symlink_to(folder)
    spool = Spool(str(folder / below))
    with pytest.raises(OSError, match="symbolic link"):
        spool.create(b"")
    settings = read({"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop"})
    assert Adopter(spool, lambda: Destination(settings, "the-key")).next() is None
    assert spool.take(f"{'0' * 16}.journal") is None
    spool.remove(f"{'0' * 16}.journal", -1)


def test_of_a_relative_link_it_is_said_where_it_leads_to(spool: Spool, folder: Path) -> None:
    folder.symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError, match=f"name what it leads to, {folder.with_name('elsewhere')}"):
        spool.create(b"")


def test_a_file_is_no_folder(spool: Spool, folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(NotADirectoryError):
        spool.create(b"")


def test_a_symbolic_link_is_no_file(spool: Spool, folder: Path, tmp_path: Path) -> None:
    spool.remove(leave(spool), -1)
    valuable = tmp_path / "valuable"
    valuable.write_text("x")
    (folder / f"{'0' * 16}.journal").symlink_to(valuable)
    assert spool.files() == []
    assert spool.take(f"{'0' * 16}.journal") is None


@as_root
def test_another_users_folder_is_not_used(spool: Spool, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    for use in (lambda: spool.create(b""), spool.files, lambda: spool.make_room(1, print)):
        with pytest.raises(PermissionError, match=rf"belongs to user {NOBODY}, and this process to user 0"):
            use()
    assert list(folder.iterdir()) == []


@as_root
def test_another_users_file_is_not_taken(spool: Spool, folder: Path) -> None:
    name = leave(spool)
    os.chown(folder / name, NOBODY, NOBODY)
    assert spool.take(name) is None
    assert (folder / name).exists()


@pytest.mark.parametrize("too_wide", [0o755, 0o770, 0o701, 0o702])
def test_a_folder_that_others_may_use_is_refused_with_the_cure(spool: Spool, folder: Path, too_wide: int) -> None:
    folder.mkdir()
    folder.chmod(too_wide)
    with pytest.raises(PermissionError, match=rf"mode {too_wide:o}\); type chmod 700 {folder}"):
        spool.create(b"")
    folder.chmod(0o700)
    spool.remove(*reversed(spool.create(b"")))  # type: ignore[arg-type]


def test_the_folder_is_made_anew_when_it_has_disappeared(spool: Spool, folder: Path) -> None:
    file, name = spool.create(b"")
    (folder / name).unlink()
    folder.rmdir()
    assert spool.files() == []
    assert spool.take(name) is None
    spool.remove(name, file)
    other, name = spool.create(b"")
    assert [left.name for left in spool.files()] == [name]
    spool.release(other)


def test_a_folder_below_one_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "not" / "there"))
    with pytest.raises(FileNotFoundError):
        spool.create(b"")


def test_a_file_that_is_replaced_between_open_and_lock_is_not_taken(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = leave(spool, b"the old one")
    lock = fcntl.flock

    def replace_and_lock(file: int, operation: int) -> None:
        (folder / name).unlink()
        (folder / name).write_text("another")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    before = descriptors()
    assert spool.take(name) is None
    assert descriptors() == before


def test_a_file_that_somebody_tidies_away_while_it_is_made_is_made_anew(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    seen: list[str] = []

    def tidy_up(file: int, operation: int) -> None:
        if not seen:
            (hidden,) = folder.iterdir()
            seen.append(hidden.name)
            hidden.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", tidy_up)
    file, name = spool.create(b"x")
    assert seen[0].startswith(".")
    assert [path.name for path in folder.iterdir()] == [name]
    spool.release(file)


def test_a_file_that_somebody_looks_at_while_it_is_made_leaves_nothing(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that shows what lies in the folder takes the lock for a moment, and removes nothing."""
    lock = fcntl.flock
    seen: list[str] = []

    def look(file: int, operation: int) -> None:
        if not seen:
            (hidden,) = folder.iterdir()
            seen.append(hidden.name)
            with hidden.open("rb") as looked_at:
                lock(looked_at, operation)
                lock(file, operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", look)
    file, name = spool.create(b"x")
    assert seen[0].startswith(".")
    assert [path.name for path in folder.iterdir()] == [name]
    spool.release(file)


def test_a_file_cannot_be_seen_before_it_is_locked_and_begun(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def look_and_rename(hidden: str, name: str, **folders: Any) -> None:
        assert (folder / hidden).read_bytes() == b"beginning"
        assert spool.take(hidden) is None
        rename(hidden, name, **folders)

    monkeypatch.setattr(os, "rename", look_and_rename)
    spool.release(spool.create(b"beginning")[0])


def test_exactly_one_of_several_processes_gets_a_file(
    spool: Spool, start: Callable[..., subprocess.Popen[str]]
) -> None:
    script = """
import sys
from mackerel_otel_server.pipeline.spool import Spool
spool = Spool(sys.argv[1])
for name in sys.stdin:
    print("taken" if spool.take(name.strip()) is not None else "not", flush=True)
"""
    processes = [start(script, spool.path) for _ in range(4)]
    for _ in range(50):
        name = leave(spool)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
        assert sorted(line(process) for process in processes) == ["not", "not", "not", "taken"]


def test_the_lock_ends_when_its_process_is_killed(spool: Spool, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(HOLDER, spool.path)
    name = line(process)
    assert spool.take(name) is None
    process.kill()
    process.wait()
    file = spool.take(name)
    assert file is not None
    spool.release(file)


def test_a_process_that_was_forked_does_not_keep_the_lock(
    spool: Spool, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Neither of its own files nor of one that its parent was sending for somebody else."""
    script = """
import os, sys
from mackerel_otel_server.pipeline.spool import Spool
spool = Spool(sys.argv[1])
os.register_at_fork(after_in_child=spool.leave_to_parent)
assert spool.take(sys.argv[2]) is not None
own = spool.create(b"")[1]
runs, tell = os.pipe()
if os.fork() == 0:
    os.write(tell, b"x")
    sys.stdin.read()  # until the test ends
    os._exit(0)
os.read(runs, 1)
print(own, flush=True)
os.kill(os.getpid(), 9)
"""
    left = leave(spool)
    process = start(script, spool.path, left)
    own = line(process)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    for name in (left, own):
        file = spool.take(name)
        assert file is not None
        spool.release(file)


def adopter(spool: Spool) -> Adopter:
    settings = read({"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop"})
    return Adopter(spool, lambda: Destination(settings, "the-key"))


def test_what_a_process_leaves_that_is_killed_while_it_makes_a_file_is_tidied_up(
    spool: Spool, folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    script = """
import os, sys
from mackerel_otel_server.pipeline.spool import Spool
os.rename = lambda *_, **__: os.kill(os.getpid(), 9)
Spool(sys.argv[1]).create(b"half of the begin")
"""
    start(script, spool.path).wait()
    (hidden,) = folder.iterdir()
    assert adopter(spool).next() is None
    assert hidden.exists()  # because it may be about to be renamed
    os.utime(hidden, (time.time() - 120,) * 2)
    assert adopter(spool).next() is None
    assert not hidden.exists()


@pytest.mark.parametrize("name", [".bashrc", "notes", "x.journal", f"{'g' * 16}.journal", f"{'0' * 16}.journal~"])
def test_files_of_other_names_are_neither_counted_nor_deleted_however_old_and_large(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder.mkdir(mode=0o700)
    (folder / name).write_bytes(b"x" * 10_000)
    os.utime(folder / name, (0, 0))
    monkeypatch.setattr(module, "FOLDER_BYTES", 5_000)
    assert spool.files() == []
    spool.make_room(1_000, lambda _: pytest.fail("deleted"))
    assert adopter(spool).next() is None
    assert (folder / name).exists()


def test_the_oldest_files_that_nobody_has_make_room(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDER_BYTES", 100_000)
    names = [leave(spool, b"%d " % age * 9_000, age) for age in (1, 4, 2, 3)]
    own, kept = spool.create(b"own " * 2_000)
    os.utime(own, (0, 0))
    deleted: list[bytes] = []
    spool.make_room(45_000, lambda file: deleted.append(os.pread(file, 2, 0)))
    assert deleted == [b"4 ", b"3 "]
    assert {left.name for left in spool.files()} == {names[0], names[2], kept}
    spool.release(own)


def test_a_thousand_files_are_enough(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES", 10)
    for age in range(10):
        leave(spool, b"", age)
    spool.make_room(1, lambda _: None)
    assert len(spool.files()) == 9


def test_where_living_processes_take_all_the_room_there_is_an_error(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLDER_BYTES", 100_000)
    own, _ = spool.create(b"x" * 90_000)
    leave(spool)
    with pytest.raises(OSError, match="its 1 files take 0 MB"):
        spool.make_room(20_000, lambda _: None)
    assert len(spool.files()) == 1
    spool.release(own)


def test_what_is_no_file_is_left_alone(spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    names = [f"{digit * 16}.journal" for digit in "abc"]
    os.mkfifo(folder / names[0])
    (folder / names[1]).mkdir()
    (folder / names[2]).symlink_to("/dev/zero")
    monkeypatch.setattr(module, "FILES", 1)
    before = descriptors()
    assert spool.files() == []
    assert [spool.take(name) for name in names] == [None] * 3
    spool.make_room(1, lambda _: pytest.fail("deleted"))
    assert adopter(spool).next() is None
    assert len(list(folder.iterdir())) == 3
    assert descriptors() == before


def test_a_huge_file_and_one_that_grows_do_not_hold_anybody_up(spool: Spool, folder: Path) -> None:
    huge, growing = leave(spool, b"", 5), leave(spool, b"", 4)
    os.truncate(folder / huge, 1 << 40)
    with (folder / growing).open("ab", buffering=0) as stranger:
        stranger.write(b"x" * 100_000)
        began = time.monotonic()
        assert adopter(spool).next() is None
        stranger.write(b"x" * 100_000)
        assert adopter(spool).next() is None
        assert time.monotonic() - began < 5
    # Nobody knows what they hold, so they stay for a day.
    assert {left.name for left in spool.files()} == {huge, growing}


@pytest.mark.parametrize("age", [DAY + 60, 50 * 365 * DAY, -DAY - 60, -50 * 365 * DAY])
def test_a_file_that_cannot_be_read_stays_for_a_day_whatever_the_clock_says(
    spool: Spool, age: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        leave(spool, b"no journal", age)
        young, future = leave(spool, b"no journal", DAY - 60), leave(spool, b"no journal", 60 - DAY)
        assert adopter(spool).next() is None
    assert {left.name for left in spool.files()} == {young, future}


def test_a_file_that_cannot_be_removed_is_emptied_so_that_nothing_is_sent_twice(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, name = spool.create(b"delivered already")
    folder.chmod(0o755)  # so that it is not used any more
    spool.remove(name, file)
    assert (folder / name).read_bytes() == b""
    folder.chmod(0o700)
    assert adopter(spool).next() is None
    assert list(folder.iterdir()) == []


def test_two_users_of_one_process_exclude_each_other_too(spool: Spool) -> None:
    file, name = spool.create(b"")
    assert Spool(str(spool.path)).take(name) is None
    with suppress(OSError):
        os.close(os.open(spool.path / name, os.O_RDONLY))
    assert Spool(str(spool.path)).take(name) is None
    spool.release(file)
