"""No line shows the credentials of a URL, however odd they are: one function cuts all URLs that are shown."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, Step
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import DEADLINE, environment, gunicorn, uwsgi

import mackerel_otel_server
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.process import log as logging_of_ours
from mackerel_otel_server.settings import SettingsError, read
from mackerel_otel_server.settings.masking import MARK
from mackerel_otel_server.settings.urls import secrets_of, without_credentials

ENDPOINTS = ("MACKEREL_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SECRET = "s3cr3t"
FULL_WIDTH_AT = "\N{FULLWIDTH COMMERCIAL AT}"
ODD = ["", "/", "?", "#", "@", ":", "[", "]", "%", "%2F", "%40", "\\", "\t", "\n", " ", "é", "1", ";", "&", "//", "://"]

user_infos = st.lists(st.tuples(st.sampled_from(ODD), st.just(SECRET), st.sampled_from(ODD)), min_size=1, max_size=4)
urls = st.builds(
    lambda scheme, parts, at, rest: scheme + "".join("".join(part) for part in parts) + at + rest,
    st.sampled_from(["http://", "https://", "HTTPS://", "", "//", "http:/", "http:", "ht\ttp://", " https://", "x://"]),
    user_infos,
    st.sampled_from(["@", "@", "%40", "%2540", FULL_WIDTH_AT, "\N{SMALL COMMERCIAL AT}"]),
    st.sampled_from(["c", "collector.example:4318/v1/traces", "[::1]:4318/v1", "[::1", "c:port/x", "c/?t=1", ""]),
)


on_a_busy_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@on_a_busy_machine
@given(url=urls)
@example(f"https://user:12/{SECRET}@collector")
@example(f"https://user:{SECRET}%2540collector")
@example(f"{SECRET}://{SECRET}@collector")
def test_no_part_of_a_user_info_is_shown(url: str) -> None:
    assert SECRET not in without_credentials(url)


@on_a_busy_machine
@given(url=urls, name=st.sampled_from([*ENDPOINTS, "HTTPS_PROXY", "http_proxy"]))
@example(url=f"https://user:{SECRET}{FULL_WIDTH_AT}collector", name="MACKEREL_OTEL_ENDPOINT")
@example(url=f"http://user:12/{SECRET}@collector/v1/traces", name="MACKEREL_OTEL_ENDPOINT")
def test_no_problem_and_no_repr_of_the_settings_shows_one(url: str, name: str) -> None:
    try:
        found = read({"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop", name: url})
    except SettingsError as error:
        assert SECRET not in str(error.problems)  # noqa: PT017 - if there is an error
    else:
        assert SECRET not in f"{found!r} {found.shown_endpoint} {found.warnings}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://collector.example:4318/v1/traces", None),
        ("http://[::1]:4318/v1/traces", None),
        ("collector:4318", None),
        ("grpc://collector:4317", None),
        ("https://user:password@collector/v1/traces", "https://collector/v1/traces"),
        ("HTTPS://token@[::1]:4318/x#y", "HTTPS://[::1]:4318/x"),
        ("user:password@collector", "collector"),
        ("https://user:p@ssword@collector", "https://collector"),
        ("https://collector/x?token=1#y", f"https://collector/x?{MARK}"),
        ("https://user:12/34@collector", MARK),
        ("https://user:12#34@collector", MARK),
        ("https://user:12%40collector", MARK),
        ("collector.example/v1/traces", None),
        ("10.0.0.1", None),
        ("/v1/traces", None),
        ('"https://user:password@collector/x"', '"https://collector/x"'),
        # What may be the API key: no host, or a token in the path.
        ("k3y-0fme", MARK),
        ('"k3y-0fme"', f'"{MARK}"'),
        ("Bearer k3y-0fme", MARK),
        ("MACKEREL_APIKEY=k3y-0fme", MARK),
        ("Ab3+k3y/of/nobody=", MARK),
        ("https://k3y-of-nobody-012345", f"https://{MARK}"),
        ("https://Ab3+k3y/of/nobody=", MARK),
        ("https://collector/k3y-0fme/v1/traces", f"https://collector/{MARK}/v1/traces"),
        ("collector:4318/v1/traces/k3y%2D0fme", f"collector:4318/v1/traces/{MARK}"),
        ("https://opentelemetry-collector/api/v2/otlp/v1/traces", None),
        ("", None),
    ],
)
def test_the_rest_of_a_url_is_shown_as_it_was_typed(url: str, shown: str | None) -> None:
    assert without_credentials(url) == (url if shown is None else shown)


def test_what_somebody_else_may_repeat_of_a_url_is_known() -> None:
    assert {"pass word", "pass%20word", "dXNlcjpwYXNzIHdvcmQ="} == set(
        secrets_of("https://user:pass%20word@c/v1/traces")
    )
    assert {"user", "12/34", "12", "34"} <= set(secrets_of("https://user:12/34@c"))
    assert {"token", "dG9rZW46"} == set(secrets_of("https://token@c"))
    assert "token" in set(secrets_of("https://token:@c"))
    assert "tok3n-of-me" in set(secrets_of("https://tok3n-of-me:pass-word@c"))
    assert "token" in set(secrets_of("https://token:x-oauth-basic@c"))
    assert {"k3y%2D0fme", "k3y-0fme"} == set(secrets_of("https://c:4318/k3y%2D0fme/v1/traces"))
    assert list(secrets_of("https://c:4318/v1/traces?a=b")) == []
    # A word of our own sentences.
    assert "traces" not in set(secrets_of("https://c:4318/v1/traces?mail=a@b"))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is logged."""
    found: list[str] = []
    monkeypatch.setattr(logging_of_ours, "_write_to_host", lambda record: found.append(logging_of_ours.text(record)))
    return found


def _export(**variables: str) -> None:
    exporter = Exporter(read({"MACKEREL_APIKEY": "the-key", "OTEL_SERVICE_NAME": "shop", **variables}))
    exporter.export(ExportTraceServiceRequest().SerializeToString(), 1, time.monotonic() + DEADLINE)
    exporter.close()


def _echo(server: FaultServer, sock: socket.socket) -> None:
    """Answer with the first line of the request, as debugging servers do."""
    text = server.requests[-1].line.encode()
    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))


def test_no_line_of_a_failure_shows_one(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # One attempt each.
    monkeypatch.setattr(Exporter, "_backoff", lambda *_: float("inf"))
    # For urllib.parse, this password is a port and a path, so that a connection is made.
    with FaultServer(Step(act=_echo)) as server:
        _export(MACKEREL_OTEL_ENDPOINT=f"http://127.0.0.1:{server.port}/{SECRET}@collector/v1/traces")
        assert SECRET in server.requests[0].line
    _export(MACKEREL_OTEL_ENDPOINT=f"http://127.0.0.1:{server.port}/{SECRET}@collector/v1/traces")
    # A proxy, for which a name stands instead of an address, that is none.
    for proxy in (f"http://127.0.0.1:{server.port}/{SECRET}@proxy", f"http://{SECRET}:{server.port}/x@proxy"):
        _export(MACKEREL_OTEL_ENDPOINT="https://mackerel.invalid/v1/traces", HTTPS_PROXY=proxy)
    location = f"https://user:12/{SECRET}@elsewhere/login?next={SECRET}"
    with FaultServer(Step(302, headers={"Location": location})) as server:
        _export(MACKEREL_OTEL_ENDPOINT=server.url)
    assert len([line for line in lines if "the endpoint takes no spans" in line]) == 5, lines
    assert f"302 Found to '{MARK}'" in lines[-1]
    assert not [line for line in lines if SECRET in line]


@pytest.mark.parametrize("host", ["gunicorn", "uwsgi"])
def test_neither_the_first_line_of_a_worker_nor_that_of_a_failure_shows_one(tmp_path: Path, host: str) -> None:
    with FaultServer(Step(404)) as endpoint:
        env = environment(
            MACKEREL_APIKEY="the-key",
            OTEL_SERVICE_NAME="shop",
            MACKEREL_OTEL_ENDPOINT=f"http://127.0.0.1:{endpoint.port}/{SECRET}@collector/v1/traces",
            OTEL_BSP_SCHEDULE_DELAY="50",
        )
        ini = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\nmodule = plain\n"
        make = (
            gunicorn(tmp_path, "--log-level", "debug", env=env, workers=1)
            if host == "gunicorn"
            else uwsgi(tmp_path, ini, env=env, processes=1)
        )
        with make as server:
            server.get()
            server.wait_for_log(rf"takes no spans: {re.escape(MARK)} answered 404")
            text = server.log
    assert f"sends traces as 'shop' to {MARK}" in text
    # Gunicorn's own debug lines show the environment's variables of its own only.
    assert SECRET not in text


def test_urls_are_cut_in_one_place() -> None:
    package = Path(mackerel_otel_server.__file__).parent
    cutting = re.compile(r'r?partition\("@"\)|_replace\(netloc')
    assert [file.name for file in package.rglob("*.py") if cutting.search(file.read_text(encoding="utf-8"))] == [
        "urls.py"
    ]


def test_a_url_of_the_settings_is_cut_in_one_file() -> None:
    package = Path(mackerel_otel_server.__file__).parent
    cutters = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"\burl(split|parse)\(", file.read_text(encoding="utf-8"))
    }
    # tracing knows no settings: it cuts SQLite's "file:" names.
    assert {cutter for cutter in cutters if not cutter.startswith("tracing/")} == {"settings/urls.py"}
