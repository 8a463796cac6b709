"""How the demo starts Gunicorn and uWSGI, and what of their surroundings it keeps away."""

from __future__ import annotations

import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mackerel_otel_server.settings.environment import variables

if TYPE_CHECKING:
    from collections.abc import Sequence

APPLICATION = "mackerel_otel_server.cli.demo_app:application"
# Variables that the demo's server does not get. OTEL_ and MACKEREL_ might send its spans to the real Mackerel, the
# others change its settings.
_FOREIGN_PREFIXES = ("OTEL_", "MACKEREL_", "GUNICORN_", "UWSGI_")
# A proxy knows nothing of this machine's 127.0.0.1.
_FOREIGN_SUFFIXES = ("_PROXY",)


class FailedError(Exception):
    """The demo cannot go on; the text says why and what to type."""


@dataclass(frozen=True)
class _Server:
    name: str
    package: str
    start: str


SERVERS = {
    "gunicorn": _Server("Gunicorn", "gunicorn", "gunicorn -c python:mackerel_otel_server.conf mysite.wsgi"),
    "uwsgi": _Server(
        "uWSGI", "pyuwsgi", "mackerel-otel-server init uwsgi   (and uwsgi --ini mackerel_otel_server.ini)"
    ),
}


def command(server: str, port: int, workers: int) -> list[str]:
    """Return what to execute, or raise FailedError when the server is not installed."""
    executable = find(server)
    if executable is None:
        raise FailedError(
            f"{SERVERS[server].name} is not installed for {sys.executable}: the demo cannot start. "
            f"Type: pip install {SERVERS[server].package}"
        )
    address = f"127.0.0.1:{port}"
    if server == "gunicorn":
        options = ["-c", "python:mackerel_otel_server.conf", "--workers", str(workers), "--bind", address, APPLICATION]
    else:
        options = ["--http-socket", address, "--master", "--processes", str(workers), "--enable-threads"]
        options += ["--need-app", "--die-on-term", "--single-interpreter"]
        options += ["--import", "mackerel_otel_server.uwsgi", "--module", APPLICATION]
    return [*executable, *options]


def find(server: str) -> list[str] | None:
    """Return how to run a server that is installed, or None; this environment's own one goes first."""
    if server == "gunicorn":
        return [sys.executable, "-m", "gunicorn"] if find_spec("gunicorn") else None
    # sys.executable as it is: resolved, it would lead out of the virtual environment.
    beside = str(Path(sys.executable).parent)
    for path in (beside, None):
        for name in ("uwsgi", "pyuwsgi"):
            if found := shutil.which(name, path=path):
                return [found]
    return None


def environment(endpoint: str, api_key: str, folder: str) -> dict[str, str]:
    """Return the server's environment: this process's without what could lead the demo astray.

    Spans go to ``endpoint`` with ``api_key``; the server may put files into ``folder``.
    """
    kept = {
        name: value
        for name, value in variables().items()
        if not name.upper().startswith(_FOREIGN_PREFIXES) and not name.upper().endswith(_FOREIGN_SUFFIXES)
    }
    return kept | {
        "MACKEREL_OTEL_ENDPOINT": endpoint,
        "MACKEREL_APIKEY": api_key,
        "OTEL_SERVICE_NAME": "mackerel-demo",
        # Gunicorn 25.1+ puts its control socket here, by default in the place of any other Gunicorn of this user.
        "XDG_RUNTIME_DIR": folder,
        # What the demo leaves behind ends with it.
        "MACKEREL_OTEL_SPOOL": str(Path(folder, "journal")),
        # Spans need not wait for the usual 5 s.
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def interesting(server: str, lines: Sequence[str]) -> list[str]:
    """Return the log without uWSGI's page about the machine, as long as the server came up."""
    for number, line in enumerate(lines):
        if server == "uwsgi" and line.startswith("spawned uWSGI"):
            return [early for early in lines[:number] if "mackerel_otel_server" in early] + list(lines[number:])
    return list(lines)
