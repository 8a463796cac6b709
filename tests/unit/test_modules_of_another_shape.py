"""What we hook an import of may have another shape one day: the import succeeds, and one line says what is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from servers import environment

from mackerel_otel_server.tracing import frameworks
from mackerel_otel_server.tracing.databases.driver import Driver
from mackerel_otel_server.tracing.databases.drivers import DRIVERS

SCRIPT = """
import importlib, sys
import mackerel_otel_server
mackerel_otel_server.instrument()
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("imported", name)
"""


def _run(folder: Path, modules: dict[str, str]) -> list[str]:
    """Import modules that hold the given text; return what the log says."""
    for name, text in modules.items():
        *parents, last = name.split(".")
        package = folder.joinpath(*parents)
        package.mkdir(parents=True, exist_ok=True)
        for parent in range(1, len(parents) + 1):
            folder.joinpath(*parents[:parent], "__init__.py").touch()
        # A package, so that there may be modules below it.
        (package / last).mkdir(exist_ok=True)
        (package / last / "__init__.py").write_text(text)
    (folder / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "script.py", *modules],
        cwd=folder,
        env=environment(PYTHONPATH=str(folder), MACKEREL_APIKEY="key", OTEL_SERVICE_NAME="shop"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    assert result.stdout.splitlines() == [f"imported {name}" for name in modules]
    return result.stderr.splitlines()


@pytest.mark.parametrize(
    "server",
    ["", "class Server: pass\n", "class Server:\n    def shutdown(self): pass\n", "Server = None\n"],
    ids=["empty", "no shutdown", "no coroutine", "no class"],
)
def test_another_uvicorn_is_imported_and_one_line_says_what_is_lost(tmp_path: Path, server: str) -> None:
    (line,) = _run(tmp_path, {"uvicorn.server": server})
    assert line.startswith("uvicorn.server is not as expected (")
    assert line.endswith("): the spans of its last seconds are lost at TERM")


@pytest.mark.parametrize("signals", ["", "worker_process_shutdown = None\n"], ids=["empty", "no signal"])
def test_another_celery_is_imported_and_one_line_says_what_is_lost(tmp_path: Path, signals: str) -> None:
    # Celery's own instrumentation has a line, too.
    lines = _run(tmp_path, {"celery.signals": signals})
    (line,) = [line for line in lines if "CeleryInstrumentor does not instrument celery (" not in line]
    assert line.startswith("celery.signals is not as expected (AttributeError: ")
    assert line.endswith("): the spans of the last seconds of Celery's workers are lost")


def test_other_frameworks_are_imported_and_each_says_at_most_once_what_is_not_traced(tmp_path: Path) -> None:
    names = sorted({name for framework in frameworks.known() for name, _, _ in frameworks._hooks(framework)})  # noqa: SLF001 - all
    lines = _run(tmp_path, dict.fromkeys(names, ""))
    assert len(lines) == len(set(lines)), lines
    assert {line.partition(" is not as expected (")[0] for line in lines} == set(names), lines
    assert sum(line.endswith(": it is not traced") for line in lines) == sum(
        len(framework.wsgi) + len(framework.asgi) for framework in frameworks.known()
    )


# Not mysql: its modules' classes are patched whatever their names are.
@pytest.mark.parametrize(
    "driver", [driver for driver in DRIVERS if driver.name != "mysql"], ids=lambda driver: driver.name
)
def test_another_driver_is_imported_and_one_line_says_that_its_queries_are_not_traced(
    tmp_path: Path, driver: Driver
) -> None:
    parts = list(driver.patches)
    lines = _run(tmp_path, dict.fromkeys(parts, ""))
    said = [line for line in lines if line.endswith("): its queries are not traced") or "does not instrument" in line]
    assert lines == said
    assert said
    assert len(said) == len(set(said)) <= len(parts) + 1
