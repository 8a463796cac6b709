"""Colour and width, on real pseudo-terminals."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mackerel_otel_server.cli.output import paint, width
from mackerel_otel_server.cli.text import Part, columns, fitted


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream:
        yield stream
    os.close(master)


def test_a_terminal_gets_colour(terminal: TextIO) -> None:
    assert paint("ERROR", "bold", "red", stream=terminal) == "\x1b[1;31mERROR\x1b[0m"


def test_text_without_a_style_or_without_text_gets_no_code(terminal: TextIO) -> None:
    assert paint("GET /", stream=terminal) == "GET /"
    assert paint("", "red", stream=terminal) == ""


def test_a_pipe_gets_none(terminal: TextIO) -> None:
    assert paint("ERROR", "red", stream=io.StringIO()) == "ERROR"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("NO_COLOR", "0"), ("TERM", "dumb")])
def test_a_terminal_that_wants_none_gets_none(
    terminal: TextIO, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert paint("ERROR", "red", stream=terminal) == "ERROR"


def test_an_empty_no_color_is_as_good_as_none(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert paint("ERROR", "red", stream=terminal) == "\x1b[31mERROR\x1b[0m"


def test_standard_output_is_the_one_of_the_moment(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paint("ERROR", "red") == "ERROR"
    monkeypatch.setattr("sys.stdout", terminal)
    assert paint("ERROR", "red") == "\x1b[31mERROR\x1b[0m"


def test_a_style_that_does_not_exist_is_an_error_in_a_pipe_too() -> None:
    with pytest.raises(KeyError, match="purple"):
        paint("ERROR", "purple", stream=io.StringIO())


def test_only_a_terminal_has_a_width(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert width(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "33")
    assert width(terminal) == 33


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), ("GET /", 5), ("鯖", 2), ("サバ", 4), ("ｻﾊﾞ", 3), ("ＧＥＴ", 6), ("か\u3099", 2), ("├─ ", 3), ("🐟", 2)],
)
def test_wide_characters_take_two_columns_and_combining_ones_none(text: str, number: int) -> None:
    assert columns(text) == number


def cut(text: str, limit: int | None) -> str:
    return "".join(part.text for part in fitted([Part(text)], limit))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "鯖を焼く"), (8, "鯖を焼く"), (7, "鯖を..."), (6, "鯖..."), (5, "鯖..."), (4, "..."), (2, ".."), (0, "")],
)
def test_a_cut_never_falls_into_a_wide_character(limit: int | None, expected: str) -> None:
    assert cut("鯖を焼く", limit) == expected


@given(st.lists(st.text(st.characters(codec="utf-8"))), st.integers(0, 60))
def test_what_is_fitted_fits_and_what_fits_is_left_as_it_is(texts: list[str], limit: int) -> None:
    before = "".join(texts)
    after = "".join(part.text for part in fitted([Part(text) for text in texts], limit))
    assert columns(after) <= limit
    assert after == before or (columns(before) > limit and before.startswith(after.rstrip(".")))
