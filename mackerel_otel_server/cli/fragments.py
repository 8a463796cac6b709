"""What ``init`` can write: the files of ``conf_examples``, and what to type after each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Final

_KEY: Final = "export MACKEREL_APIKEY=...        (a Mackerel API key with write permission)"
_PASTE: Final = "(paste the API key, then Enter and Ctrl-D)"
_ENVIRONMENT: Final = (_KEY, "export OTEL_SERVICE_NAME=mysite   (the name under which Mackerel lists the application)")


@dataclass(frozen=True)
class Fragment:
    """One file."""

    file: str
    """Its usual name, which is also its name in the package."""
    summary: str
    steps: tuple[str, ...]
    """What to type next; ``{}`` stands for the file that was written, ``{module}`` for the name to import it by."""

    def read(self) -> str:
        """Return its text."""
        package = files("mackerel_otel_server")
        packaged = package / "conf_examples" / self.file
        # The wheel holds conf_examples inside the package, a checkout beside it.
        source = packaged if packaged.is_file() else package / ".." / "conf_examples" / self.file
        return source.read_text(encoding="utf-8")


FRAGMENTS: Final = {
    "gunicorn": Fragment(
        "mackerel_otel_server.conf",
        "a configuration of Gunicorn's, to add your own settings and hooks to",
        (*_ENVIRONMENT, "gunicorn -c {} mysite.wsgi"),
    ),
    "uwsgi": Fragment(
        "mackerel_otel_server.ini",
        "an ini file of uWSGI's",
        (*_ENVIRONMENT, "uwsgi --ini {}"),
    ),
    "systemd": Fragment(
        "gunicorn.service",
        "a unit that runs Gunicorn and hands it the key as a credential",
        (
            f"sudo install -D -m 600 /dev/stdin /etc/mackerel/apikey   {_PASTE}",
            "sudo install -m 644 {} /etc/systemd/system/gunicorn.service",
            "sudo systemctl daemon-reload && sudo systemctl enable --now gunicorn",
        ),
    ),
    "docker": Fragment(
        "Dockerfile",
        "an image that runs Gunicorn; the key arrives as a file",
        (
            f"sudo install -D -m 400 -o 10001 /dev/stdin /etc/mackerel/apikey   {_PASTE}",
            "docker build --file {} --tag mysite .",
            (
                "docker run --publish 127.0.0.1:8000:8000 --stop-timeout 40 "
                "--mount type=bind,readonly,source=/etc/mackerel/apikey,target=/run/secrets/mackerel_apikey mysite"
            ),
        ),
    ),
    "compose": Fragment(
        "compose.yaml",
        "Docker Compose for that image, with the key as a secret",
        (
            f"sudo install -D -m 400 -o 10001 /dev/stdin /etc/mackerel/apikey   {_PASTE}",
            "docker compose --file {} up --build",
        ),
    ),
    "kubernetes": Fragment(
        "deployment.yaml",
        "a Deployment of that image, with the key as a Secret and the pod's name in each span",
        (
            f"kubectl create secret generic mackerel --from-file=apikey=/dev/stdin   {_PASTE}",
            "kubectl apply -f {}",
        ),
    ),
    "collector": Fragment(
        "otel-collector.yaml",
        "an OpenTelemetry Collector on the application's host, which has the key instead",
        (
            _KEY,
            "otelcol --config {}",
            "export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318   (where the application is started)",
        ),
    ),
    "django": Fragment(
        "mackerel_django.py",
        "a module that traces a Django project, under any server",
        (*_ENVIRONMENT, "gunicorn {module}"),
    ),
    "flask": Fragment(
        "mackerel_flask.py",
        "a module that traces a Flask application, under any server",
        (*_ENVIRONMENT, "gunicorn {module}:app"),
    ),
    "fastapi": Fragment(
        "mackerel_fastapi.py",
        "a module that traces a FastAPI application, under uvicorn and Gunicorn",
        (*_ENVIRONMENT, "uvicorn {module}:app"),
    ),
}
