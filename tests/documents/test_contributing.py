"""What CONTRIBUTING.md says is there: the extra for the first test, and what looks at a commit."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from documents import CONTRIBUTING, ROOT, block, read

from mackerel_otel_server.settings import catalogue

OURS = {"tests", "mackerel_otel_server", *(file.stem for file in (ROOT / "tests").rglob("*.py"))}


def _extra() -> set[str]:
    """Return the requirements of the extra ``dev``, as pyproject.toml has them."""
    (extra,) = re.findall(r"^dev = \[\n(.*?)^\]", read("pyproject.toml"), re.MULTILINE | re.DOTALL)
    return {re.split(r"[<>=\[]", requirement)[0] for requirement in re.findall(r'^  "(.*)",$', extra, re.MULTILINE)}


def _name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _with_what_they_bring(names: set[str]) -> set[str]:
    """Return distributions and all that they require, but for extras."""
    found: set[str] = set()
    while left := names - found:
        name = left.pop()
        found.add(name)
        try:
            requires = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python
        names |= {_name(re.split(r"[^\w.-]", one)[0]) for one in requires if "extra ==" not in one}
    return found


def _imports(file: Path) -> Iterator[str]:
    """Yield what a file imports on its first level, but what type checkers read."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _files() -> set[Path]:
    """Return the unit tests, and the files of tests/support that these import."""
    left = [*(ROOT / "tests" / "unit").glob("*.py"), ROOT / "tests" / "conftest.py"]
    found: set[Path] = set()
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            support = (ROOT / "tests" / "support" / f"{name}.py" for name in _imports(file))
            left += [file for file in support if file.exists()]
    return found


def test_the_extra_for_development_has_what_the_unit_tests_import() -> None:
    owners = {
        str(distribution.locate_file(file)): _name(distribution.name)
        for distribution in importlib.metadata.distributions()
        for file in distribution.files or ()
    }
    allowed = _with_what_they_bring(_extra() | {"mackerel-otel-server"})
    files = _files()
    assert len(files) > 15
    missing = set()
    for file in files:
        for name in _imports(file):
            spec = importlib.util.find_spec(name) if name.partition(".")[0] not in OURS else None
            owner = owners.get(str(spec.origin)) if spec else None
            if owner and owner not in allowed and name.partition(".")[0] not in sys.stdlib_module_names:
                missing.add((file.name, name, owner))
    assert missing == set()


def test_the_first_test_installs_that_extra_and_runs_the_unit_tests() -> None:
    assert "pip install --editable '.[dev]'\n.venv/bin/pytest tests/unit\n" in CONTRIBUTING
    tox = read("tox.ini")
    # One list is a part of the other, so that what passes there passes here.
    assert {name for name in _extra() if not re.search(rf"^  {re.escape(name)}\b", tox, re.MULTILINE)} == set()


def test_the_entry_of_the_made_up_variable_is_one_of_the_catalogue() -> None:
    names = dict(vars(catalogue))
    exec(block("python", "MACKEREL_OTEL_SLOW_REQUEST"), names)
    variable = names["SLOW_REQUEST"]
    assert isinstance(variable, catalogue.Variable)
    assert (variable.name, variable.default, variable.minimum) == ("MACKEREL_OTEL_SLOW_REQUEST", "1000", 1)


def test_what_looks_at_a_commit_is_what_ci_looks_at() -> None:
    hooks = {
        hook["id"]: (one, hook)
        for one in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
        for hook in one["hooks"]
    }
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy"}
    for name in ("ruff-check", "ruff-format"):
        assert hooks[name][0]["repo"] == "https://github.com/astral-sh/ruff-pre-commit"
        assert re.fullmatch(r"v\d+\.\d+\.\d+", hooks[name][0]["rev"])
    assert hooks["mypy"][0]["repo"] == "local"
    assert hooks["mypy"][1]["entry"] == "tox run -e types"
    (types,) = re.findall(r"^\[testenv:types\]\n(.*?)^\[", read("tox.ini"), re.MULTILINE | re.DOTALL)
    assert "\ncommands = mypy --strict\n" in types
