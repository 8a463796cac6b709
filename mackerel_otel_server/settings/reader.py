"""The variables of one environment, each as the kind of value that it stands for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from mackerel_otel_server.settings.catalogue import URLS
from mackerel_otel_server.settings.masking import Secret
from mackerel_otel_server.settings.shown import shown

if TYPE_CHECKING:
    from mackerel_otel_server.settings.catalogue import Variable

_LARGEST: Final = 10**9
"""Of any number: what is larger, or infinite, is a mistake, and more than a thread can wait."""
# RFC 9110, 5.1 and 5.5.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class Reader:
    """Reads what is in the catalogue, and collects what is wrong instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.wrong: set[str] = set()
        """The variables that have a problem of their own."""

    def problem(self, name: str, sentence: str) -> None:
        """Note what is wrong with a variable, once."""
        self.wrong.add(name)
        if sentence not in self.problems:
            self.problems.append(sentence)

    def raw(self, variable: Variable) -> tuple[str, str]:
        """Return name and value of the first that is set, white space included."""
        for name in variable.names:
            if value := self._environ.get(name, ""):
                return name, _kept(variable, value)
        return variable.names[-1], ""

    def first(self, variable: Variable) -> tuple[str, str]:
        """Return name and value of the first that is set, or the last name and an empty value.

        Without surrounding white space; empty equals unset.
        """
        for name in variable.names:
            if value := self._text(name, variable):
                return name, _kept(variable, value)
        return variable.names[-1], ""

    def text(self, variable: Variable) -> str:
        """Return the value alone."""
        return self.first(variable)[1]

    def _text(self, name: str, variable: Variable) -> str:
        value = self._environ.get(name, "").strip()
        if not _is_text(value):
            self.problem(name, f"{_given(variable, name, value)} is not UTF-8 text; type it again")
            return ""
        return value

    def boolean(self, variable: Variable) -> None:
        """Check that it is true or false."""
        name, value = self.first(variable)
        if value.lower() not in ("", "true", "false"):
            self.problem(
                name, f"{seen(variable, name, value)} is neither true nor false; type one of them, or unset it"
            )

    def integer(self, variable: Variable, *, minimum: int, default: int | None = None) -> int:
        """Read a whole number; the default is the catalogue's where none is given."""
        return int(self._number(variable, int, minimum, f"a whole number of at least {minimum}", default))

    def number(self, variable: Variable, *, minimum: float) -> float:
        """Read a number."""
        return float(self._number(variable, float, minimum, f"a number of at least {minimum:g}", None))

    def _number(
        self,
        variable: Variable,
        convert: Callable[[str], float],
        minimum: float,
        expected: str,
        default: float | None,
    ) -> float:
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
            self.problem(name, f"{seen(variable, name, value)} is not {expected}; correct it, or {unset}")
            return default
        return number

    def choice(self, variable: Variable, choices: tuple[str, ...]) -> str:
        """Read one of several words, whatever their case."""
        name, value = self.first(variable)
        if value and value.lower() not in choices:
            self.problem(name, f"{seen(variable, name, value)} is not known; type one of {', '.join(choices)}")
        return value.lower() or variable.default

    def names(self, variable: Variable) -> tuple[str, ...]:
        """Read ``name,name``."""
        return tuple(filter(None, (part.strip() for part in self.text(variable).split(","))))

    def pattern(self, *variables: Variable, flags: int = 0) -> re.Pattern[str] | None:
        """Read ``regex,regex`` of all these variables, as OpenTelemetry Python has it: what any of them finds."""
        parts = [(variable, part) for variable in variables for part in self.names(variable)]
        if not all([self._is_pattern(*one) for one in dict.fromkeys(parts)]):  # noqa: C419 - all at once
            return None
        return re.compile("|".join(part for _, part in parts), flags) if parts else None

    def _is_pattern(self, variable: Variable, part: str) -> bool:
        try:
            re.compile(part)
        except re.error as error:
            name = variable.name
            self.problem(name, f"{name}: {shown(variable, part)!r} is not a regular expression ({error}); correct it")
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
            self.problem(name, f"{given} cannot be read ({reason}); name a PEM file that this user may read")
            return None

    def pairs(self, variable: Variable) -> dict[str, str]:
        """Read ``key=value,key=value`` with percent-encoded values, as the OpenTelemetry specification has it."""
        pairs: dict[str, str] = {}
        variable_name, text = self.first(variable)
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                given = "an item" if variable.secret else repr(shown(variable, item))
                self.problem(
                    variable_name,
                    f"{variable_name}: {given} is not of the form key=value; separate items with commas",
                )
                continue
            name, value = unquote(key.strip()), unquote(value.strip())
            # Either would be refused on its way, in an error that shows it.
            if variable.secret and not _FIELD_NAME.fullmatch(name):
                self.problem(
                    variable_name,
                    f"{variable_name}: the name of an item is not a header's (it is not shown, it may be a secret); "
                    "type name=value,name=value without quotes",
                )
                continue
            if variable.secret and not _FIELD_VALUE.fullmatch(value):
                self.problem(
                    variable_name,
                    f"{variable_name}: the value of {name!r} holds a line break or a control character; remove it",
                )
                continue
            pairs[name] = _kept(variable, value)
        return pairs


def seen(variable: Variable, name: str, value: str) -> str:
    """Return ``NAME='value'``, with a mark where the value may be a secret."""
    return f"{name}={shown(variable, value)!r}"


def _given(variable: Variable, name: str, value: str) -> str:
    return seen(variable, name, value) if shown(variable, value) == value else name


def _kept(variable: Variable, value: str) -> str:
    return Secret(value) if variable.secret or variable in URLS else value


def _is_text(value: str) -> bool:
    # Bytes of the environment that are not UTF-8 arrive as lone surrogates (PEP 383), which no exporter can encode.
    return not any("\ud800" <= character <= "\udfff" for character in value)
