"""The catalogue of variables is what is read, and what OpenTelemetry has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.instrumentation.environment_variables
import opentelemetry.sdk.environment_variables
import pytest
from opentelemetry.sdk.trace import SpanLimits

import mackerel_otel_server.settings
from mackerel_otel_server.http_options import KNOWN_METHODS
from mackerel_otel_server.settings import catalogue, read
from mackerel_otel_server.settings.catalogue import CATALOGUE

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
        raise AssertionError

    def __len__(self) -> int:
        raise AssertionError


def asked(**variables: str) -> set[str]:
    environ = Asked(variables)
    read(environ)
    return environ.names


def test_what_is_read_is_in_the_catalogue_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key")
    ratio = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    names = asked(MACKEREL_APIKEY_FILE=str(tmp_path / "key"), **ratio)
    names |= asked(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318")
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
    assert frozenset(catalogue.KNOWN_METHODS.default.split(",")) == KNOWN_METHODS
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
