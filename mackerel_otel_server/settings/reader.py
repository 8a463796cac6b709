"""One environment: each variable as the kind of value that it stands for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from mackerel_otel_server.settings.catalogue import URLS
from mackerel_otel_server.settings.masking import Secret
from mackerel_otel_server.settings.problems import TRACING_IS_OFF, Problem
from mackerel_otel_server.settings.shown_value import shown

if TYPE_CHECKING:
    from mackerel_otel_server.settings.catalogue import Variable

_LARGEST: Final = 10**9
"""The largest number that any variable may have: a larger one is a mistake, and no thread can wait that long."""
# RFC 9110, 5.1 and 5.5.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class Reader:
    """Read variables of the catalogue, and collect what is wrong with them instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.wrong: set[str] = set()
        """The variables that have a problem of their own."""

    def problem(self, name: str, seen: str, cure: str) -> None:
        """Note that a variable has a value with which nothing can be traced."""
        self.add(Problem(name, seen, TRACING_IS_OFF, cure))

    def add(self, problem: Problem) -> None:
        """Note a problem, once."""
        self.wrong.add(problem.variable)
        if problem not in self.problems:
            self.problems.append(problem)

    def warning(self, name: str, seen: str, follows: str, cure: str) -> None:
        """Note what an operator hardly wants, although it is traced that way."""
        self.warnings.append(Problem(name, seen, follows, cure))

    def raw(self, variable: Variable) -> tuple[str, str]:
        """Return name and value of the first name that is set, with the white space around the value."""
        for name in variable.names:
            if value := self._environ.get(name, ""):
                return name, _kept(variable, value)
        return variable.names[-1], ""

    def first(self, variable: Variable) -> tuple[str, str]:
        """Return name and value of the first name that is set, or the last name and an empty value.

        The value has no white space around it. An empty value equals an unset one.
        """
        for name in variable.names:
            value = self._environ.get(name, "").strip()
            # Bytes that are not UTF-8 arrive as lone surrogates (PEP 383). No exporter can encode those.
            if any("\ud800" <= character <= "\udfff" for character in value):
                self.problem(name, f"{_given(variable, name, value)} is not UTF-8 text", "type it again")
            elif value:
                return name, _kept(variable, value)
        return variable.names[-1], ""

    def text(self, variable: Variable) -> str:
        """Return the value alone."""
        return self.first(variable)[1]

    def boolean(self, variable: Variable) -> None:
        """Check that it is true or false."""
        name, value = self.first(variable)
        if value.lower() not in ("", *variable.words):
            self.problem(
                name, f"{seen(variable, name, value)} is neither true nor false", "type one of them, or unset it"
            )

    def integer(self, variable: Variable, *, default: int | None = None) -> int:
        """Read a whole number. Without an argument, the default is that of the catalogue."""
        return int(self._number(variable, int, "a whole number", default))

    def number(self, variable: Variable) -> float:
        """Read a number."""
        return float(self._number(variable, float, "a number", None))

    def _number(self, variable: Variable, convert: Callable[[str], float], kind: str, default: float | None) -> float:
        minimum = variable.minimum or 0
        default = convert(variable.default or "0") if default is None else default
        name, value = self.first(variable)
        if not value:
            return default
        try:
            number = convert(value)
        except ValueError:
            number = math.nan
        if not minimum <= number <= _LARGEST:
            unset = f"unset it for {default:g}" if variable.default else "unset it"
            self.problem(
                name, f"{seen(variable, name, value)} is not {kind} of at least {minimum:g}", f"correct it, or {unset}"
            )
            return default
        return number

    def choice(self, variable: Variable) -> str:
        """Read one of several words, whatever their case."""
        name, value = self.first(variable)
        if value and value.lower() not in variable.words:
            self.problem(
                name, f"{seen(variable, name, value)} is not known", f"type one of {', '.join(variable.words)}"
            )
        return value.lower() or variable.default

    def names(self, variable: Variable) -> tuple[str, ...]:
        """Read ``name,name``."""
        return tuple(filter(None, (part.strip() for part in self.text(variable).split(","))))

    def unknown_word(self, variable: Variable, unknown: Iterable[str], seen_is: str, cure: str) -> None:
        """Note the words of a list that nobody knows, if there are any."""
        if words := ", ".join(repr(shown(variable, word)) for word in unknown):
            name, value = self.first(variable)
            self.problem(name, f"{seen(variable, name, value)}: {words} {seen_is}", cure)

    def pattern(self, variable: Variable, *, flags: int = 0) -> re.Pattern[str] | None:
        """Read ``regex,regex``, as OpenTelemetry Python has it: what any of them finds."""
        parts = self.names(variable)
        if not all([self._is_pattern(variable, part) for part in dict.fromkeys(parts)]):  # noqa: C419 - all at once
            return None
        return re.compile("|".join(parts), flags) if parts else None

    def _is_pattern(self, variable: Variable, part: str) -> bool:
        try:
            re.compile(part)
        except re.error as error:
            name = variable.name
            self.problem(name, f"{name}: {shown(variable, part)!r} is not a regular expression ({error})", "correct it")
            return False
        return True

    def file(self, variable: Variable) -> str | None:
        """Read the name of a file that can be read."""
        name, value = self.first(variable)
        if not value:
            return None
        try:
            with Path(value).open("rb"):
                return value
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "that is no name of a file"
            given = _given(variable, name, value)
            self.problem(name, f"{given} cannot be read ({reason})", "name a PEM file that this user may read")
            return None

    def folder(self, variable: Variable, *, none: str) -> str | None:
        """Read the name of a folder, which need not exist yet; return None where it is the word for no folder."""
        name, value = self.first(variable)
        if value.lower() == none:
            return None
        if value and ("\0" in value or not Path(value).is_absolute()):
            given = _given(variable, name, value)
            self.problem(
                name, f"{given} is no absolute path", f"type a path that begins with /, or {none}, or unset it"
            )
        return value

    def pairs(self, variable: Variable) -> dict[str, str]:
        """Read ``key=value,key=value`` with percent-encoded values, as the OpenTelemetry specification has it."""
        pairs: dict[str, str] = {}
        variable_name = self.first(variable)[0]
        for item in self.names(variable):
            key, equals, value = item.partition("=")
            name, value = unquote(key.strip()), unquote(value.strip())
            if not equals or not key.strip():
                given = "an item" if variable.secret else repr(shown(variable, item))
                wrong, cure = f"{given} is not of the form key=value", "separate items with commas"
            # HTTP would refuse a wrong name or value later, in an error that shows it.
            elif variable.secret and not _FIELD_NAME.fullmatch(name):
                wrong = "the name of an item is not a header's (it is not shown, it may be a secret)"
                cure = "type name=value,name=value without quotes"
            elif variable.secret and not _FIELD_VALUE.fullmatch(value):
                wrong, cure = f"the value of {name!r} holds a line break or a control character", "remove it"
            else:
                pairs[name] = _kept(variable, value)
                continue
            self.problem(variable_name, f"{variable_name}: {wrong}", cure)
        return pairs


def seen(variable: Variable, name: str, value: str) -> str:
    """Return ``NAME='value'``, with a mark where the value may be a secret."""
    return f"{name}={shown(variable, value)!r}"


def _given(variable: Variable, name: str, value: str) -> str:
    return seen(variable, name, value) if shown(variable, value) == value else name


def _kept(variable: Variable, value: str) -> str:
    return Secret(value) if variable.secret or variable in URLS else value
