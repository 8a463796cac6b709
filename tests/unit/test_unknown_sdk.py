"""With an SDK whose private fields are others, spans stay what they are, and one line says that they take longer."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sdk_of_tomorrow
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.version import __version__ as sdk_version
from servers import environment

import mackerel_otel_server
from mackerel_otel_server.cli.inspection import versions
from mackerel_otel_server.pipeline import encoder, spans

SCRIPT = """
import json, sys
from wsgiref.util import setup_testing_defaults

import mackerel_otel_server

mackerel_otel_server.instrument()

from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mackerel_otel_server.pipeline.encoder import Encoder

recorded = InMemorySpanExporter()
provider = trace.get_tracer_provider()
provider.add_span_processor(SimpleSpanProcessor(recorded))

@mackerel_otel_server.trace_wsgi
def application(environ, start_response):
    with trace.get_tracer("shop").start_as_current_span("work", attributes={"fish": 3}) as span:
        span.add_event("found", {"where": "sea"})
    if environ["PATH_INFO"] == "/fail":
        raise LookupError("no fish")
    start_response("200 OK", [])
    return [b""]

for path in ("/", "/", "/fail"):
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    try:
        application(environ, lambda *_: None)
    except LookupError:
        pass

encoder = Encoder(provider.resource)
ours = encoder.assemble([encoder.encode(span) for span in recorded.get_finished_spans()])
protobuf = "google.protobuf" in sys.modules
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
library = encode_spans(recorded.get_finished_spans()).SerializeToString()
print(json.dumps({"ours": ours.hex(), "library": library.hex(), "protobuf": protobuf}))
"""
SENTENCE = "are not built as this package knows them"


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment() | {"MACKEREL_APIKEY": "key", "OTEL_SERVICE_NAME": "shop", **env},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def recorded(folder: Path, **env: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the script tells, and the lines of the log."""
    (folder / "script.py").write_text(SCRIPT)
    result = run(folder, "script.py", OTEL_TRACES_EXPORTER="none", **env)
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    ours, library = (ExportTraceServiceRequest.FromString(bytes.fromhex(told[name])) for name in ("ours", "library"))
    assert ours == library
    names = [span.name for scope in ours.resource_spans[0].scope_spans for span in scope.spans]
    assert sorted(names) == ["GET", "GET", "GET", "work", "work", "work"]
    return told, result.stderr.splitlines()


def test_the_installed_sdk_is_known_and_its_spans_import_no_protobuf(tmp_path: Path) -> None:
    told, lines = recorded(tmp_path)
    assert not told["protobuf"]
    assert not [line for line in lines if SENTENCE in line]


def test_with_another_sdk_the_spans_are_the_same_and_one_warning_says_so(tmp_path: Path) -> None:
    told, lines = recorded(tmp_path, **sdk_of_tomorrow.install(tmp_path))
    assert told["protobuf"]
    (line,) = [line for line in lines if SENTENCE in line]
    assert f"the spans of opentelemetry-sdk {sdk_version} {SENTENCE} (" in line
    assert "_start_time" in line
    assert line.endswith("pip install -U mackerel-otel-server")


def test_check_has_a_finding_for_another_sdk_and_none_for_the_installed_one(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nmodule = wsgi\n")
    for env, expected in (({}, 0), (sdk_of_tomorrow.install(tmp_path), 1)):
        result = run(tmp_path, "-m", "mackerel_otel_server", "check", "--json", **env)
        found = [one for one in json.loads(result.stdout)["findings"] if SENTENCE in one["seen"]]
        assert len(found) == expected, result.stdout
    assert found[0]["level"] == "WARN"
    assert found[0]["cure"] == "pip install -U mackerel-otel-server"


def test_two_files_use_private_fields_of_spans() -> None:
    fields = spans._FIELDS | spans._FIELDS_OF_ATTRIBUTES | {"_dq", "_limits", "_description", "_status_code"}  # noqa: SLF001
    package = Path(mackerel_otel_server.__file__).parent
    using = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in fields and ast.unparse(node.value) not in {"self", "cls"})
        or (isinstance(node, ast.Constant) and node.value in fields)
    }
    assert using == {"pipeline/encoder.py", "pipeline/spans.py"}


@pytest.mark.parametrize("part", [encoder, spans])
def test_each_of_the_two_users_of_private_fields_is_asked(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(versions.unknown_sdk()) == []
    monkeypatch.setattr(part, "sdk_difference", lambda: "AttributeError: no _kind")
    (finding,) = versions.unknown_sdk()
    assert f"{SENTENCE} (AttributeError: no _kind)" in finding.seen
