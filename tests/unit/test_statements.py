"""The text of a statement, its operation, and the words of an error, apart from any driver."""

from __future__ import annotations

import tracemalloc
import weakref

import pytest

from mackerel_otel_server.tracing import exceptions
from mackerel_otel_server.tracing.databases.failures import describe
from mackerel_otel_server.tracing.databases.statements import LIMIT, operation_of, text_of
from mackerel_otel_server.tracing.exceptions import event_attributes


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("SELECT 1", "SELECT"),
        ("select\n1", "select"),
        ("  (SELECT 1) UNION (SELECT 2)", "SELECT"),
        ("/* from here */ INSERT INTO t VALUES (1)", "INSERT"),
        ("-- from here\nUPDATE t SET a = 1", "UPDATE"),
        ("/*a*/--b\n/*c*/DELETE FROM t", "DELETE"),
        ("COMMIT", "COMMIT"),
        ("/* never ends SELECT", ""),
        ("-- never ends SELECT", ""),
        ("{call p(?)}", ""),
        ("  \n ", ""),
        ("", ""),
    ],
)
def test_the_operation_is_the_first_word(text: str, operation: str) -> None:
    assert [operation_of(text), operation_of(text)] == [operation, operation]


def test_equal_beginnings_are_not_confused() -> None:
    comment = "/* the same comment before everything */ "
    assert [operation_of(comment + text) for text in ("SELECT 1", "INSERT 1", "SELECT 1")] == [
        "SELECT",
        "INSERT",
        "SELECT",
    ]
    word = "A" * 31
    assert [operation_of(word + text) for text in ("B", "BC 1", " 1", "B")] == [
        word + "B",
        word + "BC",
        word,
        word + "B",
    ]


def test_the_memory_for_operations_is_bounded() -> None:
    tracemalloc.start()
    for number in range(20_000):
        operation_of(f"SELECT {number:0>40}")
        operation_of(f"OPERATION{number} 1")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 500_000


@pytest.mark.parametrize("kind", [str, str.encode, lambda text: bytearray(text.encode())])
def test_a_long_text_is_cut_and_says_so(kind: type[str]) -> None:
    assert text_of(kind("x" * LIMIT), None) == "x" * LIMIT
    assert text_of(kind("x" * (LIMIT + 1)), None) == "x" * LIMIT + "..."


@pytest.mark.parametrize("kind", [str, str.encode, lambda text: bytearray(text.encode())])
def test_megabytes_are_not_copied(kind: type[str]) -> None:
    long = kind("SELECT " + "x" * 5_000_000)
    tracemalloc.start()
    text = text_of(long, None)
    assert operation_of(text) == "SELECT"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * LIMIT


def test_bytes_that_are_no_text_and_what_is_no_query_at_all() -> None:
    assert text_of(b"SELECT '\xff'", None) == "SELECT '\ufffd'"
    assert [text_of(query, None) for query in (None, 7, object())] == ["", "", ""]


class Composed:
    """Many parts, of which a few are enough."""

    def __init__(self) -> None:
        self.rendered = 0

    def as_string(self, context: object) -> str:
        raise AssertionError(context)

    def __iter__(self) -> Composed:
        return self

    def __next__(self) -> SQL:
        self.rendered += 1
        return SQL()


class SQL:
    def as_string(self, _: object) -> str:
        return "SELECT 1; "


def test_a_composed_query_of_endless_parts_is_rendered_up_to_the_limit() -> None:
    composed = Composed()
    text = text_of(composed, None)
    assert len(text) == LIMIT + 3
    assert text.startswith("SELECT 1; SELECT 1; ")
    assert composed.rendered < LIMIT / 10 + 2


def failure(text: str) -> BaseException:
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        raise ValueError(text)
    return caught.value


@pytest.mark.parametrize(
    ("given", "text", "shown"),
    [
        ((("alice",),), "Duplicate entry 'alice' for key 'name'", "Duplicate entry '?' for key 'name'"),
        (({"a": "alice"},), 'Key ("name")=(alice) already exists.', 'Key ("name")=(?) already exists.'),
        (([("bob", 1), ("alice", 2)],), "(1062, \"Duplicate entry 'alice'\")", "(1062, \"Duplicate entry '?'\")"),
        (((b"alice",),), "alice!", "?!"),
        (((4711,),), "row 4711 of 47110", "row ? of 47110"),
        ((("a",),), "no such table: a_b", "no such table: a_b"),
        ((("x" * 100,),), f"Failing row contains ({'x' * 60}...).", "Failing row contains (?...)."),
        ((("line\nline", "O'Neil"),), repr(("O'Neil", "line\nline")), "(\"?\", '?')"),
        (((None, True, "", " "),), "None True", "None True"),
        ((("ab", "abcd"),), "'abcd' 'ab'", "'?' '?'"),
        ((("?",),), "near ?", "near ?"),
        ((), "as it is", "as it is"),
    ],
)
def test_an_error_does_not_repeat_the_values_that_a_query_was_given(
    given: tuple[object, ...], text: str, shown: str
) -> None:
    event = describe(failure(text), given)
    trace = event["exception.stacktrace"]
    assert event["exception.message"] == shown
    assert trace.endswith(f"ValueError: {shown}\n")
    assert trace.startswith("Traceback (most recent call last):\n")


def test_a_generator_of_parameters_is_not_consumed() -> None:
    rows = iter([("alice",)])
    assert describe(failure("alice"), (rows,))["exception.message"] == "alice"
    assert list(rows) == [("alice",)]


class Lazy:
    """A query of an ORM runs when it is shown."""

    def __str__(self) -> str:
        raise AssertionError


def test_a_value_that_is_no_plain_one_is_not_looked_at() -> None:
    assert describe(failure("alice"), ((Lazy(), "alice"),))["exception.message"] == "?"


class Unprintable(str):
    __slots__ = ()

    def __format__(self, specification: str) -> str:
        raise RuntimeError


def test_an_error_shows_none_of_its_words_where_a_value_cannot_be_looked_for() -> None:
    event = describe(failure("alice"), ((Unprintable("alice"),),))
    assert event == {"exception.type": "ValueError", "exception.message": "?", "exception.stacktrace": "?"}


class DriverError(ValueError):
    pass


def fail() -> None:
    raise DriverError("alice in row 7")


LINE = fail.__code__.co_firstlineno + 1


def add() -> None:
    try:
        fail()
    except DriverError as error:
        describe(error, (("alice", 7, LINE),))
        raise RuntimeError(f"not added: {error}") from error


def test_what_is_raised_because_of_a_query_does_not_repeat_its_values_either() -> None:
    with pytest.raises(RuntimeError) as caught:
        add()
    event = event_attributes(caught.value)
    trace = event["exception.stacktrace"]
    assert event["exception.message"] == "not added: ? in row ?"
    assert trace.endswith("RuntimeError: not added: ? in row ?\n")
    assert "DriverError: ? in row ?\n" in trace
    assert f"line {LINE}, in fail" in trace


def test_the_words_of_an_exception_are_hidden_later_too_where_a_value_cannot_be_looked_for() -> None:
    error = DriverError("alice")
    describe(error, ((Unprintable("alice"),),))
    assert event_attributes(error)["exception.message"] == "?"


def test_the_values_of_a_query_are_forgotten_with_its_exception() -> None:
    error = DriverError("alice")
    describe(error, (("alice",),))
    assert error in exceptions._masks  # noqa: SLF001
    held = weakref.ref(exceptions._masks[error])  # noqa: SLF001
    del error
    assert held() is None
