"""``mackerel-otel-server flush``: deliver the spans that ended processes have left in their journals."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server import settings as settings_module
from mackerel_otel_server.cli.all_variables import FRAMEWORKS
from mackerel_otel_server.cli.inspection import journals, sending
from mackerel_otel_server.cli.inspection.journals import File, Whose
from mackerel_otel_server.cli.masked import secrets
from mackerel_otel_server.cli.output import complain, say
from mackerel_otel_server.cli.text import counted, printable
from mackerel_otel_server.pipeline.adoption import LeftBehind, is_kept
from mackerel_otel_server.pipeline.answer import Answer, Cause
from mackerel_otel_server.pipeline.exporter import Exporter
from mackerel_otel_server.pipeline.sender import BATCH_BYTES
from mackerel_otel_server.pipeline.spool import Spool
from mackerel_otel_server.process import log
from mackerel_otel_server.settings import environment
from mackerel_otel_server.settings.masking import Mask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from mackerel_otel_server.cli.inspection.findings import Finding
    from mackerel_otel_server.settings import Settings

_ABOUT: Final = """\
Run it as the user of the workers (sudo -u NAME --preserve-env "$(command -v mackerel-otel-server)" flush), with the
variables of the server: MACKEREL_APIKEY or MACKEREL_APIKEY_FILE, and those that name the endpoint. Files of processes
that run are left to these processes. Exit status: 0 if nothing is left to deliver, 1 if something is, or if the folder
cannot be used, 2 if the options are wrong.
"""


class _FirstAnswer(Exporter):
    """An exporter for a person who waits: one attempt, and a refusal is no reason to lose spans."""

    def export(self, body: bytes, spans: int, deadline: float) -> Answer:
        answer = super().export(body, spans, deadline)
        return replace(answer, keep=answer.keep or is_kept(answer))

    def _backoff(self, cause: Cause | None) -> float:
        # An endpoint that asks for patience gets it, within the timeout of a request.
        return super()._backoff(cause) if cause is Cause.RATE else float("inf")


@dataclass
class _Result:
    """What the command has seen and done."""

    left: list[File] = field(default_factory=list)
    """Files that others may send: processes that run, or whoever has other settings."""
    waiting: list[File] = field(default_factory=list)
    """Files that could be sent with these settings, and were not, because the endpoint takes nothing."""
    answer: Answer | None = None
    """What the endpoint said when it took nothing."""
    lost: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``flush``."""
    parser.epilog = _ABOUT
    parser.add_argument(
        "--changed-key",
        action="store_true",
        help="send also what was to go to this endpoint with another key or other headers: these were changed since",
    )
    parser.add_argument("--spool", metavar="FOLDER", help="folder of the journals, instead of MACKEREL_OTEL_SPOOL")
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Deliver what can be delivered, say what is left, and return 0, or 1 when something is left or has failed."""
    if args.spool is not None and not Path(args.spool).is_absolute():
        args.refuse(f"--spool {args.spool!r} is no absolute path; type one that begins with /")
    environ = environment.variables()
    mask = Mask(secrets(environ))
    try:
        settings = settings_module.read(environ, frameworks=FRAMEWORKS)
    except settings_module.SettingsError as error:
        for line in settings_module.worded(error.problems).splitlines():
            complain(printable(mask(line)))
        return 1
    mask = Mask([*secrets(environ), settings.api_key])
    if obstacle := _obstacle(settings, environ):
        complain(f"nothing was sent: {obstacle}")
        return 1
    # The lines for the log of a server. This command has its own.
    log.to_host(lambda _record: None)
    setting = args.spool or settings.spool or ""
    spool = Spool(setting)
    if settings.spool is None and args.spool is None:
        say(f"MACKEREL_OTEL_SPOOL=none: no journal is written any more; was one written before, in {spool.path}?")
    return _flush(spool, setting, settings, environ, mask, args)


def _obstacle(settings: Settings, environ: Mapping[str, str]) -> str:
    if environment.is_disabled(environ):
        return "OTEL_SDK_DISABLED is true: unset it"
    if "otlp" not in settings.exporters:
        exporters = ", ".join(settings.exporters) or "none"
        return f"OTEL_TRACES_EXPORTER is {exporters}: unset it, or type OTEL_TRACES_EXPORTER=otlp"
    return ""


def _flush(  # noqa: PLR0913, PLR0917 - what run() has found out
    spool: Spool, setting: str, settings: Settings, environ: Mapping[str, str], mask: Mask, args: argparse.Namespace
) -> int:
    command = "mackerel-otel-server flush" + " --changed-key" * args.changed_key
    if args.spool is not None:
        command += f" --spool {shlex.quote(args.spool)}"
    others = list(journals.of_others(spool, setting, command))
    for other in others:
        complain(printable(_worded(other)))
    finding = journals.unusable(spool, command)
    if finding is None and journals.is_missing(spool):
        say(
            f"there is no folder {printable(spool.path)}: user {journals.user(os.geteuid())} has left nothing behind "
            f"there; if the workers run as another user, type: {journals.as_user('NAME', command)}"
        )
        return 1 if others or args.spool is not None else 0
    if finding is not None:
        complain(printable(mask(f"nothing was sent: {finding.seen}; {finding.cure}")))
        return 1
    result = _send_all(spool, settings, mask, with_other_keys=args.changed_key)
    if result.answer is not None:
        complain(printable(mask(_refusal(result.answer, spool, environ))))
    if result.waiting:
        complain(f"not sent: {journals.in_words(result.waiting)}")
    running = [one for one in result.left if one.whose is Whose.RUNNING and one.spans]
    if running:
        say(f"processes that run hold {journals.in_words(running)}: they send them themselves")
    remarks = list(journals.left_for_others(result.left))
    for remark in remarks:
        complain(printable(mask(_worded(remark))))
    if result.waiting or result.lost or remarks:
        return 1
    say(f"nothing is left to deliver in {printable(spool.path)}")
    return 0


def _send_all(spool: Spool, settings: Settings, mask: Mask, *, with_other_keys: bool) -> _Result:
    exporter = _FirstAnswer(settings)
    destination = exporter.destination()
    wanted = {Whose.PRESENT, Whose.OTHER_KEY} if with_other_keys else {Whose.PRESENT}
    result = _Result()
    try:
        for found in journals.names(spool):
            taken = spool.take(found.name)
            if taken is None:
                if (there := journals.look_at(spool, found, destination)) is not None:
                    result.left.append(there)
                continue
            left = LeftBehind(spool, found.name, taken)
            one = journals.described(found, left.contents, destination, is_running=False)
            if one.whose is Whose.UNKNOWN or (one.spans and one.whose not in wanted):
                spool.release(taken)
                result.left.append(one)
            elif one.spans and result.answer is not None:
                spool.release(taken)
                result.waiting.append(one)
            else:
                result.answer = _send(left, exporter, settings)
                result.lost += sum(left.lost.values())
                _say_what_became_of(left, mask)
                if left.contents.spans:
                    result.waiting.append(replace(one, spans=len(left.contents)))
    finally:
        exporter.close()
    return result


def _send(left: LeftBehind, exporter: Exporter, settings: Settings) -> Answer | None:
    """Send one file; return the answer after which nothing more can be sent, if there is one.

    Ctrl-C leaves the file as it is. What was under way may then arrive twice, as after the end of a killed worker.
    """
    while True:
        deadline = time.monotonic() + settings.timeout
        answer = left.send_batch(exporter, settings.max_export_batch_size, BATCH_BYTES, deadline)
        if answer is None or answer.keep or answer.pause or answer.unconfirmed:
            left.close()
            return answer


def _say_what_became_of(left: LeftBehind, mask: Mask) -> None:
    whose = f"that {left.owner()} left behind"
    if left.delivered:
        say(printable(f"delivered {counted(left.delivered, 'span')} {whose}"))
    if left.lost:
        reasons = ", ".join(f"{reason} {count}" for reason, count in left.lost.items())
        complain(printable(mask(f"lost {counted(sum(left.lost.values()), 'span')} {whose} ({reasons})")))


def _refusal(answer: Answer, spool: Spool, environ: Mapping[str, str]) -> str:
    follows = answer.advice.follows if answer.unconfirmed else f"the files stay in {spool.path}"
    return f"the endpoint takes no spans: {answer.seen}; {follows}; {sending.cure(answer, environ)}"


def _worded(finding: Finding) -> str:
    return "; ".join(part for part in (finding.seen, finding.follows, finding.cure) if part)
