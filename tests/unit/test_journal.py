"""The journal of one process: what was written and is not settled is in its files, whatever happens meanwhile."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mackerel_otel_server.pipeline import journal as module
from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline import spool as spool_module
from mackerel_otel_server.pipeline.encoder import Encoder, QueuedSpan, scope_fields
from mackerel_otel_server.pipeline.fingerprint import Destination
from mackerel_otel_server.pipeline.journal import Journal
from mackerel_otel_server.pipeline.journal_file import Contents
from mackerel_otel_server.pipeline.spool import Spool
from mackerel_otel_server.pipeline.wire import delimited
from mackerel_otel_server.settings import read

SCOPES = [InstrumentationScope(f"scope {number}", "1") for number in range(3)]
PREAMBLE = """
import os, resource, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_journal import *
journal = make(Path(sys.argv[2]))
"""


def make(folder: Path) -> Journal:
    settings = read({"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop"})
    encoder = Encoder(Resource({"service.name": "shop", "process.pid": os.getpid()}))
    return Journal(Spool(str(folder)), encoder, lambda: Destination(settings, "the-key"), os.getpid())


def span(text: str, scope: int = 0) -> tuple[InstrumentationScope, bytes]:
    return SCOPES[scope], b"\x12" + delimited(text.encode())


def text_of(data: bytes) -> str:
    """Undo span()."""
    text = data[2:] if len(data) < 130 else data[3:]
    return text.decode()


def said(caplog: pytest.LogCaptureFixture, *levels: str) -> list[str]:
    """Return our messages of these levels, or of all: threads of earlier tests may write OpenTelemetry's lines."""
    ours = [record for record in caplog.records if record.name == "mackerel_otel_server"]
    return [record.getMessage() for record in ours if not levels or record.levelname in levels]


def write(journal: Journal, *texts: str) -> int:
    record = journal.write(*span(texts[0]), [span(text) for text in texts[1:]])
    assert record is not None
    return record


def settle(journal: Journal, numbers: Sequence[int]) -> None:
    spans: list[QueuedSpan] = [(None, b"", record) for record in numbers]
    journal.settle(spans)


def files(folder: Path) -> list[Contents]:
    return [journal_file.read(path.read_bytes()) for path in sorted(folder.glob("[!.]*"))]


def texts(folder: Path) -> list[str]:
    """Return what is not settled, in all files that can be seen."""
    return sorted(
        text_of(data) for contents in files(folder) for record in contents.spans.values() for _, data in record
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = make(folder)
    yield made
    made.leave_to_parent()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each file end after a few records."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2_000)
    monkeypatch.setattr(module, "_WORTH_REPLACING", 1_000)


@pytest.fixture
def script(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a script that has a journal, in a process of its own."""

    def run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PREAMBLE + body, __file__, folder, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_nothing_is_made_before_the_first_span(journal: Journal, folder: Path) -> None:
    assert not folder.exists()
    journal.close()
    assert not folder.exists()


def test_a_file_holds_what_a_stranger_needs_and_never_the_key(journal: Journal, folder: Path) -> None:
    journal.write(*span("a", 0), [span("b", 2), span("c", 0)])
    (contents,) = files(folder)
    assert contents.about["pid"] == os.getpid()
    assert contents.about["endpoint"].startswith("https://")
    assert b"shop" in contents.resource
    (spans,) = contents.spans.values()
    assert [(contents.scopes[scope], text_of(data)) for scope, data in spans] == [
        (scope_fields(SCOPES[0]), "a"),
        (scope_fields(SCOPES[2]), "b"),
        (scope_fields(SCOPES[0]), "c"),
    ]
    (path,) = folder.iterdir()
    assert b"the-key" not in path.read_bytes()


def test_what_is_settled_is_not_read_back(journal: Journal, folder: Path) -> None:
    numbers = [write(journal, f"{number}") for number in range(6)]
    settle(journal, [numbers[1], numbers[2], numbers[4]])
    assert texts(folder) == ["0", "3", "5"]
    journal.settle([])
    journal.settle([(None, b"", None)])
    settle(journal, [numbers[1]])
    assert texts(folder) == ["0", "3", "5"]


def test_the_file_goes_at_the_end_if_all_is_settled_and_stays_if_not(journal: Journal, folder: Path) -> None:
    first, second = write(journal, "a"), write(journal, "b")
    settle(journal, [first])
    journal.close()
    assert texts(folder) == ["b"]
    settle(journal, [second])
    journal.close()
    assert list(folder.iterdir()) == []
    # What ends after that is written all the same.
    write(journal, "late")
    assert texts(folder) == ["late"]


@pytest.mark.usefixtures("small")
def test_full_files_are_removed_as_soon_as_all_in_them_is_settled(journal: Journal, folder: Path) -> None:
    numbers = [write(journal, f"{number:03}" * 20) for number in range(200)]
    assert len(list(folder.iterdir())) > 5
    assert texts(folder) == sorted(f"{number:03}" * 20 for number in range(200))
    for count, record in enumerate(numbers, 1):
        settle(journal, [record])
        assert texts(folder) == sorted(f"{number:03}" * 20 for number in range(count, 200))
    assert len(list(folder.iterdir())) <= 1
    settle(journal, [write(journal, "x" * 1_000), write(journal, "y" * 1_000)])
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_a_record_that_is_begun_while_its_file_is_removed_is_in_the_next_one(journal: Journal, folder: Path) -> None:
    record = write(journal, "x" * 1_000)
    number = journal._number  # noqa: SLF001 - the moment between two steps of write()

    def settle_first() -> int:
        settle(journal, [record])
        return number()

    journal._number = settle_first  # type: ignore[misc]  # noqa: SLF001
    write(journal, "at the same moment")
    assert texts(folder) == ["at the same moment"]


@pytest.mark.usefixtures("small")
def test_what_is_settled_while_another_record_is_begun_is_noted(journal: Journal, folder: Path) -> None:
    record = write(journal, "x" * 1_000)

    class Numbers(set[int]):
        def __le__(self, other: object) -> bool:
            """Write another record after the first look."""
            is_subset = set(self) <= other  # type: ignore[operator]
            if not done:
                done.append(write(journal, "another"))
            return bool(is_subset)

    done: list[int] = []
    (segment,) = journal._segments  # noqa: SLF001 - the moment between two steps of settle()
    segment.open = Numbers(segment.open)  # type: ignore[misc]
    settle(journal, [record])
    assert done
    assert texts(folder) == ["another"]


def test_a_million_small_spans_take_neither_room_nor_memory(
    script: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    """A quarter of a million in fact: what grows would take megabytes."""
    result = script("""
def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
many = [span(f"{number:>08}") for number in range(16)]
folder = Path(sys.argv[2])
most, began = 0, None
for batch in range(500):
    numbers = [journal.write(*many[0], many[1:]) for _ in range(32)]
    most = max(most, len(os.listdir(folder)), sum(path.stat().st_size for path in folder.iterdir()) / 1e6)
    journal.settle([(None, b"", record) for record in numbers])
    began = megabytes() if batch == 50 else began
print(most, megabytes() - began, len(journal._segments))
""")
    assert result.returncode == 0, result.stderr
    most, grown, segments = map(float, result.stdout.split())
    assert most <= 2
    assert grown < 3
    assert segments <= 1
    assert len(list(folder.iterdir())) <= 1


@pytest.mark.usefixtures("small")
def test_a_span_that_is_larger_than_a_file_is_written_whole(journal: Journal, folder: Path) -> None:
    write(journal, "before")
    huge = (SCOPES[0], b"\x12" + delimited(b"h" * 5_000_000))
    record = journal.write(*huge)
    assert record is not None
    write(journal, "after")
    found = [data for contents in files(folder) for record in contents.spans.values() for _, data in record]
    assert sorted(found, key=len) == sorted([span("before")[1], span("after")[1], huge[1]], key=len)
    settle(journal, [record])
    assert texts(folder) == ["after", "before"]


def test_many_scopes_end_a_file_too(journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may ask for a tracer in each request."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 50_000)
    for number in range(5_000):
        assert journal.write(InstrumentationScope(f"scope of {number}"), span(str(number))[1]) is not None
    assert texts(folder) == sorted(map(str, range(5_000)))
    names = [
        contents.scopes[scope][0].endswith(f"scope of {text_of(data)}".encode())
        for contents in files(folder)
        for record in contents.spans.values()
        for scope, data in record
    ]
    assert all(names)
    assert max(path.stat().st_size for path in folder.iterdir()) < 60_000


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="nothing can be mounted")
def test_a_full_disk_is_said_once_and_what_was_written_before_stays(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("this root cannot mount")
    journal = make(disk / "spool")
    try:
        numbers = []
        for number in range(5_000):
            record = journal.write(*span(f"{number:04}" * 25))
            if record is None:
                break
            numbers.append(record)
        written = [f"{number:04}" * 25 for number in range(len(numbers))]
        assert 1_000 < len(numbers) * 100 < 128_000
        assert journal.write(*span("while it is full")) is None
        assert not journal.works
        assert texts(disk / "spool") == written
        (line,) = said(caplog, "WARNING")
        # The last record may have fitted in part.
        assert "cannot be written (No space left on device)" in line or "(there is no room for a record" in line
        assert f"another folder that user {os.geteuid()} can write" in line
        settle(journal, numbers)
        assert list((disk / "spool").iterdir()) == []
        # It is tried again soon, and that is said. A disk that is full again and again is no new warning each time.
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 11)
        caplog.clear()
        with caplog.at_level("INFO"):
            tries = (journal.write(*span("x" * 100)) for _ in range(5_000))
            numbers = [number for number in itertools.takewhile(bool, tries) if number]
            assert said(caplog) == [f"the journal in {disk / 'spool'} is written again"]
            monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 11)
            settle(journal, numbers)
            assert write(journal, "again")
        assert len(said(caplog)) == 1
    finally:
        journal.leave_to_parent()
        subprocess.run(["umount", disk], check=True)


def test_a_record_that_is_written_in_part_costs_only_itself(
    script: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    result = script("""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
number = 0
while journal.write(*span(f"{number:04}" * 25)) is not None:
    number += 1
print(number, journal.write(*span("more")), journal.works, flush=True)
os.kill(os.getpid(), 9)
""")
    count, *rest = result.stdout.split()
    assert rest == ["None", "False"], result.stderr
    assert result.stderr.count("\n") == 1
    assert "the journal in" in result.stderr
    assert texts(folder) == [f"{number:04}" * 25 for number in range(int(count))]
    (contents,) = files(folder)
    assert contents.is_damaged


@pytest.mark.parametrize("cause", ["file", "link", "too wide", "nowhere", "of another user"])
def test_a_folder_that_cannot_be_used_is_said_once(
    journal: Journal, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    if cause == "file":
        folder.write_text("")
    elif cause == "link":
        folder.symlink_to(tmp_path)
    elif cause == "too wide":
        folder.mkdir()
        folder.chmod(0o755)
    elif cause == "nowhere":
        journal = make(folder / "below")
    elif os.geteuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
    else:
        pytest.skip("only root can give a folder to another user")
    assert journal.works
    for _ in range(3):
        assert journal.write(*span("x")) is None
    assert not journal.works
    (line,) = said(caplog, "WARNING")
    assert "tracing goes on, but if this process is killed, its last spans are lost" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    """Root may write everywhere, so another user is needed."""
    # That user cannot see what is in tmp_path.
    parent = Path("/tmp") / f"{tmp_path.name}-{os.getpid()}"
    parent.mkdir(mode=0o755)
    try:
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                PREAMBLE.replace("journal =", "os.setgid(65534); os.setuid(65534)\njournal =")
                + "print([journal.write(*span('x')) for _ in range(3)])",
                __file__,
                parent / "spool",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout == "[None, None, None]\n", result.stderr
        assert result.stderr.count("cannot be written") == 1
        assert "another folder that user 65534 can write" in result.stderr
    finally:
        parent.rmdir()


def test_a_folder_that_is_removed_is_made_anew_at_the_next_settling(journal: Journal, folder: Path) -> None:
    record = write(journal, "gone")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    settle(journal, [record])
    write(journal, "after")
    assert texts(folder) == ["after"]


def test_a_signal_handler_that_interrupts_a_write_writes_as_well(
    script: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    result = script("""
from mackerel_otel_server.pipeline import journal as module
module.SEGMENT_BYTES = 3_000
handled = 0
def handle(*_):
    global handled
    handled += 1
    assert journal.write(*span(f"handler {handled}", handled % 3)) is not None
signal.signal(signal.SIGALRM, handle)
number = 0
for step in range(500):
    before = handled
    signal.setitimer(signal.ITIMER_REAL, 0.00002 + 0.000001 * step)
    while handled == before:
        number += 1
        assert journal.write(*span(f"main {number}", number % 3)) is not None
print(number, handled, flush=True)
os.kill(os.getpid(), 9)
""")
    assert result.returncode == -signal.SIGKILL, result.stderr
    main, handled = map(int, result.stdout.split())
    expected = [f"main {number}" for number in range(1, main + 1)]
    expected += [f"handler {number}" for number in range(1, handled + 1)]
    assert texts(folder) == sorted(expected)


def test_an_exit_that_a_signal_handler_raises_leaves_no_span_in_queue_and_journal(
    script: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    """Who is interrupted does not learn the number, and would send the span without settling it."""
    result = script("""
class Exit(BaseException):
    pass
def handle(*_):
    raise Exit
signal.signal(signal.SIGALRM, handle)
known, number = [], 0
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        while True:
            number += 1
            record = None
            record = journal.write(*span(f"{number}"))
            known.append(number)
    except Exit:
        pass
print(*known, flush=True)
os.kill(os.getpid(), 9)
""")
    assert result.returncode == -signal.SIGKILL, result.stderr
    known = set(result.stdout.split())
    found = texts(folder)
    assert known <= set(found)
    assert len(found) == len(set(found))
    # Between the return and the next step of the caller, an exit may still come; that is rare.
    assert len(set(found) - known) <= 60


def test_a_descriptor_that_the_application_has_closed_is_left_to_the_application(
    journal: Journal, folder: Path, tmp_path: Path
) -> None:
    """Code that makes a daemon of its process closes all descriptors, and gets their numbers for its own files."""
    record = write(journal, "before")
    (segment,) = journal._segments  # noqa: SLF001 - the number of its descriptor
    number = segment.file
    with (tmp_path / "data").open("w+b") as data:
        os.dup2(data.fileno(), number)
        settle(journal, [record])
        write(journal, "after")
        journal.close()
        assert os.fstat(number).st_ino == os.fstat(data.fileno()).st_ino
        assert data.read() == b""
    os.close(number)
    assert "after" in texts(folder)


@pytest.mark.usefixtures("small")
def test_no_record_is_lost_or_doubled_with_many_threads(
    journal: Journal, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some threads write, others settle; files are full all the time."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir() keeps its own descriptor open
    waiting: list[tuple[str, int]] = []
    kept: list[str] = []
    writing = threading.Event()
    writing.set()
    failed: list[str] = []

    def write_some(thread: int) -> None:
        for number in range(1_500):
            text = f"{thread} {number} " + "x" * (number % 60)
            record = journal.write(*span(text, number % 3))
            if record is None:
                failed.append(text)
            else:
                waiting.append((text, record))

    def settle_some(seed: int) -> None:
        chosen = random.Random(seed)
        while writing.is_set() or waiting:
            batch: list[tuple[str, int]] = []
            with suppress(IndexError):
                while len(batch) < chosen.randrange(1, 40):
                    batch.append(waiting.pop(0))
            some = [one for one in batch if chosen.random() < 0.99]
            kept.extend(text for text, record in batch if (text, record) not in some)
            settle(journal, [record for _, record in some])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writers = [threading.Thread(target=write_some, args=(number,)) for number in range(6)]
        settlers = [threading.Thread(target=settle_some, args=(number,)) for number in range(3)]
        for thread in writers + settlers:
            thread.start()
        for thread in writers:
            thread.join()
        writing.clear()
        for thread in settlers:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == [], caplog.text
    assert texts(folder) == sorted(kept)
    journal.close()
    still = [contents for contents in files(folder) if not contents.spans]
    assert still == []
    after = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - likewise
    assert len(after - before) <= len(list(folder.iterdir())) + 1
    assert said(caplog) == []


def test_a_fork_in_the_middle_of_a_write_leaves_the_files_to_the_parent(
    script: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    result = script("""
import threading, warnings
# Python 3.12 and newer warn of what is tested here.
warnings.simplefilter("ignore", DeprecationWarning)
os.register_at_fork(after_in_child=journal.leave_to_parent)
children = []
def handle(*_):
    if os.fork() == 0:
        children.append(0)
signal.signal(signal.SIGALRM, handle)
stop = threading.Event()
def others():
    number = 0
    while not stop.is_set() and number < 5000:
        number += 1
        journal.write(*span(f"thread {number}"))
thread = threading.Thread(target=others)
thread.start()
number = 0
for forks in range(30):
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    for _ in range(100):
        number += 1
        record = journal.write(*span(f"parent {number}"))
        if children:
            os._exit(0)
signal.setitimer(signal.ITIMER_REAL, 0)
stop.set()
thread.join()
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
(name,) = os.listdir(sys.argv[2])
print(Spool(sys.argv[2]).take(name), flush=True)
os.kill(os.getpid(), 9)
""")
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert result.stderr == ""
    assert result.stdout == "None\n"
    found = texts(folder)
    assert len(found) == len(set(found))
    assert {f"parent {number}" for number in range(1, 3001)} <= set(found)
    assert "child" not in found


def test_a_child_gives_the_files_up_before_its_own_journal_opens_others(
    script: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    result = script("""
os.register_at_fork(after_in_child=journal.leave_to_parent)
journal.write(*span("of the parent"))
pid = os.fork()
if pid == 0:
    own = make(Path(sys.argv[2]))
    own.write(*span("of the child"))
    os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
journal.write(*span("of the parent, later"))
os.kill(os.getpid(), 9)
""")
    assert result.stderr == ""
    assert texts(folder) == ["of the child", "of the parent", "of the parent, later"]
    assert len(list(folder.iterdir())) == 2


def test_where_other_processes_take_all_the_room_one_line_says_so(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_module, "FOLDER_BYTES", module.SEGMENT_BYTES + 1_000)
    other = make(folder)
    other.write(*span("x" * 100), [span("x" * 100)] * 49)
    assert journal.write(*span("no room")) is None
    (line,) = said(caplog, "WARNING")
    assert "its 1 files take 0 MB" in line
    other.leave_to_parent()
    # Now nobody has that file.
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 61)
    caplog.clear()
    assert journal.write(*span("room")) is not None
    assert texts(folder) == ["room"]
    (line,) = said(caplog, "WARNING")
    assert "deleted 50 spans in 1 files that other processes left behind, because the folder" in line


def test_where_no_folder_for_temporary_files_can_be_used_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def no_folder(*_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(spool_module, "MEMORY", tmp_path / "is not there")
    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    monkeypatch.setattr(spool_module, "_open_or_make", no_folder)
    monkeypatch.setattr(spool_module, "_open", no_folder)
    settings = read({"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop"})
    journal = Journal(Spool(""), Encoder(Resource({})), lambda: Destination(settings, "the-key"), 1)
    assert [journal.write(*span("a")), journal.write(*span("b"))] == [None, None]
    (line,) = said(caplog, "WARNING")
    assert "cannot be written (No usable temporary directory found)" in line


def test_a_journal_that_has_failed_does_not_work_until_a_file_was_opened(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.works
    folder.write_text("no folder")
    assert journal.write(*span("a")) is None
    assert not journal.works
    # The time for another try has come, and nobody has tried.
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 61)
    assert not journal.works
    folder.unlink()
    write(journal, "b")
    assert journal.works


def test_a_record_is_not_written_into_a_file_that_two_threads_retire_at_once(journal: Journal, folder: Path) -> None:
    """One of them finds a record that is just being taken back, and opens the file again; the other one removes it."""
    number = write(journal, "settled already")
    (segment,) = journal._segments  # noqa: SLF001 - the moment between two looks at it

    class Numbers(set[int]):
        def __le__(self, other: object) -> bool:
            """Hold each thread up after its look."""
            is_subset = set(self) <= other  # type: ignore[operator]
            if not looks:
                looks.append("first")
                self.clear()
                second.start()
                while len(looks) == 1 and second.is_alive():
                    second.join(0.01)
            elif len(looks) == 1:
                looks.append("second")
                first.join()
                write(journal, "at the same moment")
            return bool(is_subset)

    looks: list[str] = []
    segment.open = Numbers({number})  # type: ignore[misc]
    first, second = threading.Thread(target=journal.close), threading.Thread(target=journal.close)
    first.start()
    first.join()
    second.join()
    if len(looks) == 1:
        # The second thread did not even look.
        write(journal, "at the same moment")
    assert "at the same moment" in texts(folder)
