"""The catalogue of variables is what is read, and what OpenTelemetry has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.instrumentation.environment_variables
import opentelemetry.sdk.environment_variables
import pytest
from opentelemetry.sdk.trace import SpanLimits
from servers import environment

import mackerel_otel_server.settings
from mackerel_otel_server.settings import catalogue, read
from mackerel_otel_server.settings.catalogue import CATALOGUE
from mackerel_otel_server.settings.http_options import KNOWN_METHODS

NAMES = {name for variable in CATALOGUE for name in variable.names}


class Asked(Mapping[str, str]):
    """An environment that notes which variables are asked for."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return self.variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)


def asked(**variables: str) -> set[str]:
    environ = Asked(variables)
    read(environ)
    return environ.names


def test_what_is_read_is_in_the_catalogue_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key")
    ratio = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    names = asked(MACKEREL_APIKEY_FILE=str(tmp_path / "key"), **ratio)
    names |= asked(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318")
    excluded = {"OTEL_PYTHON_WSGI_EXCLUDED_URLS": "health", "OTEL_PYTHON_ASGI_EXCLUDED_URLS": "health"}
    names |= asked(MACKEREL_APIKEY="key", **excluded)
    by_themselves = {catalogue.DISABLED_INSTRUMENTATIONS.name}
    assert names | by_themselves == NAMES


def test_nothing_else_of_the_settings_names_a_variable_that_it_reads() -> None:
    folder = Path(mackerel_otel_server.settings.__file__).parent
    for file in folder.glob("*.py"):
        if file.name != "catalogue.py":
            typed = set(re.findall(r"""["'](\w+)["']""", file.read_text(encoding="utf-8")))
            assert typed & NAMES == set(), file


def test_no_variable_is_in_two_entries() -> None:
    assert sum(len(variable.names) for variable in CATALOGUE) == len(NAMES)


@pytest.mark.parametrize("variable", CATALOGUE, ids=lambda variable: variable.name)
def test_every_variable_has_one_line_of_documentation(variable: catalogue.Variable) -> None:
    assert re.fullmatch(r"[^\n]{10,200}[^\n.]", variable.documentation)


def test_the_names_of_opentelemetry_are_those_of_the_installed_one() -> None:
    modules = (
        opentelemetry.environment_variables,
        opentelemetry.sdk.environment_variables,
        opentelemetry.instrumentation.environment_variables,
    )
    theirs = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    own = re.compile(r"OTEL_PYTHON_(\w+_)?EXCLUDED_URLS|OTEL_INSTRUMENTATION_HTTP_\w+|OTEL_SEMCONV_STABILITY_OPT_IN")
    names = {name for name in NAMES if name.startswith("OTEL_") and not own.fullmatch(name)}
    assert names - theirs == set()


def test_the_defaults_of_the_catalogue_are_in_force() -> None:
    settings = read({"MACKEREL_APIKEY": "k"})
    assert settings.endpoint == catalogue.ENDPOINT.default
    assert settings.compression == catalogue.COMPRESSION.default
    assert settings.sampler == catalogue.SAMPLER.default
    assert settings.exporters == (catalogue.EXPORTER.default,)
    assert settings.http.propagators == tuple(catalogue.PROPAGATORS.default.split(","))
    assert {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"} == KNOWN_METHODS
    numbers = {
        catalogue.TIMEOUT: settings.timeout,
        catalogue.SAMPLER_ARG: settings.sampler_ratio,
        catalogue.SCHEDULE_DELAY: settings.schedule_delay,
        catalogue.MAX_QUEUE_SIZE: settings.max_queue_size,
        catalogue.MAX_EXPORT_BATCH_SIZE: settings.max_export_batch_size,
        catalogue.SHUTDOWN_TIMEOUT: settings.shutdown_timeout,
    }
    assert {variable.name: float(variable.default) for variable in numbers} == {
        variable.name: value for variable, value in numbers.items()
    }


def test_the_defaults_of_the_limits_are_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in catalogue.LIMITS:
        monkeypatch.delenv(variable.name, raising=False)
    limits = SpanLimits()
    theirs = {
        catalogue.ATTRIBUTE_LENGTH: limits.max_attribute_length,
        catalogue.ATTRIBUTE_COUNT: limits.max_attributes,
        catalogue.SPAN_ATTRIBUTE_LENGTH: limits.max_span_attribute_length,
        catalogue.SPAN_ATTRIBUTE_COUNT: limits.max_span_attributes,
        catalogue.SPAN_EVENT_COUNT: limits.max_events,
        catalogue.SPAN_LINK_COUNT: limits.max_links,
        catalogue.EVENT_ATTRIBUTE_COUNT: limits.max_event_attributes,
        catalogue.LINK_ATTRIBUTE_COUNT: limits.max_link_attributes,
    }
    assert theirs == {variable: int(variable.default) if variable.default else None for variable in catalogue.LIMITS}


MADE_UP = """
MADE_UP: Final = _of("MACKEREL_OTEL_MADE_UP", is_="a variable that this test makes up", default="7", minimum=1)
"""


@pytest.fixture(scope="module")
def package_with_made_up_variable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package whose catalogue has one more entry; nothing else is different."""
    folder = tmp_path_factory.mktemp("made-up")
    package = folder / "mackerel_otel_server"
    shutil.copytree(Path(mackerel_otel_server.__file__).parent, package)
    file = package / "settings" / "catalogue.py"
    before, last, after = file.read_text(encoding="utf-8").partition("\nCATALOGUE: Final")
    file.write_text(f"{before}{MADE_UP}{last}{after}", encoding="utf-8")
    return folder


_A_WHOLE_TEST_RUN = 240.0
"""Seconds, where many others run."""


def run(folder: Path, *arguments: str, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(folder), **variables},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_A_WHOLE_TEST_RUN,
        check=False,
    )
    return str(result.stdout)


def test_a_variable_is_one_entry_and_config_shows_it(package_with_made_up_variable: Path) -> None:
    show = (package_with_made_up_variable, "mackerel_otel_server", "config", "--json")
    entry = {"name": "MACKEREL_OTEL_MADE_UP", "documentation": "a variable that this test makes up"}
    assert entry | {"value": "7", "origin": "default"} in json.loads(run(*show))["settings"]
    settings = json.loads(run(*show, MACKEREL_OTEL_MADE_UP="8"))["settings"]
    assert entry | {"value": "8", "origin": "MACKEREL_OTEL_MADE_UP"} in settings


def test_a_variable_is_one_entry_and_check_knows_a_slip_of_its_name(package_with_made_up_variable: Path) -> None:
    check = ("mackerel_otel_server", "check", "--json")
    findings = json.loads(run(package_with_made_up_variable, *check, MACKEREL_OTEL_MADEUP="8"))["findings"]
    (found,) = [finding for finding in findings if "MADEUP" in finding["seen"]]
    assert found["seen"] == "MACKEREL_OTEL_MADEUP is not known; near to it is MACKEREL_OTEL_MADE_UP"


def test_a_variable_is_one_entry_and_the_documents_test_demands_its_row(package_with_made_up_variable: Path) -> None:
    file = Path(__file__).parents[1] / "documents" / "test_documents.py"
    test = f"{file}::test_the_table_of_variables_is_the_catalogue"
    output = run(package_with_made_up_variable, "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", test)
    assert re.search(r"Extra items in the right set:\nE +'MACKEREL_OTEL_MADE_UP'", output), output
    assert "2 failed" in output  # both languages
