from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from mackerel_otel_server import settings
from mackerel_otel_server.cli import demo_server

TIMEOUT = 90.0
MARK = "DEMO_TEST_MARK"
SERVERS = [
    "gunicorn",
    pytest.param(
        "uwsgi",
        marks=pytest.mark.skipif(
            not any(shutil.which(name, path=str(Path(sys.executable).parent)) for name in ("uwsgi", "pyuwsgi")),
            reason="uWSGI is not installed beside this Python",
        ),
    ),
]


def start(folder: Path, mark: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mackerel_otel_server", "demo", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", MARK: mark} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )


def demo(folder: Path, *arguments: str, **env: str) -> tuple[int, str, str]:
    """Run the demo to its end and return its status, its output and its mark."""
    mark = uuid.uuid4().hex
    with start(folder, mark, *arguments, **env) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    return process.returncode, output, mark


def marked(mark: str) -> set[int]:
    """Return every process that inherited the mark: whatever session it moved to, it keeps its environment."""
    return {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if inherited(mark, path)}


def inherited(mark: str, environ: Path) -> bool:
    try:
        return f"{MARK}={mark}".encode() in environ.read_bytes()
    except OSError:
        return False


def wait_for_processes(mark: str, number: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while len(marked(mark)) < number:
        assert time.monotonic() < deadline, f"no {number} processes within {TIMEOUT} s"
        time.sleep(0.005)


@pytest.mark.parametrize("server", SERVERS)
def test_the_demo_shows_each_workers_traces_and_leaves_no_process_behind(tmp_path: Path, server: str) -> None:
    status, output, mark = demo(tmp_path, "--server", server)
    assert status == 0, output
    pids = re.findall(r"^Worker (\d+): \d+ spans? in \d+ traces?$", output, re.MULTILINE)
    assert len(set(pids)) == 2, output
    for pid in pids:
        assert re.search(rf"trace [0-9a-f]{{32}}  mackerel-demo  pid {pid}  ", output), output
    assert re.search(r"SERVER GET /  200\n +[\d.]+ ms  └─ CLIENT SELECT.*  SELECT column1", output), output
    assert re.search(r"SERVER GET /slow  200\n +[3-9]\d\d\.\d+ ms  └─ INTERNAL grill the mackerel", output), output
    assert re.search(r"SERVER GET /fail.*  ERROR  .*SoldOutError: no mackerel left", output), output
    assert re.search(r"SERVER GET.*  404\n", output), output
    assert "export MACKEREL_APIKEY" in output
    assert marked(mark) == set(), output
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_real_mackerel_and_of_other_servers_do_not_reach_the_demo(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("raise SystemExit('somebody else')\n")
    (tmp_path / "sqlite3.py").write_text("raise SystemExit('somebody else')\n")
    status, output, _ = demo(
        tmp_path,
        # As in an ordinary shell, where Python looks for modules in the working directory first.
        PYTHONSAFEPATH="",
        MACKEREL_APIKEY="the-real-key",
        OTEL_SDK_DISABLED="true",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        GUNICORN_CMD_ARGS="--workers 1 --daemon",
        HTTP_PROXY="http://127.0.0.1:1",
        http_proxy="http://127.0.0.1:1",
    )
    assert status == 0, output
    assert "the-real-key" not in output


def test_what_its_server_leaves_behind_is_in_the_folder_that_ends_with_the_demo(tmp_path: Path) -> None:
    in_force = settings.read(demo_server.environment("http://127.0.0.1:1/v1/traces", "k" * 44, str(tmp_path)))
    assert Path(in_force.spool or "").parent == tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [2, 4], ids=["while it starts", "while it serves"])
def test_a_signal_ends_the_demo_and_its_server(tmp_path: Path, number: signal.Signals, processes: int) -> None:
    mark = uuid.uuid4().hex
    with start(tmp_path, mark) as process:
        try:
            wait_for_processes(mark, processes)
            os.killpg(process.pid, number)
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 128 + number, output
    assert "Traceback (most recent" not in output
    assert marked(mark) == set(), output


@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        (">&-", 1, "standard output is closed: nothing was done. Send it elsewhere, e.g. > /dev/null\n"),
        ("> /dev/full", 1, "cannot write the output (No space left on device): make room, or send it elsewhere\n"),
        (
            "--web > /dev/full",
            1,
            "cannot write the output (No space left on device): make room, or send it elsewhere\n",
        ),
        ("2>&- > /dev/null", 0, ""),
        ("<&- 2> /dev/full > /dev/null", 0, ""),
        ("| head -1 > /dev/null", 1, ""),
    ],
)
def test_an_output_that_takes_nothing_ends_it_in_one_line_and_other_streams_do_no_harm(
    tmp_path: Path, redirected: str, status: int, said: str
) -> None:
    assert in_shell(tmp_path, f"set -o pipefail; $DEMO {redirected}") == (status, said)


def test_it_outlives_its_terminal_under_nohup(tmp_path: Path) -> None:
    script = "nohup $DEMO <&- > out 2>&1 & p=$!; wait_for Starting; kill -HUP $p; wait $p"
    assert in_shell(tmp_path, script) == (0, "")
    assert "Nothing has left this machine" in (tmp_path / "out").read_text()


# A shell function that waits for a word in the file "out", and not for ever.
WAIT = "wait_for() { for _ in {1..600}; do grep -qs $1 out && break; sleep 0.05; done; }"


def in_shell(folder: Path, script: str) -> tuple[int, str]:
    """Run a script with ``$DEMO`` and return its status and what it and its children have written."""
    command = f"{shlex.quote(sys.executable)} -m mackerel_otel_server demo"
    mark = uuid.uuid4().hex
    result = subprocess.run(
        ["bash", "-c", f"{WAIT}\n{script}".replace("$DEMO", command)],
        cwd=folder,
        env=os.environ | {"PYTHONSAFEPATH": "1", MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert marked(mark) == set(), result.stdout
    return result.returncode, result.stdout


def test_a_server_that_does_not_come_up_is_explained_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    # A module that shadows what the server needs: the demo itself does not import it.
    (tmp_path / "broken" / "sqlite3.py").write_text("raise ImportError('no database today')\n")
    status, output, mark = demo(tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert status == 1, output
    assert "no database today" in output
    # Gunicorn listens before its workers fail: whether a request still gets in is a matter of luck.
    assert re.search(
        r"(the server did not come up|a request was not answered).*the server's log above says why", output
    )
    assert marked(mark) == set(), output


def test_a_gunicorn_that_is_not_installed_is_one_clear_line(tmp_path: Path) -> None:
    # As `python -m` would run it, but with a finder that knows no gunicorn.
    program = (
        "import importlib.util as u, sys; real = u.find_spec; "
        "u.find_spec = lambda name, package=None: None if name == 'gunicorn' else real(name, package); "
        "from mackerel_otel_server.cli import main; sys.exit(main(['demo']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 1, result
    assert "pip install gunicorn\n" in result.stderr
    assert result.stderr.count("\n") == 1


def test_web_keeps_the_traces_on_a_page_until_ctrl_c(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    with start(tmp_path, mark, "--web", PYTHONUNBUFFERED="1") as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "stay at" in line:
                    break
            match = re.search(r"The traces stay at (http://127\.0\.0\.1:\d+/) until Ctrl-C\n", lines[-1])
            assert match, "".join(lines)
            assert len(marked(mark)) == 1, "the server is gone, the page is not"
            with urllib.request.urlopen(f"{match[1]}traces", timeout=TIMEOUT) as response:
                traces = json.load(response)["traces"]
            assert {"/fail", "/slow"} <= {trace["route"] for trace in traces}
            assert len({trace["worker"]["pid"] for trace in traces}) == 2
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert (process.returncode, output) == (0, "")
    assert marked(mark) == set()


def test_a_terminal_sees_what_is_waited_for() -> None:
    # What `demo` waits with: whether a real server needs more than a second is a matter of the machine.
    program = (
        "import time; from mackerel_otel_server.cli.demo_requests import Watch; t = time.monotonic(); "
        "Watch().until(lambda: time.sleep(0.05) or time.monotonic() - t > 1.3, 9, 'waiting for the server')"
    )
    master, slave = os.openpty()
    try:
        env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {
            "TERM": "xterm",
            "NO_COLOR": "1",
        }
        subprocess.run([sys.executable, "-c", program], stderr=slave, env=env, timeout=TIMEOUT, check=True)
        assert os.read(master, 1000).decode() == "\rwaiting for the server (1 s)\r\x1b[K"
    finally:
        os.close(slave)
        os.close(master)
