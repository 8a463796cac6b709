"""The uWSGI programs that are here, and the lines that make each trace."""

from __future__ import annotations

from collections.abc import Sequence

from servers import PYUWSGI, debian_uwsgi

DOOR = "import = mackerel_otel_server.uwsgi\nenable-threads = true\nmaster = true\n"


LAZY = "lazy-apps = true\n"


PROGRAMS = ["newest", *(["debian"] if debian_uwsgi() is not None else [])]


def program(name: str) -> Sequence[str]:
    return (debian_uwsgi() or ()) if name == "debian" else [PYUWSGI]
