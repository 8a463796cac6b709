"""A key file that breaks, is mended and breaks again while the server runs: each change is said, once."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from servers import Server, gunicorn, server_spans, uwsgi, uwsgi_environment, wait_until

import mackerel_otel_server
from mackerel_otel_server.cli.receiver.endpoint import Receiver

BROKEN = "MACKEREL_APIKEY_FILE='key' cannot be read"
KEY = "test-key"
INSTRUMENTED = (
    "import mackerel_otel_server\n"
    "mackerel_otel_server.instrument()\n"
    "from plain import application\n"
    "application = mackerel_otel_server.trace_wsgi(application)\n"
)
CONF = "python:mackerel_otel_server.conf"
DOORS = {
    "conf, sync": (CONF, ["-k", "sync"]),
    "conf, gevent": (CONF, ["-k", "gevent"]),
    "conf, preload": (CONF, ["--preload"]),
    "instrument()": (None, []),
    "instrument(), preload": (None, ["--preload"]),
}


def variables(receiver: Receiver, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "instrumented.py").write_text(INSTRUMENTED)
    env = uwsgi_environment(receiver, MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE="key")
    folders = [env["PYTHONPATH"], str(tmp_path), str(Path(mackerel_otel_server.__file__).parents[1])]
    return {**env, "PYTHONPATH": os.pathsep.join(folders)}


def starts(server: Server) -> int:
    return len(re.findall(r"worker \d+ sends traces as", server.log))


@pytest.mark.parametrize("door", DOORS)
def test_under_gunicorn_hup_reports_a_key_file_that_is_still_broken_traces_with_a_mended_one_and_reports_it_anew(
    tmp_path: Path, receiver: Receiver, door: str
) -> None:
    conf, options = DOORS[door]
    app = "plain:application" if conf else "instrumented:application"
    generations = 0

    def hup() -> set[str]:
        nonlocal generations
        generations += 1
        server.send(signal.SIGHUP)
        server.wait_for_log("Booting worker with pid", count=2 * (generations + 1))
        wait_until(lambda: server.log.count("Worker exiting") >= 2 * generations, "the old ones leave")
        return server.ask_every_worker(2, 2)

    with gunicorn(tmp_path, *options, env=variables(receiver, tmp_path), conf=conf, app=app) as server:
        server.ask_every_worker(2, 2)
        assert (server.log.count(BROKEN), starts(server)) == (1, 0), server.log
        hup()
        # The operator may have tried to mend it.
        says_again = 0 if door == "instrument(), preload" else 1
        assert (server.log.count(BROKEN), starts(server)) == (1 + says_again, 0), server.log
        (tmp_path / "key").write_text(KEY)
        pids = hup()
        assert (server.log.count(BROKEN), starts(server)) == (1 + says_again, 2), server.log
        (tmp_path / "key").unlink()
        hup()
        log = server.stop()
    assert log.count(BROKEN) == 2 + says_again, log
    assert {str(span.resource["process.pid"]) for span in server_spans(receiver.spans)} == pids


@pytest.mark.parametrize(
    ("mode", "reload"), [("", "r"), ("lazy-apps = true\n", "r"), ("lazy-apps = true\n", "c")], ids=str
)
@pytest.mark.parametrize("door", ["import = mackerel_otel_server.uwsgi\nmodule = plain\n", "module = instrumented\n"])
def test_under_uwsgi_a_reload_reports_a_broken_key_file_and_traces_with_a_mended_one(
    tmp_path: Path, receiver: Receiver, door: str, mode: str, reload: str
) -> None:
    fifo = tmp_path / "fifo"
    generations = 0

    def again() -> set[str]:
        nonlocal generations
        generations += 1
        server.wait_until_idle()
        fifo.write_text(reload)
        if reload == "c":
            server.wait_for_log("chain reloading complete", count=generations)
        else:
            server.wait_for_log("spawned uWSGI worker 2", count=generations + 1)
            server.find_port()
        return server.ask_every_worker(2, 2)

    ini = f"{door}enable-threads = true\nmaster = true\n{mode}master-fifo = {fifo}\n"
    with uwsgi(tmp_path, ini, env=variables(receiver, tmp_path)) as server:
        server.ask_every_worker(2, 2)
        assert (server.log.count(BROKEN), starts(server)) == (1, 0), server.log
        again()
        assert (server.log.count(BROKEN), starts(server)) == (2, 0), server.log
        (tmp_path / "key").write_text(KEY)
        pids = again()
        assert (server.log.count(BROKEN), starts(server)) == (2, 2), server.log
        (tmp_path / "key").unlink()
        again()
        server.wait_until_idle()
        log = server.stop()
    assert log.count(BROKEN) == 3, log
    assert {str(span.resource["process.pid"]) for span in server_spans(receiver.spans)} == pids
