"""What ``check`` says about the variables that were typed."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.instrumentation.environment_variables
import opentelemetry.sdk.environment_variables
import opentelemetry.semconv._incubating.attributes as semconv
import pytest
import trustme

from mackerel_otel_server.cli.all_variables import VARIABLES
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.variables import findings, identity, names
from mackerel_otel_server.pipeline.connection import tls_context
from mackerel_otel_server.settings import SettingsError, read
from mackerel_otel_server.settings.catalogue import MACKEREL_ENDPOINT
from mackerel_otel_server.settings.origins import describe

pytestmark = pytest.mark.usefixtures("known_versions")

KEY = "a-key-of-nobody-s-" * 2
OTHER = "another-one-of-nobody-s-" * 2
SOUND = {"MACKEREL_APIKEY": KEY, "OTEL_SERVICE_NAME": "shop"}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
SEMCONV = "OTEL_SEMCONV_STABILITY_OPT_IN"
RATIO = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}


def wrong(environ: Mapping[str, str], application: str | None = None) -> list[Finding]:
    """Return what is not OK, each of it complete and without a key."""
    found = findings(environ, application)
    for one in found:
        assert KEY not in str(one)
        assert OTHER not in str(one)
        assert one.level == "OK" or (one.follows and one.cure), one
    assert len({one.seen for one in found}) == len(found), found
    return [one for one in found if one.level != "OK"]


def only(environ: Mapping[str, str]) -> Finding:
    (one,) = wrong(environ)
    return one


def levels(environ: Mapping[str, str]) -> list[str]:
    return [one.level for one in findings(environ)]


def test_where_nothing_is_wrong_it_says_what_is_in_force() -> None:
    assert findings(SOUND) == [
        Finding("OK", "the API key is given by MACKEREL_APIKEY"),
        Finding("OK", f"spans are sent to {MACKEREL_ENDPOINT}"),
        Finding("OK", "the service name is 'shop'"),
        Finding("OK", "the sampler parentbased_always_on records every trace; a caller's decision goes first"),
    ]


def test_a_collector_without_a_key_is_well() -> None:
    environ = {ENDPOINT: "http://user:secret@c:4318/", ATTRIBUTES: "service.name=shop"}
    collector = {**environ, **RATIO, "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    assert [one.seen for one in findings(collector)] == [
        "spans are sent to http://c:4318/v1/traces, a Collector, which gets no key",
        "the service name is 'shop'",
        "the sampler parentbased_traceidratio records 0.25 of all traces; a caller's decision goes first",
    ]


def test_with_a_failure_nothing_is_said_to_be_in_force() -> None:
    assert levels({**SOUND, "OTEL_BSP_SCHEDULE_DELAY": "soon"}) == ["FAIL"]


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_SERVICE_NAME": "shop"},
        {**SOUND, "MACKEREL_APIKEY": f"{KEY} "},
        {**SOUND, "MACKEREL_APIKEY": f"{KEY[:9]}\n{KEY[9:]}"},
        {**SOUND, "MACKEREL_APIKEY": f"{KEY}é"},
        {"OTEL_SERVICE_NAME": "shop", "MACKEREL_APIKEY_FILE": "/nowhere/key"},
        {**SOUND, "MACKEREL_OTEL_ENDPOINT": "proxy/v1/traces"},
        {**SOUND, "MACKEREL_OTEL_ENDPOINT": "https://proxy"},
        {**SOUND, "MACKEREL_OTEL_ENDPOINT": "http://proxy/v1/traces"},
        {**SOUND, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {**SOUND, "OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {**SOUND, **RATIO, "OTEL_TRACES_SAMPLER_ARG": "10"},
        {**SOUND, "OTEL_PROPAGATORS": "no-such"},
        {**SOUND, "OTEL_TRACES_EXPORTER": "no-such,otlp"},
        {**SOUND, "OTEL_SDK_DISABLED": "yes"},
        {**SOUND, "OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200"},
        {**SOUND, HEADERS: "x"},
        {**SOUND, HEADERS: '"a=1,b=2"'},
    ],
)
def test_every_problem_that_stops_the_settings_is_one_failure_with_the_same_parts(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        read(environ)
    (problem,) = caught.value.problems
    assert asdict(only(environ)) == {"level": "FAIL"} | asdict(problem)
    assert problem.follows == "tracing is off, the application serves without it"


def test_a_value_with_separators_of_its_own_does_not_lose_a_word() -> None:
    found = only({**SOUND, "OTEL_TRACES_SAMPLER": "a; b: c"})
    assert found.seen == "OTEL_TRACES_SAMPLER='a; b: c' is not known"
    assert found.cure.startswith("type one of always_on, ")


def test_a_missing_service_name_is_a_warning_with_the_name_that_is_used_instead() -> None:
    (found,) = wrong({"MACKEREL_APIKEY": KEY}, "mysite.wsgi:application")
    assert found == Finding(
        "WARN",
        "no service name is set",
        "spans are sent as 'mysite'",
        "set OTEL_SERVICE_NAME to the name that Mackerel shall show",
        "OTEL_SERVICE_NAME",
    )


def test_a_timeout_in_milliseconds_is_one_warning() -> None:
    found = only({**SOUND, "OTEL_EXPORTER_OTLP_TIMEOUT": "10000"})
    assert (found.level, found.cure) == ("WARN", "for ten seconds type OTEL_EXPORTER_OTLP_TIMEOUT=10")
    assert found.seen.startswith("OTEL_EXPORTER_OTLP_TIMEOUT=10000 is taken as seconds")


MALFORMED = [
    (f"Bearer {KEY}", "the word Bearer"),
    (f'"bearer {KEY}"', "the word Bearer"),
    (f"MACKEREL_APIKEY={KEY}", "the name of a variable"),
    (f"export MACKEREL_API_KEY={KEY}", "the name of a variable"),
    (f"Mackerel-Api-Key: {KEY}", "the name of a variable or a header"),
    (f'"{KEY}"', "quotes"),
    (f"'{KEY}", "quotes"),
    (f"{KEY[:9]}'{KEY[9:]}", "quotes"),
    (f"“{KEY}”", "quotes"),
    (f"' {KEY} '", "quotes"),
]


@pytest.mark.parametrize(("typed", "words"), MALFORMED)
@pytest.mark.parametrize("name", ["MACKEREL_APIKEY", "MACKEREL_API_KEY"])
def test_what_a_key_holds_too_much_is_one_failure(name: str, typed: str, words: str) -> None:
    found = only({name: typed, "OTEL_SERVICE_NAME": "shop"})
    assert found.level == "FAIL"
    assert found.seen.startswith(f"{name} holds {words}")
    assert found.cure == f"type {name}= and the API key alone"


@pytest.mark.parametrize(("typed", "words"), MALFORMED)
def test_what_a_key_in_a_file_holds_too_much_is_one_failure(tmp_path: Path, typed: str, words: str) -> None:
    found = only({"MACKEREL_APIKEY_FILE": key_file(tmp_path, f"{typed}\n"), "OTEL_SERVICE_NAME": "shop"})
    assert found.level == "FAIL"
    assert found.seen.startswith(f"MACKEREL_APIKEY_FILE holds {words}")
    assert found.cure == "write the API key alone into that file"


def test_a_short_key_is_a_warning() -> None:
    found = only({**SOUND, "MACKEREL_APIKEY": KEY[:12]})
    assert (found.level, found.seen) == ("WARN", "the API key of MACKEREL_APIKEY has only 12 characters")
    assert KEY[:12] not in str(found)


def test_of_two_different_keys_it_says_which_goes_first() -> None:
    found = only({**SOUND, "MACKEREL_API_KEY": OTHER})
    assert found.level == "WARN"
    assert found.follows == "MACKEREL_APIKEY goes first; MACKEREL_API_KEY is not used"
    assert wrong({**SOUND, "MACKEREL_API_KEY": KEY}) == []


def key_file(folder: Path, content: str, mode: int = 0o600) -> str:
    file = folder / "a key"
    file.write_text(content, encoding="utf-8")
    file.chmod(mode)
    return str(file)


def test_a_key_that_is_typed_where_its_file_belongs_is_one_failure_that_does_not_show_it() -> None:
    found = only({"MACKEREL_APIKEY_FILE": KEY, "OTEL_SERVICE_NAME": "shop"})
    assert found.level == "FAIL"
    assert found.seen.startswith("MACKEREL_APIKEY_FILE names no file that is there")
    assert found.cure.startswith("type MACKEREL_APIKEY= and the key, or MACKEREL_APIKEY_FILE=")


def test_a_key_file_beside_a_key_is_not_used(tmp_path: Path) -> None:
    found = only({**SOUND, "MACKEREL_APIKEY_FILE": key_file(tmp_path, OTHER)})
    assert (found.level, found.follows) == (
        "WARN",
        "MACKEREL_APIKEY goes first; MACKEREL_APIKEY_FILE is not used",
    )
    assert wrong({**SOUND, "MACKEREL_APIKEY_FILE": key_file(tmp_path, f"{KEY}\n")}) == []
    assert only({**SOUND, "MACKEREL_APIKEY_FILE": str(tmp_path)}).follows == found.follows


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_key_file_that_everybody_may_read_is_a_warning(tmp_path: Path, mode: int, warned: bool) -> None:
    file = key_file(tmp_path, KEY, mode)
    found = wrong({"MACKEREL_APIKEY_FILE": file, "OTEL_SERVICE_NAME": "shop"})
    assert [one.level for one in found] == ["WARN"] * warned
    for one in found:
        assert one.seen == f"MACKEREL_APIKEY_FILE={file!r} has the mode {mode:04o}"
        assert one.cure.startswith(f"chmod o= '{file}'")


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"MACKEREL_APIKEY": KEY}, "MACKEREL_APIKEY holds"),
        ({"MACKEREL_API_KEY": KEY, HEADERS: f"mackerel-api-key={KEY}"}, f"MACKEREL_API_KEY and {HEADERS} hold"),
        ({"MACKEREL_APIKEY": f"Bearer {KEY}"}, "MACKEREL_APIKEY holds"),
    ],
)
def test_a_key_beside_a_collector_is_not_sent(variables: dict[str, str], names: str) -> None:
    found = only({"OTEL_SERVICE_NAME": "shop", ENDPOINT: "http://c:4318", **variables})
    assert found.level == "WARN"
    assert found.seen == f"{names} an API key, and {ENDPOINT} names a Collector"
    assert found.follows == "the key is not sent: a Collector gets none"


def test_a_key_that_goes_to_mackerel_by_the_general_variable_is_well() -> None:
    assert wrong({**SOUND, ENDPOINT: MACKEREL_ENDPOINT.removesuffix("/v1/traces")}) == []


@pytest.mark.parametrize(
    ("environ", "used"),
    [
        ({"OTEL_SERVICE_NAME": "shop"}, "it is used;"),
        (SOUND, "it is not used: MACKEREL_APIKEY goes first;"),
    ],
)
def test_a_key_among_the_headers_is_a_warning(environ: dict[str, str], used: str) -> None:
    found = only({**environ, HEADERS: f"a=1,mackerel-api-key={KEY}"})
    assert found.level == "WARN"
    assert found.follows.startswith(used)
    assert "set MACKEREL_APIKEY to the key" in found.cure


def test_a_key_with_quotes_among_the_headers_is_one_failure_and_one_warning() -> None:
    found = wrong({"OTEL_SERVICE_NAME": "shop", HEADERS: f'mackerel-api-key="{KEY}"'})
    assert [(one.level, one.seen) for one in found] == [
        ("FAIL", f"{HEADERS} holds quotes beside the API key"),
        ("WARN", f"{HEADERS} holds the header Mackerel-Api-Key"),
    ]


@pytest.mark.parametrize("value", ["a='1'", 'a="1"', "a=%221%22", "'a=1,b=2'"])
def test_quotes_among_the_headers_are_a_warning_that_shows_no_value(value: str) -> None:
    found = only({**SOUND, HEADERS: value})
    assert (found.level, found.seen) == ("WARN", f"{HEADERS} holds quotes around a name or a value")


@pytest.mark.parametrize(
    ("name", "typed", "bare"),
    [
        ("OTEL_SERVICE_NAME", '"shop"', "shop"),
        ("OTEL_SERVICE_NAME", "'it's'", "it's"),
        ("OTEL_PYTHON_EXCLUDED_URLS", '"health,ping"', "health,ping"),
        (ATTRIBUTES, '"service.version=1"', "service.version=1"),
        (ATTRIBUTES, "service.version='1',a=b", "service.version=1,a=b"),
    ],
)
def test_quotes_that_no_shell_has_taken_away_are_a_warning(name: str, typed: str, bare: str) -> None:
    found = only({**SOUND, name: typed})
    assert (found.level, found.seen, found.cure) == ("WARN", f"{name}={typed!r} holds quotes", f"type {name}={bare}")


def test_quotes_within_a_value_are_well() -> None:
    assert wrong({**SOUND, "OTEL_SERVICE_NAME": "bob's", HEADERS: "a=b'c"}) == []


@pytest.mark.parametrize(
    ("name", "typed", "level", "cure"),
    [
        (ENDPOINT, "http://c:4318/v1/traces", "FAIL", f"type {ENDPOINT}=http://c:4318"),
        (ENDPOINT, "http://c/x/v1/traces/", "FAIL", f"type {ENDPOINT}=http://c/x"),
        (ENDPOINT, "http://c/v1/traces/v1/traces", "FAIL", f"type {ENDPOINT}=http://c"),
        (TRACES, "http://c/v1/traces/v1/traces", "FAIL", f"type {TRACES}=http://c/v1/traces"),
        (TRACES, "http://c:4318", "WARN", f"type {TRACES}=http://c:4318/v1/traces, or {ENDPOINT}=http://c:4318"),
        (TRACES, "http://c:4318/", "WARN", f"type {TRACES}=http://c:4318/v1/traces, or {ENDPOINT}=http://c:4318"),
        (ENDPOINT, "http://c:4317", "WARN", f"type {ENDPOINT}=http://c:4318"),
    ],
)
def test_an_endpoint_that_takes_no_spans_is_told_from_its_url(name: str, typed: str, level: str, cure: str) -> None:
    found = only({"OTEL_SERVICE_NAME": "shop", name: typed})
    assert (found.level, found.cure) == (level, cure)
    assert found.seen.startswith(f"{name}={typed!r} ")


@pytest.mark.parametrize(
    ("typed", "what", "cure"),
    [
        ("https://c/?a=b", "a query", f"{TRACES}=https://c/v1/traces?****"),
        ("https://c?a=b", "a query", f"{TRACES}=https://c/v1/traces?****"),
        ("https://c/x/?a=b#c", "a query", f"{TRACES}=https://c/x/v1/traces?****"),
        ("https://c/v1/traces?a=b", "a query", f"{TRACES}=https://c/v1/traces?****"),
        ("https://c/x#part", "a fragment", f"{TRACES}=https://c/x/v1/traces"),
    ],
)
def test_a_base_url_to_whose_end_nothing_can_be_added_is_a_failure(typed: str, what: str, cure: str) -> None:
    found = only({"OTEL_SERVICE_NAME": "shop", ENDPOINT: typed})
    assert (found.level, found.cure) == ("FAIL", f"type the full traces URL: {cure}")
    assert found.seen.startswith(f"{ENDPOINT}=")
    assert f"has {what}, and /v1/traces cannot be added" in found.seen
    assert "a=b" not in str(found)


def test_a_full_url_may_have_a_query_which_is_not_shown() -> None:
    (found,) = [
        one for one in findings({"OTEL_SERVICE_NAME": "shop", TRACES: "https://c/x?a=b"}) if "sent to" in one.seen
    ]
    assert (found.level, found.seen) == ("OK", "spans are sent to https://c/x?****, a Collector, which gets no key")
    assert read({TRACES: "https://c/x?a=b"}).endpoint == "https://c/x?a=b"
    doubled = only({"OTEL_SERVICE_NAME": "shop", TRACES: "https://c/v1/traces/v1/traces?a=b"})
    assert doubled.cure == f"type {TRACES}=https://c/v1/traces?****"
    bare = only({"OTEL_SERVICE_NAME": "shop", TRACES: "https://c/?a=b"})
    assert bare.cure == f"type {TRACES}=https://c/v1/traces?****"


AUTHORITY = "OTEL_EXPORTER_OTLP_CERTIFICATE"
CERTIFICATE = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"
CLIENT_KEY = "OTEL_EXPORTER_OTLP_CLIENT_KEY"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an authority, two certificates with their keys, and what is none."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority")
    for name in ("mine", "other"):
        issued = authority.issue_cert("client")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}-certificate")
        issued.private_key_pem.write_to_path(folder / f"{name}-key")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}-both")
    (folder / "words").write_text("no certificate\n")
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "broken").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return folder


@pytest.mark.parametrize(
    "named",
    [
        {AUTHORITY: "authority"},
        {CERTIFICATE: "mine-certificate", CLIENT_KEY: "mine-key"},
        {CERTIFICATE: "mine-both"},
        {AUTHORITY: "authority", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "authority", CERTIFICATE: "mine-both"},
    ],
    ids=str,
)
def test_certificates_that_can_be_used_are_well(pem: Path, named: dict[str, str]) -> None:
    assert wrong({**SOUND, **{name: str(pem / file) for name, file in named.items()}}) == []


@pytest.mark.parametrize(
    ("named", "words"),
    [
        *[({AUTHORITY: file}, f"{AUTHORITY}=") for file in ("words", "empty", "broken", "mine-key", "folder", "none")],
        ({"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "words"}, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE="),
        *[({CERTIFICATE: file}, f"{CERTIFICATE}=") for file in ("words", "empty", "broken", "folder", "none")],
        ({CERTIFICATE: "mine-certificate"}, f"without {CLIENT_KEY}"),
        ({CERTIFICATE: "mine-certificate", CLIENT_KEY: "other-key"}, "no client certificate with its key"),
        ({CERTIFICATE: "mine-certificate", CLIENT_KEY: "words"}, "no client certificate with its key"),
        ({CERTIFICATE: "mine-certificate", CLIENT_KEY: "folder"}, f"{CLIENT_KEY}="),
        ({CERTIFICATE: "mine-certificate", CLIENT_KEY: "none"}, f"{CLIENT_KEY}="),
    ],
    ids=str,
)
def test_a_certificate_that_cannot_be_used_is_one_failure(pem: Path, named: dict[str, str], words: str) -> None:
    environ = {**SOUND, **{name: str(pem / file) for name, file in named.items()}}
    found = only(environ)
    assert found.level == "FAIL"
    assert words in found.seen
    assert "PEM" in found.cure
    assert "_ssl.c" not in found.seen
    # So it is: the pipeline opens no connection.
    with pytest.raises((OSError, ValueError, SettingsError)):
        tls_context(read(environ))


def test_certificates_that_have_no_effect_are_a_warning(pem: Path) -> None:
    found = only({"OTEL_SERVICE_NAME": "shop", ENDPOINT: "http://c:4318", AUTHORITY: str(pem / "words")})
    assert (found.level, found.cure) == ("WARN", f"unset it, or type an https URL in {ENDPOINT}")
    found = only({**SOUND, CLIENT_KEY: str(pem / "mine-key")})
    assert (found.level, found.seen) == ("WARN", f"{CLIENT_KEY} is set, and no client certificate")


def test_a_private_key_that_is_typed_where_its_file_belongs_is_not_shown(pem: Path) -> None:
    typed = (pem / "mine-key").read_text()
    found = only({**SOUND, CERTIFICATE: str(pem / "mine-certificate"), CLIENT_KEY: typed})
    assert found.level == "FAIL"
    assert "BEGIN" not in str(found)


def test_a_cure_of_one_mistake_in_an_endpoint_does_not_keep_the_other() -> None:
    doubled, grpc = wrong({"OTEL_SERVICE_NAME": "shop", ENDPOINT: "http://c:4317/v1/traces"})
    assert (doubled.cure, grpc.cure) == (f"type {ENDPOINT}=http://c:4317", f"type {ENDPOINT}=http://c:4318")


def test_the_doubled_path_of_mackerels_own_variable_is_a_failure() -> None:
    found = only({**SOUND, "MACKEREL_OTEL_ENDPOINT": f"{MACKEREL_ENDPOINT}/v1/traces"})
    assert (found.level, found.cure) == ("FAIL", f"type MACKEREL_OTEL_ENDPOINT={MACKEREL_ENDPOINT}")


def test_a_password_in_the_endpoint_is_not_shown() -> None:
    (found,) = wrong({"OTEL_SERVICE_NAME": "shop", ENDPOINT: f"http://user:{KEY}@c/v1/traces"})
    assert found.cure == f"type {ENDPOINT}=http://c"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("service.environment.name", "deployment.environment.name"),
        ("service.environment", "deployment.environment.name"),
        ("environment", "deployment.environment.name"),
        ("deployment.environment", "deployment.environment.name"),
        ("deployment_environment_name", "deployment.environment.name"),
        ("deployment.enviroment.name", "deployment.environment.name"),
        ("service_name", "service.name"),
        ("serviceName", "service.name"),
        ("Service.Version", "service.version"),
        ("service.versoin", "service.version"),
        ("service.name_space", "service.namespace"),
        ("hostname", "host.name"),
        ("k8s.pod_name", "k8s.pod.name"),
    ],
)
def test_a_near_miss_of_a_resource_attribute_is_a_warning(given: str, meant: str) -> None:
    found = only({**SOUND, ATTRIBUTES: f"{given}=a%2Cb"})
    assert found.level == "WARN"
    assert found.seen.startswith(f"{ATTRIBUTES} holds {given!r}, ")
    assert found.cure == f"type {meant}=a%2Cb in its place in {ATTRIBUTES}"


@pytest.mark.parametrize(
    "attributes",
    [
        "service.version=1,service.namespace=shop,deployment.environment.name=production,host.name=web1",
        "team=a,service.team=a,service.tier=1,owner=b,region=tokyo,service.version.id=abc",
        "deployment.environment=old,deployment.environment.name=new",
    ],
)
def test_known_and_own_attributes_are_well(attributes: str) -> None:
    assert wrong({**SOUND, ATTRIBUTES: attributes}) == []


def test_the_known_attributes_are_those_of_opentelemetry() -> None:
    theirs = {
        value
        for module in pkgutil.iter_modules(semconv.__path__)
        for value in vars(importlib.import_module(f"{semconv.__name__}.{module.name}")).values()
        if isinstance(value, str)
    }
    assert set(identity.KNOWN) - theirs == set()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("MACKEREL_APIKY", "MACKEREL_APIKEY"),
        ("MACKEREL_KEY", "MACKEREL_APIKEY"),
        ("MACKEREL_OTEL_APIKEY", "MACKEREL_APIKEY"),
        ("MACKREL_APIKEY", "MACKEREL_APIKEY"),
        ("MACKEREL_API_KEY_FILE", "MACKEREL_APIKEY_FILE"),
        ("MACKEREL_ENDPOINT", "MACKEREL_OTEL_ENDPOINT"),
        ("mackerel_apikey", "MACKEREL_APIKEY"),
        ("OTEL_SERVICENAME", "OTEL_SERVICE_NAME"),
        ("OTLP_SERVICE_NAME", "OTEL_SERVICE_NAME"),
        ("OTEL_RESOURCE_ATTRIBUTE", "OTEL_RESOURCE_ATTRIBUTES"),
        ("OTEL_TRACE_SAMPLER", "OTEL_TRACES_SAMPLER"),
        ("OTEL_TRACES_SAMPLER_ARGS", "OTEL_TRACES_SAMPLER_ARG"),
        ("OTEL_EXPORTER_ENDPOINT", ENDPOINT),
        ("OTEL_PYTHON_FLAKS_EXCLUDED_URLS", "OTEL_PYTHON_FLASK_EXCLUDED_URLS"),
        ("OTEL_EXPORTER_OTLP_HEADER", HEADERS),
    ],
)
def test_a_variable_that_is_a_typo_away_from_a_known_one_is_a_warning(typed: str, meant: str) -> None:
    found = only({**SOUND, typed: KEY})
    assert (found.level, found.seen) == ("WARN", f"{typed} is not known; near to it is {meant}")
    assert found.cure == f"if that was meant, type {meant} instead of {typed}"


@pytest.mark.parametrize(
    "name",
    [
        "OTEL_METRICS_EXPORTER",
        "OTEL_METRICS_SAMPLER_ARGS",
        "OTEL_LOGS_EXPORTER",
        "OTEL_EXPORTER_JAEGER_ENDPOINT",
        "OTEL_EXPORTER_ZIPKIN_TIMEOUT",
        "OTEL_PYTHON_TRACER_PROVIDERS",
        "OTEL_BLRP_SCHEDULE_DELAY",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUTS",
        "OTEL_PYTHON_LOG_CORRELATION",
        "OTEL_PYTHON_TORNADO_EXCLUDED_URLS",
        "OTEL_PYTHON_REQUESTS_EXCLUDED_URLS",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST",
        "OTEL_OF_OUR_OWN",
        "MACKEREL_APIBASE",
        "MACKEREL_AGENT_CONFIG",
        "MACKEREL_ROLES",
        "OTHER",
        "APIKEY",
    ],
)
def test_a_variable_that_others_read_is_no_typo(name: str) -> None:
    assert wrong({**SOUND, name: "1"}) == []


def test_no_variable_of_the_installed_opentelemetry_is_called_a_typo() -> None:
    modules = (
        opentelemetry.environment_variables,
        opentelemetry.sdk.environment_variables,
        opentelemetry.instrumentation.environment_variables,
    )
    theirs = {value for module in modules for key, value in vars(module).items() if key.startswith("OTEL_")}
    assert len(theirs) > 50
    ours = {name for variable in VARIABLES for name in variable.names}
    found = list(names.findings(dict.fromkeys(theirs | ours, "1")))
    assert [one for one in found if "not known" in one.seen] == []


@pytest.mark.parametrize("name", names.NO_EFFECT)
def test_a_variable_of_opentelemetrys_that_nobody_obeys_has_no_effect(name: str) -> None:
    found = only({**SOUND, name: "1"})
    assert (found.level, found.seen) == ("WARN", f"{name} is set, and has no effect here")
    assert found.cure == f"unset {name}"


def test_an_empty_variable_is_no_variable() -> None:
    assert wrong({**SOUND, "OTEL_SERVICENAME": "", "OTEL_EXPORTER_OTLP_INSECURE": "", "MACKEREL_API_KEY": ""}) == []


def test_the_name_of_a_variable_writes_nothing_else_to_the_terminal() -> None:
    assert "\x1b" not in str(only({**SOUND, "OTEL_SERVICE\x1bNAME": "1"}).seen)


@pytest.mark.parametrize(
    ("variables", "seen", "cure"),
    [
        (
            {"OTEL_TRACES_SAMPLER_ARG": "0.1"},
            "OTEL_TRACES_SAMPLER_ARG='0.1' has no effect: the sampler is parentbased_always_on",
            "type OTEL_TRACES_SAMPLER=parentbased_traceidratio, or unset OTEL_TRACES_SAMPLER_ARG",
        ),
        (
            RATIO,
            "OTEL_TRACES_SAMPLER='parentbased_traceidratio' has no OTEL_TRACES_SAMPLER_ARG",
            "type OTEL_TRACES_SAMPLER_ARG=0.1 for a tenth, or unset OTEL_TRACES_SAMPLER",
        ),
        (
            {**RATIO, "OTEL_TRACES_SAMPLER_ARG": "0.0"},
            "OTEL_TRACES_SAMPLER_ARG='0.0' records no trace",
            "type OTEL_TRACES_SAMPLER_ARG=0.1 for a tenth",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "always_off"},
            "OTEL_TRACES_SAMPLER='always_off' records no trace",
            "unset OTEL_TRACES_SAMPLER",
        ),
        ({"OTEL_SDK_DISABLED": "True"}, "OTEL_SDK_DISABLED='True'", "unset OTEL_SDK_DISABLED"),
        (
            {"OTEL_TRACES_EXPORTER": "none"},
            "OTEL_TRACES_EXPORTER='none'",
            "unset OTEL_TRACES_EXPORTER, or type OTEL_TRACES_EXPORTER=otlp",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "console"},
            "OTEL_TRACES_EXPORTER='console'",
            "unset OTEL_TRACES_EXPORTER, or type OTEL_TRACES_EXPORTER=otlp",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp,console"},
            "OTEL_TRACES_EXPORTER='otlp,console'",
            "type OTEL_TRACES_EXPORTER=otlp",
        ),
        (
            {"OTEL_PROPAGATORS": "baggage"},
            "OTEL_PROPAGATORS='baggage' lacks tracecontext",
            "type OTEL_PROPAGATORS=tracecontext,baggage",
        ),
        (
            {SEMCONV: "http"},
            f"{SEMCONV}='http' keeps old attribute names",
            f"unset {SEMCONV}, or type {SEMCONV}=http,database",
        ),
        (
            {SEMCONV: "http/dup,database"},
            f"{SEMCONV}='http/dup,database' keeps old attribute names",
            f"unset {SEMCONV}, or type {SEMCONV}=http,database",
        ),
    ],
)
def test_what_leaves_a_user_without_spans_or_with_others_is_a_warning(
    variables: dict[str, str], seen: str, cure: str
) -> None:
    found = only({**SOUND, **variables})
    assert (found.level, found.seen, found.cure) == ("WARN", seen, cure)


@pytest.mark.parametrize(
    "variables",
    [
        {**RATIO, "OTEL_TRACES_SAMPLER_ARG": "1"},
        {"OTEL_SDK_DISABLED": "false"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_PROPAGATORS": "tracecontext"},
        {SEMCONV: "http,database"},
        {SEMCONV: "database,http,gen_ai"},
        {"OTEL_TRACES_SAMPLER": "always_on"},
    ],
)
def test_what_changes_nothing_is_well(variables: dict[str, str]) -> None:
    assert wrong({**SOUND, **variables}) == []


def test_what_is_switched_off_is_not_said_to_be_in_force() -> None:
    assert levels({**SOUND, "OTEL_SDK_DISABLED": "true"}) == ["WARN"]
    off = [one.seen for one in findings({**SOUND, "OTEL_TRACES_EXPORTER": "none"})]
    assert off == ["OTEL_TRACES_EXPORTER='none'", "the service name is 'shop'"]


def test_a_key_that_is_typed_where_the_names_of_attributes_are_chosen_is_not_shown() -> None:
    for key in ("k3yOfNobody012", "k3y-of-nobody-at-all-012345"):
        environ = {**SOUND, SEMCONV: f"http,{key}"}
        assert only(environ).seen == f"{SEMCONV}='http,****' keeps old attribute names"
        assert key not in str(describe(environ))
