"""The walls of the house: who may import whom, and who reads the environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from servers import environment

import mackerel_otel_server

PACKAGE = Path(mackerel_otel_server.__file__).parent
# A wheel has the files that `init` writes among them.
FILES = sorted(file for file in PACKAGE.rglob("*.py") if "conf_examples" not in file.parts)
NAME = "mackerel_otel_server"

FLOORS: list[tuple[str, ...]] = [
    ("process", "version"),
    ("settings",),
    # They do not know each other.
    ("pipeline", "tracing"),
    ("worker", "worker_log"),
    ("servers",),
    ("cli",),
    ("__init__", "__main__", "conf", "gunicorn", "uwsgi"),
]
"""From the ground to the doors. A module imports from its own room, and from rooms on lower floors."""
ROOMS_ON_ONE_FLOOR = {("worker", "worker_log"), ("conf", "gunicorn")}
"""Pairs of rooms on one floor of which the first imports the second."""


def _module(file: Path) -> str:
    """Return a module's name within the package; that of the package itself is ``__init__``."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {_module(file): file for file in FILES}


def _named(file: Path, *, at_once: bool = False) -> set[str]:
    """Return the modules that a file names in an import, wherever in the file that stands.

    Args:
        file: A file of the package.
        at_once: Only those that are imported with the file itself: no import that is indented.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if at_once and getattr(node, "col_offset", 0) > 0:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                # ``from package import name`` imports a module, or takes a name from the package's __init__.
                names.add(whole if whole.removeprefix(f"{NAME}.") in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _imports(file: Path, *, at_once: bool = False) -> set[str]:
    """Return those of _named() that are modules of the package."""
    ours = {name for name in _named(file, at_once=at_once) if name == NAME or name.startswith(f"{NAME}.")}
    return {"__init__" if name == NAME else name.removeprefix(f"{NAME}.") for name in ours} - {_module(file)}


def _room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_is_on_a_floor() -> None:
    assert {_room(module) for module in MODULES} == {room for floor in FLOORS for room in floor}


def test_imports_run_downwards_only() -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    not_downwards = {
        f"{module} imports {imported}"
        for module, file in MODULES.items()
        for imported in _imports(file)
        if _room(module) != _room(imported)
        and (_room(module), _room(imported)) not in ROOMS_ON_ONE_FLOOR
        and floor_of[_room(module)] <= floor_of[_room(imported)]
    }
    assert not_downwards == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: _imports(file) for module, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


SAME_NAMES = {
    # A door, and what it opens to.
    "gunicorn",
    "uwsgi",
    # What a worker does, and what check finds about it before.
    "destination",
    "identity",
    # What OpenTelemetry's own parts do in the place of ours.
    "standard",
    # From the configuration of either server.
    "config_findings",
}
"""Names that several modules of the package have."""


def test_no_further_modules_share_a_name() -> None:
    stems = Counter(file.stem for file in FILES if file.stem != "__init__")
    assert {stem for stem, count in stems.items() if count > 1} <= SAME_NAMES


HOSTS = ("celery", "gunicorn", "runserver", "uvicorn", "uwsgi")


@pytest.mark.parametrize("host", HOSTS)
def test_each_host_says_how_tracing_is_registered_when_it_starts_and_stops_and_whether_the_host_kills(
    host: str,
) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / "servers" / f"{host}.py").read_text())) or ""
    assert re.findall(r"^([A-Z]\w+): ", said, re.MULTILINE) == ["Registers", "Starts", "Stops", "Kills"]


def test_only_settings_reads_the_environment() -> None:
    readers = {
        str(file.relative_to(PACKAGE)) for file in FILES if re.search(r"os\.environ|getenv", file.read_text("utf-8"))
    }
    # It tells what a configuration file has done to the process that loads it.
    allowed = {"cli/inspection/gunicorn/load.py"}
    assert {name for name in readers if not name.startswith("settings/")} == allowed


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


def test_nothing_of_ours_imports_tls_or_http_on_the_way_from_conf() -> None:
    reached: set[str] = set()
    left = {"__init__", "conf"}
    while left:
        module = left.pop()
        reached.add(module)
        left |= _imports(MODULES[module], at_once=True)
        left |= {package for package in MODULES if module.startswith(f"{package}.")}
        left -= reached
    assert {"settings", "tracing.on_or_off", "worker"} < reached
    theirs = {name.partition(".")[0] for module in reached for name in _named(MODULES[module], at_once=True)}
    assert theirs & {"ssl", "http", "requests", "urllib3", "asyncio"} == set()


def test_conf_holds_hooks_and_nothing_else_that_gunicorn_would_apply() -> None:
    from gunicorn.config import make_settings

    from mackerel_otel_server import conf

    applied = set(vars(conf)) & set(make_settings())
    assert applied == {"on_starting", "on_reload", "post_fork", "post_worker_init", "worker_abort", "worker_exit"}
