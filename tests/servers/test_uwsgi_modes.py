"""uWSGI's modes, and the ways its workers come and go: nothing is lost, and nothing arrives twice."""

from __future__ import annotations

import os
import re
import signal
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme
from fault_server import FaultServer, Step, never
from servers import (
    LOADED,
    PYUWSGI,
    UWSGI_PROGRAM,
    Server,
    Shown,
    assert_one_server_span_per_request,
    debian_uwsgi,
    environment,
    running,
    server_spans,
    uwsgi,
    uwsgi_environment,
    uwsgi_version,
    wait_until,
)

from mackerel_otel_server.cli.receiver.endpoint import Receiver

DOOR = "import = mackerel_otel_server.uwsgi\nenable-threads = true\n"
DEBIAN = "master, Debian's"
MODES = {
    "master": "master = true\n",
    "lazy-apps": "master = true\nlazy-apps = true\n",
    "threads": "master = true\nthreads = 4\n",
    # Gunicorn has a row with the name gevent.
    "gevent = 20": "master = true\ngevent = 20\n",
    "gevent, lazy-apps": "master = true\nlazy-apps = true\ngevent = 20\n",
    "gevent, patched": "master = true\ngevent = 20\ngevent-monkey-patch = true\n",
    "cheaper": "master = true\ncheaper = 1\n",
    **({DEBIAN: "master = true\n"} if debian_uwsgi() is not None and UWSGI_PROGRAM == [PYUWSGI] else {}),
}
RSS = "reload-on-rss = 1"
"""Less than any process has: each request is a worker's last."""
KEEP = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""Only the end of a worker sends what is queued."""
IDLE = "b"
"""The note in docs/server-modes.md that says what uWSGI does to workers that are busy."""


def program(mode: str) -> Sequence[str]:
    return (debian_uwsgi() or ()) if mode == DEBIAN else UWSGI_PROGRAM


def touch(file: Path) -> None:
    """Let a file be newer by more than the second that uWSGI knows."""
    os.utime(file, (time.time() + 10,) * 2)


def starts(log: str) -> list[str]:
    return re.findall(r"\] info: worker (\d+) sends traces as", log)


def ends(log: str) -> list[str]:
    return re.findall(r"\[(\d+)\] info: sent \d+ spans in \d+ requests, lost 0\n", log)


def assert_one_life_per_worker(log: str, pids: set[str]) -> None:
    """Check that each worker, also one that answered nothing, has one line for its start and one for its end."""
    assert Counter(starts(log)) == Counter(ends(log)) == dict.fromkeys(starts(log), 1), log
    assert pids <= set(starts(log)), log
    assert "Traceback" not in log


@pytest.mark.parametrize("mode", MODES)
def test_reloads_and_the_end_lose_nothing_and_send_nothing_twice(
    tmp_path: Path, receiver: Receiver, mode: str, shown: Shown
) -> None:
    fifo, touched = tmp_path / "fifo", tmp_path / "touched"
    touched.touch()
    ini = f"{DOOR}{MODES[mode]}master-fifo = {fifo}\ntouch-reload = {touched}\nmodule = plain\n"
    # The chained one needs lazy-apps. Cheaper takes its time to start another worker.
    reloads = ["touch", *("r" for _ in range(mode != "cheaper")), *("c" for _ in range("lazy-apps" in mode))]
    shown(mode, "start", "touch-reload", *(f"FIFO {reload}" for reload in reloads[1:]))
    shown(mode, "TERM", limit=IDLE)
    pids: set[str] = set()
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver, **KEEP), program=program(mode)) as server:
        for reload in (*reloads, None):
            pids |= server.ask_every_worker(2, 6)
            server.wait_until_idle()
            before = set(starts(server.log))
            if reload == "touch":
                touch(touched)
            elif reload:
                fifo.write_text(reload)
            else:
                break
            alive = 1 if mode == "cheaper" else 2
            wait_until(lambda: before <= set(ends(server.log)), "the workers end", lambda: server.log)  # noqa: B023
            server.wait_for_log("sends traces as", count=len(before) + alive)
            server.find_port()
        log = server.stop()
    assert len(pids) == 2 * (len(reloads) + 1)
    assert_one_server_span_per_request(receiver, server, pids)
    assert_one_life_per_worker(log, pids)


# uWSGI 2.0.21 with threads says that its work is done, and does not leave, untouched as well.
LIMITED = [mode for mode in MODES if mode != "threads" or uwsgi_version(UWSGI_PROGRAM) != (2, 0, 21)]
OTHERS = ("master", DEBIAN, "lazy-apps", "threads", "gevent = 20", "gevent, patched", "no master")


@pytest.mark.parametrize(
    ("mode", "limit"),
    [
        # Not cheaper: it needs a second process, which it may start at any time.
        *((mode, RSS) for mode in (*LIMITED, "no master") if mode not in ("cheaper", "gevent, lazy-apps")),
        *((mode, "max-requests = 3") for mode in (*LIMITED, "no master") if mode in OTHERS),
    ],
)
def test_a_worker_that_reaches_a_limit_loses_nothing(
    tmp_path: Path, receiver: Receiver, mode: str, limit: str, shown: Shown
) -> None:
    shown(mode, "start", limit.partition(" = ")[0])
    per_worker = 1 if limit == RSS else 3
    ini = f"{DOOR}{MODES.get(mode, '')}{limit}\nmin-worker-lifetime = 0\nmodule = plain\n"
    pids = []
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver, **KEEP), program=program(mode), processes=1) as server:
        for worker in range(1 if mode == "no master" else 2):
            server.wait_for_log("sends traces as", count=worker + 1)
            pids += [server.get("/pid").body.decode() for _ in range(per_worker)]
            wait_until(lambda: len(ends(server.log)) == worker + 1, "the worker ends", lambda: server.log)  # noqa: B023
        if mode != "no master":
            server.wait_for_log("sends traces as", count=3)
            server.wait_until_idle()
            server.stop()
        server.wait()
        log = server.log
    assert set(Counter(pids).values()) == {per_worker}
    assert_one_server_span_per_request(receiver, server, set(pids))
    assert_one_life_per_worker(log, set(pids))


@pytest.mark.parametrize(
    ("mode", "number"),
    [*((mode, signal.SIGINT) for mode in (*MODES, "no master")), ("no master", signal.SIGTERM)],
)
def test_int_loses_nothing_nor_does_term_without_a_master(
    tmp_path: Path, receiver: Receiver, mode: str, number: signal.Signals, shown: Shown
) -> None:
    shown(mode, number.name.removeprefix("SIG"), limit=IDLE)
    # Without a master, each process would have to be signalled by itself.
    processes = 1 if mode == "no master" else 2
    ini = f"{DOOR}{MODES.get(mode, '')}module = plain\n"
    with uwsgi(
        tmp_path, ini, env=uwsgi_environment(receiver, **KEEP), program=program(mode), processes=processes
    ) as server:
        pids = server.ask_every_worker(processes, 4)
        server.wait_until_idle()
        log = server.stop(number)
    assert_one_server_span_per_request(receiver, server, pids)
    assert_one_life_per_worker(log, pids)


@pytest.mark.parametrize("mode", MODES)
def test_the_brutal_reload_at_quit_loses_nothing_of_idle_workers(
    tmp_path: Path, receiver: Receiver, mode: str, shown: Shown
) -> None:
    # With die-on-term, TERM and QUIT have changed places.
    shown(mode, "QUIT", limit=IDLE)
    ini = f"{DOOR}{MODES[mode]}module = plain\n"
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver, **KEEP), program=program(mode)) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        server.send(signal.SIGQUIT)
        wait_until(lambda: pids <= set(ends(server.log)), "the workers end", lambda: server.log)
        server.wait_for_log("sends traces as", count=len(pids) + (1 if mode == "cheaper" else 2))
        server.find_port()
        pids |= server.ask_every_worker(2, 4)
        server.wait_until_idle()
        log = server.stop()
    assert_one_server_span_per_request(receiver, server, pids)
    assert_one_life_per_worker(log, pids)


def test_workers_that_cheaper_ends_for_lack_of_work_lose_nothing(tmp_path: Path, receiver: Receiver) -> None:
    ini = f"{DOOR}{MODES['cheaper']}cheaper-overload = 1\nmodule = plain\n"
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver, **KEEP)) as server:
        pids = server.ask_every_worker(2, 6)
        wait_until(lambda: ends(server.log), "uWSGI saves a worker", lambda: server.log)
        pids |= server.ask_every_worker(2, 6)
        server.wait_until_idle()
        log = server.stop()
    assert len(pids) >= 3
    assert_one_server_span_per_request(receiver, server, pids)
    assert_one_life_per_worker(log, pids)


@pytest.mark.parametrize("lazy", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_an_application_that_cannot_be_loaded_is_traced_as_soon_as_it_can(
    tmp_path: Path, receiver: Receiver, lazy: str, shown: Shown
) -> None:
    shown("lazy-apps" if lazy else "master", "boot failure")
    touched, file = tmp_path / "touched", tmp_path / "broken.py"
    touched.touch()
    file.write_text("raise RuntimeError('not today')\n")
    ini = (
        f"{DOOR}need-app = false\nmaster = true\n{lazy}pythonpath = {tmp_path}\ntouch-reload = {touched}\n"
        "module = broken\n"
    )
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver, **KEEP)) as server:
        server.wait_for_log("sends traces as", count=2)
        # With lazy-apps, a worker loads the application after that line.
        server.wait_for_log("RuntimeError: not today", count=2 if lazy else 1)
        # uWSGI logs no such request.
        assert server.get("/").status == 500
        server.answered = 0
        file.write_text("from plain import application\n")
        touch(touched)
        server.wait_for_log("sends traces as", count=4)
        server.find_port()
        pids = server.ask_every_worker(2, 6)
        server.wait_until_idle()
        log = server.stop()
    assert log.count("RuntimeError: not today") == (2 if lazy else 1)
    assert "mackerel_otel_server/" not in log
    assert_one_server_span_per_request(receiver, server, pids)
    assert_one_life_per_worker(log.replace("Traceback", "", log.count("not today")), pids)


def test_a_vassal_of_the_emperor_loses_nothing_when_it_is_touched(
    tmp_path: Path, receiver: Receiver, shown: Shown
) -> None:
    shown("emperor", "start", "touch-reload")
    shown("emperor", "TERM", limit=IDLE)
    vassals = tmp_path / "vassals"
    vassals.mkdir()
    vassal = vassals / "shop.ini"
    vassal.write_text(f"[uwsgi]\nhttp-socket = 127.0.0.1:0\nprocesses = 2\nmaster = true\n{DOOR}module = plain\n")
    program, *options = UWSGI_PROGRAM
    # The emperor gives its vassals none of its own options.
    more = [f"{name.removeprefix('--')} = {value}\n" for name, value in zip(options[::2], options[1::2], strict=True)]
    vassal.write_text(vassal.read_text() + "".join(more))
    command = [*UWSGI_PROGRAM, "--emperor", str(vassals), "--emperor-wrapper", program]
    command += ["--emperor-freq", "1", "--die-on-term"]
    server = Server(command, tmp_path / "uwsgi.log", cwd=tmp_path, env=uwsgi_environment(receiver, **KEEP))
    with running(server):
        server.find_port()
        first = server.ask_every_worker(2, 6)
        server.wait_until_idle()
        touch(vassal)
        wait_until(lambda: first <= set(ends(server.log)), "the workers end", lambda: server.log)
        server.wait_for_log("sends traces as", count=4)
        server.find_port()
        pids = first | server.ask_every_worker(2, 6)
        server.wait_until_idle()
        log = server.stop()
        server.wait_for_end_of_session()
    assert len(pids) == 4
    assert_one_server_span_per_request(receiver, server, pids)
    assert_one_life_per_worker(log, pids)


@pytest.mark.parametrize("lazy", ["", "lazy-apps = true\n"], ids=["prefork", "lazy-apps"])
def test_a_mule_and_the_spooler_are_traced_when_their_own_code_asks_for_it(
    tmp_path: Path, receiver: Receiver, lazy: str
) -> None:
    (tmp_path / "spool").mkdir()
    mule = Path(__file__).parents[1] / "apps" / "uwsgi_mule.py"
    ini = (
        f"{DOOR}master = true\n{lazy}mule = {mule}\nmule = {mule}\nspooler = {tmp_path / 'spool'}\n"
        "spooler-frequency = 1\nspooler-python-import = uwsgi_helpers\nmodule = uwsgi_helpers\n"
    )
    # The spooler, and under lazy-apps a mule, is ended without running any code: what it did must be sent before.
    env = environment(receiver, TRACED_MULE="1", OTEL_BSP_SCHEDULE_DELAY="100")
    with uwsgi(tmp_path, ini, env=env) as server:
        server.wait_for_log("sends traces as", count=2)
        workers = set(starts(server.log))
        server.get("/mules")
        server.wait_for_log("mule 1 has got a message")
        server.wait_for_log("mule 2 has got a message")
        server.get("/spool")
        server.wait_for_log(r"spooler \d+ has done a task")
        server.get("/spool?yes")
        server.wait_for_log(r"spooler \d+ has done a task", count=2)
        wait_until(lambda: len(receiver.spans) == 5, "all is sent", lambda: server.log)
        server.wait_until_idle()
        log = server.stop()
    assert Counter(span.name for span in receiver.spans) == {"GET": 3, "message": 1, "task": 1}, log
    (spooler,) = re.findall(r"spawned the uWSGI spooler on dir .* with pid (\d+)", log)
    (first,) = re.findall(r"spawned uWSGI mule 1 \(pid: (\d+)\)", log)
    by_name = {span.name: str(span.resource["process.pid"]) for span in receiver.spans}
    assert (by_name["message"], by_name["task"]) == (first, spooler)
    instances = {(span.resource["process.pid"], span.resource["service.instance.id"]) for span in receiver.spans}
    assert len(instances) == len({pid for pid, _ in instances}) == len({instance for _, instance in instances})
    assert sorted(starts(log)) == sorted([*workers, first, spooler])
    # Under lazy-apps, a mule of older releases runs code at its end, too.
    assert sorted(ends(log)) in [sorted([*workers, *more]) for more in ([[], [first]] if lazy else [[first]])]


@pytest.mark.parametrize("mode", MODES)
def test_an_endpoint_that_never_answers_holds_up_the_end_no_longer_than_allowed(
    tmp_path: Path, mode: str, shown: Shown
) -> None:
    shown(mode, "hanging endpoint")
    took = {}
    with FaultServer(Step(act=never)) as endpoint:
        for traced in (False, True):
            folder = tmp_path / str(traced)
            folder.mkdir()
            env = environment(
                MACKEREL_OTEL_ENDPOINT=endpoint.url,
                MACKEREL_APIKEY="test-key",
                OTEL_SERVICE_NAME="shop",
                OTEL_SDK_DISABLED="" if traced else "true",
                MACKEREL_OTEL_SHUTDOWN_TIMEOUT="1",
                OTEL_BSP_SCHEDULE_DELAY="60000",
            )
            ini = f"{DOOR}{MODES[mode]}module = plain\n"
            with uwsgi(folder, ini, env=env, program=program(mode)) as server:
                server.ask_every_worker(2, 6)
                server.wait_until_idle()
                began = time.monotonic()
                log = server.stop()
                took[traced] = time.monotonic() - began
                server.wait_for_end_of_session()
    assert len(re.findall(r"warning: sent 0 spans in 0 requests, lost \d+ \(", log)) == 2, log
    assert took[True] < took[False] + 1 + 0.5 + LOADED, (took, log)


@pytest.mark.parametrize("delay", ["100", "60000"], ids=["in life", "at the end"])
@pytest.mark.parametrize("mode", ["gevent = 20", "gevent, patched"])
def test_under_gevent_spans_arrive_over_https(tmp_path: Path, mode: str, delay: str) -> None:
    authority = trustme.CA()
    certificates = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(certificates))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FaultServer(context=context) as endpoint:
        env = environment(
            MACKEREL_OTEL_ENDPOINT=endpoint.url,
            MACKEREL_APIKEY="test-key",
            OTEL_SERVICE_NAME="shop",
            OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificates),
            OTEL_BSP_SCHEDULE_DELAY=delay,
        )
        with uwsgi(tmp_path, f"{DOOR}{MODES[mode]}module = plain\n", env=env) as server:
            server.ask_every_worker(2, 6)
            server.wait_until_idle()
            if delay == "100":
                wait_until(lambda: len(endpoint.span_ids) == server.answered, "all arrive", lambda: server.log)
            log = server.stop()
        assert len(set(endpoint.span_ids)) == len(endpoint.span_ids) == server.answered, log
    assert len(ends(log)) == 2
    assert "Traceback" not in log


def test_what_waits_for_the_application_ends_quietly_where_gevent_patches_threads_meanwhile(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.5)\nfrom plain import application\n")
    patched = "lazy-apps = true\ngevent = 20\ngevent-monkey-patch = true\n"
    ini = f"{DOOR}master = true\n{patched}pythonpath = .\nmodule = slow\n"
    with uwsgi(tmp_path, ini, env=uwsgi_environment(receiver)) as server:
        server.ask_every_worker(2, 6)
        server.wait_until_idle()
        log = server.stop()
    assert "Exception ignored" not in log, log
    assert "Traceback" not in log, log


@pytest.mark.parametrize("mode", ["master", "threads", "gevent = 20", "no master"])
def test_processes_that_the_application_forks_send_nothing_twice(
    tmp_path: Path, receiver: Receiver, mode: str, shown: Shown
) -> None:
    shown(mode, "os.fork, multiprocessing")
    ini = f"{DOOR}{MODES.get(mode, '')}module = forking\n"
    # Python 3.12+ warns that a process with threads is forked; that is the case under test.
    env = environment(receiver, PYTHONDEVMODE="", PYTHONWARNINGS="ignore::DeprecationWarning", **KEEP)
    with uwsgi(tmp_path, ini, env=env, processes=1) as server:
        pids = set()
        for path in ("/first", "/exit", "/multiprocessing", "/exit", "/last"):
            response = server.get(path)
            if path != "/exit":
                # Whatever uWSGI makes of the exit in the child: the response is the application's own affair.
                pids.add(response.body.decode())
        server.wait_until_idle()
        log = server.stop()
        server.wait_for_end_of_session()
    assert len(pids) == 1
    # None of the children speaks, nor waits, for what its parent had queued; one has a span of its own.
    (other,) = [span for span in receiver.spans if span.kind != "SERVER"]
    child = str(other.resource["process.pid"])
    assert child not in pids
    assert (ends(log), log.count("info: sent"), log.count("warning: sent")) == ([child, *pids], 2, 0), log
    paths = Counter(span.attributes["url.path"] for span in server_spans(receiver.spans))
    assert paths == {"/first": 1, "/exit": 2, "/multiprocessing": 1, "/last": 1}, log
    assert {str(span.resource["process.pid"]) for span in server_spans(receiver.spans)} == pids
