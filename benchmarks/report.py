"""The samples become Markdown: medians, ratios, budgets."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TypeAlias

from server import APPLICATIONS, CLASSES, VARIANTS, Case

Samples: TypeAlias = Mapping[Case, Mapping[str, list[float]]]
"""Figures by name, one per round."""

_PACKAGES = (
    "gunicorn",
    "gevent",
    "flask",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-wsgi",
    "mackerel-otel-server",
)
_SHUTDOWN_TIMEOUT = 5.0
"""Ours, by default: MACKEREL_OTEL_SHUTDOWN_TIMEOUT."""
_EXIT_SLACK = 0.5
_BUSY = 0.05
_NONE = "–"  # noqa: RUF001 - a dash of its own, for what was not measured

Values: TypeAlias = Mapping[str, float]
"""A figure's medians by variant."""


@dataclass(frozen=True)
class _Row:
    """One line of a table.

    Attributes:
        label: What it says.
        key: The figure's name.
        scale: What the figure is multiplied with.
        digits: Decimal places.
        added: Show what is added to the untouched server's.
        total: Show the sum of the rounds, not their median.
        limit: What the budget allows, given the row's values, and its words.
    """

    label: str
    key: str
    scale: float = 1.0
    digits: int = 0
    added: bool = False
    total: bool = False
    limit: tuple[Callable[[Values], float], str] | None = None


def _rows(workers: int) -> tuple[_Row, ...]:
    mega = 1e-6
    quarter = (lambda values: 0.25 * values["recipe"], "≤ 25 % of the recipe's")
    stall = (lambda values: 1.25 * values["untouched"], "≤ 1.25 of untouched")
    half = (lambda values: 0.5 * values["recipe"], "≤ half of the recipe's")
    leave = (
        lambda values: values["untouched"] + _SHUTDOWN_TIMEOUT + _EXIT_SLACK,
        f"≤ untouched + {_SHUTDOWN_TIMEOUT:g} + {_EXIT_SLACK:g}",
    )
    return (
        _Row("CPU per request, µs", "cpu", 1e6),
        _Row("CPU added per request, µs", "cpu", 1e6, added=True, limit=quarter),
        _Row("requests per second", "throughput"),
        # Near 100 % the queue of requests grows, and the latencies below say nothing.
        _Row("requests sent for latency, % of those", "utilisation", 100),
        _Row("p50 latency, ms", "p50", 1e3, 2),
        _Row("p99 latency, ms", "p99", 1e3, 2, limit=stall),
        _Row("PSS per worker, 1 worker, MB", "pss_1", mega, 1),
        _Row(f"PSS per worker, {workers} workers, MB", "pss_n", mega, 1),
        _Row(f"PSS added per worker, {workers} workers, MB", "pss_n", mega, 1, added=True, limit=half),
        _Row("server's start to first answer, s", "start", 1, 2),
        _Row("worker's fork to first answer, s", "fork", 1, 2),
        _Row("worker's exit, endpoint never answers, s", "exit", 1, 1, limit=leave),
        _Row("requests that failed", "failed", total=True),
        _Row("spans expected", "expected", total=True),
        _Row("spans missing after TERM", "missing", total=True, limit=(lambda _: 0, "0")),
        _Row("spans that came twice", "twice", total=True),
    )


_EXPORT_ROWS = (
    _Row("CPU per exported span, µs", "export", 1e6, 1, limit=(lambda _: 8e-6, "≤ 8")),
    _Row("spans expected", "expected", total=True),
    _Row("spans missing", "missing", total=True, limit=(lambda _: 0, "0")),
)


def export_case(variant: str) -> Case:
    """Return the case under which the export alone is filed."""
    return Case("", "export", variant)


def machine() -> str:
    """Describe what the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    versions = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def quiet(other_share: float) -> str:
    """Say how much of a core others took while the figures were taken."""
    text = f"Meanwhile other processes took {other_share:.0%} of one core."
    return text if other_share < _BUSY else f"{text} **The machine was busy: these figures are noisy.**"


def tables(samples: Samples, *, workers: int, budget: bool) -> str:
    """Return one table for each worker class and application, and one for the export alone."""
    parts: list[str] = []
    for worker_class in CLASSES:
        for application, name in APPLICATIONS.items():
            shown = "generic ASGI callable" if worker_class == "asgi" else name
            cases = {variant: Case(worker_class, application, variant) for variant in VARIANTS}
            parts += _table(f"{worker_class}, {shown}, 1 worker", cases, samples, _rows(workers), budget=budget)
    cases = {variant: export_case(variant) for variant in VARIANTS}
    parts += _table("Export alone", cases, samples, _EXPORT_ROWS, budget=budget)
    return "\n".join(parts)


def problems(samples: Samples) -> list[str]:
    """Say which cases of ours lost spans or sent what cannot be read; the other variants may, it is in the table."""
    return [
        f"{case}: {key} per round: {figures[key]}"
        for case, figures in samples.items()
        for key in ("missing", "unreadable")
        if case.variant == "ours" and max(figures.get(key, ()), default=0) > 0
    ]


def _table(
    title: str, cases: Mapping[str, Case], samples: Samples, rows: Sequence[_Row], *, budget: bool
) -> Iterator[str]:
    figures = {variant: samples[case] for variant, case in cases.items() if case in samples}
    if not figures:
        return
    head = ["", *VARIANTS, "ours / recipe", *(("budget", "met") if budget else ())]
    yield f"\n### {title}\n"
    yield _line(head)
    yield _line(["---", *["---:"] * (len(VARIANTS) + 1), *(("---", "---") if budget else ())])
    spreads: list[str] = []
    for row in rows:
        values = _values(row, figures)
        if not values:
            continue
        cells = [f"{row.scale * values[name]:,.{row.digits}f}" if name in values else _NONE for name in VARIANTS]
        comparable = not row.total and {"ours", "recipe"} <= set(values) and values["recipe"] > 0
        ratio = f"{values['ours'] / values['recipe']:.2f}" if comparable else _NONE
        yield _line([row.label, *cells, ratio, *(_verdict(row, values) if budget else ())])
        if not (row.added or row.total or row.key == "utilisation") and (spread := _spread(row, figures)) is not None:
            spreads.append(f"{row.label.rpartition(',')[0] or row.label} {spread:.0%}")
    if spreads:
        yield f"\nLargest spread between rounds, (max - min) / median: {', '.join(spreads)}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _values(row: _Row, figures: Mapping[str, Mapping[str, list[float]]]) -> dict[str, float]:
    """Return a row's figure for each variant that has one."""
    lists = {variant: by_key[row.key] for variant, by_key in figures.items() if by_key.get(row.key)}
    if row.total:
        return {variant: sum(values) for variant, values in lists.items()}
    if not row.added:
        return {variant: median(values) for variant, values in lists.items()}
    # Figures are compared within a round, in which the machine drifts less than in the whole run.
    base = lists.pop("untouched", [])
    return {
        variant: median(value - untouched for value, untouched in zip(values, base, strict=False))
        for variant, values in lists.items()
        if base
    }


def _spread(row: _Row, figures: Mapping[str, Mapping[str, list[float]]]) -> float | None:
    lists = [by_key[row.key] for by_key in figures.values() if len(by_key.get(row.key, ())) > 1]
    return max(((max(values) - min(values)) / median(values) for values in lists), default=None)


def _verdict(row: _Row, values: Values) -> tuple[str, str]:
    if row.limit is None:
        return "", ""
    limit, words = row.limit
    try:
        met = values["ours"] <= limit(values)
    except KeyError:
        return words, _NONE
    return words, "yes" if met else "no"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
