"""The environment becomes settings."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import pytest

from mackerel_otel_server.pipeline import connection
from mackerel_otel_server.pipeline.answer import Fault
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.settings import (
    Arguments,
    Settings,
    SettingsError,
    catalogue,
    destination,
    environment,
    proxy,
    read,
    worded,
)
from mackerel_otel_server.settings.catalogue import MACKEREL_ENDPOINT
from mackerel_otel_server.settings.http_options import HttpOptions
from mackerel_otel_server.settings.problems import TRACING_IS_OFF, Problem

KEY = {"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop"}
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"


def problems(**variables: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as error:
        read({**KEY, **variables})
    assert all(one.follows == TRACING_IS_OFF and one.variable and one.cure for one in error.value.problems)
    return tuple(worded([one]).removeprefix(f"{TRACING_IS_OFF}: ") for one in error.value.problems)


def problem(**variables: str) -> str:
    (only,) = problems(**variables)
    return only


def test_a_key_is_all_that_is_needed() -> None:
    settings = read({"MACKEREL_APIKEY": "the-key"}, application="mysite.wsgi:application")
    assert settings == Settings(
        service_name="mysite",
        resource_attributes={"service.name": "mysite"},
        exporters=("otlp",),
        endpoint=MACKEREL_ENDPOINT,
        api_key="the-key",
        headers={},
        proxy=None,
        timeout=10.0,
        compression="gzip",
        certificate=None,
        client_key=None,
        client_certificate=None,
        sampler="parentbased_always_on",
        sampler_ratio=1.0,
        schedule_delay=5000,
        max_queue_size=2048,
        max_export_batch_size=512,
        spool="",
        shutdown_timeout=5.0,
        parts="own",
        http=HttpOptions(),
        omitted_attributes=frozenset(),
        warnings=settings.warnings,
    )
    assert settings.warnings == (
        Problem(
            "OTEL_SERVICE_NAME",
            "no service name is set",
            "spans are sent as 'mysite'",
            "set OTEL_SERVICE_NAME to the name that Mackerel shall show",
        ),
    )


def test_the_key_is_not_in_the_repr() -> None:
    settings = read({**KEY, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret"})
    assert "the-key" not in repr(settings)
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({"MACKEREL_APIKEY": "a", "MACKEREL_API_KEY": "b"}, "a"),
        ({"MACKEREL_APIKEY": "", "MACKEREL_API_KEY": "b"}, "b"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "Mackerel-Api-Key=c,Accept=*/*"}, "c"),
    ],
)
def test_the_key_comes_from_the_first_variable_that_is_set(variables: dict[str, str], key: str) -> None:
    assert read({"OTEL_SERVICE_NAME": "shop", **variables}).api_key == key


def test_the_key_variables_go_before_the_key_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  from-file\n")
    file = {"MACKEREL_APIKEY_FILE": str(tmp_path / "key")}
    assert read(file).api_key == "from-file"
    assert read({**file, **KEY}).api_key == "the-key"


def test_a_key_file_that_is_a_pipe_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    assert "cannot be read" in problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=str(tmp_path / "key"))


def test_a_key_file_that_is_empty_or_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n")
    assert "is empty" in problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=str(tmp_path / "key"))
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=str(tmp_path / "key"))


@pytest.mark.parametrize("key", ["two words", "k3y\n", " k3y", "k3y\r", "schlüssel", "k3y\x00"])
def test_what_cannot_be_a_key_is_an_error_that_does_not_show_it(key: str) -> None:
    message = problem(MACKEREL_APIKEY=key)
    assert message.startswith("MACKEREL_APIKEY holds")
    assert key.strip() not in message


def test_a_key_that_is_typed_where_its_file_belongs_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "k3y/of+nobody-" * 3 + "=="
    message = problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=key)
    assert message.startswith("MACKEREL_APIKEY_FILE names no file that is there")
    assert key not in message
    assert key not in problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=key.replace("/", "") * 9)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file_with_a_long_name").write_text("")
    message = problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE="a_file_with_a_long_name")
    assert message.startswith("MACKEREL_APIKEY_FILE='a_file_with_a_long_name' is empty")


@pytest.mark.parametrize("typed", ["{}", '"{}"', "\N{LEFT DOUBLE QUOTATION MARK}{}", "Bearer {}", "MACKEREL_APIKEY={}"])
@pytest.mark.parametrize("key", ["k3y-0fme", "k3y-of-nobody-at-all-012345", "/k3y+of/Nobody=="])
@pytest.mark.parametrize("name", ["MACKEREL_APIKEY_FILE", *catalogue.ENDPOINT.names])
def test_a_key_that_is_typed_into_the_wrong_variable_is_not_shown_quoted_or_short(
    typed: str, key: str, name: str
) -> None:
    said = problems(MACKEREL_APIKEY="", **{name: typed.format(key)})
    assert key[2:] not in "".join(said)
    assert "type MACKEREL_APIKEY= and the key" in said[0] or key[0] == "/"


@pytest.mark.parametrize("file", ["/run/secrets/Mackerel1", "/mackerel_apikey", "./k3y-0fme", "apikey"])
def test_the_name_of_a_file_for_the_key_that_is_missing_is_shown(file: str) -> None:
    assert f"MACKEREL_APIKEY_FILE={file!r} cannot be read" in problem(MACKEREL_APIKEY="", MACKEREL_APIKEY_FILE=file)


@pytest.mark.parametrize(
    "variable", [catalogue.EXPORTER, catalogue.PROTOCOL, catalogue.COMPRESSION, catalogue.TIMEOUT, catalogue.SAMPLER,
                 catalogue.CERTIFICATE, catalogue.RESOURCE_ATTRIBUTES, catalogue.SDK_DISABLED, catalogue.PROPAGATORS,
                 catalogue.SCHEDULE_DELAY, catalogue.HTTPS_PROXY], ids=lambda variable: variable.name
)  # fmt: skip
def test_a_key_in_a_variable_that_it_makes_no_sense_in_is_not_shown(variable: catalogue.Variable) -> None:
    key = "k3y-of-nobody-at-all-012345"
    for typed in (key, f'"{key}"', f"[{key}"):
        try:
            text = repr(read({**KEY, variable.name: typed}))
        except SettingsError as error:
            text = str(error)
        assert "nobody" not in text


WORDS_AND_NUMBERS = [
    one for one in catalogue.CATALOGUE if (one.words or one.minimum is not None) and one is not catalogue.SEMCONV
]


@pytest.mark.parametrize("variable", WORDS_AND_NUMBERS, ids=lambda variable: variable.name)
@pytest.mark.parametrize("key", ["k3yOfNobody012", "9f86d081884c7d", "q7hzk2m9x4vw8b", "QpZmRkWbTnYcXa"])
def test_a_short_key_is_not_shown_where_a_word_or_a_number_belongs(key: str, variable: catalogue.Variable) -> None:
    typed = {**KEY, "OTEL_TRACES_SAMPLER": "traceidratio", variable.name: key}
    assert key not in problem(**typed)
    for text in (f'"{key}"', f"Bearer {key}", f"{key},{key}", f"parentbased_traceidratio={key}"):
        assert key not in "".join(problems(**typed | {variable.name: text}))


@pytest.mark.parametrize(
    ("variable", "typed"),
    [
        (catalogue.SAMPLER, "AlwaysOnSampler"),
        (catalogue.SAMPLER, "ParentBasedTraceIdRatio"),
        (catalogue.SAMPLER, "parentbased_traceidratio01"),
        (catalogue.SAMPLER, "jaeger_remote_v2"),
        (catalogue.PROTOCOL, "HttpProtobuf11"),
        (catalogue.PROPAGATORS, "W3CTraceContext"),
        (catalogue.SCHEDULE_DELAY, "5000milliseconds"),
        (catalogue.TIMEOUT, "100000000000000"),
    ],
)
def test_a_known_word_that_is_typed_wrong_is_shown(variable: catalogue.Variable, typed: str) -> None:
    assert repr(typed) in problem(**{variable.name: typed})


def _locals_of(error: BaseException) -> str:
    """Return a traceback of ours with the values of all variables, as Sentry and rich print them."""
    own = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.TracebackException(type(error), error, own, capture_locals=True).format())


SECRETS = ("k3y-of-nobody", "pass-w0rd", "t0ken-in-query", "he4der-value", "pr0xy-pass")
FULL = {
    "OTEL_SERVICE_NAME": "shop",
    "MACKEREL_APIKEY": "k3y-of-nobody",
    "MACKEREL_OTEL_ENDPOINT": "https://user:pass-w0rd@proxy.invalid/v1?key=t0ken-in-query",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20he4der-value",
    "HTTPS_PROXY": "http://user:pr0xy-pass@127.0.0.1:9",
}


def test_neither_the_repr_nor_a_traceback_with_the_values_of_variables_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = read(FULL)
    texts = [repr(settings)]
    with pytest.raises(SettingsError) as raised:
        read({**FULL, "OTEL_TRACES_SAMPLER": "none"})
    texts.append(_locals_of(raised.value))
    exporter = Exporter(settings)
    with pytest.raises(Fault) as fault:
        exporter._connection.post(exporter._fields(), b"", time.monotonic() + 5)  # noqa: SLF001 - export() catches it
    texts.append(_locals_of(fault.value))

    def fail(*given: object) -> None:
        del given
        raise RuntimeError

    for module, name in ((destination, "read_api_key"), (proxy, "Secret"), (connection, "_authority")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(RuntimeError) as wrong:
                Exporter(read(FULL))
        texts.append(_locals_of(wrong.value))
    assert len(texts) == 6
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text], text


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cret\udcff"},
        {"HTTPS_PROXY": "http://user:s3cret\udcff@proxy"},
    ],
)
def test_a_secret_that_is_no_text_is_not_shown(variables: dict[str, str]) -> None:
    message = problem(**variables)
    assert message == f"{next(iter(variables))} is not UTF-8 text; type it again"


@pytest.mark.parametrize(
    ("variables", "endpoint", "key"),
    [
        ({"MACKEREL_OTEL_ENDPOINT": "http://127.0.0.1:1/x"}, "http://127.0.0.1:1/x", "the-key"),
        ({"MACKEREL_OTEL_ENDPOINT": "http://[::1]:1/x"}, "http://[::1]:1/x", "the-key"),
        ({"MACKEREL_OTEL_ENDPOINT": "http://localhost/x", COLLECTOR: "http://b"}, "http://localhost/x", "the-key"),
        ({COLLECTOR: "http://collector:4318"}, "http://collector:4318/v1/traces", None),
        ({COLLECTOR: "http://collector:4318/"}, "http://collector:4318/v1/traces", None),
        ({COLLECTOR: "http://collector:4318/base"}, "http://collector:4318/base/v1/traces", None),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector/t", COLLECTOR: "http://b"},
            "http://collector/t",
            None,
        ),
        ({COLLECTOR: "https://otlp-vaxila.mackerelio.com"}, MACKEREL_ENDPOINT, "the-key"),
        ({COLLECTOR: "https://mackerelio.com.example.org"}, "https://mackerelio.com.example.org/v1/traces", None),
        ({COLLECTOR: "https://notmackerelio.com"}, "https://notmackerelio.com/v1/traces", None),
    ],
)
def test_the_key_goes_to_mackerel_and_to_the_operators_stand_in_only(
    variables: dict[str, str], endpoint: str, key: str | None
) -> None:
    settings = read({**KEY, **variables})
    assert (settings.endpoint, settings.api_key) == (endpoint, key)


def test_a_collector_needs_no_key_and_gets_none_from_the_headers_variable() -> None:
    settings = read(
        {
            COLLECTOR: "http://c:4318",
            "OTEL_EXPORTER_OTLP_HEADERS": "MACKEREL-API-KEY=k,x-a=1%202",
            "MACKEREL_APIKEY": "",
        }
    )
    assert settings.api_key is None
    assert settings.headers == {"x-a": "1 2"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({COLLECTOR: "localhost:4318"}, "type OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318"),
        ({COLLECTOR: "http://"}, "is not an http or https URL"),
        ({COLLECTOR: "ftp://c:4318"}, "is not an http or https URL"),
        ({COLLECTOR: "http://c:port"}, "is not a URL"),
        ({"MACKEREL_OTEL_ENDPOINT": "https://proxy"}, "has no path; type the full traces URL: https://proxy/v1/traces"),
        (
            {"MACKEREL_OTEL_ENDPOINT": "proxy:8443"},
            "has no scheme; type MACKEREL_OTEL_ENDPOINT=https://proxy:8443/v1/traces",
        ),
        (
            {"MACKEREL_OTEL_ENDPOINT": "localhost:4318/a"},
            "has no scheme; type MACKEREL_OTEL_ENDPOINT=http://localhost:4318/a",
        ),
        (
            {"MACKEREL_OTEL_ENDPOINT": "http://proxy"},
            "excepted); type MACKEREL_OTEL_ENDPOINT=https://proxy/v1/traces",
        ),
        ({"MACKEREL_OTEL_ENDPOINT": "http://proxy/x"}, "type MACKEREL_OTEL_ENDPOINT=https://proxy/x"),
        ({COLLECTOR: "http://otlp-vaxila.mackerelio.com"}, "would send the API key unencrypted"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf only"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='http/json'"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "OTEL_EXPORTER_OTLP_HEADERS: an item is not of the form key=value"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT='soon' is not a number"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}, "is not a number of at least 0.001"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "type one of gzip, deflate, none"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "missing.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE='missing.pem' cannot be"),
        ({"OTEL_TRACES_EXPORTER": "oltp"}, "OTEL_TRACES_EXPORTER='oltp': 'oltp' is not known"),
        ({"OTEL_TRACES_SAMPLER": "always"}, "OTEL_TRACES_SAMPLER='always' is not known"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10%"},
            "OTEL_TRACES_SAMPLER_ARG='10%' is not a number from 0 to 1",
        ),
        ({"OTEL_PROPAGATORS": "tracecontext,b4"}, "OTEL_PROPAGATORS='tracecontext,b4': 'b4' is not installed"),
        ({"OTEL_SDK_DISABLED": "ture"}, "OTEL_SDK_DISABLED='ture' is neither true nor false"),
        ({"OTEL_BSP_EXPORT_TIMEOUT": "abc"}, "OTEL_BSP_EXPORT_TIMEOUT='abc' is not a whole number"),
        ({"OTEL_SERVICE_NAME": "shop\udcff"}, "OTEL_SERVICE_NAME='shop\\udcff' is not UTF-8 text"),
        ({"OTEL_TRACES_EXPORTER": ","}, "OTEL_TRACES_EXPORTER=',': '' is not known"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "x=secret%0A"}, "the value of 'x' holds a line break"),
        ({COLLECTOR: "user:secret@c:4318"}, "type OTEL_EXPORTER_OTLP_ENDPOINT=http://"),
        ({"MACKEREL_OTEL_ENDPOINT": "HTTP://u:secret@proxy/x"}, "type MACKEREL_OTEL_ENDPOINT=https://proxy/x"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "0"}, "OTEL_BSP_SCHEDULE_DELAY='0' is not a whole number of at least 1"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "101"}, "is larger than"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT='-1'"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=1,b"}, "OTEL_RESOURCE_ATTRIBUTES: 'b' is not of the form key=value"),
        ({"MACKEREL_OTEL_SHUTDOWN_TIMEOUT": "abc"}, "MACKEREL_OTEL_SHUTDOWN_TIMEOUT='abc' is not a number"),
        ({"MACKEREL_OTEL_SHUTDOWN_TIMEOUT": "-1"}, "MACKEREL_OTEL_SHUTDOWN_TIMEOUT='-1' is not a number of at least 0"),
        ({"MACKEREL_OTEL_SHUTDOWN_TIMEOUT": "1e300"}, "MACKEREL_OTEL_SHUTDOWN_TIMEOUT='1e300' is not a number"),
        ({"MACKEREL_OTEL_SHUTDOWN_TIMEOUT": "inf"}, "MACKEREL_OTEL_SHUTDOWN_TIMEOUT='inf' is not a number"),
    ],
)
def test_a_value_that_cannot_be_understood_is_one_problem_that_says_what_to_type(
    variables: dict[str, str], words: str
) -> None:
    assert words in problem(**variables)
    assert "secret" not in problem(**variables)


def test_problems_are_worded_in_one_place_what_follows_from_all_of_them_first() -> None:
    with pytest.raises(SettingsError) as one:
        read({**KEY, "OTEL_TRACES_SAMPLER": "a; b: c"})
    (problem,) = one.value.problems
    known = "type one of " + ", ".join(catalogue.SAMPLER.words)
    assert problem == Problem(
        "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER='a; b: c' is not known", TRACING_IS_OFF, known
    )
    assert str(one.value) == f"{TRACING_IS_OFF}: OTEL_TRACES_SAMPLER='a; b: c' is not known; {known}"
    with pytest.raises(SettingsError) as two:
        read({**KEY, "OTEL_SDK_DISABLED": "no", "OTEL_PROPAGATORS": "b4"})
    first, second, third = str(two.value).splitlines()
    assert first == "tracing is off, the application serves without it: "
    assert second.startswith("  - OTEL_SDK_DISABLED='no' is neither true nor false; type one of them")
    assert third.startswith("  - OTEL_PROPAGATORS='b4': 'b4' is not installed; type one of ")


def test_empty_equals_unset() -> None:
    names = (
        COLLECTOR,
        "MACKEREL_OTEL_ENDPOINT",
        "OTEL_TRACES_EXPORTER",
        "OTEL_TRACES_SAMPLER",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_PROPAGATORS",
        "OTEL_SDK_DISABLED",
        "MACKEREL_OTEL_SHUTDOWN_TIMEOUT",
        "OTEL_SPAN_LINK_COUNT_LIMIT",
    )
    assert read({**KEY, **dict.fromkeys(names, "")}) == read(KEY)


def test_a_timeout_in_milliseconds_is_pointed_out() -> None:
    (warning,) = read({**KEY, "OTEL_EXPORTER_OTLP_TIMEOUT": "10000"}).warnings
    assert warning.seen.startswith("OTEL_EXPORTER_OTLP_TIMEOUT=10000 is taken as seconds")
    assert str(warning).endswith("is waited for that long; for ten seconds type OTEL_EXPORTER_OTLP_TIMEOUT=10")


def test_a_small_queue_alone_is_no_error() -> None:
    assert read({**KEY, "OTEL_BSP_MAX_QUEUE_SIZE": "100"}).max_export_batch_size == 100


@pytest.mark.parametrize("exporters", ["none", "console"])
def test_nothing_of_the_far_end_is_needed_where_nothing_goes(exporters: str) -> None:
    settings = read({"OTEL_TRACES_EXPORTER": exporters, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert settings.api_key is None
    assert settings.exporters == (() if exporters == "none" else ("console",))


@pytest.mark.parametrize(
    ("application", "environ", "script", "name"),
    [
        ("mysite.wsgi:application", {"DJANGO_SETTINGS_MODULE": "other.settings"}, "/bin/x", "mysite"),
        ("shop:make_app()", {}, "", "shop"),
        (None, {"DJANGO_SETTINGS_MODULE": "mysite.settings.production"}, "/srv/manage.py", "mysite"),
        (None, {}, "/srv/batch.py", "batch"),
        (None, {}, "/srv/nightly/__main__.py", "nightly"),
        (None, {}, "-c", "unknown_service:python"),
    ],
)
def test_the_service_name_falls_back_in_this_order(
    application: str | None, environ: dict[str, str], script: str, name: str
) -> None:
    settings = read({"MACKEREL_APIKEY": "k", **environ}, application=application, script=script)
    assert settings.service_name == settings.resource_attributes["service.name"] == name
    assert len(settings.warnings) == 1


def test_otel_service_name_goes_before_the_resource_attributes_and_arguments_before_both() -> None:
    environ = {**KEY, "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,service.version=%31"}
    assert read(environ).resource_attributes == {"service.name": "shop", "service.version": "1"}
    assert read(environ, Arguments(service_name="cart")).service_name == "cart"


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        ("http,database", "new"),
        ("database", "new"),
        (" database , http/dup", "new"),
        ("database/dup", "both"),
        ("database,database/dup", "both"),
        ("http", "old"),
        ("Database", "old"),
        ("", "old"),
    ],
)
def test_the_semantic_conventions_are_chosen_as_in_opentelemetry(
    monkeypatch: pytest.MonkeyPatch, value: str, mode: str
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", value)
    assert environment.semantic_conventions("database") == mode


def test_a_wrong_pattern_of_a_framework_is_a_problem_and_one_of_another_library_is_not() -> None:
    wrong = {"MACKEREL_APIKEY": "k", "OTEL_PYTHON_FLASK_EXCLUDED_URLS": "(", "OTEL_PYTHON_REQUESTS_EXCLUDED_URLS": "("}
    with pytest.raises(SettingsError) as raised:
        read(wrong, frameworks=["FLASK"])
    assert [problem.variable for problem in raised.value.problems] == ["OTEL_PYTHON_FLASK_EXCLUDED_URLS"]
    assert "is not a regular expression" in str(raised.value)
    del wrong["OTEL_PYTHON_FLASK_EXCLUDED_URLS"]
    assert set(read(wrong, frameworks=["FLASK"]).http.excluded_urls) == set()


def test_the_variables_of_a_process_that_has_replaced_them_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"OTEL_SDK_DISABLED": "true", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis"})
    assert environment.is_disabled()
    assert environment.disabled_instrumentations() == {"redis"}
    assert not environment.is_disabled({})


def test_standard_parts_need_the_packages_of_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"MACKEREL_APIKEY": "the-key", "MACKEREL_OTEL_PARTS": "Standard"}
    assert read(chosen).parts == "standard"
    monkeypatch.setattr("mackerel_otel_server.settings.parts.STANDARD_PACKAGES", ("opentelemetry-api", "not-installed"))
    with pytest.raises(SettingsError) as caught:
        read(chosen)
    (one,) = caught.value.problems
    assert one.variable == "MACKEREL_OTEL_PARTS"
    assert str(one) == (
        "MACKEREL_OTEL_PARTS='standard' needs packages that are not installed (not-installed): tracing is off, the "
        "application serves without it; type pip install 'mackerel-otel-server[standard]', or unset the variable"
    )
    # Own parts need none of them.
    assert read({**chosen, "MACKEREL_OTEL_PARTS": ""}).parts == "own"


def test_what_to_type_for_an_unencrypted_base_url_is_a_base_url() -> None:
    words = problem(**{COLLECTOR: "http://mackerelio.com"})
    assert words.endswith("type OTEL_EXPORTER_OTLP_ENDPOINT=https://mackerelio.com")
