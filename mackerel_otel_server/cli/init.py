"""``mackerel-otel-server init``: write a file that starts the tracing in one kind of surroundings."""

from __future__ import annotations

import errno
import os
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.output import complain, say

if TYPE_CHECKING:
    import argparse

_KEY: Final = "export MACKEREL_APIKEY=...        (a Mackerel API key with write permission)"
_PASTE: Final = "(paste the API key, then Enter and Ctrl-D)"
_ENVIRONMENT: Final = (_KEY, "export OTEL_SERVICE_NAME=mysite   (the name under which Mackerel lists the application)")


@dataclass(frozen=True)
class Fragment:
    """One file that can be written."""

    file: str
    """Its usual name, which is also its name in ``conf_examples``."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``init`` understands."""
    parser.add_argument("target", nargs="?", metavar="TARGET", help=", ".join(FRAGMENTS))
    parser.add_argument("-l", "--list", action="store_true", help="say what each target is, and write nothing")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, - for standard output (default: ./NAME)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    # Not `choices`, whose message tells nothing about any of them.
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Write the file, say what to type next, and return 0, or 1 when the file could not be written.

    When no target was named, a list of them and status 2 end the program.
    """
    if args.list:
        say(_list())
        return 0
    if args.target not in FRAGMENTS:
        seen = "no TARGET is named" if args.target is None else f"TARGET {args.target!r} is not known"
        args.refuse(f"{seen}; type one of these after `mackerel-otel-server init`:\n{_list()}")
    fragment = FRAGMENTS[args.target]
    if args.output == "-":
        print(fragment.read(), end="")
        return 0
    target = fragment.file if args.output is None else args.output
    try:
        _write(Path(target), fragment.read(), overwrite=args.force)
    except FileExistsError:
        complain(
            f"{target!r} exists: nothing was written. To overwrite it, type: mackerel-otel-server init {args.target}"
            f"{'' if args.output is None else f' -o {shlex.quote(target)}'} --force"
        )
        return 1
    except OSError as error:
        complain(
            f"cannot write {target!r} ({error.strerror or error}): to write elsewhere, type: "
            f"mackerel-otel-server init {args.target} -o FILE"
        )
        return 1
    _say_what_is_next(fragment, target)
    return 0


def _list() -> str:
    width = max(map(len, FRAGMENTS))
    return "\n".join(f"  {name:{width}}  {fragment.file}: {fragment.summary}" for name, fragment in FRAGMENTS.items())


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # "x" fails on a file that appears at the same moment; a check beforehand would not.
    file = path.open("w" if overwrite else "x", encoding="utf-8")
    try:
        with file:
            file.write(text)
    except OSError:
        # A full disk. What is left of the file would be in the way of the next attempt.
        if not overwrite:
            path.unlink(missing_ok=True)
        raise


def _say_what_is_next(fragment: Fragment, target: str) -> None:
    say(f"wrote {target}. Next:")
    if "CHANGE: " in fragment.read():
        say(f"  grep -A2 CHANGE {shlex.quote(target)}   (what to change in it)")
    folder, module = Path(target).parent, Path(target).stem
    if str(folder) != "." and any("{module}" in step for step in fragment.steps):
        say(f"  cd {shlex.quote(str(folder))}")
    for step in fragment.steps:
        say("  " + step.format(shlex.quote(target), module=shlex.quote(module)))
