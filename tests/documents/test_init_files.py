"""What ``init`` writes is started as its comments say, beside a small application, and spans arrive."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from gunicorn import config as gunicorn_config
from servers import DEADLINE, Server, environment, gunicorn, running, server_spans, uvicorn

from mackerel_otel_server import settings
from mackerel_otel_server.cli import main
from mackerel_otel_server.cli.init import FRAGMENTS
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.http_server import MAX_BODY_BYTES
from mackerel_otel_server.pipeline.spool import FOLDER_BYTES

FLASK = """
from flask import Flask
app = Flask(__name__)
@app.get("/items/<int:item>")
def item(item):
    return str(item)
"""
FASTAPI = """
from fastapi import FastAPI
app = FastAPI()
@app.get("/items/{item}")
def item(item: int):
    return item
"""
DJANGO = """
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("items/<int:item>", lambda request, item: HttpResponse(str(item)))]
"""
PLAIN = """
import os, time
def application(environ, start_response):
    time.sleep(0.1)  # the next request goes to another worker
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""
GRACEFUL_TIMEOUT = gunicorn_config.GracefulTimeout.default
PROGRAMS = Path(sys.executable).parent


def write(target: str, folder: Path) -> Path:
    """Write a fragment as a user does."""
    file = folder / FRAGMENTS[target].file
    assert main(["init", target, "-o", str(file)]) == 0
    return file


def read(target: str) -> str:
    return FRAGMENTS[target].read()


def swap(file: Path, commented: str, instead_of: str = "") -> None:
    """Do what a comment says: take the ``#`` from its line, and put one before the line that it stands for."""
    text = file.read_text()
    for line in commented.splitlines():
        assert text.count(f"\n# {line}\n") == 1, line
        text = text.replace(f"\n# {line}\n", f"\n{line}\n")
    if instead_of:
        assert text.count(f"\n{instead_of}\n") == 1, instead_of
        text = text.replace(f"\n{instead_of}\n", f"\n# {instead_of}\n")
    file.write_text(text)


def package(folder: Path, **modules: str) -> None:
    """Write the package ``mysite``, which all fragments name."""
    (folder / "mysite").mkdir(exist_ok=True)
    for name, text in modules.items():
        (folder / "mysite" / f"{name}.py").write_text(text)


def of_the_folder(folder: Path, receiver: Receiver, **variables: str) -> dict[str, str]:
    """Return an environment in which ``mysite`` is that of the folder."""
    return environment(receiver, PYTHONPATH=str(folder), **variables)


def assert_traced(receiver: Receiver, server: Server, name: str) -> None:
    assert [span.name for span in server_spans(receiver.spans)] == [name] * server.answered, server.log
    assert {span.resource["service.name"] for span in receiver.spans} == {"shop"}


def assert_all_have(receiver: Receiver, number: int, expected: dict[str, str]) -> None:
    spans = server_spans(receiver.spans)
    assert len(spans) == number
    for span in spans:
        assert {name: span.resource.get(name) for name in expected} == expected


def ask(server: Server, path: str, body: bytes) -> None:
    for _ in range(2):
        response = server.get(path)
        assert (response.status, response.body) == (200, body), server.log


@contextmanager
def development_server(folder: Path, *command: str, receiver: Receiver) -> Iterator[Server]:
    """Run a server that says at which port it listens, and ends without waiting for its requests' threads."""
    env = of_the_folder(folder, receiver, OTEL_BSP_SCHEDULE_DELAY="50")
    server = Server([sys.executable, *command], folder / "server.log", cwd=folder, env=env)
    with running(server):
        server.port = int(server.wait_for_log(r"(?:Running on|server at) http://127\.0\.0\.1:(\d+)").group(1))
        yield server
        assert receiver.wait_for(lambda far: len(server_spans(far.spans)) == server.answered, DEADLINE), server.log
        os.killpg(server.process.pid, signal.SIGINT)  # as Ctrl-C does
        server.wait()


@pytest.mark.parametrize("factory", [False, True], ids=["app", "factory"])
def test_the_flask_module_is_traced_under_gunicorn(tmp_path: Path, receiver: Receiver, factory: bool) -> None:
    file = write("flask", tmp_path)
    package(tmp_path, __init__=FLASK)
    if factory:
        package(tmp_path, __init__=FLASK.replace("app = ", "other = ").replace("@app", "@other"))
        with (tmp_path / "mysite" / "__init__.py").open("a") as module:
            module.write("def create_app():\n    return other\n")
        swap(file, "from mysite import create_app\napp = create_app()", "from mysite import app")
    app = f"{file.stem}:app"
    with gunicorn(tmp_path, env=of_the_folder(tmp_path, receiver), conf=None, app=app, workers=1) as server:
        ask(server, "/items/7", b"7")
        server.stop()
    assert_traced(receiver, server, "GET /items/<int:item>")


def test_the_flask_module_is_traced_under_flask_run(tmp_path: Path, receiver: Receiver) -> None:
    file = write("flask", tmp_path)
    package(tmp_path, __init__=FLASK)
    command = ("-m", "flask", "--app", file.stem, "run", "--port", "0")
    with development_server(tmp_path, *command, receiver=receiver) as server:
        ask(server, "/items/7", b"7")
    assert_traced(receiver, server, "GET /items/<int:item>")


NATIVE = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []


@pytest.mark.parametrize("worker_class", [*NATIVE, "uvicorn_worker.UvicornWorker"])
def test_the_fastapi_module_is_traced_under_gunicorn(tmp_path: Path, receiver: Receiver, worker_class: str) -> None:
    file = write("fastapi", tmp_path)
    assert f"gunicorn -k {worker_class} {file.stem}:app " in file.read_text()
    package(tmp_path, main=FASTAPI)
    env = of_the_folder(tmp_path, receiver)
    with gunicorn(tmp_path, "-k", worker_class, env=env, conf=None, app=f"{file.stem}:app", workers=1) as server:
        ask(server, "/items/7", b"7")
        server.stop()
    assert_traced(receiver, server, "GET /items/{item}")


def test_the_fastapi_module_is_traced_under_uvicorn(tmp_path: Path, receiver: Receiver) -> None:
    file = write("fastapi", tmp_path)
    package(tmp_path, main=FASTAPI)
    with uvicorn(tmp_path, env=of_the_folder(tmp_path, receiver), app=f"{file.stem}:app") as server:
        ask(server, "/items/7", b"7")
        server.stop()
    assert_traced(receiver, server, "GET /items/{item}")


MIDDLEWARE = """
application = app
async def app(scope, receive, send):
    if scope["type"] != "http":
        return await application(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"own"})
"""


def test_the_last_line_of_the_fastapi_module_traces_what_a_middleware_answers(
    tmp_path: Path, receiver: Receiver
) -> None:
    file = write("fastapi", tmp_path)
    package(tmp_path, main=FASTAPI + MIDDLEWARE)
    swap(file, "app = mackerel_otel_server.trace_asgi(app)")
    with uvicorn(tmp_path, env=of_the_folder(tmp_path, receiver), app=f"{file.stem}:app") as server:
        ask(server, "/items/7", b"own")
        server.stop()
    assert_traced(receiver, server, "GET")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder of a project as Django itself lays it out, with one view."""
    subprocess.run(
        [sys.executable, "-m", "django", "startproject", "mysite", str(tmp_path)],
        # The tests have a `mysite` of their own, which must not be found here.
        env=environment(PYTHONPATH=""),
        check=True,
        timeout=60,
    )
    package(tmp_path, urls=DJANGO)
    return tmp_path


def test_the_django_module_is_traced_under_gunicorn(project: Path, receiver: Receiver) -> None:
    file = write("django", project)
    env = of_the_folder(project, receiver)
    with gunicorn(project, env=env, conf=None, app=file.stem, workers=1) as server:
        ask(server, "/items/7", b"7")
        server.stop()
    assert_traced(receiver, server, "GET /items/<int:item>")


def test_the_django_module_is_traced_under_uvicorn_with_its_other_import(project: Path, receiver: Receiver) -> None:
    file = write("django", project)
    swap(file, "from mysite.asgi import application", "from mysite.wsgi import application")
    with uvicorn(project, env=of_the_folder(project, receiver), app=f"{file.stem}:application") as server:
        ask(server, "/items/7", b"7")
        server.stop()
    assert_traced(receiver, server, "GET /items/<int:item>")


def test_the_lines_for_manage_py_trace_runserver(project: Path, receiver: Receiver) -> None:
    lines = re.findall(
        r"^# (    .*mackerel_otel_server.*)\n", read("django").partition("manage.py, at")[2], re.MULTILINE
    )
    assert len(lines) == 2
    manage = project / "manage.py"
    text = manage.read_text()
    begin = '"""Run administrative tasks."""\n'
    assert text.count(begin) == 1
    manage.write_text(text.replace(begin, begin + "\n".join(lines) + "\n"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ("manage.py", "runserver", "--noreload", f"127.0.0.1:{port}")
    with development_server(project, *command, receiver=receiver) as server:
        ask(server, "/items/7", b"7")
    assert_traced(receiver, server, "GET /items/<int:item>")


def key_file(folder: Path) -> Path:
    """Write the key as the comments say: alone in a file, with the line break that an editor leaves."""
    file = folder / "the key"
    file.write_text("test-key\n")
    return file


UNIT_SAYS = {"service.name": "mysite", "deployment.environment.name": "production"}


class Unit:
    """A systemd unit, as far as a process sees it."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, list[str]] = {}
        for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
            self.values.setdefault(name, []).append(value)

    def one(self, name: str) -> str:
        (value,) = self.values[name]
        return value

    def put_credential(self, folder: Path, key: Path | None) -> None:
        """Do what systemd does before it starts a service, by systemd.exec(5).

        A service whose file of LoadCredential= is missing is not started, unless SetCredential= has a default.
        """
        folder.mkdir()
        credentials: dict[str, str] = {}
        for value in self.values.get("SetCredential", []):
            name, _, text = value.partition(":")
            # "Invalid syntax, ignoring" is what systemd 252 says of an empty default.
            if text:
                credentials[name] = text.encode().decode("unicode_escape")
        for value in self.values.get("LoadCredential", []):
            name, _, source = value.partition(":")
            assert source == "/etc/mackerel/apikey"
            if key is not None:
                credentials[name] = key.read_text()
            assert name in credentials, f"systemd does not start the unit: {source} is missing"
        for name, text in credentials.items():
            (folder / name).write_text(text)

    def variables(self, key: Path | None, **specifiers: str) -> dict[str, str]:
        """Return the variables of the service."""
        variables: dict[str, str] = {}
        for value in self.values["Environment"]:
            variable, _, text = value.partition("=")
            variables[variable] = re.sub("%(.)", lambda match: specifiers[match[1]], text)
        for file in self.values.get("EnvironmentFile", []):
            assert file.removeprefix("-") == "/etc/mackerel/environment"
            if key is not None:
                variables["MACKEREL_APIKEY"] = key.read_text().strip()
            else:
                assert file.startswith("-"), f"systemd does not start the unit: {file} is missing"
        return variables


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Return a folder with a name that is short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def under_systemd(
    folder: Path, unit: Unit, receiver: Receiver, runtime: Path, *, with_key: bool = True
) -> Iterator[tuple[Server, socket.socket]]:
    """Do what systemd would do: the variables, the credential, the command, and an ear for the notification."""
    key = key_file(folder) if with_key else None
    unit.put_credential(folder / "credentials", key)
    # A home in which not even root may write, as www-data's is to www-data.
    env = of_the_folder(folder, receiver, HOME="/proc/www", PATH=f"{PROGRAMS}:{os.environ['PATH']}")
    del env["MACKEREL_APIKEY"], env["OTEL_SERVICE_NAME"]
    env |= unit.variables(key, d=str(folder / "credentials"), t=str(runtime))
    folder_of_the_unit = runtime / unit.one("RuntimeDirectory")
    if unit.one("RuntimeDirectoryPreserve") != "yes":
        shutil.rmtree(folder_of_the_unit, ignore_errors=True)
    folder_of_the_unit.mkdir(exist_ok=True)
    address = f"mackerel-otel-server-{uuid.uuid4().hex}"
    env["NOTIFY_SOCKET"] = f"@{address}"
    program, *arguments = shlex.split(unit.one("ExecStart"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, socket.create_server(("127.0.0.1", 0)) as listener:
        ear.bind(f"\0{address}")
        ear.settimeout(DEADLINE)
        bind = {"127.0.0.1:8000": f"fd://{listener.fileno()}"}
        command = [str(PROGRAMS / Path(program).name), *(bind.get(word, word) for word in arguments)]
        server = Server(command, folder / "unit.log", cwd=folder, env=env, listener=listener)
        with running(server):
            yield server, ear


def test_the_unit_runs_gunicorn_which_notifies_systemd_and_ends_at_its_signal(
    tmp_path: Path, receiver: Receiver, runtime: Path
) -> None:
    package(tmp_path, wsgi=PLAIN)
    unit = Unit(read("systemd"))
    with under_systemd(tmp_path, unit, receiver, runtime) as (server, ear):
        assert b"READY=1" in ear.recv(1000).splitlines(), server.log
        server.ask_every_worker(2, 2)
        if hasattr(gunicorn_config, "ControlSocket"):
            server.wait_for_log(rf"Control socket listening at {runtime}/gunicorn/")
        # KillMode=mixed: TERM, for the parent process only.
        assert (unit.one("Type"), unit.one("KillMode")) == ("notify", "mixed")
        log = server.stop(signal.SIGTERM)
    assert_all_have(receiver, server.answered, UNIT_SAYS)
    assert log.count(", lost 0") == 2, log


def test_the_other_lines_of_the_unit_run_uwsgi(tmp_path: Path, receiver: Receiver, runtime: Path) -> None:
    ini = write("uwsgi", tmp_path)
    text = ini.read_text()
    assert text.count("127.0.0.1:8000\n") == 1
    ini.write_text(text.replace("127.0.0.1:8000\n", "127.0.0.1:0\n"))
    package(tmp_path, wsgi=PLAIN)
    file = write("systemd", tmp_path)
    (gunicorn_line,) = re.findall(r"^ExecStart=.*$", file.read_text(), re.MULTILINE)
    (uwsgi_line,) = re.findall(r"^# (ExecStart=.*)$", file.read_text(), re.MULTILINE)
    swap(file, f"{uwsgi_line}\nKillSignal=SIGQUIT", gunicorn_line)
    unit = Unit(file.read_text())
    with under_systemd(tmp_path, unit, receiver, runtime) as (server, ear):
        messages = b""
        while b"READY=1" not in messages.splitlines():
            messages += ear.recv(1000)
        server.find_port()
        server.ask_every_worker(2, 2)
        server.wait_until_idle()
        log = server.stop(signal.Signals[unit.one("KillSignal")])
    assert_all_have(receiver, server.answered, UNIT_SAYS)
    assert log.count(", lost 0") == 2, log


def older_unit(folder: Path) -> Unit:
    """Return the unit for a systemd that does not know ``%d``: what its comment says is done."""
    file = write("systemd", folder)
    lines = ("LoadCredential=", "SetCredential=", "Environment=MACKEREL_APIKEY_FILE=")
    text = file.read_text()
    for line in lines:
        text, number = re.subn(rf"^{line}", f"# {line}", text, flags=re.MULTILINE)
        assert number == 1, line
    (commented,) = re.findall(r"^# (EnvironmentFile=.*)$", text, re.MULTILINE)
    assert "this instead of the three lines" in text
    file.write_text(text)
    swap(file, commented)
    return Unit(file.read_text())


UNTRACED = r"tracing is off, the application serves without it: "


def serves_untraced(server: Server, receiver: Receiver, why: str) -> None:
    """Assert that the application is there all the same, and that the log says what is missing."""
    server.ask_every_worker(2, 2)
    server.wait_for_log(UNTRACED + why)
    log = server.stop()
    assert log.count("tracing is off") == 1, log
    assert receiver.spans == []


def test_the_unit_serves_without_the_file_of_the_key(tmp_path: Path, receiver: Receiver, runtime: Path) -> None:
    package(tmp_path, wsgi=PLAIN)
    unit = Unit(read("systemd"))
    with under_systemd(tmp_path, unit, receiver, runtime, with_key=False) as (server, ear):
        assert b"READY=1" in ear.recv(1000).splitlines(), server.log
        file = re.escape(str(tmp_path / "credentials" / "mackerel_apikey"))
        why = f"MACKEREL_APIKEY_FILE='{file}' is empty; write the API key into it, or .* LoadCredential= names, and re"
        serves_untraced(server, receiver, why)


@pytest.mark.parametrize("with_key", [True, False], ids=["with key", "without"])
def test_the_unit_of_an_older_systemd_serves_with_and_without_its_file(
    tmp_path: Path, receiver: Receiver, runtime: Path, with_key: bool
) -> None:
    package(tmp_path, wsgi=PLAIN)
    with under_systemd(tmp_path, older_unit(tmp_path), receiver, runtime, with_key=with_key) as (server, ear):
        assert b"READY=1" in ear.recv(1000).splitlines(), server.log
        if not with_key:
            serves_untraced(server, receiver, "there is no API key and no Collector")
            return
        server.ask_every_worker(2, 2)
        server.stop()
    assert_all_have(receiver, server.answered, UNIT_SAYS)


def dockerfile(instruction: str) -> list[str]:
    """Return the arguments of an instruction, in their order."""
    return re.findall(rf"^{instruction} (.*)$", read("docker"), re.MULTILINE)


VOLUME = Path("/var/spool/mackerel")


@contextmanager
def in_the_container(folder: Path, receiver: Receiver, variables: dict[str, str]) -> Iterator[Server]:
    """Run the image's command with the image's variables and others, and nothing else."""
    env = of_the_folder(folder, receiver, HOME=str(folder))
    for name in ("MACKEREL_APIKEY", "OTEL_SERVICE_NAME", "PYTHONUNBUFFERED"):
        del env[name]
    env |= dict(line.split("=", 1) for line in dockerfile("ENV")) | variables
    # What is mounted there.
    journal = Path(env["MACKEREL_OTEL_SPOOL"])
    assert journal.parent == VOLUME
    (folder / "volume").mkdir(exist_ok=True)
    env["MACKEREL_OTEL_SPOOL"] = str(folder / "volume" / journal.name)
    program, *arguments = json.loads(*dockerfile("CMD"))
    assert arguments.count("0.0.0.0:8000") == 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"fd://{listener.fileno()}"
        command = [str(PROGRAMS / program), *(address if word == "0.0.0.0:8000" else word for word in arguments)]
        server = Server(command, folder / "container.log", cwd=folder, env=env, listener=listener)
        with running(server):
            yield server


def test_the_image_installs_what_its_command_runs(tmp_path: Path) -> None:
    (pip,) = (command for command in dockerfile("RUN") if command.startswith("pip "))
    (tmp_path / "requirements.txt").write_text("gunicorn\nmackerel-otel-server\n")
    result = subprocess.run(
        # All packages are installed already, so that pip asks no package index.
        [sys.executable, "-m", *shlex.split(pip), "--dry-run", "--no-index", "--disable-pip-version-check"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(*dockerfile("CMD"))[0] == "gunicorn"


@pytest.mark.parametrize("target", ["docker", "compose"])
def test_the_container_reads_the_key_from_its_file_and_traces(tmp_path: Path, receiver: Receiver, target: str) -> None:
    package(tmp_path, wsgi=PLAIN)
    variables: dict[str, str] = {}
    expected = {"service.name": "mysite"}
    if target == "compose":
        service = yaml.safe_load(read("compose"))["services"]["web"]
        variables = dict(service["environment"])
        expected["deployment.environment.name"] = "production"
        # Docker mounts a secret under its name.
        assert variables["MACKEREL_APIKEY_FILE"] == f"/run/secrets/{service['secrets'][0]}"
    (file,) = (value for value in dockerfile("ENV") if value.startswith("MACKEREL_APIKEY_FILE="))
    assert file.endswith("=/run/secrets/mackerel_apikey")
    variables["MACKEREL_APIKEY_FILE"] = str(key_file(tmp_path))
    with in_the_container(tmp_path, receiver, variables) as server:
        server.ask_every_worker(2, 2)
        log = server.stop(signal.Signals[dockerfile("STOPSIGNAL")[0]])
    assert_all_have(receiver, server.answered, expected)
    assert log.count(", lost 0") == 2, log


def pod() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the Deployment says of a pod, and of its container."""
    spec: dict[str, Any] = yaml.safe_load(read("kubernetes"))["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def variables_of_a_pod(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables that Kubernetes gives to a container."""
    fields = {"metadata.name": "mysite-5d9c-x7k2p", "metadata.namespace": "shops"}
    variables: dict[str, str] = {}
    for variable in container["env"]:
        value = variable.get("value") or fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        # As Kubernetes does it: a name that is not known yet stays as it is.
        known = dict(variables)
        variables[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: known.get(match[1], match[0]), value)  # noqa: B023
    return variables


def test_a_pods_spans_say_which_pod_they_are_from_and_its_probe_makes_none(tmp_path: Path, receiver: Receiver) -> None:
    package(tmp_path, wsgi=PLAIN)
    _, container = pod()
    variables = variables_of_a_pod(container)
    mount = container["volumeMounts"][0]
    assert str(Path(variables["MACKEREL_APIKEY_FILE"]).parent) == mount["mountPath"]
    # `--from-file=apikey=…` names the file in the folder, which Kubernetes makes a link.
    assert Path(variables["MACKEREL_APIKEY_FILE"]).name == "apikey"
    assert any("--from-file=apikey=" in step for step in FRAGMENTS["kubernetes"].steps)
    (tmp_path / "apikey").symlink_to(key_file(tmp_path))
    variables["MACKEREL_APIKEY_FILE"] = str(tmp_path / "apikey")
    with in_the_container(tmp_path, receiver, variables) as server:
        server.ask_every_worker(2, 2)
        of_the_application = server.answered
        assert server.get(container["readinessProbe"]["httpGet"]["path"]).status == 200, server.log
        server.stop()
    expected = {
        "service.name": "mysite",
        "deployment.environment.name": "production",
        "k8s.namespace.name": "shops",
        "k8s.pod.name": "mysite-5d9c-x7k2p",
    }
    assert_all_have(receiver, of_the_application, expected)


def test_a_pod_starts_without_its_secret_and_serves(tmp_path: Path, receiver: Receiver) -> None:
    package(tmp_path, wsgi=PLAIN)
    spec, container = pod()
    volume = spec["volumes"][0]
    # Otherwise the pod stays in ContainerCreating: https://kubernetes.io/docs/concepts/configuration/secret/
    assert volume["secret"]["optional"] is True
    assert not any("secretKeyRef" in variable.get("valueFrom", {}) for variable in container["env"])
    # Kubernetes then mounts an empty folder.
    (tmp_path / "empty").mkdir()
    file = tmp_path / "empty" / "apikey"
    variables = variables_of_a_pod(container) | {"MACKEREL_APIKEY_FILE": str(file)}
    with in_the_container(tmp_path, receiver, variables) as server:
        why = re.escape(f"MACKEREL_APIKEY_FILE='{file}' cannot be read (No such file or directory)")
        serves_untraced(server, receiver, why)


def test_the_volume_of_a_pod_is_the_secret_that_the_comments_make() -> None:
    spec, container = pod()
    volume = spec["volumes"][0]
    assert volume["name"] == container["volumeMounts"][0]["name"]
    assert any(f"secret generic {volume['secret']['secretName']} " in step for step in FRAGMENTS["kubernetes"].steps)
    # The files' group may read them, and the process belongs to that group.
    assert volume["secret"]["defaultMode"] == 0o440
    users = {spec["securityContext"]["runAsUser"], spec["securityContext"]["fsGroup"]}
    assert users == {int(*dockerfile("USER"))}


def test_what_a_killed_container_has_left_is_sent_when_one_starts_again(tmp_path: Path, receiver: Receiver) -> None:
    package(tmp_path, wsgi=PLAIN)
    variables = {"MACKEREL_APIKEY_FILE": str(key_file(tmp_path))}
    with in_the_container(tmp_path, receiver, {**variables, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}) as server:
        server.ask_every_worker(2, 2)
        server.kill()
        server.wait_for_end_of_session()
    assert receiver.spans == []
    assert_sent_by_the_next(receiver, server, lambda more: in_the_container(tmp_path, receiver, variables | more))


def test_what_a_killed_service_has_left_is_sent_when_it_starts_again(
    tmp_path: Path, receiver: Receiver, runtime: Path
) -> None:
    unit = Unit(read("systemd"))

    @contextmanager
    def started(more: dict[str, str]) -> Iterator[Server]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        package(folder, wsgi=PLAIN)
        changed = Unit(read("systemd"))
        changed.values["Environment"] += [f"{name}={value}" for name, value in more.items()]
        with under_systemd(folder, changed, receiver, runtime) as (server, _):
            yield server

    with started({"OTEL_BSP_SCHEDULE_DELAY": "3600000"}) as server:
        server.ask_every_worker(2, 2)
        server.kill()
        server.wait_for_end_of_session()
    assert receiver.spans == []
    journal = Path(unit.variables(None, d="", t=str(runtime))["MACKEREL_OTEL_SPOOL"])
    assert len(list(journal.iterdir())) == 2
    assert_sent_by_the_next(receiver, server, started)


def assert_sent_by_the_next(
    receiver: Receiver, killed: Server, start: Callable[[dict[str, str]], AbstractContextManager[Server]]
) -> None:
    with start({"OTEL_BSP_SCHEDULE_DELAY": "100"}) as server:
        server.ask_every_worker(2, 2)
        server.wait_for_log(r"delivered \d+ spans that worker \d+ left behind", count=2)
        server.stop()
    assert_all_have(receiver, killed.answered + server.answered, {"service.name": "mysite"})


def test_the_folder_of_the_journal_is_that_of_the_image_and_of_the_volumes() -> None:
    (folder,) = (value for value in dockerfile("ENV") if value.startswith("MACKEREL_OTEL_SPOOL="))
    assert folder == f"MACKEREL_OTEL_SPOOL={VOLUME}/journal"
    (user,) = dockerfile("USER")
    # A new named volume gets the owner and the mode of the folder in the image.
    assert any(f"install -d -o {user} -m 700 {VOLUME}" in command for command in dockerfile("RUN"))
    compose = yaml.safe_load(read("compose"))
    (volume,) = compose["services"]["web"]["volumes"]
    name, _, where = volume.partition(":")
    assert name in compose["volumes"]
    assert where == str(VOLUME)
    spec, container = pod()
    assert variables_of_a_pod(container)["MACKEREL_OTEL_SPOOL"] == f"{VOLUME}/journal"
    (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == str(VOLUME))
    (pods_own,) = (volume for volume in spec["volumes"] if volume["name"] == mount["name"])
    assert pods_own["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    assert 2 * FOLDER_BYTES < 64 * 2**20


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        ("systemd", r"^TimeoutStopSec=(\d+)$"),
        ("docker", r"--stop-timeout (\d+)"),
        ("compose", r"stop_grace_period: (\d+)s$"),
        ("kubernetes", r"terminationGracePeriodSeconds: (\d+)$"),
    ],
)
def test_there_is_time_to_answer_and_to_send_before_sigkill(target: str, pattern: str) -> None:
    defaults = settings.read({"MACKEREL_APIKEY": "k", "OTEL_SERVICE_NAME": "s"})
    text = "\n".join([read(target), *FRAGMENTS[target].steps])
    seconds = {int(found) for found in re.findall(pattern, text, re.MULTILINE)}
    assert len(seconds) == 1
    assert seconds.pop() > GRACEFUL_TIMEOUT + defaults.shutdown_timeout
    # The comment beside it names the same two.
    assert f"graceful_timeout ({GRACEFUL_TIMEOUT} s)" in text
    assert f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT ({defaults.shutdown_timeout:g} s)" in text


@pytest.fixture
def collector() -> dict[str, Any]:
    """Return the Collector's configuration."""
    configuration: dict[str, Any] = yaml.safe_load(read("collector"))
    return configuration


def test_every_component_of_the_collector_is_defined_and_used(collector: dict[str, Any]) -> None:
    for kind in ("receivers", "processors", "exporters"):
        used: Sequence[str] = [name for line in collector["service"]["pipelines"].values() for name in line[kind]]
        assert set(used) == set(collector[kind]), kind
        assert len(used) == len(set(used))
    assert set(collector) == {"receivers", "processors", "exporters", "service"}


def test_the_collector_listens_on_loopback_where_the_comments_send_the_application(collector: dict[str, Any]) -> None:
    endpoint = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert endpoint.startswith("127.0.0.1:")
    line = f"export OTEL_EXPORTER_OTLP_ENDPOINT=http://{endpoint}"
    assert line in read("collector")
    assert line in " ".join(FRAGMENTS["collector"].steps)
    application = settings.read({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{endpoint}", "OTEL_SERVICE_NAME": "s"})
    assert application.endpoint == f"http://{endpoint}/v1/traces"


def test_the_collector_sends_to_mackerel_what_mackerel_takes(collector: dict[str, Any]) -> None:
    exporter = collector["exporters"]["otlp_http/mackerel"]
    assert exporter["traces_endpoint"] == settings.catalogue.MACKEREL_ENDPOINT
    assert exporter["headers"] == {settings.API_KEY_HEADER: "${env:MACKEREL_APIKEY}", "Accept": "*/*"}
    assert exporter["compression"] == "gzip"
    assert exporter["retry_on_failure"]["enabled"]
    queue = exporter["sending_queue"]
    # The batch does not inherit the queue's sizer: without its own line, max_size would be a number of spans.
    assert queue["sizer"] == queue["batch"]["sizer"] == "bytes"
    assert queue["batch"]["min_size"] < queue["batch"]["max_size"] < MAX_BODY_BYTES < queue["queue_size"]
    limiter = collector["processors"]["memory_limiter"]
    assert queue["queue_size"] < (limiter["limit_mib"] - limiter["spike_limit_mib"]) * 2**20
    assert collector["service"]["pipelines"]["traces"]["processors"][0] == "memory_limiter"
