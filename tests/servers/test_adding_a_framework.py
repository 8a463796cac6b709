"""A framework is added by one file; everything else that knows frameworks reads what that file says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import DEADLINE, environment, gunicorn

import mackerel_otel_server
from mackerel_otel_server.cli.receiver.endpoint import Receiver

# The framework, as somebody else has written it.
TEAPOT = """
class Teapot:
    def find(self, environ):
        return "/pour/<cups>" if environ["PATH_INFO"].startswith("/pour/") else "/"

    def __call__(self, environ, start_response):
        self.find(environ)
        try:
            raise ValueError("empty")
        except ValueError as error:
            self.answer_error(environ, error)
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"empty"]

    def answer_error(self, environ, error):
        pass

app = Teapot()
"""
# The file that is added.
ADDED = '''
"""Teapot."""

from typing import Any, Final

from mackerel_otel_server.tracing.framework import Framework
from mackerel_otel_server.tracing.requests.request import of
from mackerel_otel_server.tracing.requests.wsgi import trace_class


def _note_route(module: Any) -> None:
    original = module.Teapot.find

    def find(self: Any, environ: Any) -> Any:
        route = original(self, environ)
        if (begun := of(environ)) is not None:
            begun.note_route(route, environ)
        return route

    module.Teapot.find = find


def _note_errors(module: Any) -> None:
    original = module.Teapot.answer_error

    def answer_error(self: Any, environ: Any, error: Any) -> None:
        if (begun := of(environ)) is not None:
            begun.record(error)
        original(self, environ, error)

    module.Teapot.answer_error = answer_error


FRAMEWORK: Final = Framework(
    name="Tea pot",
    package="teapot",
    distribution="teapot",
    oldest="2.0",
    instrumentation="teapot",
    wsgi={"teapot": lambda module: trace_class(module.Teapot)},
    routes={"teapot": _note_route},
    exceptions={"teapot": _note_errors},
)
'''


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Make a folder with a copy of the installed package, to which one file is added, and the framework."""
    folder = tmp_path / "site"
    package = folder / "mackerel_otel_server"
    shutil.copytree(Path(mackerel_otel_server.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "tracing" / "frameworks" / "teapot.py").write_text(ADDED)
    (folder / "teapot.py").write_text(TEAPOT)
    info = folder / "teapot-1.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: teapot\nVersion: 1.9\n")
    return folder


def variables(site: Path, receiver: Receiver | None, **more: str) -> dict[str, str]:
    env = environment(receiver, **more)
    return env | {"PYTHONPATH": f"{site}:{env['PYTHONPATH']}"}


def command(site: Path, *arguments: str, **more: str) -> dict[str, Any]:
    program = Path(sys.executable).parent / "mackerel-otel-server"
    result = subprocess.run(
        [program, *arguments, "--json"],
        cwd=site.parent,
        env=variables(site, None, MACKEREL_APIKEY="test-key", OTEL_SERVICE_NAME="shop", **more),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert result.stderr == ""
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_its_spans_have_their_route_and_their_exception_and_its_own_variable_excludes_urls(
    tmp_path: Path, site: Path, receiver: Receiver
) -> None:
    env = variables(site, receiver, OTEL_PYTHON_TEAPOT_EXCLUDED_URLS="health", OTEL_PYTHON_EXCLUDED_URLS="pour")
    with gunicorn(tmp_path, env=env, app="teapot:app", workers=1) as server:
        for path in ("/pour/2", "/health"):
            assert server.get(path).status == 500
        log = server.stop()
    (span,) = receiver.spans
    assert (span.name, span.attributes["http.route"]) == ("GET /pour/<cups>", "/pour/<cups>"), log
    assert [event.attributes["exception.message"] for event in span.events] == ["empty"]
    older = "teapot 1.9 is older than 2.0, the oldest release that this package is tested with"
    assert log.count(older) == 1, log


def test_check_and_config_know_it(site: Path) -> None:
    name = "OTEL_PYTHON_TEAPOT_EXCLUDED_URLS"
    report = command(site, "check", OTEL_PYTHON_TEAPOD_EXCLUDED_URLS="health")
    (row,) = [one for one in report["versions"] if one["name"] == "Tea pot"]
    assert (row["version"], row["traced_by"]) == ("1.9", "mackerel-otel-server")
    seen = [one["seen"] for one in report["findings"]]
    assert f"OTEL_PYTHON_TEAPOD_EXCLUDED_URLS is not known; near to it is {name}" in seen
    assert "teapot 1.9 is older than 2.0, the oldest release that this package is tested with" in seen
    (setting,) = [one for one in command(site, "config", **{name: "health"})["settings"] if one["name"] == name]
    assert (setting["value"], setting["origin"]) == ("health", name)
    assert setting["documentation"]
