"""``flush`` delivers what killed workers have left in their journals, and says what it does not deliver."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_server import FaultServer, Step, accepted, never, refused
from servers import environment, gunicorn, server_spans

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.spool import DAY

KEY = "test-key"
COMMAND = Path(sys.executable).with_name("mackerel-otel-server")
LATE = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
"""A process with it sends nothing by itself in the time of a test."""
REQUESTS = 5

# One span each is a record of its own. The process waits then, or kills itself.
PROCESS = """\
import os, signal, sys
import mackerel_otel_server
mackerel_otel_server.instrument()
from opentelemetry import trace
tracer = trace.get_tracer("test")
for number in range(int(sys.argv[1])):
    with tracer.start_as_current_span(f"span {number}"):
        pass
print(os.getpid(), flush=True)
if sys.argv[2:] == ["wait"]:
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


@dataclass(frozen=True)
class Flushed:
    status: int
    out: str
    err: str


@pytest.fixture
def spool() -> Path:
    return Path(os.environ["MACKEREL_OTEL_SPOOL"])


def flush(env: Mapping[str, str], *arguments: str) -> Flushed:
    done = subprocess.run(
        [sys.executable, "-m", "mackerel_otel_server", "flush", *arguments],
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert (env.get("MACKEREL_APIKEY") or KEY) not in done.stdout + done.stderr
    return Flushed(done.returncode, done.stdout, done.stderr)


def leave(env: Mapping[str, str], spans: int = 3) -> int:
    """Let a process make spans and be killed with them in its journal; return its pid.

    It would send what is in the folder already, so it gets a folder of its own at first.
    """
    spool = env["MACKEREL_OTEL_SPOOL"]
    own = spool and f"{spool} of one"
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(spans)],
        env={**env, **LATE, "MACKEREL_OTEL_SPOOL": own},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    if spool:
        Path(spool).mkdir(mode=0o700, exist_ok=True)
        for file in Path(own).iterdir():
            file.rename(Path(spool, file.name))
    return int(done.stdout)


@contextmanager
def living(env: Mapping[str, str], spans: int = 3) -> Iterator[int]:
    """Let a process make spans and live on with them in its journal; yield its pid."""
    command = [sys.executable, "-c", PROCESS, str(spans), "wait"]
    with subprocess.Popen(
        command, env={**env, **LATE}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def names(receiver: Receiver) -> list[str]:
    return sorted(span.name for span in receiver.spans)


def test_what_a_killed_gunicorn_has_left_arrives_with_its_own_resource(
    tmp_path: Path, receiver: Receiver, spool: Path
) -> None:
    env = environment(receiver, **LATE)
    with gunicorn(tmp_path, env=env, workers=1) as server:
        (pid,) = server.ask_every_worker(1, REQUESTS)
        server.kill()
        server.wait_for_end_of_session()
    assert receiver.spans == []
    assert list(spool.iterdir())
    done = flush(env)
    assert done == Flushed(
        0,
        f"delivered {server.answered} spans that worker {pid} left behind\nnothing is left to deliver in {spool}\n",
        "",
    )
    spans = server_spans(receiver.spans)
    assert len({span.span_id for span in spans}) == len(spans) == server.answered
    assert {str(span.resource["process.pid"]) for span in spans} == {pid}
    assert list(spool.iterdir()) == []
    again = flush(env)
    assert (again.status, again.out) == (0, f"nothing is left to deliver in {spool}\n")
    assert len(receiver.spans) == len(spans)


def test_a_torn_record_and_a_file_that_is_no_journal_harm_nothing(receiver: Receiver, spool: Path) -> None:
    env = environment(receiver)
    pid = leave(env)
    (file,) = spool.iterdir()
    with file.open("ab") as torn:
        torn.write(file.read_bytes()[-40:-8])
    (spool / "00000000deadbeef.journal").write_bytes(b"anything")
    (spool / "notes.txt").write_bytes(b"not of this package")
    done = flush(env)
    assert done.status == 1
    assert f"delivered 3 spans that worker {pid} left behind" in done.out
    assert "1 file cannot be read (00000000deadbeef.journal)" in done.err
    assert names(receiver) == ["span 0", "span 1", "span 2"]
    assert sorted(path.name for path in spool.iterdir()) == ["00000000deadbeef.journal", "notes.txt"]


def test_what_a_living_process_holds_is_left_to_it(receiver: Receiver, spool: Path) -> None:
    env = environment(receiver)
    with living(env, 2) as pid:
        done = flush(env)
        assert done.status == 0
        assert f"processes that run hold 2 spans in 1 file (worker {pid}): they send them themselves" in done.out
        assert receiver.spans == []
        assert len(list(spool.iterdir())) == 1
    assert f"delivered 2 spans that worker {pid} left behind" in flush(env).out
    assert names(receiver) == ["span 0", "span 1"]


def test_a_changed_key_needs_an_option(receiver: Receiver, spool: Path) -> None:
    env = environment(receiver)
    pid = leave({**env, "MACKEREL_APIKEY": "the-old-key"})
    done = flush(env)
    assert done.status == 1
    assert (
        f"3 spans in 1 file (worker {pid}) were to go to {receiver.url} with another key or other headers than the "
        "present ones" in done.err
    )
    assert "mackerel-otel-server flush --changed-key" in done.err
    assert "the-old-key" not in done.err + done.out + "".join(map(str, spool.iterdir()))
    assert receiver.spans == []
    done = flush(env, "--changed-key")
    assert done.status == 0, done
    assert f"delivered 3 spans that worker {pid} left behind" in done.out
    assert len(receiver.spans) == 3
    assert list(spool.iterdir()) == []


def test_other_headers_are_another_destination_too(receiver: Receiver) -> None:
    env = environment(receiver)
    leave({**env, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a"})
    assert "with another key or other headers" in flush({**env, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=b"}).err
    assert receiver.spans == []


@pytest.mark.parametrize("arguments", [[], ["--changed-key"]])
def test_what_is_for_another_endpoint_stays(receiver: Receiver, spool: Path, arguments: list[str]) -> None:
    elsewhere = "http://127.0.0.1:1/v1/traces"
    env = environment(receiver)
    pid = leave({**env, "MACKEREL_OTEL_ENDPOINT": elsewhere})
    mine = leave(env, 1)
    done = flush(env, *arguments)
    assert done.status == 1
    assert f"delivered 1 span that worker {mine} left behind" in done.out
    assert f"3 spans in 1 file (worker {pid}) are for another endpoint, {elsewhere}" in done.err
    assert len(receiver.spans) == 1
    assert len(list(spool.iterdir())) == 1


def test_a_file_older_than_a_day_is_delivered_when_somebody_asks_for_it(receiver: Receiver, spool: Path) -> None:
    env = environment(receiver)
    leave(env)
    (file,) = spool.iterdir()
    past = time.time() - DAY - 60
    os.utime(file, (past, past))
    assert flush(env).status == 0
    assert len(receiver.spans) == 3


def test_the_files_stay_where_nothing_listens(receiver: Receiver, spool: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    env = environment(receiver, MACKEREL_OTEL_ENDPOINT=f"http://127.0.0.1:{port}/v1/traces")
    leave(env)
    leave(env, 2)
    done = flush(env)
    assert done.status == 1
    assert done.out == ""
    assert done.err.count("the endpoint takes no spans") == 1
    assert re.search(r"did not answer \(.*refused.*\); the files stay in .*; check that the far end runs", done.err)
    assert "not sent: 5 spans in 2 files" in done.err
    assert len(list(spool.iterdir())) == 2


REFUSALS: Mapping[str, tuple[Step, str]] = {
    "wrong key": (refused(401, "API key is invalid"), "MACKEREL_APIKEY"),
    "wrong URL": (refused(404, "page not found"), "MACKEREL_OTEL_ENDPOINT"),
    "fault": (refused(503, "down for maintenance"), "its log or status page"),
}


@pytest.mark.parametrize(("step", "cure"), REFUSALS.values(), ids=REFUSALS)
def test_the_files_stay_where_the_endpoint_refuses(step: Step, cure: str, spool: Path) -> None:
    with FaultServer(step) as far:
        env = environment(MACKEREL_OTEL_ENDPOINT=far.url, MACKEREL_APIKEY=KEY, OTEL_SERVICE_NAME="shop")
        leave(env)
        before = journal_file.read(next(spool.iterdir()).read_bytes())
        done = flush(env)
        assert done.status == 1
        assert cure in done.err
        assert len(far.requests) == 1
        # Nothing in it has become settled.
        assert len(journal_file.read(next(spool.iterdir()).read_bytes())) == len(before) == 3


def test_what_is_rejected_is_lost_and_said(spool: Path) -> None:
    with FaultServer(accepted(2, "too old")) as far:
        env = environment(MACKEREL_OTEL_ENDPOINT=far.url, MACKEREL_APIKEY=KEY, OTEL_SERVICE_NAME="shop")
        pid = leave(env)
        done = flush(env)
    assert done.status == 1
    assert f"delivered 1 span that worker {pid} left behind" in done.out
    assert f"lost 2 spans that worker {pid} left behind (rejected by the endpoint 2)" in done.err
    assert list(spool.iterdir()) == []


def test_spans_that_were_sent_and_have_no_answer_are_not_sent_again(spool: Path) -> None:
    with FaultServer(Step(act=never)) as far:
        env = environment(
            MACKEREL_OTEL_ENDPOINT=far.url,
            MACKEREL_APIKEY=KEY,
            OTEL_SERVICE_NAME="shop",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )
        leave(env)
        leave(env, 2)
        done = flush(env)
    assert done.status == 1
    assert "(unconfirmed 3)" in done.err
    assert "the spans may have arrived, so they are not sent again" in done.err
    # The endpoint hangs: the next file is not wasted on it.
    assert "not sent: 2 spans in 1 file" in done.err
    assert len(far.requests) == 1
    assert len(list(spool.iterdir())) == 1


def test_none_is_said_and_the_default_folder_is_looked_at(receiver: Receiver) -> None:
    done = flush(environment(receiver, MACKEREL_OTEL_SPOOL="none"))
    first, *_ = done.out.splitlines()
    assert first.startswith("MACKEREL_OTEL_SPOOL=none: no journal is written any more; was one written before, in /")
    assert first.endswith(f"/mackerel-otel-{os.geteuid()}?")


def test_an_option_names_another_folder(receiver: Receiver, tmp_path: Path) -> None:
    env = environment(receiver)
    leave({**env, "MACKEREL_OTEL_SPOOL": str(tmp_path / "other")})
    assert "there is no folder" in flush(env).out
    done = flush({**env, "MACKEREL_OTEL_SPOOL": "none"}, "--spool", str(tmp_path / "other"))
    assert done.status == 0
    assert len(receiver.spans) == 3
    done = flush(env, "--spool", str(tmp_path / "none"))
    assert done.status == 1
    assert done.out.startswith(f"there is no folder {tmp_path / 'none'}: user {_me()} has left nothing behind there; ")
    assert f"sudo -u NAME --preserve-env {COMMAND} flush --spool {tmp_path / 'none'}" in done.out


def _me() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _give_away(spool: Path) -> str:
    os.chown(spool, 1, -1)
    return f"sudo -u daemon --preserve-env {COMMAND} flush"


def _open_to_all(spool: Path) -> str:
    spool.chmod(0o755)
    return f"chmod 700 {spool}"


def _link(spool: Path) -> str:
    spool.rename(spool.with_name("real"))
    spool.symlink_to(spool.with_name("real"))
    return "symbolic link"


def _file(spool: Path) -> str:
    spool.rename(spool.with_name("real"))
    spool.touch()
    return f"{spool} is no folder"


@needs_root
def test_a_file_of_another_user_is_named_and_is_no_success(receiver: Receiver, spool: Path) -> None:
    env = environment(receiver)
    leave(env)
    (file,) = spool.iterdir()
    os.chown(file, 1, -1)
    done = flush(env)
    assert done.status == 1
    assert f"1 file of user daemon in the folder of user {_me()} ({file.name})" in done.err
    assert "chown" in done.err
    os.chown(file, os.geteuid(), -1)
    assert flush(env).status == 0
    assert len(receiver.spans) == 3


def test_a_folder_below_a_file_cannot_be_used(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = flush(environment(receiver, MACKEREL_OTEL_SPOOL=str(tmp_path / "file" / "sub")))
    assert done.status == 1
    assert f"{tmp_path / 'file'} is no folder" in done.err
    assert "set MACKEREL_OTEL_SPOOL to" in done.err


@pytest.mark.parametrize("spoil", [pytest.param(_give_away, marks=needs_root), _open_to_all, _link, _file])
def test_a_folder_that_is_not_this_users_alone_is_not_touched(
    receiver: Receiver, spool: Path, spoil: Callable[[Path], str]
) -> None:
    env = environment(receiver)
    leave(env)
    words = spoil(spool)
    done = flush(env)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("nothing was sent: ")
    assert words in done.err
    assert receiver.spans == []


@needs_root
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the default folder is elsewhere")
def test_the_folder_of_another_user_is_named_with_what_to_type(receiver: Receiver, tmp_path: Path) -> None:
    program = "import os, sys; os.setresuid(54321, 54321, 54321); from mackerel_otel_server.cli import main; "
    env = {**environment(receiver), "MACKEREL_OTEL_SPOOL": ""}
    leave(env, 1)
    # All is imported while this process is root's, because the tests' folders may be closed to others.
    done = subprocess.run(
        [sys.executable, "-c", "import mackerel_otel_server.cli.flush; " + program + "sys.exit(main(['flush']))"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done
    assert "user root has a journal, too, in /dev/shm/mackerel-otel-0" in done.stderr
    # Where the environment is closed to this user, nobody can tell whether the script is there.
    assert f"sudo -u root --preserve-env {Path(sys.executable).parent}/" in done.stderr
    assert done.stdout.startswith("there is no folder /dev/shm/mackerel-otel-54321: user #54321 has left nothing")
    # It is the folder of this machine's user, which may hold more than this test has left there.
    assert "delivered 1 span that worker" in flush(env).out


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MACKEREL_APIKEY": ""}, "MACKEREL_APIKEY"),
        ({"OTEL_SDK_DISABLED": "true"}, "nothing was sent: OTEL_SDK_DISABLED is true: unset it"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "nothing was sent: OTEL_TRACES_EXPORTER is console: unset it"),
        ({"MACKEREL_OTEL_SPOOL": "spool"}, "MACKEREL_OTEL_SPOOL='spool' is no absolute path"),
    ],
    ids=["no key", "disabled", "console", "relative"],
)
def test_settings_that_send_nothing_are_said(receiver: Receiver, variables: Mapping[str, str], words: str) -> None:
    done = flush(environment(receiver, **variables))
    assert (done.status, done.out) == (1, "")
    assert words in done.err


def test_a_relative_folder_is_bad_use(receiver: Receiver) -> None:
    done = flush(environment(receiver), "--spool", "here")
    assert done.status == 2
    assert "--spool 'here' is no absolute path" in done.err


def test_two_at_once_deliver_each_span_once(receiver: Receiver, spool: Path) -> None:
    env = environment(receiver)
    leave(env, 1)
    (first,) = spool.iterdir()
    data = first.read_bytes()
    for number in range(40):
        (spool / f"{number:016x}.journal").write_bytes(data)
    command = [sys.executable, "-m", "mackerel_otel_server", "flush"]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    told = b"".join(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], told
    assert told.count(b"delivered 1 span ") == 41
    assert len(receiver.spans) == 41
    assert list(spool.iterdir()) == []


def test_ctrl_c_ends_it_and_leaves_the_file(spool: Path) -> None:
    asked = threading.Event()

    def hang(server: FaultServer, sock: socket.socket) -> None:
        asked.set()
        never(server, sock)

    with FaultServer(Step(act=hang)) as far:
        env = environment(MACKEREL_OTEL_ENDPOINT=far.url, MACKEREL_APIKEY=KEY, OTEL_SERVICE_NAME="shop")
        leave(env)
        command = [sys.executable, "-m", "mackerel_otel_server", "flush"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, ""), err
        assert "Traceback" not in err
        assert len(far.requests) == 1
    (file,) = spool.iterdir()
    assert len(journal_file.read(file.read_bytes())) == 3
