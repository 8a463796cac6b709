"""What a look at an installation has found, for people and for machines."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli import config
from mackerel_otel_server.cli.cloak import cloaked
from mackerel_otel_server.cli.style import paint
from mackerel_otel_server.cli.text import counted, printable, say, stdout_encoding
from mackerel_otel_server.settings.origins import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mackerel_otel_server.cli.inspection.findings import Finding
    from mackerel_otel_server.cli.inspection.sending import Sent
    from mackerel_otel_server.cli.inspection.versions import Version
    from mackerel_otel_server.settings.origins import Shown

_ORDER: Final = ("FAIL", "WARN", "OK")
_COLOURS: Final = {"FAIL": ("bold", "red"), "WARN": ("bold", "yellow"), "OK": ("green",)}
_NARROW: Final = 40


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is shown; no secret stands in it."""

    read: list[str]
    not_read: list[str]
    versions: list[Version]
    settings: list[Shown]
    findings: list[Finding]
    sent: Sent | None = field(default=None)

    @property
    def failed(self) -> bool:
        """Whether anything is a failure."""
        return any(finding.level == "FAIL" for finding in self.findings)


def as_json(report: Report, secrets: Sequence[str]) -> str:
    """Return one JSON object; ``sent`` is there when a span was sent."""
    data = asdict(cloaked(report, secrets))
    if report.sent is None:
        del data["sent"]
    return json.dumps(data, indent=2)


def show(report: Report, secrets: Sequence[str], *, silence: str = "", with_defaults: bool = False) -> None:
    """Print the report as wide as the terminal is, and in a pipe without breaking lines.

    Args:
        report: What was found.
        secrets: What no line may show.
        silence: Why no span is sent although nothing fails; the last line says so.
        with_defaults: Show the settings that nobody has made, too.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line, styles in _lines(cloaked(report, secrets), width, silence, with_defaults=with_defaults):
        say(paint(printable(line), *styles))


def _lines(report: Report, width: int, silence: str, *, with_defaults: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "Findings", ("bold",)
    for finding in sorted(report.findings, key=lambda finding: _ORDER.index(finding.level)):
        yield from _finding(finding, width)
    settings = [one for one in report.settings if with_defaults or one.origin != DEFAULT]
    title = "Settings" if with_defaults else "Settings without the defaults, which --all shows"
    yield from ((line, ("bold",)) for line in _wrapped(title, width, ""))
    for line in config.lines(settings, max(width - 2, 1) if width else None) if settings else ():
        yield f"  {line}", ()
    yield "Versions", ("bold",)
    for version in report.versions:
        text = f"{version.name} {version.version}".rstrip()
        yield from _plain(f"{text}, traced by {version.traced_by}" if version.traced_by else text, width)
    for title, items in (("Read", report.read), ("Not read", report.not_read)):
        if items:
            yield title, ("bold",)
            for item in items:
                yield from _plain(item, width)
    yield "", ()
    yield from ((line, _COLOURS[_worst(report)]) for line in _wrapped(_conclusion(report, silence), width, ""))


def _plain(text: str, width: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ((line, ()) for line in _wrapped(text, width, "  ", "    "))


def _finding(finding: Finding, width: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    indent = "  " if 0 < width < _NARROW else "      "
    first = f"{finding.level:<{max(len(indent) - 1, len(finding.level))}} "
    for line in _wrapped(finding.seen, width, first, indent):
        yield line, _COLOURS[finding.level] if line.startswith(first) and finding.level != "OK" else ()
    for text in (finding.follows, finding.cure):
        if not text:
            continue
        begin, *rest = text.splitlines()
        yield from ((line, ()) for line in _wrapped(begin, width, f"{indent}{_arrow()} ", f"{indent}  "))
        # Lines to type stay as they are.
        yield from ((f"{indent}  {line}", ("cyan",)) for line in rest)


def _wrapped(text: str, width: int, first: str, indent: str = "") -> list[str]:
    if not width:
        return [first + text]
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [first]


def _arrow() -> str:
    try:
        "→".encode(stdout_encoding())
    except UnicodeEncodeError:
        return "->"
    return "→"


def _worst(report: Report) -> str:
    return min((finding.level for finding in report.findings), key=_ORDER.index, default="OK")


def _conclusion(report: Report, silence: str) -> str:
    levels = Counter(finding.level for finding in report.findings)
    failures, warnings = counted(levels["FAIL"], "failure"), counted(levels["WARN"], "warning")
    counts = f"{failures}, {warnings}: see above what to type."
    if levels["FAIL"]:
        return counts
    if silence:
        return f"{silence}. {counts}"
    return counts if levels["WARN"] else "All is well: this server is ready to be traced."
