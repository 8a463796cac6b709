"""The command ``config``, and the settings' origins behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mackerel_otel_server.cli import config, main
from mackerel_otel_server.cli.all_variables import VARIABLES
from mackerel_otel_server.settings import Arguments
from mackerel_otel_server.settings.catalogue import CATALOGUE, MACKEREL_ENDPOINT
from mackerel_otel_server.settings.origins import Description, Shown, describe

SECRET = "s3cret-of-21-letters!"
KEY = {"MACKEREL_APIKEY": SECRET, "OTEL_SERVICE_NAME": "shop"}
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROXIED = {"MACKEREL_OTEL_ENDPOINT": "http://[::1]:1/v1/traces"}


def shown(description: Description, name: str) -> tuple[str, str]:
    (only,) = [(one.value, one.origin) for one in description.settings if one.name == name]
    return only


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove every variable that is understood; return what sets some."""
    for variable in VARIABLES:
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "name", "value", "origin"),
    [
        ({}, "MACKEREL_OTEL_ENDPOINT", MACKEREL_ENDPOINT, "default"),
        ({COLLECTOR: "http://c:1/"}, "MACKEREL_OTEL_ENDPOINT", "http://c:1/v1/traces", COLLECTOR),
        ({COLLECTOR: "http://c:1", TRACES: "http://t/x"}, "MACKEREL_OTEL_ENDPOINT", "http://t/x", TRACES),
        ({TRACES: " ", COLLECTOR: "http://c"}, "MACKEREL_OTEL_ENDPOINT", "http://c/v1/traces", COLLECTOR),
        ({"OTEL_TRACES_EXPORTER": "none"}, "MACKEREL_OTEL_ENDPOINT", "", "default"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER", "none", "OTEL_TRACES_EXPORTER"),
        (
            {"OTEL_TRACES_EXPORTER": "none", COLLECTOR: "http://c"},
            "MACKEREL_OTEL_ENDPOINT",
            "http://c (not used)",
            COLLECTOR,
        ),
        ({}, "MACKEREL_APIKEY", "****", "MACKEREL_APIKEY"),
        ({"MACKEREL_APIKEY": "", "MACKEREL_API_KEY": "k"}, "MACKEREL_APIKEY", "****", "MACKEREL_API_KEY"),
        (
            {"MACKEREL_APIKEY": "", "OTEL_EXPORTER_OTLP_HEADERS": "mackerel-api-key=k"},
            "MACKEREL_APIKEY",
            "****",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        ({COLLECTOR: "http://c:1"}, "MACKEREL_APIKEY", "**** (not sent)", "MACKEREL_APIKEY"),
        ({COLLECTOR: "http://c:1", "MACKEREL_APIKEY": ""}, "MACKEREL_APIKEY", "", "default"),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "1e1"},
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "10",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "soon",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": f"a={SECRET},b=1"},
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "a=****,b=****",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        ({"OTEL_TRACES_SAMPLER": "ALWAYS_ON"}, "OTEL_TRACES_SAMPLER", "always_on", "OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.1"}, "OTEL_TRACES_SAMPLER_ARG", "0.1 (not used)", "OTEL_TRACES_SAMPLER_ARG"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": ".10"},
            "OTEL_TRACES_SAMPLER_ARG",
            "0.1",
            "OTEL_TRACES_SAMPLER_ARG",
        ),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100", "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "1000"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512", "default"),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "9"}, "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "9", "OTEL_ATTRIBUTE_COUNT_LIMIT"),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "9"}, "OTEL_SPAN_LINK_COUNT_LIMIT", "128", "default"),
        ({}, "OTEL_SERVICE_NAME", "shop", "OTEL_SERVICE_NAME"),
        (
            {"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": "service.name=cart"},
            "OTEL_SERVICE_NAME",
            "cart",
            "OTEL_RESOURCE_ATTRIBUTES",
        ),
        (
            {"OTEL_SERVICE_NAME": "", "DJANGO_SETTINGS_MODULE": "mysite.settings"},
            "OTEL_SERVICE_NAME",
            "mysite",
            "DJANGO_SETTINGS_MODULE",
        ),
        ({"OTEL_SERVICE_NAME": ""}, "OTEL_SERVICE_NAME", "the application's top package", "default"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.version=1%2B"}, "service.version", "1+", "OTEL_RESOURCE_ATTRIBUTES"),
        ({}, "OTEL_RESOURCE_ATTRIBUTES", "", "default"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, "OTEL_RESOURCE_ATTRIBUTES", "a", "OTEL_RESOURCE_ATTRIBUTES"),
        ({"HTTPS_PROXY": "p:1"}, "https_proxy", "http://p:1", "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "p:1", "NO_PROXY": "*"}, "https_proxy", "p:1 (not used)", "HTTPS_PROXY"),
        ({"HTTP_PROXY": "http://u:pw@p:1"}, "http_proxy", "http://p:1 (not used)", "HTTP_PROXY"),
        ({**PROXIED, "HTTP_PROXY": "http://p:1"}, "http_proxy", "http://p:1 (not used)", "HTTP_PROXY"),
        ({COLLECTOR: "http://c", "HTTP_PROXY": "http://p:1"}, "http_proxy", "http://p:1", "HTTP_PROXY"),
        ({COLLECTOR: "http://c", "HTTP_PROXY": "http://u:p/w@p:1"}, "http_proxy", "****", "HTTP_PROXY"),
        ({"OTEL_SDK_DISABLED": "TRUE"}, "OTEL_SDK_DISABLED", "true", "OTEL_SDK_DISABLED"),
    ],
)
def test_a_setting_has_its_effective_value_and_the_variable_as_it_was_typed(
    variables: dict[str, str], name: str, value: str, origin: str
) -> None:
    assert shown(describe({**KEY, **variables}), name) == (value, origin)


def test_what_the_code_gave_goes_first_and_says_so() -> None:
    environ = {**KEY, "OTEL_RESOURCE_ATTRIBUTES": "service.version=1,service.namespace=x"}
    description = describe(environ, Arguments(service_name="cart", service_version="2", environment="prod"))
    assert shown(description, "OTEL_SERVICE_NAME") == ("cart", "instrument()")
    assert shown(description, "service.version") == ("2", "instrument()")
    assert shown(description, "deployment.environment.name") == ("prod", "instrument()")
    assert shown(description, "service.namespace") == ("x", "OTEL_RESOURCE_ATTRIBUTES")


def test_the_service_name_comes_from_the_application_or_the_script_where_they_are_known() -> None:
    environ = {"MACKEREL_APIKEY": "k"}
    description = describe(environ, application="mysite.wsgi:application", script="/bin/gunicorn")
    assert shown(description, "OTEL_SERVICE_NAME") == ("mysite", "the server's application")
    assert shown(describe(environ, script="/srv/batch.py"), "OTEL_SERVICE_NAME") == ("batch", "the script")
    (warning,) = describe(environ).warnings
    assert "the application's top package" in warning.follows
    assert "unknown_service" not in str(warning)


def test_every_variable_is_shown_once_whatever_is_set() -> None:
    names = [one.name for one in describe({}).settings]
    assert names == [variable.name for variable in CATALOGUE]


def test_no_secret_is_shown_nor_its_length(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    keyless = {"OTEL_SERVICE_NAME": "shop"}
    for variables in (
        KEY,
        {**keyless, "MACKEREL_APIKEY_FILE": str(tmp_path / "key")},
        {**keyless, "MACKEREL_APIKEY": f"{SECRET} {SECRET}"},
        {**keyless, "OTEL_EXPORTER_OTLP_HEADERS": f"Mackerel-Api-Key={SECRET},Authorization=Bearer {SECRET}"},
        {**keyless, "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization: Bearer {SECRET}=="},
        {**keyless, "OTEL_EXPORTER_OTLP_HEADERS": SECRET},
        {**keyless, "OTEL_EXPORTER_OTLP_HEADERS": f"Mackerel-Api-Key={SECRET}\udcff"},
        {**KEY, "MACKEREL_OTEL_ENDPOINT": f"https://user:{SECRET}@proxy/v1/traces"},
        {**KEY, "MACKEREL_OTEL_ENDPOINT": f"ftp://user:{SECRET}@proxy/v1/traces"},
        {**KEY, "HTTPS_PROXY": f"http://user:{SECRET}@proxy:3128"},
        {**KEY, "HTTPS_PROXY": f"https://user:{SECRET}@proxy:3128"},
        {**KEY, "HTTP_PROXY": f"user:{SECRET}@proxy:3128"},
        {**KEY, "HTTP_PROXY": f"http://user:/{SECRET}@proxy:3128"},
    ):
        description = describe(variables)
        for text in (repr(description), json.dumps(config.as_json(description))):
            assert SECRET not in text
            assert str(len(SECRET)) not in text.replace(str(tmp_path), "").replace("128", "")


@pytest.mark.parametrize("variables", [{}, {COLLECTOR: "http://c"}])
def test_a_key_that_is_typed_where_its_file_belongs_is_not_shown(variables: dict[str, str]) -> None:
    key = "k3y-of-nobody-" * 3
    description = describe({"MACKEREL_APIKEY_FILE": key, **variables})
    assert key not in repr(description)
    assert shown(description, "MACKEREL_APIKEY_FILE") == ("****", "MACKEREL_APIKEY_FILE")


def test_one_setting_is_one_line_of_aligned_columns_in_a_pipe(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.setenv("MACKEREL_APIKEY", SECRET)
    environ.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "7")
    environ.setenv("OTEL_SERVICE_NAME", "shop\x1b[31m")
    assert main(["config"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert len(lines) == len(VARIABLES)
    starts = {(line.index(line.split()[1]), line.rindex(line.split()[-1])) for line in lines if "top" not in line}
    assert len(starts) == 1
    (timeout,) = (line for line in lines if "TIMEOUT" in line and " 7 " in line)
    assert timeout.split() == ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "7", "OTEL_EXPORTER_OTLP_TIMEOUT"]
    assert "shop\\x1b[31m" in output.out
    assert output.err == ""


@pytest.mark.parametrize("width", [1, 20, 80])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(width: int) -> None:
    settings = (
        Shown("OTEL_SERVICE_NAME", "a name of some words " * 5, "OTEL_RESOURCE_ATTRIBUTES"),
        Shown("x", "", "y"),
    )
    lines = list(config.lines(settings, width))
    assert all(len(line) <= max(width, 3) for line in lines), lines
    together = "".join("".join(lines).split())
    assert together == "".join(f"OTEL_SERVICE_NAME{'a name of some words ' * 5}(OTEL_RESOURCE_ATTRIBUTES)x-(y)".split())


def test_columns_are_used_where_they_fit() -> None:
    assert list(config.lines((Shown("a", "1", "default"), Shown("bb", "", "bb")), 20)) == [
        "a   1  default",
        "bb  -  bb",
    ]


def test_problems_come_last_on_standard_error_with_status_1(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.setenv("OTEL_TRACES_SAMPLER", "always")
    assert main(["config"]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == len(VARIABLES)
    warning, follows, first, second = output.err.splitlines()
    assert warning.startswith("no service name is set")
    assert follows == "tracing is off, the application serves without it: "
    assert first.startswith("  - there is no API key and no Collector; set MACKEREL_APIKEY to ")
    assert second.startswith("  - OTEL_TRACES_SAMPLER='always' is not known; type one of ")


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    output = capsys.readouterr()
    assert output.err == ""
    value = json.loads(output.out)
    assert isinstance(value, dict)
    return value


def test_json_is_one_object_with_settings_problems_and_warnings(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=1")
    assert main(["config", "--json"]) == 1
    value = json_of(capsys)
    assert set(value) == {"settings", "problems", "warnings"}
    description = describe(os.environ)
    assert value["problems"] == [asdict(problem) for problem in description.problems]
    assert [problem["variable"] for problem in value["problems"]] == ["MACKEREL_APIKEY"]
    assert value["warnings"] == [
        {
            "variable": "OTEL_SERVICE_NAME",
            "seen": "no service name is set",
            "follows": "spans are sent under the name of the application's top package, as 'mysite' for mysite.wsgi",
            "cure": "set OTEL_SERVICE_NAME to the name that Mackerel shall show",
        }
    ]
    assert {
        "name": "OTEL_BSP_SCHEDULE_DELAY",
        "value": "5000",
        "origin": "default",
        "documentation": "milliseconds between two batches",
    } in value["settings"]
    assert {"name": "service.version", "value": "1", "origin": "OTEL_RESOURCE_ATTRIBUTES"} in value["settings"]
    environ.setenv("MACKEREL_APIKEY", SECRET)
    assert main(["config", "--json"]) == 0
    assert json_of(capsys)["problems"] == []


def test_bytes_that_are_no_text_are_shown_escaped(tmp_path: Path) -> None:
    env = {b"PATH": os.environb[b"PATH"], b"MACKEREL_APIKEY": b"k", b"OTEL_SERVICE_NAME": b"shop\xff"}
    for arguments in ([], ["--json"]):
        result = subprocess.run(
            [sys.executable, "-m", "mackerel_otel_server", "config", *arguments],
            cwd=tmp_path,
            env={**env, b"PYTHONIOENCODING": b"ascii"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 1, result
        assert "OTEL_SERVICE_NAME='shop" in result.stdout + result.stderr
        assert "is not UTF-8 text" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
