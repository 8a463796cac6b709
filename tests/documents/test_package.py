"""What a release consists of: built as it is for a release, installed as a user does."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from mackerel_otel_server import __version__

ROOT = Path(__file__).parents[2]
CACHES = shutil.ignore_patterns(".*_cache", ".git", ".tox", ".venv", "__pycache__", "dist", "build", "*.egg-info")
NAME = f"mackerel_otel_server-{__version__}"
PROGRAM = "mackerel-otel-server"


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, away from the checkout's modules, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MACKEREL_", "PYTHON"))}
    result = subprocess.run(
        command, cwd=cwd, env=env | environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


def build(source: Path, target: Path, *options: str) -> Built:
    command = (sys.executable, "-m", "build", "--installer", "uv", *options, "--outdir", str(target), str(source))
    run(*command, cwd=target.parent, SOURCE_DATE_EPOCH="1700000000")
    files = {file.name: file for file in target.iterdir()}
    assert set(files) == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    return Built(files[f"{NAME}-py3-none-any.whl"], files[f"{NAME}.tar.gz"])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of the checkout, and the wheel of that sdist."""
    return build(ROOT, tmp_path_factory.mktemp("built") / "dist")


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory, built: Built) -> dict[str, Path]:
    """Return environments with nothing but the wheel: without extra, and with each."""
    folder = tmp_path_factory.mktemp("users")
    uv = [sys.executable, "-m", "uv"]
    for extra in ("", "gunicorn", "standard", "uwsgi"):
        user = folder / (extra or "none")
        run(*uv, "venv", "--python", sys.executable, user, cwd=folder)
        wheel = f"{built.wheel}[{extra}]" if extra else str(built.wheel)
        run(*uv, "pip", "install", "--python", user / "bin" / "python", wheel, cwd=folder)
    return {user.name: user for user in folder.iterdir()}


def files(folder: Path) -> Iterator[str]:
    """Yield what is in a folder of the checkout, but for caches, relative to the checkout."""
    ignored = CACHES(str(folder), [entry.name for entry in folder.iterdir()])
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in ignored:
            yield from files(entry)
        elif entry.name not in ignored:
            yield str(entry.relative_to(ROOT))


def metadata(built: Built) -> Message:
    with zipfile.ZipFile(built.wheel) as wheel:
        return email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_two_builds_of_one_source_are_the_same_bytes_and_so_is_the_wheel_of_the_sdist(
    tmp_path: Path, built: Built
) -> None:
    # The second build is elsewhere, at another time, with other permissions and beside a cache; its wheel is built from
    # the source itself.
    other = tmp_path / "other"
    shutil.copytree(ROOT, other, ignore=CACHES, copy_function=shutil.copy)
    for path in other.rglob("*"):
        path.chmod(path.stat().st_mode | 0o020)
    (other / "mackerel_otel_server" / "__pycache__").mkdir()
    (other / "mackerel_otel_server" / "__pycache__" / "conf.cpython-310.pyc").write_text("cached")
    again = build(other, tmp_path / "dist", "--sdist", "--wheel")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


def test_the_wheel_has_every_file_of_the_package_and_the_examples_as_it_is_and_nothing_else(built: Built) -> None:
    wanted = {name: ROOT / name for name in files(ROOT / "mackerel_otel_server")}
    wanted |= {f"mackerel_otel_server/{name}": ROOT / name for name in files(ROOT / "conf_examples")}
    information = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    with zipfile.ZipFile(built.wheel) as wheel:
        assert set(wheel.namelist()) == {*wanted, *(f"{NAME}.dist-info/{file}" for file in information)}
        assert {name for name, file in wanted.items() if wheel.read(name) != file.read_bytes()} == set()
    assert "mackerel_otel_server/py.typed" in wanted


def test_the_sdist_has_what_is_needed_to_run_the_tests_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        packed = {name.removeprefix(f"{NAME}/") for name in sdist.getnames()}
    folders = ("mackerel_otel_server", "conf_examples", "docs", "tests", "scripts", ".github")
    single = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.ja.md", "README.md", "SECURITY.md"}
    single |= {".pre-commit-config.yaml", "pyproject.toml", "tox.ini"}
    made = {"PKG-INFO", ".gitignore"}  # by hatchling
    assert packed == {*(name for folder in folders for name in files(ROOT / folder)), *single, *made}


def test_the_index_takes_both(built: Built) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist, cwd=built.wheel.parent)


def test_the_metadata_tell_licence_version_and_the_pythons_that_are_tested(built: Built) -> None:
    found = metadata(built)
    assert found["License-Expression"] == "Apache-2.0"
    assert found["License-File"] == "LICENSE"
    assert found["Version"] == __version__
    assert sorted(found.get_all("Provides-Extra", [])) == ["dev", "gunicorn", "standard", "uwsgi"]
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    tested = [f"3.{minor}" for minor in re.findall(r"\bpy3(\d+)", tox["tox"]["env_list"])]
    claimed = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", str(found), re.MULTILINE)
    assert claimed == tested
    assert found["Requires-Python"] == f">={tested[0]}"


@pytest.mark.parametrize("extra", ["none", "gunicorn", "standard", "uwsgi"])
def test_it_installs_with_each_extra_alone_and_imports_without_servers(
    tmp_path: Path, users: dict[str, Path], extra: str
) -> None:
    programs = users[extra] / "bin"
    assert run(programs / PROGRAM, "--version", cwd=tmp_path) == f"{PROGRAM} {__version__}\n"
    script = (
        "import importlib.util, mackerel_otel_server, mackerel_otel_server.conf, mackerel_otel_server.gunicorn\n"
        "print([name for name in ('gunicorn', 'pyuwsgi') if importlib.util.find_spec(name)])\n"
    )
    servers = {"gunicorn": ["gunicorn"], "uwsgi": ["pyuwsgi"]}.get(extra, [])
    assert run(programs / "python", "-W", "error", "-c", script, cwd=tmp_path) == f"{servers}\n"


@pytest.mark.parametrize("server", ["gunicorn", "uwsgi"])
def test_an_extra_is_all_that_tracing_its_server_needs(tmp_path: Path, users: dict[str, Path], server: str) -> None:
    programs = users[server] / "bin"
    path = f"{programs}{os.pathsep}{os.defpath}"
    shown = run(programs / PROGRAM, "demo", "--server", server, cwd=tmp_path, PATH=path)
    assert re.search(r"SERVER GET /  200", shown), shown


def test_the_extra_standard_is_all_that_opentelemetrys_own_parts_need(tmp_path: Path, users: dict[str, Path]) -> None:
    script = (
        "import mackerel_otel_server.pipeline.standard\n"
        "import mackerel_otel_server.tracing.databases.standard\n"
        "import mackerel_otel_server.tracing.requests.standard\n"
        "from mackerel_otel_server.settings import read\n"
        "print(read({'MACKEREL_OTEL_PARTS': 'standard', 'MACKEREL_APIKEY': 'the-key'}).parts)\n"
    )
    assert run(users["standard"] / "bin" / "python", "-c", script, cwd=tmp_path) == "standard\n"


def test_a_strictly_typed_program_sees_the_types_of_the_installed_package(
    tmp_path: Path, users: dict[str, Path]
) -> None:
    (tmp_path / "mine.py").write_text(
        "import mackerel_otel_server\n"
        'mackerel_otel_server.instrument(service_name="shop")\n'
        "sent: bool = mackerel_otel_server.shutdown(2.5)\n"
        # An error where nothing is wrong, under --strict, were these types not known.
        "mackerel_otel_server.instrument(service_name=7)  # type: ignore[arg-type]\n"
    )
    run(
        *(sys.executable, "-m", "mypy", "--strict", "--python-executable", users["none"] / "bin" / "python", "mine.py"),
        cwd=tmp_path,
    )


CHANGES = "# Changelog\n\n## {}\n\n- Something.\n"


@pytest.mark.parametrize(
    ("tag", "heading", "words"),
    [
        ("v1.2.3", "1.2.3 (2026-12-24)", None),
        ("v1.2.3", "[1.2.3] - 2026-12-24", None),
        ("v1.2.3", "1.2.3 (unreleased)", "CHANGELOG.md has no section of 1.2.3 with a date"),
        ("v1.2.3", "1.2.30 (2026-12-24)", "CHANGELOG.md has no section of 1.2.3 with a date"),
        ("v1.2.3", "1x2.3 (2026-12-24)", "CHANGELOG.md has no section of 1.2.3 with a date"),
        ("v1.2.4", "1.2.4 (2026-12-24)", "the tag is v1.2.4, but the package's version is 1.2.3"),
        ("1.2.3", "1.2.3 (2026-12-24)", "or tag v1.2.3"),
    ],
)
def test_a_tag_is_released_when_the_version_and_a_dated_section_of_the_changelog_say_the_same(
    tmp_path: Path, tag: str, heading: str, words: str | None
) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "check-release", tmp_path / "scripts")
    (tmp_path / "mackerel_otel_server").mkdir()
    (tmp_path / "mackerel_otel_server" / "version.py").write_text('"""Doc."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGES.format(heading))
    result = subprocess.run(
        [tmp_path / "scripts" / "check-release", tag], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == (words is not None), result
    assert (words or "") in result.stderr


def test_the_release_job_installs_only_what_is_pinned_by_hash() -> None:
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    commands = [line.partition("python -m ")[2] for line in workflow.splitlines() if "python -m " in line]
    assert commands == [
        "pip install --require-hashes --only-binary=:all: -r .github/release-requirements.txt",
        "build --no-isolation",
        "twine check --strict dist/*",
    ]
    assert not re.search(r"\b(pipx|uvx?|npm|npx|curl|wget|apt-get)\b", workflow)
    text = (ROOT / ".github" / "release-requirements.txt").read_text(encoding="utf-8")
    pinned = text.replace("\\\n", "").splitlines()
    assert {"build", "hatchling", "twine"} <= {line.partition("==")[0] for line in pinned}
    for line in pinned:
        assert re.fullmatch(r"[\w.-]+==[\w.+!-]+( ;[^#]*?)?\s+(--hash=sha256:[0-9a-f]{64}\s*)+", line), line
