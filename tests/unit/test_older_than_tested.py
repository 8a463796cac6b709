"""Libraries that are older than the oldest release that the package is tested with."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mackerel_otel_server.process import log
from mackerel_otel_server.tracing import older_than_tested, on_or_off, warn_once

OLDEST = "2.0"


@pytest.fixture(autouse=True)
def _nothing_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warn_once, "_said", set())
    monkeypatch.setattr(warn_once, "said_by_others", bool)
    monkeypatch.setattr(on_or_off, "refused", False)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "_write_to_host", None)
    log.to_host(lambda record: found.append(log.text(record)) if record.levelno >= logging.WARNING else None)
    return found


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def library(folder: Path, version: str) -> str:
    """Put what an installer writes about a library into a folder that Python imports from."""
    info = folder / f"teapot-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: teapot\nVersion: {version}\n")
    return "teapot"


@pytest.mark.parametrize("version", ["1.9.9", "1.10", "1.99rc1"])
def test_a_release_that_is_older_is_named_with_what_to_type(install: Path, lines: list[str], version: str) -> None:
    name = library(install, version)
    older_than_tested.warn_if_older(name, OLDEST)
    assert len(lines) == 1
    assert lines[0].startswith(f"teapot {version} is older than 2.0, ")
    assert lines[0].endswith("; type: pip install 'teapot>=2.0'")


@pytest.mark.parametrize("version", ["2", "2.0", "2.0.0", "2.0rc1", "2.0.dev3", "10.1", "2.0+debian1", "no number"])
def test_no_other_release_is_named(install: Path, lines: list[str], version: str) -> None:
    older_than_tested.warn_if_older(library(install, version), OLDEST)
    assert lines == []


def test_what_is_not_installed_is_not_named(lines: list[str]) -> None:
    older_than_tested.warn_if_older("teapot", OLDEST)
    assert lines == []


def test_it_is_said_once(install: Path, lines: list[str]) -> None:
    name = library(install, "1")
    older_than_tested.warn_if_older(name, OLDEST)
    older_than_tested.warn_if_older(name, OLDEST)
    assert len(lines) == 1


def test_it_is_not_said_where_another_worker_says_it(
    install: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warn_once, "said_by_others", lambda: True)
    older_than_tested.warn_if_older(library(install, "1"), OLDEST)
    assert lines == []


def test_it_is_not_said_where_nothing_is_traced(
    install: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_or_off, "refused", True)
    older_than_tested.warn_if_older(library(install, "1"), OLDEST)
    assert lines == []
