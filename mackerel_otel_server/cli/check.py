"""``mackerel-otel-server check``: look at an installation, and say what is wrong with it and what to type."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server import settings as settings_module
from mackerel_otel_server.cli.cloak import secrets
from mackerel_otel_server.cli.inspection import (
    applications,
    configuration,
    gunicorn_config,
    gunicorn_findings,
    key_exposure,
    other_tracers,
    sending,
    uwsgi_findings,
    uwsgi_ini,
    variables,
    versions,
)
from mackerel_otel_server.cli.inspection.files import inside
from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.cli.inspection.not_read import NotReadError
from mackerel_otel_server.cli.inspection.variables import recording
from mackerel_otel_server.cli.report import Report, as_json, show
from mackerel_otel_server.cli.text import say
from mackerel_otel_server.settings.origins import describe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Mapping

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.origins import Shown

_NOT_READ: Final = (
    "the server's command line, and variables that only its service manager or container sets",
    "the application itself: it is not loaded",
)


@dataclass
class _Surroundings:
    """What the workers of the server have around them."""

    environ: dict[str, str]
    folder: str
    application: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    """Of the variables that the configuration sets: by what."""
    env_lines: Collection[str] = ()
    """Those that a line ``env = NAME=value`` of uWSGI sets."""
    read: list[str] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def change(self, variables: Mapping[str, str | None], origin: str) -> None:
        """Take over what the configuration does to variables; None: it removes one."""
        for name, value in variables.items():
            if value is None:
                self.environ.pop(name, None)
                self.origins.pop(name, None)
            else:
                self.environ[name], self.origins[name] = value, origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``check`` understands."""
    parser.add_argument("--send", action="store_true", help="send one span, and explain the answer")
    parser.add_argument("--server", choices=("gunicorn", "uwsgi"), help="default: by what is in the working directory")
    parser.add_argument(
        "--config", metavar="FILE", help="what the server is given: Gunicorn's -c (also python:MODULE), or an ini file"
    )
    parser.add_argument("--all", action="store_true", help="show the settings that have their defaults, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all settings")


def run(args: argparse.Namespace) -> int:
    """Print findings, settings and versions.

    Returns:
        0, or 1 when there is a failure.
    """
    around = _look_around(args, os.environ)
    effective, described, about_settings = _settings(around)
    report = Report(
        read=around.read,
        not_read=around.not_read,
        versions=(installed := versions.gather(around.environ)),
        settings=described,
        findings=[
            *about_settings,
            *around.findings,
            *versions.findings(installed, around.environ),
            *other_tracers.findings(around.environ),
            *key_exposure.findings(_keys(around.environ, effective)),
        ],
    )
    if args.send:
        report = _send(report, effective, around)
    known = [*secrets(around.environ), *secrets(os.environ), *_keys(around.environ, effective)]
    if args.json:
        say(as_json(report, known))
    else:
        silence = recording.silence(around.environ, effective)
        show(report, known, silence=silence, with_defaults=args.all)
    return 1 if report.failed else 0


def _look_around(args: argparse.Namespace, environ: Mapping[str, str]) -> _Surroundings:
    """Read the configuration of the server that was asked for, or that is here."""
    folder = str(Path.cwd())
    around = _Surroundings(dict(environ), folder, read=["the environment of this command"], not_read=list(_NOT_READ))
    choice = configuration.choose(args.server, args.config, folder, environ)
    try:
        if choice.server == "gunicorn":
            _look_at_gunicorn(around, choice)
        elif choice.server == "uwsgi" and choice.config is not None:
            _look_at_uwsgi(around, choice)
        else:
            around.findings.append(_nothing_found(choice, folder))
    except NotReadError as error:
        around.not_read.append(f"the configuration of {choice.server} ({choice.why})")
        around.findings.append(error.finding)
        around.change(error.changed, f"set by the configuration of {choice.server}")
        around.change(error.raw_env, "set by Gunicorn's raw_env")
    return around


def _look_at_gunicorn(around: _Surroundings, choice: configuration.Choice) -> None:
    config = gunicorn_config.read(choice.config, around.environ, around.folder)
    around.read.append(f"{config.name}, for Gunicorn ({choice.why})")
    around.change(config.changed, f"set by {config.name}")
    around.change(config.env, "set by Gunicorn's raw_env")
    around.application = config.application
    around.findings += gunicorn_findings.findings(config, around.environ, around.folder)
    around.folder = config.cwd


def _look_at_uwsgi(around: _Surroundings, choice: configuration.Choice) -> None:
    assert choice.config is not None  # noqa: S101 - the caller has looked
    suffix = Path(choice.config.partition(":")[0]).suffix
    if suffix in (".yaml", ".yml", ".xml", ".json"):
        around.not_read.append(f"{choice.config}: of uWSGI's formats, only ini is read here")
        around.findings.append(
            Finding(
                "WARN",
                f"{choice.config} is not read: of uWSGI's formats, only ini is known here",
                "nothing is known about the server",
                "compare it with what mackerel-otel-server init uwsgi -o - prints",
            )
        )
        return
    ini = uwsgi_ini.read(choice.config, around.environ)
    around.read += [f"{file}, for uWSGI ({choice.why})" for file in ini.files]
    around.not_read += ini.not_understood
    before, around.environ = around.environ, ini.environment(around.environ)
    changed = [name for name, value in around.environ.items() if before.get(name) != value]
    around.origins = dict.fromkeys(changed, f"set by {ini.files[0]}")
    around.env_lines = frozenset(value.partition("=")[0] for value in ini.all("env"))
    around.application = uwsgi_findings.application(ini)
    around.findings += uwsgi_findings.findings(ini, around.environ, around.folder, versions.uwsgi_version())
    around.folder = str(Path(around.folder, ini.last("chdir") or ""))


def _nothing_found(choice: configuration.Choice, folder: str) -> Finding:
    seen = f"no configuration {'of uWSGI ' * (choice.server == 'uwsgi')}is in the working directory"
    if choice.server is None and (file := applications.file_with_door(folder, None)):
        return Finding("OK", f"{seen}, and {file} uses this package")
    cure = "type mackerel-otel-server check --config FILE with the file that the server is given"
    if choice.server == "uwsgi":
        cure = "type mackerel-otel-server check --server uwsgi --config FILE with the ini file that uWSGI is given"
    return Finding(
        "WARN",
        seen + (f": {choice.why}" if choice.why else ""),
        "nothing is known about the server, only about the settings",
        cure,
    )


def _settings(around: _Surroundings) -> tuple[Settings | None, list[Shown], list[Finding]]:
    """Return the settings of the workers if they can be used, as they are shown, and what is wrong with them."""
    # A key file or a certificate may have a relative name.
    with inside(around.folder):
        described = describe(around.environ, application=around.application)
        found = variables.findings(around.environ, around.application, around.env_lines)
        effective = None
        if not described.problems:
            effective = settings_module.read(around.environ, application=around.application)
    shown = [
        replace(one, origin=f"{one.origin}, {around.origins[one.origin]}") if one.origin in around.origins else one
        for one in described.settings
    ]
    return effective, shown, found


def _send(report: Report, effective: Settings | None, around: _Surroundings) -> Report:
    sent = None
    if around.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        found = [Finding("FAIL", "no span was sent: OTEL_SDK_DISABLED is true", "nothing is traced", "unset it")]
    elif effective is None:
        found = [Finding("FAIL", "no span was sent: the settings have errors", "nothing is traced", "correct them")]
    elif not os.access(around.folder, os.X_OK):
        cure = "make that folder, or correct chdir"
        found = [
            Finding("FAIL", f"no span was sent: {around.folder} cannot be entered", "the server cannot start", cure)
        ]
    else:
        sent, found = sending.send(effective, around.environ, around.application, around.folder)
    return replace(report, findings=[*report.findings, *found], sent=sent)


def _keys(environ: Mapping[str, str], effective: Settings | None) -> list[str]:
    given = [environ.get(name, "").strip() for name in gunicorn_findings.KEY_VARIABLES]
    return [key for key in (*given, effective.api_key if effective else None) if key]
