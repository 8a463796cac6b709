"""What the documents say that is to be typed or written is run, and does what they say."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from documents import ENGLISH, ROOT, block, blocks, both, steps, tables
from servers import (
    Server,
    assert_one_server_span_per_request,
    debian_uwsgi,
    environment,
    gunicorn,
    running,
    server_span,
    server_spans,
    uwsgi,
)

from mackerel_otel_server import settings
from mackerel_otel_server.cli.init import FRAGMENTS
from mackerel_otel_server.cli.receiver.endpoint import Receiver


def test_the_line_of_the_documents_writes_a_file_and_says_what_is_next(tmp_path: Path) -> None:
    result = _bash(tmp_path, block("sh", "init systemd"), environment())
    assert result.returncode == 0, result
    assert "grep -A2 CHANGE gunicorn.service" in result.stdout
    assert (tmp_path / "gunicorn.service").read_text() == FRAGMENTS["systemd"].read()


@pytest.mark.parametrize(
    "lines",
    [block("sh", "docker build"), block("sh", "kubectl apply"), block("sh", "systemctl")],
    ids=["docker", "kubectl", "systemd"],
)
def test_what_needs_root_docker_or_a_cluster_is_what_init_says_and_bash_understands(tmp_path: Path, lines: str) -> None:
    for line in lines.splitlines():
        assert re.sub(r"\s+#.*", "", line) in steps(), line
    assert _bash(tmp_path, f"f() {{\n{lines}}}", environment()).returncode == 0


BIN = Path(sys.executable).parent


def _with_programs(env: dict[str, str]) -> dict[str, str]:
    return env | {"PATH": f"{BIN}:{os.environ['PATH']}"}


def _bash(folder: Path, script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euc", script]
    env = _with_programs(env)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=90, check=False)


@contextmanager
def _server_of(block: str, folder: Path, env: dict[str, str]) -> Iterator[Server]:
    """Run a block whose last line starts Gunicorn; it listens on a socket of the test's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = f"--bind fd://{listener.fileno()} --workers 2"
        env = _with_programs(env) | {"GUNICORN_CMD_ARGS": arguments, "HOME": str(folder)}
        # What pip does with the built package is tested by test_package.py.
        script = "pip() { [[ $* == 'install .' ]]; }\n" + block.replace("\ngunicorn", "\nexec gunicorn")
        command = ["bash", "-euc", script]
        server = Server(command, folder / "server.log", cwd=folder, env=env, listener=listener)
    with running(server):
        yield server


def test_the_first_lines_of_the_readme_trace_a_django_project(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver)
    del env["MACKEREL_APIKEY"], env["OTEL_SERVICE_NAME"]
    lines = block("sh", "export MACKEREL_APIKEY=…").replace("APIKEY=…", "APIKEY=test-key")
    with _server_of(lines, tmp_path, env) as server:
        server.get("/")
        log = server.stop()
    assert [span.resource["service.name"] for span in server_spans(receiver.spans)] == ["shop"], log
    # The log is like the one that the README shows below these lines.
    for line in block("text", "sent 1204 spans").splitlines():
        words = line.partition("[INFO] ")[2].replace("https://otlp-vaxila.mackerelio.com/v1/traces", receiver.url)
        assert re.search(re.sub(r"\b\d+ (?=sends|spans|requests)", r"\\d+ ", words), log), (words, log)


def test_the_lines_for_a_collector_trace_without_a_key(tmp_path: Path) -> None:
    with Receiver() as collector:
        url = collector.url.removesuffix("/v1/traces")
        lines = block("sh", "export OTEL_EXPORTER_OTLP_ENDPOINT").replace("http://127.0.0.1:4318", url)
        with _server_of(lines, tmp_path, environment(OTEL_SERVICE_NAME="shop")) as server:
            server.get("/")
            log = server.stop()
        assert len(server_spans(collector.spans)) == 1, log
        assert [name for request in collector.requests for name in request.headers if "api-key" in name.lower()] == []


def test_the_lines_about_costs_do_what_they_say(tmp_path: Path, receiver: Receiver) -> None:
    lines = block("sh", "OTEL_PYTHON_EXCLUDED_URLS")
    result = _bash(tmp_path, lines + "mackerel-otel-server config --json", environment(receiver))
    assert result.returncode == 0, result
    variables = re.findall(r"^export (\w+)='?(.*?)'?(?:\s+#.*)?$", lines, re.MULTILINE)
    assert len(variables) == 5
    env = environment(receiver) | dict(variables) | {"OTEL_TRACES_SAMPLER_ARG": "1"}
    # The ratio is 1 here, so that the test does not depend on chance.
    with gunicorn(tmp_path, env=env, workers=1) as server:
        server.get("/healthz")
        server.get("/other", headers={"User-Agent": "somebody"})
        server.stop()
    (span,) = server_spans(receiver.spans)
    assert span.attributes["url.path"] == "/other"
    assert not {"client.address", "user_agent.original"} & set(span.attributes)


def test_the_lines_that_check_an_installation_find_it_sound(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(block("python", "install(globals())"))
    result = _bash(tmp_path, block("sh", "mackerel-otel-server config"), environment(receiver))
    assert result.returncode == 0, result
    (span,) = receiver.spans
    assert f"look for the trace {span.trace_id}" in result.stdout


def test_the_lines_that_check_a_container_and_a_unit_send_a_span_each(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "apikey").write_text("test-key\n")
    (tmp_path / ".venv").symlink_to(BIN.parent)
    lines = (
        block("sh", "docker exec CONTAINER mackerel-otel-server check")
        .replace("/srv/mysite", str(tmp_path))
        .replace("/etc/mackerel", str(tmp_path))
    )
    # These programs are not here; functions in their place run the command that they are given.
    programs = 'docker() { shift 2; "$@"; }\nkubectl() { shift 3; "$@"; }\nsudo() { env -u MACKEREL_APIKEY "$@"; }\n'
    result = _bash(tmp_path, programs + lines, environment(receiver))
    assert result.returncode == 0, result
    assert [span.resource["service.name"] for span in receiver.spans] == ["shop", "shop", "mysite"]


LEAVE = """
import os, signal
import mackerel_otel_server
mackerel_otel_server.instrument()
from opentelemetry import trace
trace.get_tracer("shop").start_span("fish").end()
mackerel_otel_server.stats()
os.kill(os.getpid(), signal.SIGKILL)
"""


def _leave(env: Mapping[str, str]) -> None:
    """Let a process be killed with a span in its journal."""
    killed = subprocess.run(
        [sys.executable, "-c", LEAVE], env={**env, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL


def test_the_lines_that_deliver_what_was_left_do_so(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver)
    _leave({**env, "MACKEREL_APIKEY": "the-key-before"})
    _leave(env)
    first, second = block("sh", "flush --changed-key").splitlines()
    result = _bash(tmp_path, first, env)
    assert result.returncode == 1, result
    assert "flush --changed-key" in result.stderr
    assert len(receiver.spans) == 1
    result = _bash(tmp_path, second, env)
    assert result.returncode == 0, result
    assert len(receiver.spans) == 2


def test_the_lines_that_deliver_what_a_container_or_a_unit_left_do_so(tmp_path: Path, receiver: Receiver) -> None:
    env = environment(receiver)
    (tmp_path / "apikey").write_text("test-key\n")
    (tmp_path / ".venv").symlink_to(BIN.parent)
    lines = block("sh", "kubectl exec deploy/mysite -- mackerel-otel-server flush")
    for name, there in (
        ("/srv/mysite", str(tmp_path)),
        ("/etc/mackerel", str(tmp_path)),
        ("/run/gunicorn/journal", env["MACKEREL_OTEL_SPOOL"]),
    ):
        lines = lines.replace(name, there)
    programs = 'docker() { shift 2; "$@"; }\nkubectl() { shift 3; "$@"; }\n'
    # `sudo cat`, and `sudo -u NAME --preserve-env=NAMES`.
    programs += 'sudo() { [ "$1" = -u ] && shift 3; "$@"; }\n'
    _leave(env)
    for count, begin in enumerate(("docker", "kubectl", "export"), 1):
        (part,) = re.findall(rf"^{begin}(?:.|\n(?=sudo))*", lines, re.MULTILINE)
        result = _bash(tmp_path, programs + part, env)
        assert result.returncode == 0, result
        assert len(receiver.spans) == count
        _leave(env)


def test_the_example_of_check_is_what_check_says(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(f"raw_env = ['MACKEREL_APIKEY={uuid.uuid4().hex}']\n")
    result = _bash(tmp_path, "mackerel-otel-server check", environment(OTEL_SERVICE_NAME="shop"))
    assert result.returncode == 1, result
    parts = block("text", "FAIL").replace("/srv/shop", str(tmp_path)).split("…\n")
    assert len(parts) == 3
    for part in parts:
        assert part in result.stdout, (part, result.stdout)


LINES = [re.sub(r"\s+#.*", "", line) for line in block("sh", "receive --json").splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_the_lines_that_show_traces_run_until_ctrl_c(tmp_path: Path, line: str) -> None:
    # Any free port: tests run beside each other.
    ports = {"receive": " --port 0", "--web": " --web-port 0"}
    command = [
        "bash",
        "-euc",
        "exec " + line + "".join(option for word, option in ports.items() if word in line.split()),
    ]
    server = Server(command, tmp_path / "log", cwd=tmp_path, env=_with_programs(environment()))
    with running(server):
        if "demo" in line and "--web" not in line:
            assert server.wait() == 0, server.log
            assert "2 workers answered" in server.log
        else:
            server.wait_for_log("until Ctrl-C" if "demo" in line else "Ctrl-C ends")
            server.send(signal.SIGINT)
            assert server.wait() in (0, 130), server.log
        assert "Traceback" not in server.log.replace("  | Traceback", "")  # one of the demo's requests fails


def test_the_call_of_the_documents_traces_an_application(tmp_path: Path, receiver: Receiver) -> None:
    lines = next(
        lines
        for lines in blocks(ENGLISH["README"], "python")
        if lines.endswith("\nmackerel_otel_server.instrument()\n")
    )
    assert lines in block("python", "from celery import Celery")
    (tmp_path / "calling_wsgi.py").write_text(lines + "from web_flask import app as application\n")
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, conf=None, app="calling_wsgi:application", workers=1) as server:
        server.get("/")
        server.stop()
    assert len(server_spans(receiver.spans)) == 1, server.log


def test_a_task_of_the_celery_of_the_documents_is_in_the_trace_of_its_request(
    tmp_path: Path, receiver: Receiver, redis_url: str
) -> None:
    lines = block("python", "from celery import Celery").replace("redis://localhost:6379/0", redis_url)
    (tmp_path / "shop_tasks.py").write_text(
        f"{lines}app.conf.task_default_queue = {uuid.uuid4().hex!r}\n\n@app.task\ndef pack():\n    pass\n\n"
        "def application(environ, start_response):\n"
        "    pack.delay()\n    start_response('200 OK', [])\n    return [b'ok']\n"
    )
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="100")
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    quick = ("-P", "prefork", "-c", "1", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info")
    command = [sys.executable, "-m", "celery", "-A", "shop_tasks", "worker", *quick]
    own = env | {"OTEL_SERVICE_NAME": "shop-tasks"}
    with (
        running(Server(command, tmp_path / "celery.log", cwd=tmp_path, env=own)) as celery,
        gunicorn(tmp_path, env=env, app="shop_tasks:application", workers=1) as server,
    ):
        assert server.get().status == 200, server.log
        celery.wait_for_log(r"Task shop_tasks.pack\[.*\] succeeded")
        server.stop()
        celery.stop()
    (request,) = server_spans(receiver.spans)
    (task,) = (span for span in receiver.spans if span.kind == "CONSUMER")
    assert task.trace_id == request.trace_id
    assert (request.resource["service.name"], task.resource["service.name"]) == ("shop", "shop-tasks")
    assert "comes too late" not in server.log + celery.log


def test_the_uwsgi_ini_of_the_documents_traces(tmp_path: Path, receiver: Receiver) -> None:
    lines = block("ini", "import = mackerel_otel_server.uwsgi")
    with uwsgi(tmp_path, lines.removeprefix("[uwsgi]\n"), env=environment(receiver)) as server:
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


def test_the_two_lines_of_the_documents_trace(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(block("python", "install(globals())"))
    with gunicorn(tmp_path, env=environment(receiver), conf=None) as server:
        pids = server.ask_every_worker(2, 4)
        server.stop()
    assert_one_server_span_per_request(receiver, server, pids)


@pytest.mark.parametrize("program", ["pyuwsgi", "debian"])
def test_the_variables_in_the_uwsgi_ini_of_the_documents_are_obeyed(
    tmp_path: Path, receiver: Receiver, program: str
) -> None:
    command = debian_uwsgi() if program == "debian" else []
    if command is None:
        pytest.skip("Debian's uWSGI is not here, or for another Python")
    env = environment(receiver, OTEL_SERVICE_NAME="of the shell", OTEL_TRACES_SAMPLER="always_off")
    del env["MACKEREL_APIKEY"]
    (tmp_path / "apikey").write_text("test-key\n")
    variables = block("ini", "env = ").replace("/etc/mackerel/", f"{tmp_path}/")
    # The file of `init` has the same ones in comments.
    names = re.findall(r"^env = (\w+)=", variables, re.MULTILINE)
    assert re.findall(r"^; env = (\w+)=", FRAGMENTS["uwsgi"].read(), re.MULTILINE) == names
    # The env lines may stand anywhere in the file.
    ini = block("ini", "import = mackerel_otel_server.uwsgi").removeprefix("[uwsgi]\n") + variables
    ini += "unenv = OTEL_TRACES_SAMPLER\n"
    with uwsgi(tmp_path, ini, env=env, program=command, processes=1) as server:
        server.get()
        server.wait_until_idle()
        log = server.stop()
    assert [span.resource["service.name"] for span in server_spans(receiver.spans)] == ["shop"], log
    assert {request.headers["Mackerel-Api-Key"] for request in receiver.requests} == {"test-key"}


GUIDE = {
    "tracing.py": """
import os
import socket
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
def instrument():
    tracer_provider = TracerProvider(resource=Resource.create({
        ResourceAttributes.SERVICE_NAME: "acme_service",
        ResourceAttributes.SERVICE_VERSION: "vX.Y.Z",
        ResourceAttributes.DEPLOYMENT_ENVIRONMENT: "production",
        ResourceAttributes.HOST_NAME: socket.gethostname(),
        ResourceAttributes.PROCESS_PID: os.getpid(),
    }))
    tracer_provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(
            endpoint="https://otlp-vaxila.mackerelio.com/v1/traces",
            headers={"Mackerel-Api-Key": os.environ["MACKEREL_API_KEY"], "Accept": "*/*"},
        ))
    )
    trace.set_tracer_provider(tracer_provider)
    DjangoInstrumentor().instrument()
    trace_integration(MySQLdb, "connect", "mysql")
""",
    "gunicorn.conf.py": "def post_fork(server, worker):\n    instrument()\n",
    "uwsgi": "@postfork\ndef init_tracing():\n    instrument()\n",
    "wsgi.py": "\ninstrument()\n",
    "manage.py": "def main():\n    instrument()\n",
    "zero-code": """
pip install opentelemetry-distro opentelemetry-exporter-otlp
opentelemetry-bootstrap -a install
opentelemetry-instrument \\
    --traces_exporter otlp \\
    --metrics_exporter none \\
    --logs_exporter none \\
    --service_name my-sample-app \\
    --exporter_otlp_traces_endpoint https://otlp-vaxila.mackerelio.com/v1/traces \\
    --exporter_otlp_traces_headers "Mackerel-Api-Key=${MACKEREL_APIKEY},Accept='*/*'" \\
    --exporter_otlp_traces_protocol http/protobuf \\
    python myapp.py
""",
    "text": "set the Collector's endpoint (e.g., http://localhost:4318/v1/traces).",
    "application": "with tracer.start_as_current_span('awesome_action') as span: ...",
}
"""What an operator has who has followed https://mackerel.io/docs/entry/tracing/installations/python, now or before."""


@pytest.mark.parametrize("page", both("docs/migration"))
def test_what_the_page_says_of_the_guides_code_is_found_in_it(page: str) -> None:
    (table,) = (table for table in tables(page) if "`def instrument():`" in table)
    words = [word for row in table.splitlines()[2:] for word in re.findall("`(.*?)`", row.split(" | ")[0])]
    everything = "\n".join([*GUIDE, *GUIDE.values(), ""])
    assert [word for word in words if word not in everything] == []
    assert len(words) > 20


def test_the_variables_of_the_page_stand_for_what_the_guides_code_sets(tmp_path: Path, receiver: Receiver) -> None:
    (table,) = (table for table in tables(ENGLISH["docs/migration"]) if "`def instrument():`" in table)
    variables = dict(word.split("=", 1) for word in re.findall(r"`(OTEL_[A-Z_]+=.*?)`", table))
    variables |= {"OTEL_SERVICE_NAME": "acme_service"}  # that of today's guide stands there, too
    collector = variables.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    assert settings.read({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector, **variables}).endpoint == collector
    env = environment(receiver) | variables
    # The guide's name of this variable stays as it is.
    env["MACKEREL_API_KEY"] = env.pop("MACKEREL_APIKEY")
    with gunicorn(tmp_path, env=env, workers=1) as server:
        server.get()
        server.stop()
    (span,) = server_spans(receiver.spans)
    resource = {
        "service.name": "acme_service",
        "service.version": "vX.Y.Z",
        "deployment.environment.name": "production",
        "host.name": socket.gethostname(),
    }
    assert {name: span.resource.get(name) for name in resource} == resource
    assert "process.pid" in span.resource


def test_the_own_spans_of_the_documents_are_made(tmp_path: Path, receiver: Receiver) -> None:
    own = block("python", "start_as_current_span")
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


def test_the_access_log_of_the_documents_shows_the_trace_id(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        block("python", "access_log_format") + "accesslog = '-'\n" + block("python", "install(globals())")
    )
    with gunicorn(tmp_path, env=environment(receiver), conf=None, workers=1) as server:
        server.get("/own")
        log = server.stop()
    assert f'"GET /own HTTP/1.1" 200 5 trace={server_span(receiver, "/own").trace_id}\n' in log, log


def test_the_log_format_of_the_documents_shows_the_trace_id_under_uwsgi(tmp_path: Path, receiver: Receiver) -> None:
    ini = "import = mackerel_otel_server.uwsgi\nmaster = true\nenable-threads = true\nmodule = plain:application\n"
    with uwsgi(tmp_path, ini + block("ini", "log-format"), env=environment(receiver), processes=1) as server:
        server.get("/own")
        shown = server.wait_for_log(r'"GET /own" 200 \d+ trace=(\w+)').group(1)
        server.stop()
    assert shown == server_span(receiver, "/own").trace_id


def test_the_records_of_the_documents_show_the_trace_id(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "noting.py").write_text(
        "import logging\n" + block("python", "otelTraceID") + "\ndef application(environ, start_response):\n"
        "    logging.getLogger('shop').warning('noted')\n    start_response('200 OK', [])\n    return [b'ok']\n"
    )
    env = environment(receiver)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with gunicorn(tmp_path, env=env, app="noting:application", workers=1) as server:
        server.get("/a")
        log = server.stop()
    assert f"WARNING shop trace={server_span(receiver, '/a').trace_id} noted" in log, log


def test_the_lines_of_the_documents_trace_a_driver_that_is_not_known(
    tmp_path: Path, receiver: Receiver, postgresql: dict[str, Any]
) -> None:
    address = {**postgresql, "database": postgresql["dbname"]}
    del address["dbname"]
    (tmp_path / "asking.py").write_text(
        block("python", "trace_integration(") + "\ndef application(environ, start_response):\n"
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
