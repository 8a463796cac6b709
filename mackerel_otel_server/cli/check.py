"""``mackerel-otel-server check``: look at an installation, and say what is wrong with it and what to type."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server import settings as settings_module
from mackerel_otel_server.cli.all_variables import FRAMEWORKS
from mackerel_otel_server.cli.inspection import journals, other_tracers, sending, variables, versions
from mackerel_otel_server.cli.inspection.findings import Finding, NotReadError, fail, ok, warn
from mackerel_otel_server.cli.inspection.gunicorn import config_findings as of_gunicorn
from mackerel_otel_server.cli.inspection.gunicorn.effective import read as read_gunicorn
from mackerel_otel_server.cli.inspection.project import sources, which_server
from mackerel_otel_server.cli.inspection.project.files import inside
from mackerel_otel_server.cli.inspection.uwsgi import config_findings as of_uwsgi
from mackerel_otel_server.cli.inspection.uwsgi import ini as uwsgi_ini
from mackerel_otel_server.cli.inspection.variables import recording
from mackerel_otel_server.cli.masked import secrets
from mackerel_otel_server.cli.output import say
from mackerel_otel_server.cli.report import Report, as_json, show
from mackerel_otel_server.settings import environment
from mackerel_otel_server.settings.masking import Mask
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
    """What a look at the installation knows about the server's workers so far."""

    environ: dict[str, str]
    folder: str
    application: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    """For each variable that the configuration sets: what sets it, for the reader of the report."""
    env_lines: Collection[str] = ()
    """The variables that a line ``env = NAME=value`` of uWSGI sets."""
    read: list[str] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def change(self, variables: Mapping[str, str | None], origin: str) -> None:
        """Change the variables as the configuration does; the value None means that it removes the variable."""
        for name, value in variables.items():
            if value is None:
                self.environ.pop(name, None)
                self.origins.pop(name, None)
            else:
                self.environ[name], self.origins[name] = value, origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    parser.add_argument("--send", action="store_true", help="send one span, and explain the answer")
    parser.add_argument("--server", choices=("gunicorn", "uwsgi"), help="default: by what is in the working directory")
    parser.add_argument(
        "--config", metavar="FILE", help="what the server is given: Gunicorn's -c (also python:MODULE), or an ini file"
    )
    parser.add_argument("--all", action="store_true", help="show the settings that have their defaults, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all settings")


def run(args: argparse.Namespace) -> int:
    """Print findings, settings and versions, and return 0, or 1 when there is a failure."""
    around = _look_around(args, environment.variables())
    effective, described, about_settings = _settings(around)
    report = Report(
        read=around.read,
        not_read=around.not_read,
        versions=versions.gather(around.environ),
        settings=described,
        findings=[
            *about_settings,
            *around.findings,
            *versions.findings(around.environ),
            *other_tracers.findings(around.environ),
            *_about_journals(effective, around),
        ],
    )
    if args.send:
        report = _send(report, effective, around)
    of_file = effective.api_key if effective else None
    mask = Mask([*secrets(around.environ), *secrets(environment.variables()), of_file])
    if args.json:
        say(as_json(report, mask))
    else:
        silence = recording.silence(around.environ, effective)
        show(report, mask, silence=silence, with_defaults=args.all)
    return 1 if report.failed else 0


def _look_around(args: argparse.Namespace, environ: Mapping[str, str]) -> _Surroundings:
    """Read the configuration of the server that ``--server`` names, or whose file is in the working directory."""
    folder = str(Path.cwd())
    around = _Surroundings(dict(environ), folder, read=["the environment of this command"], not_read=list(_NOT_READ))
    choice = which_server.choose(args.server, args.config, folder, environ)
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


def _look_at_gunicorn(around: _Surroundings, choice: which_server.Choice) -> None:
    config = read_gunicorn(choice.config, around.environ, around.folder)
    around.read.append(f"{config.name}, for Gunicorn ({choice.why})")
    around.change(config.changed, f"set by {config.name}")
    around.change(config.env, "set by Gunicorn's raw_env")
    around.application = config.application
    around.findings += of_gunicorn.findings(config, around.environ, around.folder)
    around.folder = config.cwd


def _look_at_uwsgi(around: _Surroundings, choice: which_server.Choice) -> None:
    assert choice.config is not None  # noqa: S101 - the caller has looked
    suffix = Path(choice.config.partition(":")[0]).suffix
    if suffix in which_server.OTHER_FORMATS:
        around.not_read.append(f"{choice.config}: of uWSGI's formats, only ini is read here")
        around.findings.append(
            warn(
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
    around.application = of_uwsgi.application(ini)
    around.findings += of_uwsgi.findings(ini, around.environ, around.folder, versions.uwsgi_version())
    around.folder = str(Path(around.folder, ini.last("chdir") or ""))


def _nothing_found(choice: which_server.Choice, folder: str) -> Finding:
    seen = f"no configuration {'of uWSGI ' * (choice.server == 'uwsgi')}is in the working directory"
    if choice.server is None and (file := sources.of_application(folder, None)):
        return ok(f"{seen}, and {file} uses this package")
    cure = "type mackerel-otel-server check --config FILE with the file that the server is given"
    if choice.server == "uwsgi":
        cure = "type mackerel-otel-server check --server uwsgi --config FILE with the ini file that uWSGI is given"
    return warn(
        seen + (f": {choice.why}" if choice.why else ""),
        "nothing is known about the server, only about the settings",
        cure,
    )


def _settings(around: _Surroundings) -> tuple[Settings | None, list[Shown], list[Finding]]:
    """Return the settings of the workers if they can be used, as they are shown, and what is wrong with them."""
    # The name of a key file or a certificate may be relative to the folder of the workers.
    with inside(around.folder):
        described = describe(around.environ, application=around.application, frameworks=FRAMEWORKS)
        found = variables.findings(around.environ, around.application, around.env_lines)
        effective = None
        if not described.problems:
            effective = settings_module.read(around.environ, application=around.application, frameworks=FRAMEWORKS)
    shown = [
        replace(one, origin=f"{one.origin}, {around.origins[one.origin]}") if one.origin in around.origins else one
        for one in described.settings
    ]
    return effective, shown, found


def _about_journals(effective: Settings | None, around: _Surroundings) -> list[Finding]:
    if effective is None or "otlp" not in effective.exporters or environment.is_disabled(around.environ):
        return []
    return list(journals.findings(effective))


def _send(report: Report, effective: Settings | None, around: _Surroundings) -> Report:
    if environment.is_disabled(around.environ):
        obstacle = "OTEL_SDK_DISABLED is true", "nothing is traced", "unset it"
    elif effective is None:
        obstacle = "the settings have errors", "nothing is traced", "correct them"
    elif not os.access(around.folder, os.X_OK):
        obstacle = f"{around.folder} cannot be entered", "the server cannot start", "make that folder, or correct chdir"
    elif "otlp" not in effective.exporters:
        exporters = ", ".join(effective.exporters) or "none"
        cure = "unset OTEL_TRACES_EXPORTER, or type OTEL_TRACES_EXPORTER=otlp"
        obstacle = f"OTEL_TRACES_EXPORTER is {exporters}", "nothing is sent", cure
    else:
        sent, found = sending.send(effective, around.environ, around.application, around.folder)
        return replace(report, findings=[*report.findings, *found], sent=sent)
    seen, *others = obstacle
    return replace(report, findings=[*report.findings, fail(f"no span was sent: {seen}", *others)])
