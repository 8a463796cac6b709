"""The variables that a uWSGI configuration sets, and those that it is filled in with."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.gunicorn_findings import KEY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mackerel_otel_server.cli.inspection.uwsgi_ini import Ini

_OURS: Final = ("MACKEREL_", "OTEL_")
_PLACEHOLDER: Final = re.compile(r"([$%])\(([^()]+)\)")


def placeholders(ini: Ini, options: Collection[str]) -> Iterator[Finding]:
    """Look for placeholders that nothing fills in.

    Args:
        ini: As uWSGI reads it.
        options: Those that matter beside ``env``; others, such as log-format, have their own use for placeholders.
    """
    for name, value in dict.fromkeys(ini.options):
        for kind, meant in _PLACEHOLDER.findall(value) if name == "env" or name in options else ():
            if kind == "%":
                yield Finding(
                    "WARN",
                    f"%({meant}) in a line {name} = … is no option of {ini.files[0]}",
                    "uWSGI takes it as it is written",
                    f"add this line above it: set-placeholder = {meant}=VALUE",
                )
            else:
                yield Finding(
                    "WARN",
                    f"$({meant}) in a line {name} = … is not set in the environment of this command",
                    "where the server's environment lacks it, too, uWSGI takes it as it is written",
                    f"type {meant}=VALUE mackerel-otel-server check, and see that the server gets it",
                )


def blanks(ini: Ini) -> Iterator[Finding]:
    """Look for names that uWSGI ends with a blank."""
    for value in ini.all("env"):
        name, equals, _ = value.partition("=")
        if equals and name != name.rstrip() and name.startswith(_OURS):
            yield Finding(
                "FAIL",
                f"env = {name}=… has a blank before its second equals sign",
                f"uWSGI makes the blank a part of the name, and nobody reads {name!r}",
                f"write that line without it: env = {name.rstrip()}=…",
            )


def keys(ini: Ini) -> Iterator[Finding]:
    """Look who may read an API key."""
    for name in KEY_VARIABLES:
        written = [value for option, value in ini.written if option == "env" and value.startswith(f"{name}=")]
        if not written:
            continue
        # By @(file) the key stands there, and not in what is read by everyone.
        elsewhere = re.findall(r"@\(([^()]+)\)", written[-1])
        open_ = [file for file in elsewhere or ini.files if _is_readable_by_all(file)]
        yield Finding(
            "WARN" if open_ else "OK",
            f"{name} is set by an env line",
            f"every user of this machine may read it in {', '.join(open_)}" if open_ else "",
            f"chmod o-r {' '.join(open_)}, or set MACKEREL_APIKEY_FILE to a file that holds the key" if open_ else "",
        )


def _is_readable_by_all(file: str) -> bool:
    try:
        return bool(Path(file).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
