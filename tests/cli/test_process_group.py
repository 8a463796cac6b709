from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mackerel_otel_server.cli import process_group as module
from mackerel_otel_server.cli.process_group import Child

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 30.0
# Both it and a child of its own say their pid, in one write each, and then wait.
PROGRAM = "import os, time; os.fork(); os.write(1, b'%d\\n' % os.getpid()); time.sleep(300)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PROGRAM}"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT} s"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie waits for its reaper only.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("program", [PROGRAM, STUBBORN], ids=["one that obeys", "one that ignores TERM"])
def test_nothing_is_left_of_a_commands_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(module, "_TERM_SECONDS", 0.3)
    with Child([sys.executable, "-c", program], env=dict(os.environ), cwd=str(tmp_path)) as child:
        until(lambda: len(child.lines) == 2)
        pids = [int(line) for line in child.lines]
        assert not any(is_gone(pid) for pid in pids)
    until(lambda: all(is_gone(pid) for pid in pids))


def test_a_command_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    with Child([sys.executable, "-c", PROGRAM], env=dict(os.environ), cwd=str(tmp_path)) as child:
        until(lambda: child.lines)
        assert os.getsid(int(child.lines[0])) != os.getsid(0)


def test_a_command_that_writes_without_end_is_not_stopped_by_a_full_pipe(tmp_path: Path) -> None:
    program = "for n in range(100_000): print('line', n)\nprint('end', flush=True)"
    with Child([sys.executable, "-c", program], env=dict(os.environ), cwd=str(tmp_path)) as child:
        until(lambda: child.lines[-1:] == ["end"])
        assert re.fullmatch(r"line \d+", child.lines[0])
        assert len(child.lines) <= 2000


def test_a_command_that_has_ended_can_be_stopped_twice(tmp_path: Path) -> None:
    with Child([sys.executable, "-c", "print('bye')"], env=dict(os.environ), cwd=str(tmp_path)) as child:
        until(lambda: not child.running())
        child.stop()
        child.stop()
    assert child.lines == ["bye"]
