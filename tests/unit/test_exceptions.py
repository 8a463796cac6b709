"""What spans say about an exception."""

from __future__ import annotations

import pytest

from mackerel_otel_server.tracing.exceptions import event_attributes, note_mask, type_name


class Own(Exception):  # noqa: N818
    """An application's."""


class Speechless(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Wordless(Exception):  # noqa: N818
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - the case under test


def test_a_type_is_named_with_its_module_unless_it_is_built_in() -> None:
    assert type_name(ValueError()) == "ValueError"
    assert type_name(Own()) == f"{Own.__module__}.Own"


def raised(kind: type[Exception], *arguments: str) -> Exception:
    try:
        raise kind(*arguments)  # noqa: TRY301 - it needs a traceback
    except kind as error:
        return error


def test_an_event_has_type_message_and_stack_trace_and_nothing_deprecated() -> None:
    attributes = event_attributes(raised(Own, "words"))
    assert sorted(attributes) == ["exception.message", "exception.stacktrace", "exception.type"]
    assert attributes["exception.type"] == type_name(Own())
    assert attributes["exception.message"] == "words"
    assert attributes["exception.stacktrace"].startswith("Traceback (most recent call last)")
    assert attributes["exception.stacktrace"].endswith(f"{type_name(Own())}: words\n")


@pytest.mark.parametrize("kind", [Speechless, Wordless])
def test_an_exception_whose_str_fails_is_described_by_what_is_known(kind: type[Exception]) -> None:
    attributes = event_attributes(raised(kind))
    assert attributes["exception.message"] == "?"
    assert attributes["exception.type"] == type_name(kind())
    assert "raise kind(*arguments)" in attributes["exception.stacktrace"]


@pytest.mark.parametrize("after_a_query", [True, False], ids=["after the exception of a query", "alone"])
def test_an_exception_that_traceback_cannot_format_is_described_by_what_is_known(*, after_a_query: bool) -> None:
    class Broken(Exception):  # noqa: N818
        @property
        def __cause__(self) -> None:  # type: ignore[override]
            raise RuntimeError("no cause")

        def __hash__(self) -> int:
            raise RuntimeError("no hash")

    of_a_query = Own("of a query")
    if after_a_query:
        note_mask(of_a_query, str)
        note_mask(Broken("words"), str)
    assert event_attributes(Broken("words")) == {
        "exception.type": type_name(Broken()),
        "exception.message": "words",
        "exception.stacktrace": "?",
    }


@pytest.mark.parametrize("kind", ["message", "notes", "frames"])
def test_a_long_exception_is_cut_in_the_middle(kind: str) -> None:
    error = raised(Own, "begin" + "x" * 10_000_000 + "end") if kind == "message" else raised(Own, "begin end")
    if kind == "notes" and hasattr(error, "add_note"):
        error.add_note("n" * 10_000_000)
    for number in range(200 if kind == "frames" else 0):
        later = raised(Own, f"number {number} " + "y" * 500)
        later.__context__, error = error, later
    attributes = event_attributes(error)
    assert {name: len(text) for name, text in attributes.items() if len(text) > 33_000} == {}
    assert len(attributes["exception.message"]) < 4200
    assert attributes["exception.stacktrace"].startswith("Traceback (most recent call last):")
    if kind == "message":
        assert "in raised" in attributes["exception.stacktrace"]
        assert attributes["exception.message"].startswith("begin")
        assert attributes["exception.message"].endswith("end")
        assert "9995912 characters are left out" in attributes["exception.message"]
