"""Run ``mackerel-otel-server check`` in this process, in a folder and an environment made for it."""

from __future__ import annotations

import functools
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from mackerel_otel_server.cli import main
from mackerel_otel_server.cli.inspection import versions
from mackerel_otel_server.cli.inspection.findings import Finding

if TYPE_CHECKING:
    import pytest

FOREIGN = ("OTEL_", "MACKEREL_", "GUNICORN_", "UWSGI_")
KEY = uuid.uuid4().hex
INSTALL = "from mackerel_otel_server.gunicorn import install\ninstall(globals())\n"
# Root may read everything. Without these capabilities, root may read what the files' modes allow, as everybody else.
_OVERRIDE = "-dac_override,-dac_read_search"
WITHOUT_PRIVILEGE = [] if os.geteuid() else ["setpriv", "--bounding-set", _OVERRIDE, "--inh-caps", _OVERRIDE]
INI = "[uwsgi]\nimport = mackerel_otel_server.uwsgi\nmaster = true\nenable-threads = true\n"


@dataclass(frozen=True)
class Checked:
    status: int
    data: Mapping[str, Any]
    text: str

    def about(self, *words: str) -> Mapping[str, str]:
        """Return the one finding with these words in it."""
        found = [
            finding
            for finding in self.data["findings"]
            if all(word in " ".join((finding["seen"], finding["follows"], finding["cure"])) for word in words)
        ]
        assert len(found) == 1, (words, self.data["findings"])
        finding: Mapping[str, str] = found[0]
        return finding

    def has(self, level: str, *words: str) -> None:
        """Check that there is one finding with these words, and that it is of this level and complete."""
        finding = self.about(*words)
        assert finding["level"] == level, finding
        if level != "OK":
            assert finding["follows"], finding
            assert finding["cure"], finding
        assert (self.status == 1) is any(each["level"] == "FAIL" for each in self.data["findings"])

    def levels(self) -> set[str]:
        return {finding["level"] for finding in self.data["findings"]}


Check = Callable[..., Checked]


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that says nothing about tracing but where the journals of this test are."""
    return {
        name: value
        for name, value in environ.items()
        if name == "MACKEREL_OTEL_SPOOL" or (not name.startswith(FOREIGN) and name != "PYTHONPATH")
    }


def settle(folder: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> None:
    """Make this process one of a user who has set a key and a name."""
    for name in set(os.environ) - set(clean(os.environ)):
        monkeypatch.delenv(name)
    for name, value in {"MACKEREL_APIKEY": KEY, "OTEL_SERVICE_NAME": "shop", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    # Another test may have set one in this process.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)


def make_check(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    def check(*arguments: str, files: Mapping[str, str] | None = None, **env: str) -> Checked:
        for name, content in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        settle(folder, monkeypatch, **env)
        for read_once in (versions._version, versions._instrumentations, versions._conflict):  # noqa: SLF001 - no user changes what is installed meanwhile
            read_once.cache_clear()
        status = main(["check", "--json", *arguments])
        captured = capsys.readouterr()
        assert captured.err == ""
        assert KEY not in captured.out
        return Checked(status, json.loads(captured.out), captured.out)

    return check


def know_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``check`` look up once what is installed: that is the same for many tests, and takes longer than all else."""
    monkeypatch.setattr(versions, "gather", lambda environ: _known(*map(environ.get, _ABOUT_VERSIONS))[0])
    monkeypatch.setattr(versions, "findings", lambda environ: _known(*map(environ.get, _ABOUT_VERSIONS))[1])


_ABOUT_VERSIONS = ("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "OTEL_SDK_DISABLED", "MACKEREL_OTEL_PARTS")
_GATHER, _FINDINGS = versions.gather, versions.findings


@functools.cache
def _known(*values: str | None) -> tuple[list[versions.Version], list[Finding]]:
    environ = {name: value for name, value in zip(_ABOUT_VERSIONS, values, strict=True) if value is not None}
    return _GATHER(environ), _FINDINGS(environ)
