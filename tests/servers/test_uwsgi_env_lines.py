"""The variables that uWSGI itself sets: ``env``, ``unenv`` and ``envdir`` in the ini file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import environment, server_spans, uwsgi
from uwsgi_programs import DOOR, LAZY, PROGRAMS, program

from mackerel_otel_server.cli.receiver.endpoint import Receiver

APPLICATION = """import json, os
def application(environ, start_response):
    start_response("200 OK", [])
    return [json.dumps(dict(os.environ)).encode()]
"""
MODES = pytest.mark.parametrize("mode", ["", LAZY], ids=["prefork", "lazy-apps"])
BOTH = pytest.mark.parametrize("which", PROGRAMS)


def lines(receiver: Receiver) -> str:
    return (
        f"env = MACKEREL_OTEL_ENDPOINT={receiver.url}\nenv = MACKEREL_APIKEY=test-key\n"
        "env = OTEL_SERVICE_NAME=bakery=1\nenv = OTEL_RESOURCE_ATTRIBUTES=shop= Köln\n"
        "env = OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=2\n"
    )


def write(tmp_path: Path, more: str = "") -> str:
    (tmp_path / "site_.py").write_text(more + APPLICATION)
    return f"pythonpath = {tmp_path}\nmodule = site_\n"


@MODES
@BOTH
@pytest.mark.parametrize("door", ["import", "instrument()"])
def test_env_lines_are_settings_and_go_before_what_uwsgi_inherits(
    tmp_path: Path, receiver: Receiver, mode: str, which: str, door: str
) -> None:
    call = "import mackerel_otel_server\nmackerel_otel_server.instrument()\n" if door != "import" else ""
    own = DOOR if door == "import" else "master = true\nenable-threads = true\n"
    site = write(tmp_path, f"{call}import mackerel_otel_server\n") + "procname-prefix = bakery\nauto-procname = true\n"
    if call:
        (tmp_path / "site_.py").write_text(
            (tmp_path / "site_.py").read_text() + "application = mackerel_otel_server.trace_wsgi(application)\n"
        )
    env = environment(MACKEREL_APIKEY="inherited", OTEL_SERVICE_NAME="inherited")
    with uwsgi(tmp_path, own + mode + site + lines(receiver), env=env, program=program(which)) as server:
        server.wait_for_log("sends traces as 'bakery=1'", count=2)
        assert server.get("/").status == 200
        server.wait_until_idle()
        server.stop()
    (span,) = server_spans(receiver.spans)  # the only key that the receiver takes
    assert (span.resource["service.name"], span.resource["shop"]) == ("bakery=1", "Köln")
    # Which OpenTelemetry itself reads.
    assert len(span.attributes) == 2


@BOTH
def test_a_blank_before_the_equals_sign_is_part_of_the_name_as_it_is_for_uwsgi(
    tmp_path: Path, receiver: Receiver, which: str
) -> None:
    ini = f"{DOOR}{write(tmp_path)}env = MACKEREL_APIKEY = test-key\n"
    env = environment(receiver, MACKEREL_APIKEY="")
    with uwsgi(tmp_path, ini, env=env, program=program(which)) as server:
        server.wait_for_log("there is no API key")
        assert server.get("/").status == 200
        server.wait_until_idle()
        server.stop()
    assert receiver.spans == []


@MODES
@BOTH
def test_unenv_envdir_and_a_library_that_writes_later_count_as_well(
    tmp_path: Path, receiver: Receiver, mode: str, which: str
) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "MACKEREL_APIKEY").write_text("test-key\n")
    # As python-dotenv does it.
    site = write(tmp_path, "import os\nos.environ['OTEL_SERVICE_NAME'] = 'written later'\n")
    ini = (
        f"{DOOR}{mode}{site}env = OTEL_SERVICE_NAME=of-the-file\nunenv = OTEL_SDK_DISABLED\n"
        f"env = MACKEREL_OTEL_ENDPOINT={receiver.url}\nenvdir = {tmp_path / 'env'}\n"
    )
    env = environment(OTEL_SDK_DISABLED="true", MACKEREL_APIKEY="inherited")
    with uwsgi(tmp_path, ini, env=env, program=program(which)) as server:
        assert server.get("/").status == 200
        server.wait_until_idle()
        server.stop()
    (span,) = server_spans(receiver.spans)
    # Under lazy-apps the door is imported, and tracing starts, before the application is.
    assert span.resource["service.name"] == ("of-the-file" if mode else "written later")


@BOTH
def test_the_application_s_environment_is_what_uwsgi_makes_of_it_but_for_opentelemetry_s(
    tmp_path: Path, receiver: Receiver, which: str
) -> None:
    seen: dict[str, dict[str, str]] = {}
    more = "env = SHOP=open\nenv = HTTPS_PROXY=http://127.0.0.1:1\nunenv = TERM\n"
    for door in ("master = true\n", DOOR):
        folder = tmp_path / str(len(seen))
        folder.mkdir()
        ini = f"{door}{write(folder)}{lines(receiver)}{more}"
        env = environment(TERM="xterm", PYTHONDEVMODE="")
        with uwsgi(folder, ini, env=env, program=program(which), processes=1) as server:
            seen[door] = json.loads(server.get("/").body)
            server.wait_until_idle()
            server.stop()
    untouched, traced = seen.values()
    changed = {name for name in {*untouched, *traced} if untouched.get(name) != traced.get(name)}
    assert {name for name in changed if not name.startswith("OTEL_")} == set()
    assert traced["OTEL_SERVICE_NAME"] == "bakery=1"
