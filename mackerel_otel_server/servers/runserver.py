"""Django's development server, ``manage.py runserver``: a parent that restarts the process that serves.

Registers: ``instrument()`` in manage.py, which runs in both processes.
Starts: at once in the process that serves; never in the parent.
Stops: at Python's exit.
Kills: nothing; the developer's Ctrl-C lets Python exit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from mackerel_otel_server import worker
from mackerel_otel_server.process import log
from mackerel_otel_server.settings import environment

_SCRIPTS: Final = ("manage.py", "django-admin", "__main__.py")
"""The last one is ``python -m django``."""


def runs() -> bool:
    """Tell whether this process, or its parent, was started by ``runserver``."""
    script, *arguments = sys.argv or [""]
    return Path(script).name in _SCRIPTS and arguments[:1] == ["runserver"]


def serves() -> bool:
    """Tell whether this is the process that serves, in a run of ``runserver``."""
    return "--noreload" in sys.argv or environment.is_runserver_child()


def instrument() -> None:
    """Start tracing; the lines of the log go where those of the development server go."""
    log.to_stderr()
    worker.start()
