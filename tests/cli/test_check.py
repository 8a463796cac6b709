"""``mackerel-otel-server check`` from outside: words, exit codes, and how they look."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from checking import INI, INSTALL, KEY, Check, clean
from opentelemetry import trace

from mackerel_otel_server import __version__
from mackerel_otel_server.cli import main, output
from mackerel_otel_server.cli.inspection import versions
from mackerel_otel_server.settings.parts import STANDARD_PACKAGES


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mackerel_otel_server", "check", *arguments],
        cwd=folder,
        env=clean(os.environ) | {"MACKEREL_APIKEY": KEY, "OTEL_SERVICE_NAME": "shop", **env},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_sound_installation_ends_with_a_happy_line(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI)
    result = run(tmp_path)
    assert result.returncode == 0, result
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "All is well: this server is ready to be traced."
    assert KEY not in result.stdout
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    titles = ["Findings", "Settings without the defaults, which --all shows", "Versions", "Read", "Not read"]
    assert [line for line in lines if line[:1].isalpha() and not line.startswith("OK")][:-1] == titles
    assert lines[0] == "Findings"


def test_settings_that_have_their_defaults_are_shown_with_all_only(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI)
    set_by_name = re.compile(r"^  (\w+) ", re.MULTILINE)
    without, with_all = (
        run(tmp_path, *arguments, OTEL_BSP_SCHEDULE_DELAY="700").stdout for arguments in ((), ("--all",))
    )
    made = {"MACKEREL_APIKEY", "OTEL_SERVICE_NAME", "OTEL_BSP_SCHEDULE_DELAY", "MACKEREL_OTEL_SPOOL"}
    settings = without.partition("\nSettings")[2].partition("\nVersions")[0]
    assert set(set_by_name.findall(settings)) == made
    settings = with_all.partition("\nSettings\n")[2].partition("\nVersions")[0]
    assert set(set_by_name.findall(settings)) > {*made, "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SDK_DISABLED"}


@pytest.mark.parametrize(
    ("env", "last"),
    [
        ({"OTEL_SDK_DISABLED": "True"}, "Nothing is traced: OTEL_SDK_DISABLED is true."),
        ({"OTEL_TRACES_EXPORTER": "none"}, "No span is sent: OTEL_TRACES_EXPORTER is none."),
        ({"OTEL_TRACES_EXPORTER": "console"}, "Spans are printed, and none is sent: OTEL_TRACES_EXPORTER is console."),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "No request is traced: the sampler always_off records none."),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
            (
                "No request is traced but those whose caller has decided so: "
                "the sampler parentbased_traceidratio records none."
            ),
        ),
        ({"OTEL_PROPAGATORS": "baggage"}, ""),
    ],
)
def test_the_last_line_praises_nothing_where_no_span_is_sent_or_something_is_to_be_mended(
    tmp_path: Path, env: dict[str, str], last: str
) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI)
    result = run(tmp_path, **env)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == f"{last} 0 failures, 1 warning: see above what to type.".strip()
    from_the_file = "".join(f"env = {name}={value}\n" for name, value in env.items())
    (tmp_path / "uwsgi.ini").write_text(f"{INI}{from_the_file}")
    assert run(tmp_path).stdout.splitlines()[-1] == result.stdout.splitlines()[-1]


def test_a_failure_is_exit_status_1_and_says_what_follows_and_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI.replace("import", ";"))
    result = run(tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 1
    found = re.search(r"^FAIL  (.*)\n      -> (.*)\n      -> (.*)$", result.stdout, re.MULTILINE)
    assert found, result.stdout
    assert found.groups() == (
        "uwsgi.ini does not import mackerel_otel_server.uwsgi",
        "no request is traced",
        "add this line to uwsgi.ini: import = mackerel_otel_server.uwsgi",
    )
    assert result.stdout.splitlines()[-1] == "1 failure, 0 warnings: see above what to type."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_PROPAGATORS", "tracecontext,b4"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "-1"),
        ("OTEL_TRACES_SAMPLER", "alway_on"),
    ],
)
def test_a_variable_with_which_opentelemetry_does_not_start_is_a_finding_and_nothing_else(
    tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI)
    result = run(tmp_path, "--json", **{name: value})
    assert (result.returncode, result.stderr) == (1, "")
    (failure,) = (one for one in json.loads(result.stdout)["findings"] if one["level"] == "FAIL")
    assert failure["variable"] == name


def test_json_is_one_object_with_the_same_exit_status(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI.replace("import", ";"))
    result = run(tmp_path, "--json")
    assert result.returncode == 1
    data = json.loads(result.stdout)
    assert set(data) == {"read", "not_read", "versions", "settings", "findings"}
    assert {"name": "mackerel-otel-server", "version": __version__, "traced_by": ""} in data["versions"]
    parts = {"level", "seen", "follows", "cure", "variable"}
    assert [set(finding) for finding in data["findings"]] == [parts] * len(data["findings"])


@pytest.mark.parametrize("arguments", [("--server", "apache"), ("--config",), ("nonsense",)])
def test_what_cannot_be_understood_is_exit_status_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    assert caught.value.code == 2
    assert "usage: mackerel-otel-server" in capsys.readouterr().err


def in_terminal(folder: Path, columns: int, **env: str) -> list[str]:
    """Run it in a terminal of so many columns and return its lines."""
    leader, follower = pty.openpty()
    environ = clean(os.environ) | {"COLUMNS": str(columns), "TERM": "xterm", "MACKEREL_APIKEY": KEY, **env}
    environ = {name: value for name, value in environ.items() if value}
    process = subprocess.Popen(
        [sys.executable, "-m", "mackerel_otel_server", "check"],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    output = b""
    try:
        while part := os.read(leader, 65536):
            output += part
    except OSError:  # Linux says EIO at the end
        pass
    finally:
        os.close(leader)
        process.wait(60)
    return output.decode().replace("\r\n", "\n").splitlines()


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[mK]|\r", "", line)


@pytest.mark.parametrize("columns", [20, 80])
def test_a_terminal_of_few_columns_is_respected(tmp_path: Path, columns: int) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI.replace("master = true", "") + "skip-atexit = true\n")
    lines = in_terminal(tmp_path, columns, NO_COLOR="1", TERM="xterm")
    assert not any("\x1b[" in line and "\x1b[K" not in line for line in lines)
    assert "Findings" in lines
    for line in map(plain, lines):
        # A word that is longer than the line is not broken: it is there to be copied.
        assert len(line) <= columns or re.fullmatch(r" *(FAIL|WARN|OK|→)? *(pip install )?\S+", line), line


def test_colour_is_for_terminals_only_and_no_color_switches_it_off(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI.replace("import", ";"))
    assert any(re.search(r"\x1b\[1;31mFAIL", line) for line in in_terminal(tmp_path, 80))
    for off in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert not any(re.search(r"\x1b\[[0-9;]*m", line) for line in in_terminal(tmp_path, 80, **off))


@pytest.mark.parametrize(
    ("env", "is_terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_paint_leaves_text_alone_unless_a_terminal_wants_colour(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], is_terminal: bool, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert output.paint("x", "bold", "red") == ("\x1b[1;31mx\x1b[0m" if coloured else "x")
    assert output.paint("x") == "x"


def test_another_tracer_that_is_active_is_found(check: Check, tmp_path: Path) -> None:
    starters = {
        "opentelemetry/instrumentation/auto_instrumentation": "opentelemetry-instrument",
        "ddtrace/bootstrap": "ddtrace-run",
        "newrelic/bootstrap": "newrelic-admin",
    }
    for folder, name in starters.items():
        check(PYTHONPATH=f"/x{os.pathsep}/lib/{folder}").has(
            "WARN", f"where {name} starts another tracer", "start the server"
        )
    (tmp_path / "sitecustomize.py").write_text("import ddtrace.auto\n")
    check(PYTHONPATH=str(tmp_path)).has("WARN", "a sitecustomize module starts another tracer")
    (tmp_path / "sitecustomize.py").write_text("import colours\n")
    assert "another tracer" not in check(PYTHONPATH=str(tmp_path)).text
    check(OTEL_PYTHON_CONFIGURATOR="x").has("WARN", "OTEL_PYTHON_CONFIGURATOR", "only opentelemetry-instrument")


def test_a_provider_in_this_very_process_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI)
    (tmp_path / "sitecustomize.py").write_text(
        "from opentelemetry import trace\nfrom opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
    )
    result = run(tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "FAIL  a tracer provider is set in every Python process" in result.stdout
    assert "opentelemetry.sdk.trace.TracerProvider" in result.stdout
    assert isinstance(trace.get_tracer_provider(), object)


def installed(
    folder: Path,
    name: str,
    version: str,
    *lines: str,
    entry_points: str = "",
    group: str = "opentelemetry_instrumentor",
) -> None:
    """Put a distribution's metadata where this process finds them first."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    text = "\n".join((f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *lines))
    (info / "METADATA").write_text(f"{text}\n\n")
    if entry_points:
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry_points}\n")


@pytest.fixture
def metadata_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose metadata this process finds before those of what is installed."""
    folder = tmp_path / "metadata"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def test_opentelemetry_instrument_with_a_distribution_is_a_failure(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "a-distro", "1.0", entry_points="a = a:A", group="opentelemetry_configurator")
    monkeypatch.syspath_prepend(tmp_path)
    result = check(PYTHONPATH="/x/opentelemetry/instrumentation/auto_instrumentation")
    result.has("FAIL", "where opentelemetry-instrument starts another tracer", "stays off")


def test_opentelemetry_instrument_itself_is_found(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text(INI)
    folder = Path(sys.executable).parent
    result = subprocess.run(
        [folder / "opentelemetry-instrument", folder / "mackerel-otel-server", "check"],
        cwd=tmp_path,
        env=clean(os.environ) | {"MACKEREL_APIKEY": KEY, "OTEL_SERVICE_NAME": "shop", "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "where opentelemetry-instrument starts another tracer" in result.stdout, result


def test_versions_below_the_supported_ones_are_failures(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "gunicorn", "20.1.0")
    installed(tmp_path, "opentelemetry-sdk", "1.20.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(versions, "uwsgi_version", lambda: "2.0.18-debian")
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    result = check(files={"uwsgi.ini": INI})
    assert result.status == 1
    result.has("FAIL", "gunicorn 20.1.0 is not supported (>=21.2 is)", "pip install 'gunicorn>=21.2'")
    result.has("FAIL", "opentelemetry-sdk 1.20.0 is not supported")
    result.has("FAIL", "uWSGI 2.0.18-debian is not supported (>=2.0.21 is)")
    result.has("FAIL", "Python 3.9.1 is not supported")


def test_with_standard_parts_their_packages_are_listed_and_trace(check: Check) -> None:
    own, standard = check(), check(MACKEREL_OTEL_PARTS="standard")
    listed = [
        {version["name"]: version["traced_by"] for version in result.data["versions"]} for result in (own, standard)
    ]
    assert set(listed[1]) - set(listed[0]) == set(STANDARD_PACKAGES)
    assert listed[0]["Flask"] == listed[0]["sqlite3"] == listed[0]["duckdb"] == "mackerel-otel-server"
    assert listed[1]["Flask"].startswith("opentelemetry-instrumentation-wsgi ")
    assert listed[1]["sqlite3"].startswith("opentelemetry-instrumentation-dbapi ")
    assert listed[1]["duckdb"] == "nobody (MACKEREL_OTEL_PARTS=standard)"
    assert own.status == standard.status == 0


def test_a_package_of_the_standard_parts_that_is_missing_or_too_old_is_a_failure(
    check: Check, metadata_first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(metadata_first, "opentelemetry-instrumentation-wsgi", "0.40b0")
    assert check().status == 0
    result = check(MACKEREL_OTEL_PARTS="standard")
    result.has("FAIL", "opentelemetry-instrumentation-wsgi 0.40b0 is not supported")
    monkeypatch.setattr("mackerel_otel_server.settings.parts.STANDARD_PACKAGES", ("not-installed",))
    result = check(MACKEREL_OTEL_PARTS="standard")
    result.has(
        "FAIL", "packages that are not installed (not-installed)", "pip install 'mackerel-otel-server[standard]'"
    )


def test_an_instrumentation_that_does_not_fit_its_library_is_a_warning(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "made-up-library", "1.0")
    installed(
        tmp_path,
        "opentelemetry-instrumentation-made-up",
        "0.1",
        "Provides-Extra: instruments",
        "Requires-Dist: made-up-library>=2; extra == 'instruments'",
        entry_points="made_up_library = nowhere:Instrumentor",
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = check(files={"uwsgi.ini": INI})
    result.has("WARN", "opentelemetry-instrumentation-made-up 0.1 does not fit", "made-up-library 1.0", "is not traced")
    traced_by = {version["name"]: version["traced_by"] for version in result.data["versions"]}
    assert traced_by["made_up_library"] == "nobody (opentelemetry-instrumentation-made-up does not fit)"


@pytest.mark.parametrize(
    ("library", "words", "by"),
    [
        ("sqlalchemy", "this package traces the queries by their drivers", "its drivers"),
        ("psycopg2", "the driver is traced by this package", "mackerel-otel-server"),
    ],
)
def test_the_versions_and_the_findings_agree_about_who_traces_what(
    check: Check, metadata_first: Path, library: str, words: str, by: str
) -> None:
    installed(metadata_first, library, "2.1.0")
    installed(
        metadata_first,
        f"opentelemetry-instrumentation-{library}",
        "99",
        "Provides-Extra: instruments",
        f"Requires-Dist: {library}<2; extra == 'instruments'",
        entry_points=f"{library} = nowhere:Instrumentor",
    )
    result = check(files={"uwsgi.ini": INI})
    result.has("WARN", f"-{library} 99 does not fit", f"(it takes {library}<2)", words, "pip uninstall")
    assert {one["traced_by"] for one in result.data["versions"] if one["name"] == library} == {by}
    result = check(OTEL_SDK_DISABLED="true")
    assert {one["traced_by"] for one in result.data["versions"]} == {"", "nobody (OTEL_SDK_DISABLED)"}


def test_libraries_without_their_instrumentation_are_named_with_what_to_type(
    check: Check, metadata_first: Path
) -> None:
    from opentelemetry.instrumentation.bootstrap_gen import libraries

    wanted = {"aiohttp": "aiohttp-client", "botocore": "botocore", "grpcio": "grpc", "pymongo": "pymongo"}
    lines = {one["instrumentation"] for one in libraries}
    for library in (*wanted, "sqlalchemy", "psutil", "click"):
        # For the last of these versions there is no instrumentation.
        installed(metadata_first, library, {"aiohttp": "3.0.0", "pymongo": "99.0"}.get(library, "1.60.0"))
    finding = check(files={"uwsgi.ini": INI}).about("without their OpenTelemetry instrumentation")
    assert finding["level"] == "OK"
    named = finding["seen"].partition(": ")[2].split(", ")
    assert {"aiohttp", "botocore", "grpcio"} <= set(named)
    # What is traced without it, no span at all, and what cannot be used.
    assert not {"sqlalchemy", "psutil", "click", "pymongo", "Django", "PyMySQL"} & set(named)
    for library in named:
        if name := wanted.get(library):
            (line,) = (one for one in lines if one.startswith(f"opentelemetry-instrumentation-{name}=="))
            assert f"\npip install {line}" in finding["cure"]
    off = check(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="botocore,grpc").about(
        "without their OpenTelemetry instrumentation"
    )
    assert not {"botocore", "grpcio"} & set(off["seen"].partition(": ")[2].split(", "))
    assert "without their OpenTelemetry" not in check(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*").text


def test_every_framework_and_driver_is_listed_with_who_traces_it(check: Check, need: Callable[[str], None]) -> None:
    for module in ("django", "pymysql", "psycopg2", "redis"):
        need(module)
    found = {version["name"]: version for version in check(files={"uwsgi.ini": INI}).data["versions"]}
    assert found["Django"]["traced_by"] == "mackerel-otel-server"
    assert found["PyMySQL"]["traced_by"] == "mackerel-otel-server"
    assert found["psycopg2-binary"]["traced_by"].startswith("opentelemetry-instrumentation-psycopg2 ")
    assert found["redis"]["traced_by"].startswith("opentelemetry-instrumentation-redis ")
    assert found["Gunicorn"]["version"] == metadata.version("gunicorn")
    env = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis, pymysql"}
    found = {version["name"]: version for version in check(**env).data["versions"]}
    assert found["PyMySQL"]["traced_by"] == found["redis"]["traced_by"]
    assert found["redis"]["traced_by"] == "nobody (OTEL_PYTHON_DISABLED_INSTRUMENTATIONS)"


def test_a_key_that_comes_with_other_words_is_not_shown(check: Check) -> None:
    headers = f"authorization=Basic%20{KEY}"
    conf = f"raise ValueError('Basic {KEY} and more')\n"
    result = check(files={"gunicorn.conf.py": conf}, OTEL_EXPORTER_OTLP_HEADERS=headers, MACKEREL_APIKEY="")
    result.has("FAIL", "ValueError: **** and more")


def test_gunicorn_s_findings_stand_beside_those_of_the_settings(check: Check) -> None:
    result = check(files={"gunicorn.conf.py": INSTALL}, MACKEREL_APIKEY="")
    assert result.status == 1
    assert "there is no API key" in result.text
    result.has("OK", "installs the hooks")


def test_every_setting_is_shown_with_its_value_and_where_it_comes_from(check: Check, tmp_path: Path) -> None:
    conf = f"raw_env = ['OTEL_BSP_SCHEDULE_DELAY=700', 'MACKEREL_APIKEY={KEY}']\n{INSTALL}"
    found = {one["name"]: one for one in check(files={"gunicorn.conf.py": conf}).data["settings"]}
    assert found["OTEL_SERVICE_NAME"] == {"name": "OTEL_SERVICE_NAME", "value": "shop", "origin": "OTEL_SERVICE_NAME"}
    delay = found["OTEL_BSP_SCHEDULE_DELAY"]
    assert (delay["value"], delay["origin"]) == ("700", "OTEL_BSP_SCHEDULE_DELAY, set by Gunicorn's raw_env")
    assert found["MACKEREL_APIKEY"]["value"] == "****"
    assert found["OTEL_BSP_MAX_QUEUE_SIZE"]["origin"] == "default"
    (tmp_path / "gunicorn.conf.py").unlink()
    ini = {"uwsgi.ini": f"{INI}env = OTEL_BSP_SCHEDULE_DELAY=900\n"}
    found = {one["name"]: one for one in check(files=ini).data["settings"]}
    assert found["OTEL_BSP_SCHEDULE_DELAY"]["origin"] == "OTEL_BSP_SCHEDULE_DELAY, set by uwsgi.ini"


def test_values_that_cannot_be_understood_are_failures_and_still_shown(check: Check) -> None:
    result = check(files={"uwsgi.ini": INI}, OTEL_BSP_SCHEDULE_DELAY="soon")
    assert result.status == 1
    assert any(one["value"] == "soon" for one in result.data["settings"])
    assert result.about("OTEL_BSP_SCHEDULE_DELAY='soon'")["level"] == "FAIL"
