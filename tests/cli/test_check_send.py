"""``check --send`` sends one real span, and explains what becomes of it."""

from __future__ import annotations

import gzip
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
import trustme
from checking import INSTALL, KEY, Check, Checked, clean
from fault_server import FaultServer, Step, accepted, half_an_answer, never, no_http, refused, reset
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mackerel_otel_server.cli.receiver.endpoint import Receiver

HTML = {"Content-Type": "text/html"}


@pytest.fixture
def mackerel() -> Iterator[Receiver]:
    with Receiver(api_key=KEY) as receiver:
        yield receiver


@pytest.mark.parametrize("parts", ["own", "standard"])
def test_one_span_arrives_and_its_trace_id_is_told(check: Check, mackerel: Receiver, parts: str) -> None:
    result = check("--send", MACKEREL_OTEL_ENDPOINT=mackerel.url, MACKEREL_OTEL_PARTS=parts)
    assert result.status == 0
    (span,) = mackerel.spans
    assert span.name == "mackerel-otel-server check"
    assert span.resource["service.name"] == "shop"
    sent = result.data["sent"]
    assert sent["trace_id"] == span.trace_id
    assert sent["accepted"] is True
    assert 0 <= sent["milliseconds"] < 10_000
    result.has("OK", f"{mackerel.url} accepted one span in {sent['milliseconds']} ms", span.trace_id)
    said = [one for one in result.data["findings"] if "the server sends with OpenTelemetry's exporter" in str(one)]
    assert [one["level"] for one in said] == ["OK"] * (parts == "standard")


def test_what_the_configuration_sets_is_what_is_sent_with(check: Check, mackerel: Receiver) -> None:
    conf = (
        f"raw_env = ['MACKEREL_OTEL_ENDPOINT={mackerel.url}', 'MACKEREL_APIKEY={KEY}', "
        f"'OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test']\nwsgi_app = 'bakery.wsgi'\n{INSTALL}"
    )
    env = {"MACKEREL_APIKEY": "", "OTEL_SERVICE_NAME": "", "OTEL_TRACES_SAMPLER": "always_off"}
    result = check("--send", files={"gunicorn.conf.py": conf}, **env)
    (span,) = mackerel.spans
    assert span.resource["service.name"] == "bakery"
    assert span.resource["deployment.environment.name"] == "test"
    result.has("WARN", "OTEL_TRACES_SAMPLER='always_off' records no trace", "unset OTEL_TRACES_SAMPLER")


GRPC = """import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor(1))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


def test_a_grpc_server_on_any_port_is_recognised_by_its_answer(check: Check, need: Callable[[str], None]) -> None:
    need("grpc")
    command = [sys.executable, "-c", GRPC]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        result = check("--send", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, MACKEREL_APIKEY="")
        server.communicate()
    assert result.status == 1
    assert result.data["sent"]["accepted"] is False
    result.has("FAIL", "HTTP/2, as gRPC does", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, usually http://host:4318/v1/traces")


def test_without_send_nothing_is_sent(check: Check, mackerel: Receiver) -> None:
    result = check(MACKEREL_OTEL_ENDPOINT=mackerel.url)
    assert "sent" not in result.data
    assert mackerel.requests == []


def send_to(check: Check, *steps: Step) -> tuple[Checked, FaultServer]:
    with FaultServer(*steps) as server:
        return check("--send", MACKEREL_OTEL_ENDPOINT=server.url, OTEL_EXPORTER_OTLP_TIMEOUT="2"), server


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            refused(400, "Invalid API Key"),
            ("answered 400 Bad Request 'Invalid API Key'", "MACKEREL_APIKEY", "write permission"),
        ),
        (refused(400, f"what is {KEY}?"), ("'what is ****?'",)),
        (refused(429, "quota exceeded", Retry_After="86400"), ("answered 429", "quota exceeded", "the plan's limits")),
        (refused(429, "slow down"), ("answered 429", "OTEL_TRACES_SAMPLER=parentbased_traceidratio")),
        (
            Step(404),
            ("answered 404", "the whole URL", "in MACKEREL_OTEL_ENDPOINT", "usually one that ends in /v1/traces"),
        ),
        (Step(404, b"<html>lost</html>", HTML), ("answered 404", "lost", "the whole URL", "in MACKEREL_OTEL_ENDPOINT")),
        (Step(405), ("answered 405", "the whole URL", "in MACKEREL_OTEL_ENDPOINT")),
        (
            Step(302, headers={"Location": "https://login.example/"}),
            ("answered 302", "login.example", "redirects are not followed", "in MACKEREL_OTEL_ENDPOINT"),
        ),
        (Step(308), ("answered 308", "'nowhere'", "redirects are not followed")),
        (
            Step(413, b"<html>large</html>", HTML),
            ("answered 413", "one span, so smaller batches", "client_max_body_size"),
        ),
        *[
            (step, (f"answered {step.status}", "that takes protobuf", "OTEL_EXPORTER_OTLP_COMPRESSION=none"))
            for step in (Step(415), Step(415, b"<html>?</html>", HTML), refused(400, "unsupported content-type"))
        ],
        (refused(503, "maintenance"), ("answered 503", "see its log or status page")),
        (Step(act=never), ("timed out", "may have arrived", "OTEL_EXPORTER_OTLP_TIMEOUT")),
        (Step(act=reset), ("Connection reset", "may have arrived")),
        (Step(act=half_an_answer), ("closed in the middle of its answer",)),
        (Step(act=no_http), ("what came is no HTTP",)),
        (accepted(1, "no room"), ("rejected 1 of 1 spans 'no room'", "the message says why")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_endpoint_that_takes_no_span_is_a_failure_that_says_why(
    check: Check, step: Step, words: tuple[str, ...]
) -> None:
    began = time.monotonic()
    result, server = send_to(check, step)
    assert result.status == 1
    result.has("FAIL", "the endpoint takes no spans", *words)
    assert result.data["sent"]["accepted"] is False
    # One attempt is enough to know.
    assert len(server.requests) == 1
    assert time.monotonic() - began < 30


def test_an_answer_that_is_no_otlp_is_a_warning(check: Check) -> None:
    result, _ = send_to(check, Step(200, b"<html>log in</html>", {"Content-Type": "text/html"}))
    assert result.status == 0
    result.has(
        "WARN", "accepted one span", "no OTLP answer", "log in", "no receiver of traces", "MACKEREL_OTEL_ENDPOINT"
    )


def test_a_cure_names_the_variable_for_a_whole_url(check: Check) -> None:
    with FaultServer(Step(404)) as server:
        base = server.url.removesuffix("/v1/traces")
        result = check("--send", MACKEREL_APIKEY="", OTEL_EXPORTER_OTLP_ENDPOINT=base)
    result.has("FAIL", "answered 404", "in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def test_a_closed_port_and_a_name_without_address_are_failures(check: Check) -> None:
    closed = FaultServer()  # not entered: the port is taken and refuses
    with closed:
        url = closed.url
    result = check("--send", MACKEREL_OTEL_ENDPOINT=url)
    result.has("FAIL", "the endpoint takes no spans", "Connection refused", "check that the far end runs")
    result = check("--send", MACKEREL_OTEL_ENDPOINT="https://no-such-host.invalid/v1/traces")
    result.has("FAIL", "its name has no address", "resolver")


def test_tls_that_nobody_vouches_for_is_a_failure_and_with_its_authority_it_is_well(
    check: Check, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with FaultServer(context=context) as server:
        result = check("--send", MACKEREL_OTEL_ENDPOINT=server.url)
        result.has("FAIL", "unable to get local issuer certificate", "OTEL_EXPORTER_OTLP_CERTIFICATE")
        env = {"MACKEREL_OTEL_ENDPOINT": server.url, "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem"}
        assert check("--send", **env).status == 0
        (request,) = server.requests
        # What the command trusts, OpenTelemetry's exporter need not trust.
        env["MACKEREL_OTEL_PARTS"] = "standard"
        check("--send", **env).has("OK", "the server sends with OpenTelemetry's exporter")
        env["SSL_CERT_FILE"] = env.pop("OTEL_EXPORTER_OTLP_CERTIFICATE")
        result = check("--send", **env)
        result.has("OK", "accepted one span")
        result.has("WARN", "those of the package certifi", "type OTEL_EXPORTER_OTLP_CERTIFICATE=")
    (resource,) = ExportTraceServiceRequest.FromString(gzip.decompress(request.body)).resource_spans
    assert resource.scope_spans[0].spans[0].name == "mackerel-otel-server check"
    assert request.headers["mackerel-api-key"] == KEY


@pytest.mark.parametrize(("seconds", "level"), [(-3600, "WARN"), (3600, "WARN"), (2, "OK")])
def test_a_clock_that_is_far_off_is_told_by_the_endpoint(check: Check, seconds: int, level: str) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)
    step = accepted()
    result, _ = send_to(check, Step(step.status, step.body, {**step.headers, "Date": date}))
    words = {"OK": "agrees", "WARN": "ahead of" if seconds < 0 else "behind"}[level]
    result.has(level, "this machine's clock", words)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED is true"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is console"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER is none"),
        ({"OTEL_TRACES_SAMPLER": "often"}, "the settings have errors"),
    ],
)
def test_where_nothing_can_be_sent_that_is_a_failure(
    check: Check, mackerel: Receiver, variables: dict[str, str], words: str
) -> None:
    result = check("--send", MACKEREL_OTEL_ENDPOINT=mackerel.url, **variables)
    assert result.status == 1
    result.has("FAIL", f"no span was sent: {words}")
    assert mackerel.requests == []


def test_ctrl_c_while_it_waits_leaves_nothing_behind(tmp_path: Path) -> None:
    with FaultServer(Step(act=never)) as server:
        env = clean(os.environ) | {"MACKEREL_APIKEY": KEY, "MACKEREL_OTEL_ENDPOINT": server.url}
        process = subprocess.Popen(
            [sys.executable, "-m", "mackerel_otel_server", "check", "--send"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 60
            while not server.requests and time.monotonic() < deadline:
                with server.changed:
                    server.changed.wait(0.05)
            assert server.requests
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert (out, err) == ("", "")
    server.wait_for_closed(1)
