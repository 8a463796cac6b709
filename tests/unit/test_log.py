"""Our lines where the streams of the process are closed: nothing is raised or printed, and no line is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import environment, gunicorn

from mackerel_otel_server.cli.receiver.endpoint import Receiver

LINE = "sent 1 spans in 1 requests, lost 0"
SCRIPT = """
import io, logging, os, sys
stream = io.StringIO()
import mackerel_otel_server
{configure}
mackerel_otel_server.instrument()
from opentelemetry import trace
with trace.get_tracer("script").start_as_current_span("one"):
    pass
{close}
os.write(1, b"the end of the script\\n")
"""
LOGGING = "logging.basicConfig(level=logging.INFO, stream=stream)"
STDERR = "logging.basicConfig(level=logging.INFO)"
RAISING = """
class Raising(logging.Handler):
    def emit(self, record):
        if "sent" in record.msg:
            raise OSError("no")
logging.basicConfig(level=logging.INFO, handlers=[Raising()])
"""
CASES = {
    "a handler's stream is closed": (LOGGING, "stream.close()", True),
    "sys.stderr is closed": (STDERR, "sys.stderr = open(os.devnull, 'w'); sys.stderr.close(); stream.close()", True),
    "the stream of sys.stderr is closed": (LOGGING, "sys.stderr = stream; stream.close()", True),
    "a handler raises": (RAISING, "", True),
    "logging is shut down": (LOGGING, "logging.shutdown(); stream.close()", True),
    "another handler is left": (
        f"{LOGGING}\nlogging.getLogger().addHandler(logging.FileHandler('log', delay=True))",
        "stream.close()",
        False,
    ),
    "standard error is gone": (LOGGING, "stream.close(); os.close(2)", False),
    "standard error is something else": (LOGGING, "stream.close(); os.dup2(os.open('other', 66), 2)", False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_closed_stream_makes_no_error_at_exit_and_costs_no_line(
    tmp_path: Path, receiver: Receiver, case: str
) -> None:
    configure, close, is_on_stderr = CASES[case]
    (tmp_path / "script.py").write_text(SCRIPT.format(configure=configure, close=close))
    result = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(receiver, OTEL_BSP_SCHEDULE_DELAY="60000", PYTHONDEVMODE=""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "the end of the script\n"), result.stderr
    assert "Error" not in result.stderr, result.stderr
    assert "error" not in result.stderr, result.stderr
    assert (LINE in result.stderr) == is_on_stderr, result.stderr
    assert len(receiver.spans) == 1
    other = tmp_path / "other"
    assert not other.exists() or other.read_text() == "", "nobody knows what that is"
    if case == "another handler is left":
        assert LINE in (tmp_path / "log").read_text()


CLOSING = """
import logging
from plain import application as plain

def application(environ, start_response):
    if environ["PATH_INFO"] == "/close":
        for handler in logging.getLogger("gunicorn.error").handlers:
            handler.stream = open("/dev/null", "w")
            handler.stream.close()
            # As a line of Gunicorn's own does, which meets the same stream.
            handler.handleError = lambda record: "mackerel" in record.msg and print("FAILED", record.msg)
    return plain(environ, start_response)
"""


def test_under_gunicorn_a_handler_whose_stream_is_closed_at_exit_prints_no_error(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "closing.py").write_text(CLOSING)
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="closing:application", workers=1) as server:
        server.get()
        server.get("/close")
        log = server.stop()
    assert "FAILED" not in log, log
    assert "mackerel_otel_server] info: sent 2 spans in" in log, log


def test_a_line_makes_no_logger_that_an_application_would_switch_off() -> None:
    script = """
import logging, logging.config
from mackerel_otel_server.process.log import log
log.info("a line")
print(sorted(logging.Logger.manager.loggerDict))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "['mackerel_otel_server']\n"
