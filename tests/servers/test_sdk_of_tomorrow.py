"""A server whose SDK has other private fields says so once, and not once a worker."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sdk_of_tomorrow
from servers import Server, gunicorn, uwsgi, uwsgi_environment

from mackerel_otel_server.cli.receiver.endpoint import Receiver

SENTENCE = "are not built as this package knows them"
INI = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\nmodule = plain\n"
INSTRUMENTED = (
    "import mackerel_otel_server\n"
    "mackerel_otel_server.instrument()\n"
    "from plain import application\n"
    "application = mackerel_otel_server.trace_wsgi(application)\n"
)


@pytest.mark.parametrize("how", ["sync", "gevent", "instrument()", "uWSGI", "uWSGI, lazy-apps"])
def test_an_unknown_sdk_is_said_once_for_all_workers(tmp_path: Path, receiver: Receiver, how: str) -> None:
    (tmp_path / "instrumented.py").write_text(INSTRUMENTED)
    env = uwsgi_environment(receiver)
    env["PYTHONPATH"] = os.pathsep.join([sdk_of_tomorrow.install(tmp_path)["PYTHONPATH"], env["PYTHONPATH"]])
    running: AbstractContextManager[Server]
    if how.startswith("uWSGI"):
        running = uwsgi(tmp_path, INI + ("lazy-apps = true\n" if "lazy" in how else ""), env=env)
    elif how == "instrument()":
        running = gunicorn(tmp_path, env=env, conf=None, app="instrumented:application")
    else:
        running = gunicorn(tmp_path, "-k", how, env=env)
    with running as server:
        server.ask_every_worker(2, 2)
        log = server.stop()
    assert log.count("sends traces as") == 2, log
    assert log.count(SENTENCE) == 1, log
