"""What ``check`` says about uWSGI's configuration."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from checking import INI, KEY, Check
from servers import environment, uwsgi

from mackerel_otel_server.cli.init import FRAGMENTS
from mackerel_otel_server.cli.inspection import versions
from mackerel_otel_server.cli.inspection.project import files
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.servers import uwsgi_rules

pytestmark = pytest.mark.usefixtures("known_versions")


def test_the_file_that_init_writes_is_well(check: Check) -> None:
    fragment = FRAGMENTS["uwsgi"]
    name = fragment.file
    result = check(files={name: fragment.read()})
    assert result.levels() == {"OK"}
    result.has("OK", "imports mackerel_otel_server.uwsgi")
    assert any(name in read for read in result.data["read"])


def test_of_several_files_the_usual_one_is_taken_and_the_others_are_named(check: Check) -> None:
    result = check(files={"a.ini": INI, "uwsgi.ini": INI, "setup.ini": "[other]\nx = 1\n"})
    assert any("uwsgi.ini" in read and "a.ini too" in read for read in result.data["read"])


def test_of_several_unusual_files_none_is_taken(check: Check) -> None:
    result = check(files={"a.ini": INI, "b.ini": INI})
    result.has("WARN", "--config FILE chooses one of a.ini, b.ini")
    assert check("--config", "b.ini").levels() == {"OK"}


def test_gunicorn_s_file_goes_first_unless_the_server_is_named(check: Check) -> None:
    files = {"gunicorn.conf.py": "workers = 1\n", "uwsgi.ini": INI}
    check(files=files).has("FAIL", "gunicorn.conf.py")
    assert check("--server", "uwsgi").levels() == {"OK"}


def test_a_section_and_a_file_without_suffix_are_found(check: Check) -> None:
    assert check("--config", "x.ini:mine", files={"x.ini": INI.replace("uwsgi]", "mine]")}).levels() == {"OK"}
    assert check("--config", "plain", files={"plain": INI}).levels() == {"OK"}


@pytest.mark.parametrize("suffix", ["yaml", "yml", "xml", "json"])
def test_other_formats_are_not_read_and_that_is_said(check: Check, suffix: str) -> None:
    result = check("--config", f"uwsgi.{suffix}", files={f"uwsgi.{suffix}": "x"})
    result.has("WARN", f"uwsgi.{suffix} is not read")
    assert any(f"uwsgi.{suffix}" in line for line in result.data["not_read"])


def test_without_any_file_it_says_what_is_not_known(check: Check, tmp_path: Path) -> None:
    result = check("--server", "uwsgi", files={"gunicorn.conf.py": ""})
    assert result.status == 0
    result.has("WARN", "no configuration of uWSGI", "check --server uwsgi --config FILE")
    assert "unicorn" not in json.dumps(result.data["findings"])
    (tmp_path / "gunicorn.conf.py").unlink()
    result = check()
    result.has("WARN", "no configuration is", "--config FILE")
    assert not re.search("gunicorn|uwsgi|ini file", json.dumps(result.data["findings"]), re.IGNORECASE)


@pytest.mark.parametrize("file", ["asgi.py", "mysite/wsgi.py"])
def test_without_any_file_the_application_may_use_this_package_by_itself(check: Check, file: str) -> None:
    door = "import mackerel_otel_server\nmackerel_otel_server.instrument()\n"
    result = check(files={file: door})
    result.has("OK", "no configuration is in the working directory", f"{file} uses this package")


def test_what_is_found_about_uwsgi_names_nothing_of_gunicorn_s_and_the_other_way_round(
    check: Check, tmp_path: Path
) -> None:
    found = check("--config", "x.ini", files={"x.ini": "[uwsgi]\nmodule = x\n"}).data["findings"]
    assert "unicorn" not in json.dumps(found)
    found = check("--config", "x.py", files={"x.py": "workers = 2\n"}).data["findings"]
    # The name of this test is in that of its folder.
    assert not re.search(r"uwsgi|\bini\b", json.dumps(found).replace(str(tmp_path), ""), re.IGNORECASE)


def test_a_file_that_cannot_be_read_is_a_failure(check: Check, tmp_path: Path) -> None:
    result = check("--config", "nothing.ini")
    assert result.status == 1
    result.has("FAIL", "'nothing.ini' cannot be read (No such file")
    (tmp_path / "folder.ini").mkdir()
    check("--config", "folder.ini").has("FAIL", "'folder.ini' cannot be read (it is a folder)")
    # A pipe would be waited for, and a disk be read, without end.
    os.mkfifo(tmp_path / "pipe.ini")
    check("--config", "pipe.ini").has("FAIL", "'pipe.ini' cannot be read (it is no regular file)")
    (tmp_path / "large.ini").write_bytes(bytes(files.LARGEST + 1))
    (tmp_path / "includes.ini").write_text("[uwsgi]\ninclude = large.ini\n")
    check("--config", "includes.ini").has("FAIL", "'large.ini' cannot be read (it has more than 1,000,000 bytes)")
    check("--config", "x.ini", files={"x.ini": "[other]\n"}).has("FAIL", "no section [uwsgi]")


def test_no_import_line_is_a_failure_with_the_line_to_type(check: Check) -> None:
    result = check(files={"uwsgi.ini": INI.replace("import", "; import")})
    assert result.status == 1
    result.has("FAIL", "does not import", "no request is traced", "import = mackerel_otel_server.uwsgi")


def test_another_module_of_ours_is_not_the_door(check: Check) -> None:
    result = check(files={"uwsgi.ini": INI.replace("server.uwsgi", "server.conf")})
    result.has("FAIL", "import = mackerel_otel_server.conf is not", "import = mackerel_otel_server.uwsgi")


def test_an_application_that_calls_instrument_needs_no_import_line(check: Check) -> None:
    files = {
        "uwsgi.ini": INI.replace("import", "; import") + "chdir = src\nmodule = shop.wsgi\n",
        "src/shop/wsgi.py": "import mackerel_otel_server\nmackerel_otel_server.instrument()\n",
    }
    result = check(files=files)
    assert result.levels() == {"OK"}
    result.has("OK", "shop/wsgi.py uses it")


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.0.26", "FAIL"), ("2.0.21-debian", "FAIL"), ("2.0.27", "OK"), ("2.1", "OK"), (None, "WARN")],
)
def test_threads_depend_on_the_uwsgi_that_is_installed(
    check: Check, monkeypatch: pytest.MonkeyPatch, version: str | None, level: str
) -> None:
    monkeypatch.setattr(versions, "uwsgi_version", lambda: version)
    ini = INI.replace("enable-threads = true\n", "")
    result = check(files={"uwsgi.ini": ini})
    result.has(level, "Python threads")
    for line in ("threads = 2", "enable-threads"):
        check(files={"uwsgi.ini": f"{ini}{line}\n"}).has("OK", "Python threads")


def test_each_line_that_tracing_suffers_from_has_its_finding(check: Check) -> None:
    ini = (
        INI.replace("master = true\n", "")
        + "mount = /a=a.py\nmount = /b=b.py\nskip-atexit = true\nharakiri = soon\nworker-reload-mercy = 4\n"
        + "if-plugin = x\nendif =\nuid = 54321\n"
    )
    result = check(files={"uwsgi.ini": ini, "b.py": "from flask import Flask\napplication = Flask('b')\n"})
    assert result.status == 0
    result.has("WARN", "without a master", "harakiri kills nobody", "master = true")
    result.has("WARN", "2 applications (/a=a.py, /b=b.py)", "only the first is traced", "single-interpreter = true")
    result.has("WARN", "skip-atexit", "lost", "remove that line")
    result.has("WARN", "harakiri = soon", "harakiri = 30")
    result.has("WARN", "MACKEREL_OTEL_SHUTDOWN_TIMEOUT (5 s)", "worker-reload-mercy (4 s)", "TIMEOUT=1")
    result.has("OK", "run as user 54321")
    result.has("WARN", "a.py is not in")
    assert any("if-plugin = x" in finding["seen"] for finding in result.data["findings"])


def test_each_line_that_tracing_copes_with_is_said_to_be_well(check: Check) -> None:
    ini = (
        INI + "mount = /a=a.py\nmount = /b=b.py\nsingle-interpreter = true\nlazy-apps = true\nharakiri = 30\n"
        "skip-atexit-teardown = true\nthreads = 4\n"
    )
    flask = "from flask import Flask\napplication = Flask('b')\n"
    result = check(files={"uwsgi.ini": ini, "a.py": flask, "b.py": flask})
    assert result.levels() == {"OK"}
    for words in ("lazy-apps", "30 s (harakiri)", "skip-atexit-teardown"):
        result.has("OK", words)


@pytest.mark.parametrize(("python", "is_failure"), [((3, 11, 9), False), ((3, 12, 0), True)])
def test_fork_hooks_crash_newer_pythons(
    check: Check, monkeypatch: pytest.MonkeyPatch, python: tuple[int, ...], is_failure: bool
) -> None:
    class Sys:
        version_info = python

    monkeypatch.setattr(uwsgi_rules, "sys", Sys)
    result = check(files={"uwsgi.ini": INI + "py-call-uwsgi-fork-hooks = true\n"})
    if is_failure:
        result.has("FAIL", "py-call-uwsgi-fork-hooks", "crashes", "remove that line")
    else:
        assert result.levels() == {"OK"}


PLAIN = "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
WRAPPED = f"{PLAIN}from mackerel_otel_server import trace_wsgi\napplication = trace_wsgi(application)\n"


@pytest.mark.parametrize(
    ("content", "is_plain"),
    [
        (PLAIN, True),
        (WRAPPED, False),
        ("from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n", False),
        (f"import flask\napp = flask.Flask('x')\n{PLAIN}", False),
        ("def app(environ, start_response): pass\n", False),
        ("this is no Python", False),
    ],
)
def test_a_plain_callable_in_a_wsgi_file_needs_two_lines(check: Check, content: str, is_plain: bool) -> None:
    result = check(files={"uwsgi.ini": f"{INI}wsgi-file = app.py\n", "app.py": content})
    if is_plain:
        result.has("WARN", "'application' of", "app.py is a plain callable", WRAPPED.removeprefix(PLAIN).strip())
    else:
        assert result.levels() == {"OK"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_plain_callable_that_is_warned_about_is_not_traced(
    tmp_path: Path, receiver: Receiver, wrapped: bool
) -> None:
    own = "from opentelemetry import trace\ntrace.get_tracer('x').start_span('own').end()\n    "
    (tmp_path / "app.py").write_text(
        (WRAPPED if wrapped else PLAIN).replace(
            "start_response('200", f"{own}start_response('200".replace("\n", "\n    ", 1)
        )
    )
    ini = "import = mackerel_otel_server.uwsgi\nmaster = true\nenable-threads = true\nwsgi-file = app.py\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1) as server:
        assert server.get("/").status == 200
        server.wait_until_idle()
        server.stop()
    assert [span.name for span in receiver.spans if span.name == "own"] == ["own"], server.log
    assert any(span.kind == "SERVER" for span in receiver.spans) is wrapped


def test_a_key_in_the_file_matters_where_others_may_read_it(check: Check, tmp_path: Path) -> None:
    files = {"uwsgi.ini": f"{INI}env = MACKEREL_APIKEY={KEY}\nenv = OTEL_SERVICE_NAME=of-the-file\n"}
    result = check(files=files, MACKEREL_APIKEY="", OTEL_SERVICE_NAME="")
    result.has("WARN", "MACKEREL_APIKEY is set by an env line", "chmod o-r uwsgi.ini")
    assert "no API key" not in result.text
    (tmp_path / "uwsgi.ini").chmod(0o640)
    check(MACKEREL_APIKEY="").has("OK", "MACKEREL_APIKEY is set by an env line")


def test_the_service_name_comes_from_the_application_as_in_the_server(check: Check) -> None:
    result = check(files={"uwsgi.ini": f"{INI}module = bakery.wsgi:application\n"}, OTEL_SERVICE_NAME="")
    assert "'bakery'" in result.text


def test_which_uwsgi_is_asked_is_this_environment_s_own() -> None:
    assert Path(sys.executable).with_name("pyuwsgi").exists()
    assert versions.numbers(versions.uwsgi_version()) is not None
