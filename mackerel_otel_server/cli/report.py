"""Print what ``check`` has found: as text for people, as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli import config, output
from mackerel_otel_server.cli.masked import cloaked
from mackerel_otel_server.cli.text import counted, encodable, printable
from mackerel_otel_server.settings.origins import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mackerel_otel_server.cli.inspection.findings import Finding
    from mackerel_otel_server.cli.inspection.sending import Sent
    from mackerel_otel_server.cli.inspection.versions import Version
    from mackerel_otel_server.settings.masking import Mask
    from mackerel_otel_server.settings.origins import Shown

_ORDER: Final = ("FAIL", "WARN", "OK")
_COLOURS: Final = {"FAIL": ("bold", "red"), "WARN": ("bold", "yellow"), "OK": ("green",)}
_NARROW: Final = 40


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is shown. It may hold secrets until cloaked() has replaced them."""

    read: list[str]
    not_read: list[str]
    versions: list[Version]
    settings: list[Shown]
    findings: list[Finding]
    sent: Sent | None = None

    @property
    def failed(self) -> bool:
        """Whether anything is a failure."""
        return any(finding.level == "FAIL" for finding in self.findings)


def as_json(report: Report, mask: Mask) -> str:
    """Return one JSON object; it has the key ``sent`` when a span was sent."""
    data = asdict(cloaked(report, mask))
    if report.sent is None:
        del data["sent"]
    return json.dumps(data, indent=2)


def show(report: Report, mask: Mask, *, silence: str = "", with_defaults: bool = False) -> None:
    """Print the report as wide as the terminal is, and in a pipe without breaking lines.

    Args:
        report: What was found.
        mask: Hides what no line may show.
        silence: The reason why no span is sent although nothing fails, for the last line; empty if there is none.
        with_defaults: Show the settings that nobody has made, too.
    """
    width = output.width() or 0
    for line, styles in _lines(cloaked(report, mask), width, silence, with_defaults=with_defaults):
        output.say(output.paint(printable(line), *styles))


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
    worst = min((finding.level for finding in report.findings), key=_ORDER.index, default="OK")
    yield from ((line, _COLOURS[worst]) for line in _wrapped(_conclusion(report, silence), width, ""))


def _plain(text: str, width: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ((line, ()) for line in _wrapped(text, width, "  ", "    "))


def _finding(finding: Finding, width: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    indent = "  " if 0 < width < _NARROW else "      "
    first = f"{finding.level:<{max(len(indent) - 1, len(finding.level))}} "
    for line in _wrapped(finding.seen, width, first, indent):
        yield line, _COLOURS[finding.level] if line.startswith(first) and finding.level != "OK" else ()
    arrow = "→" if encodable("→", output.stdout_encoding()) == "→" else "->"
    for text in (finding.follows, finding.cure):
        if not text:
            continue
        begin, *rest = text.splitlines()
        yield from ((line, ()) for line in _wrapped(begin, width, f"{indent}{arrow} ", f"{indent}  "))
        # The lines after the first one are to be copied, so they are not wrapped.
        yield from ((f"{indent}  {line}", ("cyan",)) for line in rest)


def _wrapped(text: str, width: int, first: str, indent: str = "") -> list[str]:
    if not width:
        return [first + text]
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [first]


def _conclusion(report: Report, silence: str) -> str:
    levels = Counter(finding.level for finding in report.findings)
    failures, warnings = counted(levels["FAIL"], "failure"), counted(levels["WARN"], "warning")
    counts = f"{failures}, {warnings}: see above what to type."
    if levels["FAIL"]:
        return counts
    if silence:
        return f"{silence}. {counts}"
    return counts if levels["WARN"] else "All is well: this server is ready to be traced."
