"""No secret is in what ``check``, ``config`` and ``flush`` say, wherever it was typed and whatever else is wrong."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from checking import INSTALL, settle
from fault_server import FaultServer, Step

from mackerel_otel_server import settings
from mackerel_otel_server.cli import main
from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.fingerprint import Destination
from mackerel_otel_server.process import log

SECRET = "S3cr3t-of/nobody:x"
ENCODED = quote(SECRET, safe="")
CONF = "gunicorn.conf.py"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
KEY = "k3y-of-nobody-at-all-012345"

URLS = [f"{{}}://user:{text}@{{}}" for text in (SECRET, ENCODED, KEY)]
VARIABLES: list[dict[str, str]] = [
    {"MACKEREL_APIKEY": KEY},
    {"MACKEREL_APIKEY": f"{KEY} {KEY}"},
    {"MACKEREL_APIKEY": f"Bearer {KEY}"},
    {"MACKEREL_API_KEY": f"'{KEY}'"},
    {"MACKEREL_APIKEY_FILE": KEY},
    {"MACKEREL_APIKEY": f"{KEY}\udce9"},
    *[{name: url.format("http", "proxy:3128")} for name in ("HTTPS_PROXY", "https_proxy") for url in URLS],
    *[{"HTTPS_PROXY": url.format(scheme, "proxy:port")} for scheme in ("http", "socks5") for url in URLS],
    {"HTTPS_PROXY": f"user:{KEY}@proxy:3128"},
    {"HTTP_PROXY": f'"http://user:{KEY}@proxy"'},
    *[
        {name: url.format("https", host)}
        for name in (ENDPOINT, TRACES, "MACKEREL_OTEL_ENDPOINT")
        for url in URLS
        for host in ("c", "c:4317/v1/traces", "c/v1/traces/v1/traces", "c:port/")
    ],
    {ENDPOINT: f"user:{KEY}@c:4318"},
    {ENDPOINT: f"user:{KEY}%40c:4318"},
    {ENDPOINT: f"http://user:{KEY}%40c:4318"},
    {ENDPOINT: f"http://user:{KEY[:9]}/{KEY[9:]}@c"},
    {ENDPOINT: f'"http://user:{KEY}@c"'},
    {ENDPOINT: f"http://user:{KEY}@c/?u=http://d"},
    {ENDPOINT: f"http://user:{KEY}@c/\udce9"},
    {"MACKEREL_OTEL_ENDPOINT": f"http://user:{KEY}@proxy/v1/traces"},
    *[
        {name: f"https://c{path}?token={text}"}
        for name in (ENDPOINT, TRACES, "MACKEREL_OTEL_ENDPOINT")
        for path in ("", "/x", "/v1/traces/v1/traces")
        for text in (KEY, ENCODED)
    ],
    {TRACES: f"https://c/x?token={KEY}\udce9"},
    *[
        {name: f"a=1,authorization={text}"}
        for name in (HEADERS, "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
        for text in (KEY, f"Basic%20{ENCODED}", f'"{KEY}"', f"{KEY}%0A", f"{KEY}\udce9")
    ],
    {HEADERS: KEY},
    *[
        {name: text.format(key)}
        for name in (ENDPOINT, TRACES, "MACKEREL_OTEL_ENDPOINT", "MACKEREL_APIKEY_FILE")
        for key in (KEY, f"{KEY}==")
        for text in ("{}", '"{}"', "Bearer {}")
    ],
    *[{"MACKEREL_APIKEY": "an0ther-key", "MACKEREL_APIKEY_FILE": text} for text in (f'"{KEY}"', f"Bearer {KEY}")],
    *[{name: f"https://c/{KEY}/v1/traces"} for name in (TRACES, "MACKEREL_OTEL_ENDPOINT")],
    *[
        {name: text}
        for text in (f"https://c.example/v1/traces/{KEY}", f"{KEY},https://c.example/v1/traces")
        for name in ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_TRACES_SAMPLER_ARG")
    ],
    *[
        {name: f'"{KEY}"'}
        for name in (
            "OTEL_TRACES_EXPORTER",
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "OTEL_TRACES_SAMPLER",
            "OTEL_TRACES_SAMPLER_ARG",
            "OTEL_BSP_EXPORT_TIMEOUT",
        )
    ],
    {HEADERS: f"{KEY}: a=b"},
    {HEADERS: f"mackerel-api-key={KEY}"},
    {"OTEL_EXPORTER_OTLP_CLIENT_KEY": f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n"},
]


def said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: Mapping[str, str]
) -> str:
    """Return all that the commands say, as text and as JSON, without JSON's escapes."""
    settle(folder, monkeypatch, **{"MACKEREL_APIKEY": "", **env})
    texts = []
    for command in ("check", "config"):
        for arguments in ([], ["--json"]):
            main([command, *arguments])
            captured = capsys.readouterr()
            assert "Traceback" not in captured.out + captured.err
            texts += [captured.out, captured.err]
            if arguments:
                texts += str(json.loads(captured.out))
    run_flush(monkeypatch)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return "".join([*texts, captured.out, captured.err])


def run_flush(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process, whose log is as before then."""
    monkeypatch.setattr(log, "_write_to_host", None)
    return main(["flush", *arguments])


def assert_no_secret(text: str) -> None:
    # Halves, for a secret that is cut somewhere.
    for secret in (SECRET, ENCODED, KEY):
        for part in (secret[: len(secret) // 2], secret[len(secret) // 2 :]):
            assert part not in text, text


@pytest.mark.usefixtures("known_versions")
@pytest.mark.parametrize("env", VARIABLES, ids=lambda env: ascii(env)[:60])
def test_a_secret_in_a_variable_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str]
) -> None:
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nimport = mackerel_otel_server.uwsgi\n")
    assert_no_secret(said(tmp_path, monkeypatch, capsys, env))


@pytest.mark.usefixtures("known_versions")
def test_a_secret_is_not_shown_where_a_line_is_broken_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in range(20, 60, 5):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = said(tmp_path, monkeypatch, capsys, {"MACKEREL_APIKEY": KEY, "OTEL_SERVICE_NAME": f"shop {KEY}"})
        assert_no_secret("".join(text.split()))


RAW = f"raw_env = ['MACKEREL_APIKEY={KEY}', '{HEADERS}=a={ENCODED}']\n"


@pytest.mark.parametrize(
    ("conf", "env"),
    [
        (RAW + INSTALL, {}),
        (RAW, {}),
        (f"{RAW}raise ValueError(raw_env, {SECRET!r})\n", {}),
        (f"import os\nos.environ['MACKEREL_APIKEY'] = {KEY!r}\nraise ValueError({KEY!r})\n", {}),
        (f"import os\nos.environ['HTTPS_PROXY'] = 'http://u:{KEY}@p'\n{INSTALL}", {}),
        (f"raw_env = ['MACKEREL_APIKEY {KEY}']\n", {}),
        (f"{RAW}import sys\nsys.exit({KEY!r})\n", {}),
        (f"{RAW}print({KEY!r})\nimport os\nos._exit(1)\n", {}),
        (INSTALL, {"GUNICORN_CMD_ARGS": f"-e MACKEREL_APIKEY={KEY}"}),
        (INSTALL, {"GUNICORN_CMD_ARGS": f"--env=MACKEREL_APIKEY={KEY} --nonsense {KEY}"}),
        (INSTALL, {"GUNICORN_CMD_ARGS": f"-e '{HEADERS}=a={KEY}' --chdir {KEY}"}),
        (INSTALL, {"GUNICORN_CMD_ARGS": f"-e 'MACKEREL_APIKEY {KEY}'"}),
        (INSTALL, {"GUNICORN_CMD_ARGS": f"-e 'MACKEREL_APIKEY={KEY}"}),
    ],
)
def test_a_secret_in_gunicorn_s_configuration_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], conf: str, env: dict[str, str]
) -> None:
    (tmp_path / CONF).write_text(conf)
    assert_no_secret(said(tmp_path, monkeypatch, capsys, env))


def echo(server: FaultServer, sock: socket.socket) -> None:
    """Answer with the request, as debugging servers do."""
    (request,) = server.requests
    text = "\n".join([request.line, *(f"{name}: {value}" for name, value in request.headers.items())]).encode()
    sock.sendall(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n" % len(text) + text
    )


ECHOED = pytest.mark.parametrize(
    "env",
    [
        {"MACKEREL_APIKEY": KEY, "MACKEREL_OTEL_ENDPOINT": "http://{host}/v1/traces"},
        {TRACES: f"http://user:{KEY}@{{host}}/v1/traces"},
        {TRACES: f"http://user:{ENCODED}@{{host}}/v1/traces"},
        {TRACES: f"http://{{host}}/v1/traces?token={KEY}"},
        {ENDPOINT: "http://{host}", HEADERS: f"authorization=Basic%20{ENCODED}"},
        {TRACES: f"http://{{host}}/{KEY}/v1/traces"},
        {ENDPOINT: "http://c.example", "HTTP_PROXY": f"http://user:{KEY}@{{host}}"},
        {TRACES: "https://c.example/v1/traces", "HTTPS_PROXY": f"http://user:{KEY}@{{host}}"},
    ],
    ids=lambda env: ascii(env)[:60],
)


@ECHOED
@pytest.mark.parametrize("where", ["body", "location"])
def test_a_secret_that_the_far_end_says_again_is_not_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    env: dict[str, str],
    where: str,
) -> None:
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nimport = mackerel_otel_server.uwsgi\n")
    step = Step(act=echo) if where == "body" else Step(302, headers={"Location": f"http://d/?token={KEY}&t={ENCODED}"})
    for arguments in ([], ["--json"]):
        with FaultServer(step) as server:
            host = f"127.0.0.1:{server.port}"
            settle(tmp_path, monkeypatch, **{"MACKEREL_APIKEY": "", **env})
            for name, value in env.items():
                monkeypatch.setenv(name, value.replace("{host}", host))
            assert main(["check", "--send", *arguments]) == 1
            captured = capsys.readouterr()
            (request,) = server.requests
            text = captured.out + captured.err
        assert "answered" in text or "refused the tunnel" in text
        for part in (*request.headers.get("authorization", "").split(), request.headers.get("proxy-authorization", "")):
            assert part in ("", "Basic") or part not in text
        if where == "body" or KEY in str(env):
            assert KEY not in text
        if where == "body" or ENCODED in str(env):
            assert ENCODED not in text
            assert SECRET not in text


@ECHOED
@pytest.mark.parametrize("key_was_changed", [False, True], ids=["same key", "other key"])
def test_a_secret_is_not_shown_where_what_was_left_is_delivered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    env: dict[str, str],
    key_was_changed: bool,
) -> None:
    with FaultServer(Step(act=echo)) as server:
        settle(tmp_path, monkeypatch, **{"MACKEREL_APIKEY": "", **env})
        for name, value in env.items():
            monkeypatch.setenv(name, value.replace("{host}", f"127.0.0.1:{server.port}"))
        in_force = settings.read(os.environ)
        about = Destination(in_force, "an0ther-key" if key_was_changed else in_force.api_key).described()
        mark = b"12345678"
        span = journal_file.pack_scope_number(0) + b"\x12\x00"
        spool = Path(os.environ["MACKEREL_OTEL_SPOOL"])
        spool.mkdir(mode=0o700)
        (spool / f"{'0' * 16}.journal").write_bytes(
            journal_file.beginning(mark, {"pid": 4711, **about}, b"\x0a\x00", b"")
            + journal_file.record(mark, journal_file.SPANS, 1, span)
        )
        assert run_flush(monkeypatch, *["--changed-key"] * key_was_changed) == 1
        assert len(server.requests) == 1
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "answered" in text or "refused the tunnel" in text
    assert "(worker 4711)" in text
    assert_no_secret(text.replace(str(tmp_path), ""))
