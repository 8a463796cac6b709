"""What ``check`` says about Gunicorn's configuration, as Gunicorn itself reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from checking import INSTALL, KEY, WITHOUT_PRIVILEGE, Check, clean
from servers import environment, gunicorn

from mackerel_otel_server.cli.inspection.gunicorn import effective
from mackerel_otel_server.cli.receiver.endpoint import Receiver

pytestmark = pytest.mark.usefixtures("known_versions")

CONF = "gunicorn.conf.py"


def test_a_configuration_with_our_hooks_is_well(check: Check) -> None:
    result = check(files={CONF: f"workers = 3\ndef post_fork(server, worker): pass\n{INSTALL}"})
    assert result.status == 0
    assert result.levels() == {"OK"}
    result.has("OK", CONF, "installs the hooks")
    assert any(CONF in read and "is here" in read for read in result.data["read"])


def test_a_module_that_is_given_as_with_c_is_well_without_any_file(check: Check) -> None:
    result = check("--config", "python:mackerel_otel_server.conf")
    assert result.levels() == {"OK"}
    assert any("python:mackerel_otel_server.conf" in read for read in result.data["read"])


@pytest.mark.parametrize("location", ["own.py", "./own.py", "file:own.py", "python:own", "own.conf"])
def test_a_configuration_is_found_as_gunicorn_finds_it(check: Check, location: str) -> None:
    result = check(
        "--config", location, files={location.removeprefix("file:").replace("python:own", "own.py"): INSTALL}
    )
    result.has("OK", location, "installs the hooks")


def test_the_file_that_init_writes_is_found(check: Check) -> None:
    result = check(files={"mackerel_otel_server.conf": INSTALL})
    assert result.levels() == {"OK"}
    result.has("OK", "mackerel_otel_server.conf", "installs")


def test_gunicorn_cmd_args_name_the_configuration_and_change_it(check: Check) -> None:
    result = check(
        files={"own.py": INSTALL},
        GUNICORN_CMD_ARGS=f"-c own.py --timeout 3 -e MACKEREL_OTEL_SHUTDOWN_TIMEOUT=4 -e X={KEY}",
    )
    result.has("OK", "own.py", "installs")
    result.has("WARN", "MACKEREL_OTEL_SHUTDOWN_TIMEOUT (4 s)", "timeout (3 s)", "kills")


def test_no_hooks_is_a_failure_with_the_lines_to_type(check: Check) -> None:
    result = check(files={CONF: "workers = 2\n"})
    assert result.status == 1
    result.has("FAIL", "no hooks of this package", "no request is traced", INSTALL.strip())


def test_an_import_without_install_is_a_failure(check: Check) -> None:
    result = check(files={CONF: "from mackerel_otel_server.gunicorn import install\n"})
    result.has("FAIL", "imports mackerel_otel_server.gunicorn", "none of its hooks", "install(globals())")


@pytest.mark.parametrize("application", ["mysite.wsgi:application", None])
def test_an_application_that_calls_instrument_needs_no_hooks(check: Check, application: str | None) -> None:
    files = {
        CONF: f"wsgi_app = {application!r}\n",
        "mysite/wsgi.py": "import mackerel_otel_server\nmackerel_otel_server.instrument()\n",
    }
    result = check(files=files)
    result.has("OK", "wsgi.py uses it")
    assert result.status == 0


INSTRUMENT = "import mackerel_otel_server\nmackerel_otel_server.instrument()\n"


@pytest.mark.parametrize(
    "files",
    [
        {"mysite/__init__.py": INSTRUMENT, "mysite/wsgi.py": "def application(environ, start_response): ...\n"},
        {"mysite/wsgi.py": "from . import tracing\n", "mysite/tracing.py": INSTRUMENT},
        {
            "mysite/wsgi.py": "from mysite.config.tracing import start\nstart()\n",
            "mysite/config/tracing.py": "from mackerel_otel_server import instrument as start\nstart()\n",
        },
        {"mysite/wsgi.py": "import one\n", "one.py": "import two.three\n", "two/three.py": INSTRUMENT},
        {"mysite/wsgi.py": "import far\n", "lib/far/__init__.py": INSTRUMENT},
        {"mysite/wsgi.py": "# \xe9: latin-1\nPATTERN = '\\d'\n" + INSTRUMENT},
    ],
    ids=["its package", "beside it", "under another name", "two levels", "pythonpath", "a string that warns"],
)
def test_instrument_in_a_module_that_the_application_imports_needs_no_hooks(
    check: Check, files: dict[str, str]
) -> None:
    conf = "wsgi_app = 'mysite.wsgi'\npythonpath = 'lib'\n"
    result = check(files={CONF: conf, **files})
    result.has(
        "OK", "has no hooks of this package", "uses it", *[f"/{name}" for name in files if "instrument" in files[name]]
    )
    assert result.status == 0


@pytest.mark.parametrize(
    "files",
    [
        {"mysite/wsgi.py": "# mackerel_otel_server.instrument()\n"},
        {"mysite/wsgi.py": "from mackerel_otel_server import trace_wsgi\n\n@trace_wsgi\ndef application(*_): ...\n"},
        {"mysite/wsgi.py": "import mackerel_otel_server.uwsgi\n"},
        {"mysite/wsgi.py": "def f(:\n"},
        {"mysite/wsgi.py": "import sys\nraise SystemExit\n", "mysite/other.py": INSTRUMENT},
        {"mysite/wsgi.py": "import venv_\n", "lib/site-packages/venv_/__init__.py": INSTRUMENT},
    ],
    ids=["a comment", "trace_wsgi alone", "the door of uWSGI", "no Python", "not imported", "of others"],
)
def test_an_application_that_only_looks_as_if_it_traced_itself_is_a_failure(
    check: Check, files: dict[str, str]
) -> None:
    conf = "wsgi_app = 'mysite.wsgi'\npythonpath = 'lib/site-packages'\n"
    check(files={CONF: conf, **files}).has("FAIL", "no hooks of this package", "no request is traced")


HOOK = "def post_fork(server, worker):\n    from mackerel_otel_server import instrument\n    instrument()\n"


@pytest.mark.parametrize(
    ("files", "level", "words"),
    [
        ({CONF: HOOK}, "OK", "instrument() is called in one of its own hooks"),
        ({CONF: "from helpers import post_fork\n", "helpers.py": HOOK}, "OK", "helpers.py"),
        ({CONF: INSTRUMENT}, "WARN", "calls instrument() while Gunicorn reads it"),
    ],
    ids=["a hook", "a hook of another file", "while it is read"],
)
def test_instrument_in_the_configuration_does_what_check_says_of_it(  # noqa: PLR0913, PLR0917 - pytest fills them
    check: Check, tmp_path: Path, receiver: Receiver, files: dict[str, str], level: str, words: str
) -> None:
    result = check(files=files)
    result.has(level, words)
    assert result.status == 0
    assert "sets a tracer provider" not in result.text
    with gunicorn(tmp_path, conf=CONF, env=environment(receiver), workers=1) as server:
        assert server.get("/own").status == 200
        server.stop()
    # The application is a plain callable.
    assert [span.kind for span in receiver.spans if span.kind == "SERVER"] == ["SERVER"] * (level == "OK")


def test_what_the_configuration_sets_is_in_force_and_says_whence_it_is(
    check: Check, tmp_path: Path, receiver: Receiver
) -> None:
    conf = (
        "import os\n"
        f"os.environ['MACKEREL_APIKEY'] = {KEY!r}\n"
        "os.environ['OTEL_SERVICE_NAME'] = 'of-the-file'\n"
        "os.environ.setdefault('OTEL_BSP_SCHEDULE_DELAY', '7000')\n"
        f"os.environ['OTEL_RESOURCE_ATTRIBUTES'] = 'service.version=3'\n{INSTALL}"
    )
    result = check(files={CONF: conf}, MACKEREL_APIKEY="", OTEL_SERVICE_NAME="", OTEL_RESOURCE_ATTRIBUTES="a=b")
    assert result.levels() == {"OK"}, result.text
    shown = {one["name"]: (one["value"], one["origin"]) for one in result.data["settings"]}
    assert shown["MACKEREL_APIKEY"] == ("****", f"MACKEREL_APIKEY, set by {tmp_path / CONF}")
    assert shown["OTEL_SERVICE_NAME"] == ("of-the-file", f"OTEL_SERVICE_NAME, set by {tmp_path / CONF}")
    assert shown["OTEL_BSP_SCHEDULE_DELAY"] == ("7000", f"OTEL_BSP_SCHEDULE_DELAY, set by {tmp_path / CONF}")
    assert shown["service.version"] == ("3", f"OTEL_RESOURCE_ATTRIBUTES, set by {tmp_path / CONF}")
    assert shown["OTEL_SEMCONV_STABILITY_OPT_IN"][1] == "default"
    env = environment(receiver)
    del env["OTEL_SERVICE_NAME"]
    (tmp_path / CONF).write_text(conf.replace(KEY, "test-key"))
    with gunicorn(tmp_path, conf=None, env=env, workers=1) as server:
        assert server.get("/").status == 200
        server.stop()
    (span,) = receiver.spans
    assert span.resource["service.name"] == "of-the-file"


def test_raw_env_goes_before_what_the_configuration_sets(check: Check) -> None:
    conf = f"import os\nos.environ['OTEL_SERVICE_NAME'] = 'of-the-file'\nraw_env = ['OTEL_SERVICE_NAME=raw']\n{INSTALL}"
    shown = {one["name"]: one for one in check(files={CONF: conf}).data["settings"]}
    assert shown["OTEL_SERVICE_NAME"]["value"] == "raw"
    assert shown["OTEL_SERVICE_NAME"]["origin"] == "OTEL_SERVICE_NAME, set by Gunicorn's raw_env"


def test_names_of_files_are_relative_to_the_folder_of_the_workers(
    check: Check, tmp_path: Path, receiver: Receiver
) -> None:
    conf = f"chdir = 'sub'\n{INSTALL}"
    files = {CONF: conf, "sub/key": KEY, "sub/authority.pem": trustme.CA().cert_pem.bytes().decode()}
    env = {"MACKEREL_APIKEY": "", "MACKEREL_APIKEY_FILE": "key", "OTEL_EXPORTER_OTLP_CERTIFICATE": "authority.pem"}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/key").touch(0o600)
    result = check(files=files, **env)
    assert result.levels() == {"OK"}, result.text
    assert Path.cwd() == tmp_path
    (tmp_path / "sub/key").rename(tmp_path / "key")
    check(files={CONF: conf}, **env).has("FAIL", "MACKEREL_APIKEY_FILE='key' cannot be read")
    # As the workers do it.
    (tmp_path / "sub/key").write_text("test-key")
    (tmp_path / "key").unlink()
    environ = environment(receiver, MACKEREL_APIKEY_FILE="key")
    del environ["MACKEREL_APIKEY"]
    with gunicorn(tmp_path, conf=None, env=environ, workers=1) as server:
        assert server.get("/").status == 200
        server.stop()
    assert len(receiver.spans) == 1


@pytest.mark.parametrize("chdir", ["nowhere", "a-file"])
@pytest.mark.parametrize("how", ["file", "GUNICORN_CMD_ARGS"])
def test_a_chdir_that_leads_nowhere_is_a_failure(check: Check, tmp_path: Path, chdir: str, how: str) -> None:
    conf = f"chdir = {chdir!r}\n{INSTALL}" if how == "file" else INSTALL
    env = {} if how == "file" else {"GUNICORN_CMD_ARGS": f"--chdir {chdir}"}
    result = check("--server", "gunicorn", files={CONF: conf, "a-file": ""}, **env)
    result.has("FAIL", "chdir leads to no folder", chdir, "make that folder", str(tmp_path))


def test_a_variable_that_the_configuration_removes_is_not_in_force(check: Check) -> None:
    result = check(files={CONF: f"import os\ndel os.environ['MACKEREL_APIKEY']\n{INSTALL}"})
    result.has("FAIL", "there is no API key")


def test_without_any_configuration_it_says_what_is_not_known(check: Check) -> None:
    result = check("--server", "gunicorn")
    assert result.status == 0
    result.has("WARN", "finds no configuration file", "--config python:mackerel_otel_server.conf")


def test_a_hook_that_is_defined_after_ours_is_a_failure_where_it_loses_the_requests(check: Check) -> None:
    result = check(files={CONF: f"{INSTALL}def post_worker_init(worker): pass\ndef on_reload(server): pass\n"})
    result.has("FAIL", "overwritten", f"post_worker_init ({Path.cwd()}/{CONF}:3)", "no request is traced", "to the end")


def test_a_hook_of_less_weight_that_is_overwritten_is_a_warning(check: Check) -> None:
    result = check(files={CONF: f"{INSTALL}def on_reload(server): pass\n"})
    assert result.status == 0
    result.has("WARN", "overwritten", "on_reload", "not said at a reload")


@pytest.mark.parametrize("overwritten", [False, True])
def test_the_overwritten_hook_that_is_a_failure_does_lose_the_requests(
    tmp_path: Path, receiver: Receiver, overwritten: bool
) -> None:
    hook = "def post_worker_init(worker): pass\n"
    (tmp_path / "own.py").write_text(INSTALL + hook if overwritten else hook + INSTALL)
    with gunicorn(tmp_path, conf="own.py", env=environment(receiver), workers=1) as server:
        assert server.get("/own").status == 200
        server.stop()
    assert receiver.wait_for(lambda r: any(span.name == "own" for span in r.spans), 10) or overwritten
    assert any(span.kind == "SERVER" for span in receiver.spans) is not overwritten


def test_gunicorn_s_own_file_is_ignored_beside_another_one(check: Check) -> None:
    result = check("--config", "python:mackerel_otel_server.conf", files={CONF: "workers = 9\n"})
    assert result.status == 0
    result.has("WARN", f"{CONF} is ignored", "python:mackerel_otel_server.conf", "leave -c out", INSTALL.strip())


def test_gunicorn_s_own_file_under_another_name_is_not_ignored(check: Check) -> None:
    assert check("--config", f"./{CONF}", files={CONF: INSTALL}).levels() == {"OK"}


def test_gevent_with_modules_that_it_patches_too_late(check: Check, need: Callable[[str], None]) -> None:
    need("gevent")
    result = check(files={CONF: f"import requests\nworker_class = 'gevent'\npreload_app = True\n{INSTALL}"})
    assert result.status == 0
    result.has(
        "WARN", "imports requests, urllib3 before gevent has patched ssl", "RecursionError", "monkey.patch_all()"
    )
    result.has("WARN", "preload_app loads the application before gevent")


def test_gevent_that_the_configuration_has_patched_itself_is_well(check: Check, need: Callable[[str], None]) -> None:
    need("gevent")
    conf = f"from gevent import monkey\nmonkey.patch_all()\nimport requests\nworker_class = 'gevent'\n{INSTALL}"
    assert check(files={CONF: conf}).levels() == {"OK"}


def test_the_same_imports_without_gevent_are_well(check: Check) -> None:
    assert check(files={CONF: f"import requests\npreload_app = True\n{INSTALL}"}).levels() == {"OK"}


def test_blanks_and_quotes_in_raw_env_are_told(check: Check) -> None:
    items = [f"MACKEREL_APIKEY = {KEY}", "'OTEL_SERVICE_NAME=shop'", 'OTEL_TRACES_EXPORTER="otlp"']
    conf = f"raw_env = {items}\n{INSTALL}"
    result = check(files={"gunicorn.conf.py": conf}, MACKEREL_APIKEY="", OTEL_SERVICE_NAME="")
    result.has("WARN", "'MACKEREL_APIKEY ' holds a quote or a blank", "nobody reads", "type MACKEREL_APIKEY=… without")
    result.has("WARN", '"\'OTEL_SERVICE_NAME" holds a quote or a blank', "type OTEL_SERVICE_NAME=… without")
    result.has("FAIL", "OTEL_TRACES_EXPORTER='\"otlp\"'")


def test_a_key_in_raw_env_is_used_and_warned_about_and_not_shown(check: Check) -> None:
    conf = f"raw_env = ['MACKEREL_APIKEY={KEY}', 'OTEL_SERVICE_NAME=of-raw-env']\n{INSTALL}"
    result = check(files={CONF: conf}, MACKEREL_APIKEY="", OTEL_SERVICE_NAME="")
    assert result.status == 0, result.text
    result.has("WARN", "MACKEREL_APIKEY is given by raw_env", "--print-config", "MACKEREL_APIKEY_FILE")
    assert "no service name" not in result.text


def test_a_shutdown_timeout_above_gunicorn_s_own_is_a_warning(check: Check) -> None:
    conf = f"timeout = 0\ngraceful_timeout = 10\n{INSTALL}"
    result = check(files={CONF: conf}, MACKEREL_OTEL_SHUTDOWN_TIMEOUT="10")
    result.has("WARN", "MACKEREL_OTEL_SHUTDOWN_TIMEOUT (10 s)", "graceful_timeout (10 s)", "TIMEOUT=4")
    assert check(MACKEREL_OTEL_SHUTDOWN_TIMEOUT="9").levels() == {"OK"}


def test_worker_classes_have_their_notes(check: Check, need: Callable[[str], None]) -> None:
    need("tornado")
    need("uvicorn_worker")
    result = check(files={CONF: f"worker_class = 'tornado'\n{INSTALL}"})
    assert result.levels() == {"OK"}
    result.has("OK", "tornado", "WSGI application make server spans", "tornado.web.Application")
    conf = f"worker_class = 'uvicorn_worker.UvicornWorker'\n{INSTALL}"
    check(files={CONF: conf}).has("OK", "UvicornWorker", "lifespan", "'asgi'")
    result = check(files={CONF: f"worker_class = 'no.such.Worker'\n{INSTALL}"})
    result.has("FAIL", "'no.such.Worker' cannot be loaded", "does not start")


@pytest.mark.parametrize(
    "line",
    [
        "import opentelemetry.sdk.trace as sdk\nsdk.trace_api.set_tracer_provider(sdk.TracerProvider())\n",
        "def post_fork(server, worker):\n    from opentelemetry import trace\n    trace.set_tracer_provider(make())\n",
    ],
)
def test_a_configuration_that_sets_a_provider_itself_is_a_failure(check: Check, line: str) -> None:
    result = check(files={CONF: line + INSTALL})
    result.has("FAIL", CONF, "sets a tracer provider itself", "stays off")


def test_another_user_than_the_workers_may_read_other_files(check: Check, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    conf = f"user = {os.geteuid() + 12345}\n{INSTALL}"
    env = {"MACKEREL_APIKEY": "", "MACKEREL_APIKEY_FILE": "key"}
    result = check(files={CONF: conf}, **env)
    result.has("WARN", f"run as user {os.geteuid() + 12345}", "MACKEREL_APIKEY_FILE", "sudo -u")
    check(files={CONF: conf}, MACKEREL_APIKEY_FILE="").has("OK", f"run as user {os.geteuid() + 12345}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1\n\ndef f(:\n", (f"{CONF}:3: SyntaxError",)),
        ("x = 1\nraise ValueError('bad ' * 2)\n", (f"{CONF}:2: ValueError: bad bad",)),
        (f"raise ValueError('{KEY}')\n", (f"{CONF}:1: ValueError: ****",)),
        ("import sys\n\n\nsys.exit('no')\n", (f"{CONF}:4: it calls sys.exit('no')",)),
        ("import sys\nsys.exit()\n", (f"{CONF}:2: it calls sys.exit(None)",)),
        ("quit()\n", (f"{CONF}:1: it calls sys.exit(None)",)),
        ("raise KeyboardInterrupt\n", (f"{CONF}:1: KeyboardInterrupt",)),
        ("name = input('name? ')\n", (f"{CONF}:1: EOFError",)),
        ("def f(): f()\nf()\n", (f"{CONF}:2: RecursionError",)),
        ("import no_such_module\n", (f"{CONF}:1: ModuleNotFoundError: No module named 'no_such_module'",)),
        ("workers = 'many'\n", ("workers: ValueError",)),
        ("def post_fork(*args): pass\n", ("post_fork: TypeError", "arity")),
        ("raw_env = ['nothing']\n", ("an item of raw_env", "NAME=value")),
        ("import os\nos._exit(0)\n", ("ends the process",)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else "",
)
def test_a_configuration_that_cannot_be_read_is_one_failure_with_its_place(
    check: Check, content: str, words: tuple[str, ...]
) -> None:
    result = check(files={CONF: content})
    result.has("FAIL", *words)
    assert result.status == 1
    assert "Traceback" not in result.text


@pytest.mark.parametrize("end", ["chdir = 'nowhere'", "1 / 0"])
def test_what_a_configuration_has_set_before_it_fails_is_no_further_failure(check: Check, end: str) -> None:
    conf = f"import os\nos.environ['MACKEREL_APIKEY'] = {KEY!r}\nraw_env = ['OTEL_SERVICE_NAME=raw']\n{end}\n"
    result = check(files={CONF: conf}, MACKEREL_APIKEY="", OTEL_SERVICE_NAME="")
    assert [one["level"] for one in result.data["findings"] if one["level"] != "OK"] == ["FAIL"]
    result.has("OK", "the service name is 'raw'")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("nothing.py", "nothing.py cannot be read"),
        (".", ". cannot be read"),
        ("python:no_such_module", "python:no_such_module: No module named"),
    ],
)
def test_a_configuration_that_is_not_there_is_a_failure(check: Check, location: str, words: str) -> None:
    result = check("--server", "gunicorn", "--config", location)
    assert result.status == 1
    finding = result.about(words.partition(": ")[0], "name a ")
    assert finding["level"] == "FAIL"


def test_options_that_gunicorn_does_not_know_are_a_failure(check: Check) -> None:
    check("--server", "gunicorn", GUNICORN_CMD_ARGS="--nonsense").has("FAIL", "GUNICORN_CMD_ARGS", "gunicorn --help")


def test_a_configuration_that_hangs_is_ended(check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(effective, "SECONDS", 2.0)
    began = time.monotonic()
    conf = "import os, time, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    result = check(files={CONF: conf})
    result.has("FAIL", CONF, "not read within 2 s: it hangs")
    assert time.monotonic() - began < 30
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


@pytest.mark.parametrize(
    "conf",
    ["while True: pass\n", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass\n"],
    ids=["endless", "deaf"],
)
def test_a_configuration_without_end_is_ended(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, conf: str
) -> None:
    monkeypatch.setattr(effective, "SECONDS", 2.0)
    began = time.monotonic()
    pid = "import os, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    result = check(files={CONF: pid + conf})
    result.has("FAIL", CONF, "not read within 2 s: it hangs")
    assert result.status == 1
    assert time.monotonic() - began < 40
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_a_configuration_that_starts_a_thread_without_end_is_read(check: Check, tmp_path: Path) -> None:
    conf = (
        "import os, pathlib, threading\npathlib.Path('pid').write_text(str(os.getpid()))\n"
        f"threading.Thread(target=threading.Event().wait).start()\n{INSTALL}"
    )
    assert check(files={CONF: conf}).levels() == {"OK"}
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_a_configuration_that_prints_without_measure_is_read(check: Check) -> None:
    conf = f"import sys\nfor _ in range(100): print('noise ' * 10_000)\nsys.stdout.write('{{}}')\n{INSTALL}"
    result = check(files={CONF: conf})
    assert result.levels() == {"OK"}
    assert "noise" not in result.text


def test_what_a_configuration_does_to_its_process_harms_nobody(check: Check, tmp_path: Path) -> None:
    conf = (
        "import os, sys\nprint('noise', file=sys.stderr)\nprint('noise')\nos.chdir('/')\n"
        f"os.environ['OTEL_SERVICE_NAME'] = 'of-the-file'\n{INSTALL}"
    )
    result = check(files={CONF: conf})
    assert result.levels() == {"OK"}
    assert "noise" not in result.text
    assert Path.cwd() == tmp_path
    assert os.environ["OTEL_SERVICE_NAME"] == "shop"


def test_a_module_in_the_working_directory_shadows_nothing(check: Check) -> None:
    files = {CONF: INSTALL, "gunicorn.py": "raise SystemExit", "json.py": "raise SystemExit"}
    assert check(files=files).levels() == {"OK"}


def test_gunicorn_that_is_not_installed_is_a_failure(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effective, "find_spec", lambda _name: None)
    result = check(files={CONF: INSTALL})
    result.has("FAIL", "Gunicorn is not installed", "pip install gunicorn, or run")


def test_a_configuration_that_is_no_regular_file_is_a_failure_at_once(check: Check, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CONF)
    began = time.monotonic()
    check().has("FAIL", CONF, "cannot be read: it is no regular file")
    assert time.monotonic() - began < effective.SECONDS
    (tmp_path / CONF).unlink()
    (tmp_path / CONF).mkdir()
    check().has("FAIL", CONF, "cannot be read: it is a folder")


@pytest.mark.parametrize("content", [b"\0\0\0", b"name = '\xe9'\n", b"\x7fELF\x02\x01"], ids=ascii)
def test_a_configuration_that_is_no_text_is_one_failure(check: Check, tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONF).write_bytes(content)
    result = check()
    result.has("FAIL", CONF, "gunicorn --check-config says more")
    assert "Traceback" not in result.text


@pytest.mark.parametrize("named", [CONF, "key", "authority.pem"])
def test_a_file_without_permission_is_a_failure(tmp_path: Path, named: str) -> None:
    (tmp_path / CONF).write_text(INSTALL)
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "authority.pem").write_bytes(trustme.CA().cert_pem.bytes())
    env = {
        "MACKEREL_APIKEY_FILE": "key",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "authority.pem",
        "OTEL_SERVICE_NAME": "shop",
    }

    def failures() -> list[str]:
        result = subprocess.run(
            [*WITHOUT_PRIVILEGE, sys.executable, "-m", "mackerel_otel_server", "check", "--json"],
            cwd=tmp_path,
            env=clean(os.environ) | env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert result.stderr == ""
        return [one["seen"] for one in json.loads(result.stdout)["findings"] if one["level"] == "FAIL"]

    assert failures() == []
    (tmp_path / named).chmod(0)
    (seen,) = failures()
    assert named in seen
    assert "Permission denied" in seen
