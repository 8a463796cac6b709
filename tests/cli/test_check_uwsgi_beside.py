"""What ``check`` says about a uWSGI configuration is what a real uWSGI does with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import DEBIAN_UWSGI, Server, debian_uwsgi, environment, running, server_spans, uwsgi, wait_until

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

if TYPE_CHECKING:
    from checking import Check

BASE = "master = true\nenable-threads = true\n"
DOOR = f"import = mackerel_otel_server.uwsgi\n{BASE}"
PLAIN = "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
KEPT = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""Only the end of a worker sends what is queued."""


def serve(
    folder: Path, receiver: Receiver, ini: str, *paths: str, program: Sequence[str] = (), **variables: str
) -> tuple[list[ReceivedSpan], str]:
    """Ask a real uWSGI for these paths; return its server spans and its log."""
    with uwsgi(folder, ini, env=environment(receiver, **variables), processes=1, program=program) as server:
        for path in paths:
            assert server.get(path).status == 200
        server.wait_until_idle()
        log = server.stop()
    return server_spans(receiver.spans), log


IMPORTS = [
    f"{shared}{name}" for shared in ("", "shared-") for name in ("import", "pyimport", "py-import", "python-import")
]


@pytest.mark.parametrize("option", IMPORTS)
def test_every_option_that_imports_the_door_traces(
    check: Check, tmp_path: Path, receiver: Receiver, option: str
) -> None:
    ini = f"{option} = mackerel_otel_server.uwsgi\n{BASE}"
    assert check(files={"uwsgi.ini": f"[uwsgi]\n{ini}"}).levels() == {"OK"}
    spans, log = serve(tmp_path, receiver, f"{ini}module = plain\n", "/")
    assert len(spans) == 1, log


def test_an_import_for_the_spooler_alone_does_not(check: Check, tmp_path: Path, receiver: Receiver) -> None:
    ini = f"spooler-import = mackerel_otel_server.uwsgi\n{BASE}"
    check(files={"uwsgi.ini": f"[uwsgi]\n{ini}"}).has("FAIL", "does not import mackerel_otel_server.uwsgi")
    spans, _ = serve(tmp_path, receiver, f"{ini}module = plain\n", "/")
    assert spans == []


MOUNTS = [
    ("mount = /x=site_.py\n", "/x/", True),
    ("mount = /x=site_:application\n", "/x/", True),
    ("mount = /x=site_:Application\n", "/x/", True),
    ("mount = /x=site_:make()\n", "/x/", True),
    ("mount = /x=web:application\n", "/x/items/7", False),
    ("mount = /x=site_:application\nmodule = site_:application\n", "/x/", False),
    ("mount = /x=site_:application\nmodule = site_\ncallable = application\n", "/x/", False),
]


@pytest.mark.parametrize("case", MOUNTS, ids=lambda case: case[0].strip())
def test_a_mounted_plain_callable_is_warned_about_where_it_is_not_traced(
    check: Check, tmp_path: Path, receiver: Receiver, case: tuple[str, str, bool]
) -> None:
    mount, path, is_plain = case
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "site_.py").write_text(
        f"{PLAIN}class Application:\n    def __init__(self, environ, start_response):\n"
        "        start_response('200 OK', [])\n    def __iter__(self):\n        return iter([b''])\n"
        "def make():\n    return application\n"
    )
    (tmp_path / "lib" / "web.py").write_text("from web_flask import app as application\n")
    mount = mount.replace("site_.py", "lib/site_.py")
    ini = f"{DOOR}manage-script-name = true\nsingle-interpreter = true\npythonpath = lib\n{mount}"
    result = check(files={"x.ini": f"[uwsgi]\n{ini}"})
    if is_plain:
        result.has("WARN", "site_.py is a plain callable", "make no server spans", "trace_wsgi")
    else:
        assert result.levels() == {"OK"}
    spans, log = serve(tmp_path, receiver, ini, path)
    assert (len(spans), "make no server spans" in log) == ((0, True) if is_plain else (1, False)), log


def test_a_mounted_module_that_is_not_here_is_not_known_and_a_framework_s_own_is(check: Check) -> None:
    ini = f"[uwsgi]\n{DOOR}mount = /x="
    check(files={"uwsgi.ini": f"{ini}elsewhere:app\n"}).has("WARN", "elsewhere is not in", "not known")
    assert check(files={"uwsgi.ini": f"{ini}django.core.wsgi:get_wsgi_application()\n"}).levels() == {"OK"}


def test_a_blank_before_the_equals_sign_of_a_variable(check: Check, tmp_path: Path, receiver: Receiver) -> None:
    ini = f"{DOOR}env = MACKEREL_APIKEY = {receiver.url}\n"
    result = check(files={"uwsgi.ini": f"[uwsgi]\n{ini}"}, MACKEREL_APIKEY="")
    result.has("FAIL", "env = MACKEREL_APIKEY =…", "nobody reads 'MACKEREL_APIKEY '", "env = MACKEREL_APIKEY=…")
    result.has("FAIL", "there is no API key")
    spans, log = serve(tmp_path, receiver, f"{ini}module = plain\n", "/", MACKEREL_APIKEY="")
    assert spans == []
    assert "there is no API key" in log


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_in_an_env_line_are_a_part_of_the_value_for_uwsgi(
    check: Check, tmp_path: Path, receiver: Receiver, quote: str
) -> None:
    lines = f"env = MACKEREL_APIKEY={quote}test-key{quote}\nenv = OTEL_SERVICE_NAME={quote}shop{quote}\n"
    result = check(files={"uwsgi.ini": f"[uwsgi]\n{DOOR}{lines}"}, MACKEREL_APIKEY="", OTEL_SERVICE_NAME="")
    key = result.about("MACKEREL_APIKEY holds quotes")
    assert key == {
        "level": "FAIL",
        "seen": "MACKEREL_APIKEY holds quotes beside the API key",
        "follows": "Mackerel refuses the key, and no span arrives: uWSGI keeps them",
        "cure": "write the line env = MACKEREL_APIKEY= and the API key alone",
        "variable": "",
    }
    result.has("WARN", "OTEL_SERVICE_NAME=", "uWSGI keeps them", "write the line env = OTEL_SERVICE_NAME=shop")
    env = {"MACKEREL_APIKEY": "", "OTEL_SERVICE_NAME": ""}
    spans, log = serve(tmp_path, receiver, f"{DOOR}{lines}module = plain\n", "/", **env)
    assert spans == []
    shown = {'"': "'\"shop\"'", "'": "\"'shop'\""}[quote]
    assert f"sends traces as {shown}" in log
    assert "Invalid API Key" in log
    # The same in the environment is not uWSGI's doing.
    cure = check(MACKEREL_APIKEY='"test-key"', files={"uwsgi.ini": f"[uwsgi]\n{DOOR}"}).about("holds quotes")["cure"]
    assert cure == "type MACKEREL_APIKEY= and the API key alone"


def test_quotes_around_a_whole_env_line_are_a_part_of_the_name(
    check: Check, tmp_path: Path, receiver: Receiver
) -> None:
    lines = "env = 'MACKEREL_APIKEY=test-key'\n"
    result = check(files={"uwsgi.ini": f"[uwsgi]\n{DOOR}{lines}"}, MACKEREL_APIKEY="")
    result.has("WARN", '"\'MACKEREL_APIKEY" holds a quote', "nobody reads", "write the line env = MACKEREL_APIKEY=…")
    result.has("FAIL", "there is no API key")
    _, log = serve(tmp_path, receiver, f"{DOOR}{lines}module = plain\n", "/", MACKEREL_APIKEY="")
    assert "there is no API key" in log


def test_a_key_in_a_file_of_its_own_is_read_and_the_ini_file_may_be_open(
    check: Check, tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "key").write_text("test-key\n")
    (tmp_path / "key").chmod(0o600)
    ini = f"{DOOR}env = MACKEREL_APIKEY=@({tmp_path / 'key'})\n"
    result = check(files={"x.ini": f"[uwsgi]\n{ini}"}, MACKEREL_APIKEY="")
    result.has("OK", "MACKEREL_APIKEY is set by an env line")
    result.has("OK", "the API key is given by MACKEREL_APIKEY")
    assert "test-key" not in result.text
    (tmp_path / "key").chmod(0o644)
    check(MACKEREL_APIKEY="").has("WARN", "MACKEREL_APIKEY is set by an env line", f"chmod o-r {tmp_path / 'key'}")
    spans, log = serve(tmp_path, receiver, f"{ini}module = plain\n", "/", MACKEREL_APIKEY="")
    assert len(spans) == 1, log
    (tmp_path / "key").unlink()
    check("--config", "x.ini", MACKEREL_APIKEY="").has(
        "FAIL", "which cannot be read (No such file", "does not start", "name a file"
    )
    result = check("--config", "x.ini", files={"x.ini": f"[uwsgi]\n{DOOR}env = A=@(exec://rm secret)\n"})
    result.has("WARN", "@(exec://…): only files", "the log of the server")
    assert "rm secret" not in result.text


def refuses(folder: Path, ini: str, program: Sequence[str] = ()) -> str:
    """Start a uWSGI that ends at once; return its log."""
    (folder / "refused.ini").write_text(f"[uwsgi]\nhttp-socket = 127.0.0.1:0\n{ini}")
    command = [*(program or [str(Path(sys.executable).with_name("pyuwsgi"))]), "--ini", "refused.ini"]
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    return result.stdout + result.stderr


def test_a_chdir_that_leads_nowhere(check: Check, tmp_path: Path) -> None:
    ini = f"{DOOR}chdir = {tmp_path / 'nowhere'}\nmodule = plain\n"
    result = check(files={"uwsgi.ini": f"[uwsgi]\n{ini}"})
    result.has("FAIL", f"chdir = {tmp_path / 'nowhere'}", "uWSGI does not start", "correct that line")
    assert "chdir(): No such file or directory" in refuses(tmp_path, ini)
    check(files={"uwsgi.ini": f"[uwsgi]\n{DOOR}chdir = src\n", "src/x": ""}).levels()
    assert check().levels() == {"OK"}


def test_placeholders_that_nothing_fills_in(check: Check) -> None:
    ini = f"[uwsgi]\n{DOOR}log-format = %(uri) $(NOTHING)\nenv = OTEL_SERVICE_NAME=%(name)-$(STAGE)\n"
    result = check(files={"uwsgi.ini": ini}, OTEL_SERVICE_NAME="")
    result.has("WARN", "%(name) in a line env = …", "as it is written", "set-placeholder = name=VALUE")
    result.has("WARN", "$(STAGE) in a line env = …", "as it is written", "STAGE=VALUE")
    assert not [finding for finding in result.data["findings"] if "NOTHING" in finding["seen"]]
    # Another line's variable is not there yet.
    result = check(files={"uwsgi.ini": f"{ini}name = shop\nenv = STAGE=x\n"}, OTEL_SERVICE_NAME="")
    result.has("WARN", "$(STAGE) in a line env = …")
    assert check(files={"uwsgi.ini": f"{ini}name = shop\n"}, OTEL_SERVICE_NAME="", STAGE="x").levels() == {"OK"}


def test_what_serves_under_an_emperor_is_a_vassal(check: Check, tmp_path: Path, receiver: Receiver) -> None:
    vassal = "[uwsgi]\nhttp-socket = 127.0.0.1:0\nmaster = true\nenable-threads = true\n"
    files = {"vassals/shop.ini": f"{vassal}import = mackerel_otel_server.uwsgi\nmodule = plain\n"}
    result = check("--config", "e.ini", files={**files, "e.ini": "[uwsgi]\nemperor = vassals\n"})
    result.has("WARN", "e.ini starts vassals", "decides whether", "check --server uwsgi --config vassals/shop.ini")
    assert not [finding for finding in result.data["findings"] if "import" in finding["seen"]]
    assert check("--config", "vassals/shop.ini").levels() == {"OK"}
    result = check("--config", "e.ini", files={"e.ini": "[uwsgi]\nemperor = vass*/s*.ini\n"})
    result.has("WARN", "emperor = vass*/s*.ini", "--config vassals/shop.ini")
    # The ini file that is an emperor's imports nothing, and its vassal is traced.
    program = str(Path(sys.executable).with_name("pyuwsgi"))
    (tmp_path / "e.ini").write_text(
        f"[uwsgi]\nemperor = {tmp_path / 'vassals'}\nemperor-wrapper = {program}\ndie-on-term = true\n"
    )
    env = environment(receiver)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], *packages])
    server = Server([program, "--ini", "e.ini"], tmp_path / "uwsgi.log", cwd=tmp_path, env=env)
    with running(server):
        server.find_port()
        assert server.get("/").status == 200
        wait_until(lambda: server_spans(receiver.spans), "the span arrives", lambda: server.log)
        server.wait_until_idle()
        server.stop()


@pytest.mark.parametrize("delay", ["100", "60000"], ids=["in life", "at the end"])
def test_in_async_mode_what_is_queued_at_the_end_is_not_sent(
    check: Check, tmp_path: Path, receiver: Receiver, delay: str
) -> None:
    ini = f"{DOOR}async = 4\n"
    result = check(files={"x.ini": f"[uwsgi]\n{ini}"})
    result.has(
        "WARN", "async = 4", "what it has queued, up to OTEL_BSP_SCHEDULE_DELAY, waits in the journal", "threads = 4"
    )
    assert check(files={"x.ini": f"[uwsgi]\n{ini}gevent = 4\n"}).levels() == {"OK"}
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY=delay)
    with uwsgi(tmp_path, f"{ini}module = plain\n", env=env, processes=1) as server:
        assert server.get("/own").status == 200
        if delay == "100":
            wait_until(lambda: len(receiver.spans) == 2, "the spans arrive", lambda: server.log)
        server.wait_until_idle()
        server.stop()
    spans = {span.name: span for span in receiver.spans}
    assert sorted(spans) == (["GET", "own"] if delay == "100" else [])
    if spans:
        assert spans["own"].parent_span_id == spans["GET"].span_id


EXCEPTIONS = ["reload-on-exception = true\n", "reload-on-exception-value = this route fails\n", ""]


@pytest.mark.parametrize("journal", [{}, {"MACKEREL_OTEL_SPOOL": "none"}], ids=["journal", "none"])
@pytest.mark.parametrize("ini", EXCEPTIONS)
def test_reload_on_exception_leaves_the_request_that_it_is_about_in_the_journal(
    check: Check, tmp_path: Path, receiver: Receiver, ini: str, journal: dict[str, str]
) -> None:
    result = check(files={"x.ini": f"[uwsgi]\n{DOOR}{ini}"})
    if ini:
        words = "waits in the journal for another worker, and with MACKEREL_OTEL_SPOOL=none it is lost"
        result.has("WARN", f"{ini.partition(' ')[0]} is set", words, "remove that line")
    else:
        assert result.levels() == {"OK"}
    env = environment(receiver, **KEPT, **journal)
    with uwsgi(tmp_path, f"{DOOR}{ini}module = plain\n", env=env, processes=1) as server:
        assert server.get("/own").status == 200
        # uWSGI sends no 500 page.
        with pytest.raises(AssertionError, match="Remote end closed connection"):
            server.get("/fail")
        if ini:
            server.wait_for_log("sends traces as", count=2)
        else:
            server.answered += 1
        assert server.get("/later").status == 200
        server.wait_until_idle()
        server.stop()
    paths = [span.attributes["url.path"] for span in server_spans(receiver.spans)]
    assert paths == (["/later"] if ini and journal else ["/own", "/fail", "/later"])


def test_what_the_master_s_threshold_means_for_killed_requests(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    from mackerel_otel_server.cli.inspection import versions

    files = {"x.ini": f"[uwsgi]\n{DOOR}harakiri = 30\nharakiri-queue-threshold = 5\n"}
    for version in ("2.0.22", None):
        monkeypatch.setattr(versions, "uwsgi_version", lambda: version)  # noqa: B023
        check(files=files).has("WARN", "harakiri-queue-threshold = 5", "is not reported", "remove that line")
    monkeypatch.setattr(versions, "uwsgi_version", lambda: "2.0.21-debian")
    check().has("OK", "a request is killed after 30 s")


def virtual_environment(tmp_path: Path, python: str = "/usr/bin/python3") -> Path:
    folder = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    return folder


needs_debian = pytest.mark.skipif(debian_uwsgi() is None, reason="Debian has another Python; that environment checks")


@needs_debian
@pytest.mark.parametrize(
    ("line", "has_package"),
    # Debian's own Python has it nowhere.
    [*((line, has) for line in ("virtualenv", "home", "pythonpath") for has in (True, False)), ("none", False)],
)
def test_debian_s_plugin_traces_where_this_package_is_installed_for_its_python(
    check: Check, tmp_path: Path, receiver: Receiver, line: str, has_package: bool
) -> None:
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    ini = f"plugin = python3\n{DOOR}"
    if line in ("virtualenv", "home"):
        folder = virtual_environment(tmp_path)
        if has_package:
            next(folder.glob("lib/python3.*/site-packages")).joinpath("more.pth").write_text(packages)
        ini += f"{line} = {folder}\n"
    elif line == "pythonpath":
        ini += f"pythonpath = {packages if has_package else tmp_path}\n"
    result = check("--config", "x.ini", files={"x.ini": f"[uwsgi]\n{ini}"})
    if has_package:
        result.has("OK", "mackerel-otel-server is installed for")
    else:
        result.has("FAIL", "mackerel-otel-server is not installed for", "no request is traced", "-m pip install")
    (tmp_path / "site_.py").write_text(PLAIN)
    spans, log = serve(tmp_path, receiver, f"{ini}module = site_\n", "/", program=[DEBIAN_UWSGI])
    assert len(spans) == has_package, log
    assert ("No module named 'mackerel_otel_server'" in log) is not has_package


@needs_debian
def test_a_virtual_environment_that_is_none_or_another_python_s(check: Check, tmp_path: Path) -> None:
    ini = f"plugin = python3\n{DOOR}virtualenv = {tmp_path / 'nowhere'}\n"
    result = check("--config", "x.ini", files={"x.ini": f"[uwsgi]\n{ini}"})
    result.has("FAIL", f"virtualenv = {tmp_path / 'nowhere'} is no virtual environment", "does not start", "correct")
    assert "No module named 'encodings'" in refuses(tmp_path, ini, [DEBIAN_UWSGI])
    minor = sys.version_info.minor
    (folder := tmp_path / "other" / "bin").mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\nprintf '3.9\\n/usr\\nTrue\\n'\n")
    (folder / "python").chmod(0o755)
    result = check(
        "--config", "x.ini", files={"x.ini": f"[uwsgi]\nplugins = logfile, python3{minor}\n{DOOR}virtualenv = other\n"}
    )
    result.has("FAIL", f"other has Python 3.9, and uWSGI's plugin is Python 3.{minor}", "no request is traced")
    (folder / "python").write_text(f"#!/bin/sh\nprintf '3.{minor}\\n/opt/python\\nTrue\\n'\n")
    result = check("--config", "x.ini")
    result.has("WARN", "other was made by the Python in /opt/python", "the one in /usr", "/usr/bin/python3 -m venv")


@needs_debian
def test_debian_s_uwsgi_without_its_plugin_runs_no_python(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mackerel_otel_server.cli.inspection import versions

    monkeypatch.setattr(versions, "uwsgi_version", lambda: "2.0.21-debian")
    ini = f"{DOOR}module = site_\n"
    result = check("--config", "x.ini", files={"x.ini": f"[uwsgi]\n{ini}"})
    result.has("WARN", "has no line plugin = python3", "it runs no Python", "add this line above")
    assert "Python version" not in refuses(tmp_path, f"{ini}need-app = true\n", [DEBIAN_UWSGI])


def test_pyuwsgi_is_part_of_its_own_python_and_takes_no_other(check: Check, tmp_path: Path, receiver: Receiver) -> None:
    folder = virtual_environment(tmp_path, sys.executable)
    ini = f"{DOOR}virtualenv = {folder}\n"
    assert check(files={"x.ini": f"[uwsgi]\n{ini}"}).levels() == {"OK"}
    spans, log = serve(tmp_path, receiver, f"{ini}module = plain\n", "/")
    assert len(spans) == 1, log
