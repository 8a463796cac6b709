"""The log of a running uWSGI says about its options what ``check`` says about its ini file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from servers import environment, uwsgi

from mackerel_otel_server.cli.receiver.endpoint import Receiver

if TYPE_CHECKING:
    from checking import Check

SANE = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\nmodule = plain\n"
BROKEN = (
    "skip-atexit = true\nreload-on-exception = true\nreload-on-exception-type = ValueError\nharakiri = soon\n"
    "harakiri-queue-threshold = 0\nworker-reload-mercy = 4\nenv = OTEL_TRACES_SAMPLER = always_on\n"
    # uwsgi.opt has the last of these lines only.
    "env = OTEL_BSP_SCHEDULE_DELAY=700\nenv = OTEL_PROPAGATORS = b3\n"
)


def said(log: str) -> list[str]:
    """Return the warnings and errors of this package, as the levels that ``check`` has."""
    lines = re.findall(r"\[mackerel_otel_server\] \[\d+\] (warning|error): (.*)", log)
    return sorted(f"{ {'warning': 'WARN', 'error': 'FAIL'}[level] } {sentence}" for level, sentence in lines)


def found(data: Mapping[str, Any]) -> list[str]:
    """Return the failures and warnings of ``check``, as the log writes them."""
    findings = [one for one in data["findings"] if one["level"] != "OK"]
    return sorted(f"{one['level']} {one['seen']}: {one['follows']}; {one['cure']}" for one in findings)


def log_of(folder: Path, ini: str, receiver: Receiver, processes: int = 2) -> str:
    """Start a server and return its log, when its workers have started."""
    with uwsgi(folder, ini, env=environment(receiver), processes=processes) as server:
        server.wait_for_log("sends traces as")
        server.wait_until_asleep()
        return server.stop()


@pytest.mark.parametrize("mode", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_the_log_says_what_check_says_once_for_all_workers(
    check: Check, tmp_path: Path, receiver: Receiver, mode: str
) -> None:
    log = log_of(tmp_path, f"{SANE}{mode}{BROKEN}", receiver)
    sentences = found(check("--config", "uwsgi.ini").data)
    assert len(sentences) == 7, sentences
    assert said(log) == sentences, log


def test_what_a_server_without_a_master_lacks_is_said_in_both_places(
    check: Check, tmp_path: Path, receiver: Receiver
) -> None:
    log = log_of(tmp_path, SANE.replace("master = true\n", "async = 4\n"), receiver, processes=1)
    sentences = found(check("--config", "uwsgi.ini").data)
    assert [sentence[:10] for sentence in sentences] == ["WARN async", "WARN uWSGI"], sentences
    assert said(log) == sentences, log


@pytest.mark.parametrize("line", ["master = true", "cheaper = 1", "mule", "touch-reload = uwsgi.ini"])
def test_an_ini_file_that_is_well_is_no_line_in_the_log(
    check: Check, tmp_path: Path, receiver: Receiver, line: str
) -> None:
    # Each of these lines starts a master.
    log = log_of(tmp_path, SANE.replace("master = true", line), receiver)
    assert check("--config", "uwsgi.ini").levels() == {"OK"}
    assert said(log) == [], log


def test_where_tracing_is_switched_off_nothing_is_said(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver, OTEL_SDK_DISABLED="true")
    with uwsgi(tmp_path, f"{SANE}{BROKEN}", env=env) as server:
        assert server.get("/").status == 200
        server.wait_until_idle()
        log = server.stop()
    assert "mackerel_otel_server]" not in log
