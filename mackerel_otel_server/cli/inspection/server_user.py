"""Whether the workers run as another user than this command, which may be allowed to read other files."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import journals
from mackerel_otel_server.cli.inspection.findings import Finding, ok, warn
from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FILES: Final = (catalogue.API_KEY_FILE, catalogue.CERTIFICATE, catalogue.CLIENT_KEY, catalogue.CLIENT_CERTIFICATE)


def findings(wanted: int | str | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Say that another user than this one is going to read the key file and the certificates.

    Args:
        wanted: The number or the name that the server's configuration gives; None where it gives none.
        environ: The environment of the workers.
    """
    if wanted is None:
        return
    uid, name = _entry(wanted)
    if uid == os.geteuid():
        return
    seen = f"the workers run as user {name}, and this command as {_entry(os.geteuid())[1]}"
    if named := [one for variable in _FILES for one in variable.names if environ.get(one)]:
        follows = f"whether they may read the files of {', '.join(named)} is not known"
        yield warn(seen, follows, journals.as_user(name, f"{journals.COMMAND} check"))
    else:
        yield ok(seen)


def _entry(user: int | str) -> tuple[int, str]:
    """Return the number and the name of a user; -1 for a name that this machine does not know."""
    is_number = str(user).isdecimal()
    try:
        entry = pwd.getpwuid(int(user)) if is_number else pwd.getpwnam(str(user))
    except KeyError:
        return int(user) if is_number else -1, str(user)
    return entry.pw_uid, entry.pw_name
