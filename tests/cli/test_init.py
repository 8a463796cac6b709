from __future__ import annotations

import configparser
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mackerel_otel_server.cli import main
from mackerel_otel_server.cli.init import FRAGMENTS

CONF = "mackerel_otel_server.conf"
INI = "mackerel_otel_server.ini"


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mackerel_otel_server", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_init_gunicorn_writes_a_file_that_ends_with_our_hooks_and_says_what_to_type(tmp_path: Path) -> None:
    result = cli(tmp_path, "init", "gunicorn")
    assert result.returncode == 0, result
    assert "gunicorn -c mackerel_otel_server.conf mysite.wsgi" in result.stdout
    content = (tmp_path / CONF).read_text()
    compile(content, CONF, "exec")
    assert "from mackerel_otel_server.gunicorn import install" in content
    assert content.splitlines()[-1] == "install(globals())"
    assert "MACKEREL_APIKEY" in content
    assert "OTEL_SERVICE_NAME" in content


def test_init_uwsgi_writes_the_ini_lines_that_tracing_needs(tmp_path: Path) -> None:
    result = cli(tmp_path, "init", "uwsgi")
    assert result.returncode == 0, result
    assert "uwsgi --ini mackerel_otel_server.ini" in result.stdout
    ini = configparser.RawConfigParser()
    ini.read(tmp_path / INI)
    assert dict(ini["uwsgi"]) == {
        "import": "mackerel_otel_server.uwsgi",
        "master": "true",
        "enable-threads": "true",
        "single-interpreter": "true",
        "need-app": "true",
        "processes": "2",
        "module": "mysite.wsgi:application",
        "http-socket": "127.0.0.1:8000",
    }


def test_a_dash_prints_the_file_and_nothing_else(tmp_path: Path) -> None:
    result = cli(tmp_path, "init", "gunicorn", "-o", "-")
    assert result.returncode == 0, result
    assert result.stdout.endswith("install(globals())\n")
    assert list(tmp_path.iterdir()) == []
    assert cli(tmp_path, "init", "gunicorn").returncode == 0
    assert (tmp_path / CONF).read_text() == result.stdout


def test_another_name_is_what_to_type_next(tmp_path: Path) -> None:
    result = cli(tmp_path, "init", "gunicorn", "-o", "my conf.py")
    assert result.returncode == 0, result
    assert "gunicorn -c 'my conf.py' mysite.wsgi" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["my conf.py"]


@pytest.mark.parametrize("target", FRAGMENTS)
def test_each_target_is_written_under_its_usual_name_and_nothing_else_is(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fragment = FRAGMENTS[target]
    assert main(["init", target]) == 0
    (file,) = tmp_path.iterdir()
    assert file.name == fragment.file
    assert file.read_text() == fragment.read()
    first, *steps = capsys.readouterr().out.splitlines()
    assert first == f"wrote {fragment.file}. Next:"
    # Each step is a command that names what was written, or prepares for one that does.
    assert any(Path(fragment.file).stem in step for step in steps[-2:])
    assert not [step for step in steps if "{" in step]
    assert main(["init", target, "-o", "-"]) == 0
    assert capsys.readouterr().out == fragment.read()


def test_the_examples_of_the_repository_are_what_init_writes() -> None:
    folder = Path(__file__).parents[2] / "conf_examples"
    examples = {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}
    assert examples == {fragment.file: fragment.read() for fragment in FRAGMENTS.values()}


@pytest.mark.parametrize("target", FRAGMENTS)
def test_what_the_operator_must_change_is_marked_and_said(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["init", target, "-o", "my file.py"])
    lines = Path("my file.py").read_text().splitlines()
    marked = [line for line in lines if re.match(r"\s*[#;] CHANGE: ", line)]
    placeholders = [line for line in lines if "mysite" in line and line.lstrip()[:1] not in ("#", ";")]
    assert bool(marked) is bool(placeholders), placeholders
    assert ("grep -A2 CHANGE 'my file.py'" in capsys.readouterr().out) is bool(marked)


def test_a_list_tells_the_targets_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FRAGMENTS)
    for line, fragment in zip(lines, FRAGMENTS.values(), strict=True):
        assert line.endswith(f"{fragment.file}: {fragment.summary}")


@pytest.mark.parametrize(("arguments", "seen"), [([], "no TARGET is named"), (["apache"], "'apache' is not known")])
def test_without_a_target_or_with_an_unknown_one_the_known_ones_are_explained(
    tmp_path: Path,
    arguments: list[str],
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["init", *arguments])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert seen in error
    for target, fragment in FRAGMENTS.items():
        assert re.search(rf"^  {target} +{re.escape(fragment.file)}: ", error, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_module_in_another_folder_is_started_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my site").mkdir()
    assert main(["init", "flask", "-o", "my site/traced.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("  cd 'my site'") < lines.index("  gunicorn traced:app")


@pytest.mark.parametrize("output", [(), ("-o", "other.py")])
def test_an_existing_file_is_only_overwritten_with_force(tmp_path: Path, output: tuple[str, ...]) -> None:
    target = tmp_path / (output[1] if output else CONF)
    target.write_text("mine")
    assert_refused(cli(tmp_path, "init", "gunicorn", *output), target.name, "--force")
    assert target.read_text() == "mine"
    assert cli(tmp_path, "init", "gunicorn", *output, "--force").returncode == 0
    assert "install(globals())" in target.read_text()


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / CONF).symlink_to(tmp_path / "elsewhere")
    assert_refused(cli(tmp_path, "init", "gunicorn"), "exists")
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / CONF).mkdir()
    assert_refused(cli(tmp_path, "init", "gunicorn", "--force"), CONF, "Is a directory", "-o FILE")


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    assert_refused(cli(tmp_path, "init", "uwsgi", "-o", "no/such/x.ini"), "no/such/x.ini", "No such file")


def test_a_folder_without_permission_is_one_clear_line(tmp_path: Path) -> None:
    # Not even root may create a file in /proc; a mode would not stop root.
    target = "/proc/x.conf" if os.geteuid() == 0 else str(tmp_path / "closed" / "x.conf")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert_refused(cli(tmp_path, "init", "gunicorn", "-o", target), target, "-o FILE")


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mackerel_otel_server", "init", "gunicorn"],
        cwd=tmp_path,
        # Python would leave cut files in __pycache__, with which nothing could import that module any more.
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # No file of this process may become larger: the error differs from a full disk's by its number only.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert_refused(result, CONF, "File too large", "-o FILE")
    assert list(tmp_path.iterdir()) == []
    assert_refused(cli(tmp_path, "init", "gunicorn", "-o", "/dev/full", "--force"), "/dev/full", "No space left")


def test_version_names_the_program(tmp_path: Path) -> None:
    result = cli(tmp_path, "--version")
    assert result.returncode == 0, result
    assert result.stdout.startswith("mackerel-otel-server ")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("init",), ("init", "apache"), ("receive", "--port", "x")])
def test_what_cannot_be_understood_is_explained_with_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = cli(tmp_path, *arguments)
    assert result.returncode == 2, result
    assert "usage: mackerel-otel-server" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["init", "demo", "receive"])
def test_help_lists_and_explains_each_command(tmp_path: Path, command: str) -> None:
    assert command in cli(tmp_path, "--help").stdout
    result = cli(tmp_path, command, "--help")
    assert result.returncode == 0, result
    assert f"usage: mackerel-otel-server {command}" in result.stdout
