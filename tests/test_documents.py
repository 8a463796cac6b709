"""What the documents claim is what the code does."""

from __future__ import annotations

import configparser
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import assert_one_server_span_per_request, environment, gunicorn, server_span, uwsgi

import mackerel_otel_server
from mackerel_otel_server.cli.receiver import Receiver
from mackerel_otel_server.settings.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
JAPANESE = (ROOT / "README.ja.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[str]:
    """Return the code blocks without their comments, which are translated."""
    return [re.sub(r"\s+#.*", "", block) for block in _blocks(text, "(?:sh|ini|python)")]


def _tables(text: str) -> list[int]:
    return [len(table.splitlines()) for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_both_readmes_have_the_same_sections_commands_and_tables() -> None:
    levels = [[len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)] for text in (ENGLISH, JAPANESE)]
    assert levels[0] == levels[1]
    assert _commands(ENGLISH) == _commands(JAPANESE)
    assert _tables(ENGLISH) == _tables(JAPANESE)
    names = [set(re.findall(r"(?:OTEL|MACKEREL)_[A-Z_]+", text)) for text in (ENGLISH, JAPANESE)]
    assert names[0] == names[1]


def test_every_variable_of_the_readme_is_one_that_is_read_and_the_other_way_round() -> None:
    table = ENGLISH[ENGLISH.index("| variable |") : ENGLISH.index("Do not give the key")]
    table = table.replace("[TRACES_]", "").replace("`…CLIENT", "`OTEL_EXPORTER_OTLP_CLIENT")
    documented = set(re.findall(r"`((?:OTEL|MACKEREL)_[A-Z_]+)`", table))
    prefixes = tuple(re.findall(r"`((?:OTEL)_[A-Z_]+)…", table))
    names = {name for variable in CATALOGUE for name in variable.names}
    read = {name.replace("_TRACES_", "_") for name in names if name.startswith(("OTEL_", "MACKEREL_"))}
    read = {name if name != "OTEL_EXPORTER" else "OTEL_TRACES_EXPORTER" for name in read}
    documented = {name.replace("_TRACES_", "_") for name in documented}
    documented = {name if name != "OTEL_EXPORTER" else "OTEL_TRACES_EXPORTER" for name in documented}
    unread = {name for name in documented - read if not name.startswith(prefixes)}
    undocumented = {
        name
        for name in read - documented
        if not name.startswith(prefixes) and name not in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_BSP_EXPORT_TIMEOUT")
    }
    assert (unread, undocumented) == (set(), set())


def test_each_message_in_troubleshooting_is_one_that_the_package_writes() -> None:
    source = "".join(
        file.read_text(encoding="utf-8") for file in Path(mackerel_otel_server.__file__).parent.rglob("*.py")
    )
    section = ENGLISH[ENGLISH.index("## Troubleshooting") : ENGLISH.index("Limits:")]
    messages = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        words = max(re.split(r"…|\(|\)|\d+|gunicorn\.conf\.py", message), key=len).strip()
        assert words in source, message


def _block(language: str, words: str) -> str:
    """Return the one code block that holds these words."""
    (block,) = (block for block in _blocks(ENGLISH, language) if words in block)
    return block


def test_the_uwsgi_ini_of_the_readme_traces(tmp_path: Path, receiver: Receiver) -> None:
    block = _block("ini", "import = mackerel_otel_server.uwsgi")
    with uwsgi(tmp_path, block.removeprefix("[uwsgi]\n"), env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_the_uwsgi_example_traces(tmp_path: Path, receiver: Receiver) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "conf_examples" / "mackerel_otel_server.ini")
    options = dict(parser["uwsgi"])
    del options["http-socket"], options["processes"], options["need-app"]  # the test's own stand in their place
    ini = "".join(f"{name} = {value}\n" for name, value in options.items())
    with uwsgi(tmp_path, ini, env=environment(receiver)) as server:
        pids = server.ask_every_worker(2, 4)
        server.wait_until_idle()
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_the_two_lines_of_the_readme_trace(tmp_path: Path, receiver: Receiver) -> None:
    lines = next(block for block in _blocks(ENGLISH, "python") if "install(globals())" in block)
    (tmp_path / "gunicorn.conf.py").write_text(lines)
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        pids = server.ask_every_worker(2, 4)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


def test_the_own_spans_of_the_readme_are_made(tmp_path: Path, receiver: Receiver) -> None:
    own = next(block for block in _blocks(ENGLISH, "python") if "start_as_current_span" in block)
    (tmp_path / "ordering.py").write_text(
        own + "\ndef application(environ, start_response):\n"
        "    order(7)\n    start_response('200 OK', [])\n    return [b'ok']\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="ordering:application", workers=1) as server:
        server.get()
        server.stop()
    (span,) = [span for span in receiver.spans if span.name == "order"]
    assert span.attributes == {"id": 7}


def test_the_access_log_of_the_readme_shows_the_trace_id(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        _block("python", "access_log_format") + "accesslog = '-'\n" + _block("python", "install(globals())")
    )
    with gunicorn(tmp_path, env=environment(receiver), conf=None, workers=1) as server:
        server.get("/own")
        log = server.stop()
    assert f'"GET /own HTTP/1.1" 200 5 trace={server_span(receiver, "/own").trace_id}\n' in log, log


def test_the_log_format_of_the_readme_shows_the_trace_id_under_uwsgi(tmp_path: Path, receiver: Receiver) -> None:
    ini = "import = mackerel_otel_server.uwsgi\nmaster = true\nenable-threads = true\nmodule = plain:application\n"
    with uwsgi(tmp_path, ini + _block("ini", "log-format"), env=environment(receiver), processes=1) as server:
        server.get("/own")
        shown = server.wait_for_log(r'"GET /own" 200 \d+ trace=(\w+)').group(1)
        server.stop()
    assert shown == server_span(receiver, "/own").trace_id


def test_the_records_of_the_readme_show_the_trace_id(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "noting.py").write_text(
        "import logging\n" + _block("python", "otelTraceID") + "\ndef application(environ, start_response):\n"
        "    logging.getLogger('shop').warning('noted')\n    start_response('200 OK', [])\n    return [b'ok']\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="noting:application", workers=1) as server:
        server.get("/a")
        log = server.stop()
    assert f"WARNING shop trace={server_span(receiver, '/a').trace_id} noted" in log, log


def test_the_lines_of_the_readme_trace_a_driver_that_is_not_known(
    tmp_path: Path, receiver: Receiver, postgresql: dict[str, Any]
) -> None:
    address = {**postgresql, "database": postgresql["dbname"]}
    del address["dbname"]
    (tmp_path / "asking.py").write_text(
        _block("python", "trace_integration(") + "\ndef application(environ, start_response):\n"
        f"    connection = pg8000.dbapi.connect(**{address!r})\n"
        "    connection.cursor().execute('SELECT 1')\n    connection.close()\n"
        "    start_response('200 OK', [])\n    return [b'ok']\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="asking:application", workers=1) as server:
        assert server.get().status == 200, server.log
        server.stop()
    (query,) = (span for span in receiver.spans if span.kind == "CLIENT")
    assert query.attributes.get("db.query.text", query.attributes.get("db.statement")) == "SELECT 1"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11; the other environments check it")
def test_the_oldest_versions_that_are_tested_are_those_that_are_claimed() -> None:
    tomllib = importlib.import_module("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = dict(
        requirement.split(">=")
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["gunicorn"]]
    )
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    oldest = tox["testenv:oldest"]["deps"]
    for name, version in claimed.items():
        assert re.search(rf"^{re.escape(name)}=={re.escape(version)}(\.0)*$", oldest, re.MULTILINE), name
