"""What ``check`` says about the folder of the journals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checking import KEY, WITHOUT_PRIVILEGE, Check, clean
from fault_server import FaultServer, accepted, refused
from servers import environment

from mackerel_otel_server.cli.inspection import journals

LEAVE = """\
import os, signal
import mackerel_otel_server
mackerel_otel_server.instrument()
from opentelemetry import trace
for number in range(3):
    trace.get_tracer("test").start_span("span").end()
mackerel_otel_server.stats()
os.kill(os.getpid(), signal.SIGSTOP if "STOP" in os.environ else signal.SIGKILL)
"""
ENDPOINT = "http://127.0.0.1:1/v1/traces"


@pytest.fixture
def spool() -> Path:
    return Path(os.environ["MACKEREL_OTEL_SPOOL"])


def leave(endpoint: str = ENDPOINT) -> int:
    env = environment(
        MACKEREL_OTEL_ENDPOINT=endpoint,
        MACKEREL_APIKEY=KEY,
        OTEL_SERVICE_NAME="shop",
        OTEL_BSP_SCHEDULE_DELAY="3600000",
    )
    process = subprocess.Popen([sys.executable, "-c", LEAVE], env=env)
    assert process.wait(60) == -signal.SIGKILL
    return process.pid


def test_an_empty_folder_is_well(check: Check, spool: Path) -> None:
    result = check(MACKEREL_OTEL_SPOOL=str(spool))
    result.has("OK", f"the journal is written to {spool} as user ", "nothing lies there")
    assert not spool.exists()


def test_none_is_said(check: Check) -> None:
    result = check(MACKEREL_OTEL_SPOOL="none")
    result.has("OK", "MACKEREL_OTEL_SPOOL=none: the workers write no journal", "the last spans of a worker")


@pytest.mark.parametrize(
    "variables",
    [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "console"}, {"OTEL_BSP_MAX_QUEUE_SIZE": "many"}],
    ids=["disabled", "console", "error"],
)
def test_nothing_is_said_where_nothing_is_sent(check: Check, variables: dict[str, str]) -> None:
    assert "journal" not in str(check(**variables).data["findings"])


def test_what_lies_there_is_counted(check: Check, spool: Path) -> None:
    pid = leave()
    result = check(MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=ENDPOINT)
    about = result.about("the journal is written to")
    assert about["level"] == "OK"
    assert "3 spans in 1 file (0.00 MB) lie there" in about["seen"]
    assert f"processes that have ended have left 3 spans in 1 file (worker {pid})" in about["seen"]
    assert "mackerel-otel-server flush" in about["cure"]
    # A look at it changes nothing.
    assert check(MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=ENDPOINT).data == result.data


def test_what_living_processes_hold_is_told_apart(check: Check, spool: Path) -> None:
    env = environment(
        MACKEREL_OTEL_ENDPOINT=ENDPOINT,
        MACKEREL_APIKEY=KEY,
        OTEL_SERVICE_NAME="shop",
        OTEL_BSP_SCHEDULE_DELAY="3600000",
        STOP="",
    )
    with subprocess.Popen([sys.executable, "-c", LEAVE], env=env) as process:
        try:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            result = check(MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=ENDPOINT)
        finally:
            process.kill()
    seen = result.about("the journal is written to")["seen"]
    assert seen.endswith(f"; processes that run hold 3 spans in 1 file (worker {process.pid})")


def test_what_is_for_another_key_or_endpoint_is_a_warning(check: Check, spool: Path) -> None:
    pid = leave()
    # Another server may still send what is fresh.
    result = check(MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=ENDPOINT, MACKEREL_APIKEY=KEY[::-1])
    result.has("OK", f"; 3 spans in 1 file (worker {pid}) have another destination")
    assert "another key" not in result.text
    (file,) = spool.iterdir()
    past = time.time() - 120
    os.utime(file, (past, past))
    result = check(MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=ENDPOINT, MACKEREL_APIKEY=KEY[::-1])
    result.has("WARN", f"(worker {pid}) were to go to {ENDPOINT} with another key", journals.WITH_CHANGED_KEY)
    result = check(MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=ENDPOINT.replace("1/", "2/"))
    result.has("WARN", f"(worker {pid}) are for another endpoint, {ENDPOINT}", "flush with the variables set")


def _too_wide(spool: Path) -> str:
    spool.mkdir(mode=0o755)
    return f"chmod 700 {spool}"


def _of_another_user(spool: Path) -> str:
    spool.mkdir(mode=0o700)
    os.chown(spool, 1, -1)
    return f"sudo -u daemon --preserve-env {Path(sys.executable).with_name('mackerel-otel-server')} check"


def _link(spool: Path) -> str:
    spool.with_name("real").mkdir(mode=0o700)
    spool.symlink_to(spool.with_name("real"))
    return "is a symbolic link, which is not followed"


def _relative_link(spool: Path) -> str:
    spool.with_name("real").mkdir(mode=0o700)
    spool.symlink_to("real")
    return f"set MACKEREL_OTEL_SPOOL to what it leads to, {spool.with_name('real')}"


def _link_to_itself(spool: Path) -> str:
    spool.symlink_to(spool)
    return "is a symbolic link, which is not followed"


def _file(spool: Path) -> str:
    spool.touch()
    return f"{spool} is no folder"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


@pytest.mark.parametrize(
    "spoil",
    [
        _too_wide,
        pytest.param(_of_another_user, marks=needs_root),
        _link,
        _relative_link,
        _link_to_itself,
        _file,
    ],
)
def test_a_folder_that_cannot_be_used_is_a_warning(check: Check, spool: Path, spoil: Callable[[Path], str]) -> None:
    words = spoil(spool)
    result = check(MACKEREL_OTEL_SPOOL=str(spool))
    result.has("WARN", "the journal cannot be used: ", words)


def test_a_missing_parent_is_a_warning(check: Check, spool: Path) -> None:
    result = check(MACKEREL_OTEL_SPOOL=str(spool / "deeper"))
    result.has("WARN", f"{spool} is no folder, so no worker can make deeper in it", "install -d -m 700", str(spool))


def test_a_parent_that_is_a_link_to_itself_is_a_warning(check: Check, spool: Path) -> None:
    spool.symlink_to(spool)
    result = check(MACKEREL_OTEL_SPOOL=str(spool / "deeper"))
    result.has("WARN", f"{spool} is a symbolic link that leads nowhere", "to a folder that user ")


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "to be made"])
@pytest.mark.skipif(bool(WITHOUT_PRIVILEGE) and shutil.which("setpriv") is None, reason="root may write everything")
def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, spool: Path, is_there: bool) -> None:
    above = tmp_path / "above"
    (above / "spool").mkdir(parents=True, mode=0o700)
    if is_there:
        (above / "spool").chmod(0o500)
    else:
        (above / "spool").rmdir()
        above.chmod(0o500)
    done = subprocess.run(
        [*WITHOUT_PRIVILEGE, sys.executable, "-m", "mackerel_otel_server", "check"],
        env={
            **clean(os.environ),
            "MACKEREL_APIKEY": KEY,
            "OTEL_SERVICE_NAME": "shop",
            "MACKEREL_OTEL_SPOOL": str(above / "spool"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    words = f"{above / 'spool'} cannot be written" if is_there else f"cannot make spool in {above}"
    assert "WARN  the journal cannot be used: " in done.stdout, done.stdout + done.stderr
    assert words in done.stdout


def test_too_little_room_is_a_warning(check: Check, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_free", lambda _path: 12_000_000)
    result = check(MACKEREL_OTEL_SPOOL=str(spool))
    result.has("WARN", f"the journal in {spool} has 12.0 MB, and may need 32 MB", "make room, or set")


@pytest.mark.parametrize("takes", [True, False], ids=["taken", "refused"])
def test_the_span_of_send_is_in_no_journal_and_no_journal_is_sent_with_it(
    check: Check, spool: Path, takes: bool
) -> None:
    with FaultServer(accepted() if takes else refused(503, "down")) as far:
        leave(far.url)
        before = {file.name: file.read_bytes() for file in spool.iterdir()}
        result = check("--send", MACKEREL_OTEL_SPOOL=str(spool), MACKEREL_OTEL_ENDPOINT=far.url)
        assert result.data["sent"]["accepted"] is takes
        assert len(far.requests) == 1
    assert {file.name: file.read_bytes() for file in spool.iterdir()} == before
