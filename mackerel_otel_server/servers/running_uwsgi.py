"""What uWSGI tells about the calling process, its applications and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import uwsgi

from mackerel_otel_server.servers.uwsgi_rules import FILES, Options

_NEVER_RESPAWNED: Final = (0, 2**64 - 1)
"""What ``respawn_count`` is then; the second number without a master."""


def is_mule_or_spooler() -> bool:
    """Tell whether this process serves no requests although uWSGI runs its hooks in it."""
    is_spooler = getattr(uwsgi, "i_am_the_spooler", None)
    return bool(uwsgi.mule_id() or (is_spooler is not None and is_spooler()))


def is_forked() -> bool:
    """Tell whether this process is a worker already; under lazy-apps it is when the ini file's imports are done."""
    return bool(uwsgi.worker_id() > 0)


def is_first() -> bool:
    """Tell whether this is worker 1 for the first time since the server started."""
    return uwsgi.worker_id() == 1 and _own().get("respawn_count", 0) in _NEVER_RESPAWNED


def speaks_for_all() -> bool:
    """Tell whether this process reports what is the same for all workers.

    Under lazy-apps, no process of ours is parent to the workers: worker 1 reports it, each time that it is started,
    because a reload may have changed what there is to say.
    """
    return not is_forked() or uwsgi.worker_id() == 1


def applications() -> tuple[dict[str, Any], ...]:
    """Return what uWSGI tells about the applications of this worker; none while they are still being loaded."""
    return tuple(_own().get("apps", ()))


def options() -> Options:
    """Return the options. Of one that is given several times, the last value counts for uWSGI."""
    last = [(name, value[-1] if isinstance(value, list) else value) for name, value in uwsgi.opt.items()]
    texts = ((name, value.decode(errors="replace") if isinstance(value, bytes) else "") for name, value in last)
    return Options(tuple(texts))


def folder_of_file() -> str | None:
    """Return the name of the folder that holds the ``wsgi-file``."""
    file = options().last(*FILES)
    return Path(file).absolute().parent.name if file else None


def serves_in_threads() -> bool:
    """Tell whether a worker serves requests in several threads."""
    return "threads" in uwsgi.opt


def spares_slow_requests() -> bool:
    """Tell whether the master kills a slow request only when others wait: nobody knows in advance which one."""
    return options().spares_slow_requests(uwsgi.version_info[:3])


def _own() -> dict[str, Any]:
    """Return what uWSGI tells about this worker."""
    own_id = uwsgi.worker_id()
    return next((worker for worker in uwsgi.workers() or () if worker["id"] == own_id), {})
