"""The walls of the house: who may import whom, and who reads the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from servers import environment

import mackerel_otel_server

PACKAGE = Path(mackerel_otel_server.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("mackerel_otel_server.") for name in names if name.startswith("mackerel_otel_server.")}


ABOVE_WORKER = ("gunicorn", "uwsgi", "uvicorn", "celery", "watcher", "hosts", "conf", "cli")


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("settings", ("pipeline", "tracing", "worker", *ABOVE_WORKER)),
        ("pipeline", ("tracing", "worker", *ABOVE_WORKER)),
        ("tracing", ("pipeline", "settings", "worker", *ABOVE_WORKER)),
        ("worker.py", ABOVE_WORKER),
    ],
)
def test_imports_run_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    files = [file for file in FILES if file.relative_to(PACKAGE).parts[0] == part]
    assert files
    for file in files:
        assert not [name for name in _imports(file) if name.partition(".")[0] in forbidden], file


def test_only_settings_and_the_command_line_read_the_environment() -> None:
    readers = {
        file.relative_to(PACKAGE).parts[0]
        for file in FILES
        if "os.environ" in file.read_text() or "getenv" in file.read_text()
    }
    assert readers <= {"settings", "cli"}


def test_only_the_command_line_imports_what_tells_the_origins_of_settings() -> None:
    importers = {file.relative_to(PACKAGE).parts[0] for file in FILES if "settings.origins" in _imports(file)}
    assert importers == {"cli"}


@pytest.mark.parametrize("module", ["mackerel_otel_server", "mackerel_otel_server.conf"])
def test_the_doors_import_no_http_library_and_no_sdk(tmp_path: Path, module: str) -> None:
    script = (
        f"import sys, {module}; "
        "print([m for m in ('requests', 'urllib3', 'http.client', 'opentelemetry.sdk', 'google.protobuf', 'gevent')"
        " if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_conf_holds_hooks_and_nothing_else_that_gunicorn_would_apply() -> None:
    from gunicorn.config import make_settings

    from mackerel_otel_server import conf

    applied = set(vars(conf)) & set(make_settings())
    assert applied == {"on_starting", "on_reload", "post_fork", "post_worker_init", "worker_abort", "worker_exit"}
