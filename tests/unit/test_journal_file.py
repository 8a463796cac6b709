"""The format of a journal's file: what is written is read, and what is damaged harms nobody."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mackerel_otel_server.pipeline import journal_file
from mackerel_otel_server.pipeline.journal_file import (
    ABOUT,
    MAGIC,
    MARK_BYTES,
    RESOURCE,
    SCOPE,
    SETTLED,
    SPANS,
    Contents,
    NotAJournalError,
)
from mackerel_otel_server.pipeline.wire import delimited

MARK = b"\x91mark\x00\xff\x07"
ABOUT_IT: dict[str, Any] = {"pid": 4711, "endpoint": "http://127.0.0.1:1/v1/traces", "salt": "00", "fingerprint": "f"}
BEGINNING = journal_file.beginning(MARK, ABOUT_IT, b"the resource", b"its schema")
SCOPES = {0: (b"scope one", b""), 7: (b"scope two", b"schema of two")}


def span(text: bytes) -> bytes:
    return b"\x12" + delimited(text)


def spans_record(number: int, *spans: tuple[int, bytes], mark: bytes = MARK) -> bytes:
    payload = b"".join(journal_file.pack_scope_number(scope) + data for scope, data in spans)
    return journal_file.record(mark, SPANS, number, payload)


def file_of(records: dict[int, list[tuple[int, bytes]]]) -> bytes:
    scopes = (journal_file.scope_record(MARK, number, scope) for number, scope in SCOPES.items())
    return b"".join(
        (BEGINNING, *scopes, *(spans_record(number, *spans) for number, spans in records.items())),
    )


RECORDS = {number: [(0, span(b"%d" % number)), (7, span(b"second of %d" % number))] for number in range(1, 6)}
WHOLE = file_of(RECORDS)
texts = st.binary(max_size=300) | st.just(MARK) | st.just(WHOLE) | st.just(spans_record(1, (0, span(b"another"))))
"""What may be in a span. Also what looks like a file."""
records = st.dictionaries(
    st.integers(0, 10) | st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 65535), texts.map(span)), max_size=4),
    max_size=5,
)


def all_spans(contents: Contents) -> set[bytes]:
    return {data for record in contents.spans.values() for _, data in record}


def read_or_refused(data: bytes) -> Contents | None:
    try:
        return journal_file.read(data)
    except NotAJournalError:
        return None


@settings(deadline=None)
@given(records)
def test_what_is_written_is_read(written: dict[int, list[tuple[int, bytes]]]) -> None:
    contents = journal_file.read(file_of(written))
    assert contents.spans == written
    assert len(contents) == sum(map(len, written.values()))
    assert (contents.about, contents.resource, contents.schema_url) == (ABOUT_IT, b"the resource", b"its schema")
    assert contents.scopes == SCOPES
    assert not contents.is_damaged


@settings(deadline=None)
@given(records, st.sets(st.integers(0, 10) | st.integers(0, 2**64 - 1), min_size=1, max_size=9), st.randoms())
def test_settled_records_are_left_out_also_those_that_nobody_has_written(
    written: dict[int, list[tuple[int, bytes]]], strangers: set[int], random: Any
) -> None:
    settled = {number for number in written if random.random() < 0.5}
    contents = journal_file.read(file_of(written) + journal_file.settled_record(MARK, settled | strangers))
    assert contents.spans == {n: spans for n, spans in written.items() if n not in settled | strangers}
    assert not contents.is_damaged


@settings(deadline=None)
@given(st.binary(max_size=2000))
@example(b"")
@example(MAGIC)
@example(MAGIC + MARK)
@example(MAGIC[:-2] + b"2\n" + MARK + WHOLE[len(MAGIC) + MARK_BYTES :])
def test_any_bytes_are_no_journal(data: bytes) -> None:
    with pytest.raises(NotAJournalError):
        journal_file.read(data)


@settings(deadline=None)
@given(st.binary(max_size=500))
def test_any_bytes_behind_a_good_beginning_take_nothing_along(rubbish: bytes) -> None:
    contents = journal_file.read(WHOLE + rubbish)
    assert contents.spans == RECORDS
    assert contents.is_damaged == bool(rubbish)


@settings(deadline=None)
@given(st.integers(0, len(WHOLE)))
def test_a_file_that_is_cut_off_anywhere_has_the_records_before_that(length: int) -> None:
    contents = read_or_refused(WHOLE[:length])
    if contents is None:
        assert length < len(BEGINNING)
        return
    count = len(contents.spans)
    assert contents.spans == dict(list(RECORDS.items())[:count])
    ends = [len(file_of(dict(list(RECORDS.items())[:number]))) for number in range(len(RECORDS) + 1)]
    assert count == sum(end <= length for end in ends[1:])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bits_never_make_another_span(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for position, bits in flips:
        damaged[position] ^= bits
    contents = read_or_refused(bytes(damaged))
    if contents is not None:
        assert all_spans(contents) <= {data for record in RECORDS.values() for _, data in record}
        assert contents.about == ABOUT_IT
        assert contents.resource == b"the resource"
        assert contents.scopes.items() <= SCOPES.items()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([ABOUT, RESOURCE, SCOPE, SPANS, SETTLED, 0, 6, 255]),
            st.integers(0, 2**64 - 1),
            st.binary(max_size=100)
            | st.sampled_from([b"[]", b"5", b"[1]", b"null", b'{"pid": []}', b"[[[[" * 30_000, b"\xff", b'"x"', b"NaN"])
            | st.binary(max_size=20).map(span),
        ),
        max_size=5,
    )
)
@example([(ABOUT, 0, b"[1]")])
@example([(ABOUT, 0, b"[" * 100_000)])
@example([(ABOUT, 0, b"9" * 10_000)])
@example([(SPANS, 9, b"\x00\x00\x12" + b"\xff" * 20)])
@example([(SCOPE, 9, struct.pack("<I", 2**32 - 1) + b"x")])
@example([(SETTLED, 0, b"\x01\x00\x00\x00\x02")])
def test_records_that_somebody_has_made_with_a_good_checksum_are_read_or_skipped(
    made: list[tuple[int, int, bytes]],
) -> None:
    numbers = {number for kind, number, _ in made if kind in {SPANS, SETTLED}}
    contents = read_or_refused(WHOLE + b"".join(journal_file.record(MARK, *one) for one in made))
    assert contents is None or all(type(value) in {str, int} for value in contents.about.values())
    if contents is not None and not any(kind == SETTLED for kind, _, _ in made):
        untouched = {number: spans for number, spans in RECORDS.items() if number not in numbers}
        assert untouched.items() <= contents.spans.items()


def test_words_that_could_forge_a_line_of_the_log_are_left_out() -> None:
    about = {"pid": 1, "endpoint": "http://x\nlost 0", "host": "\x1b[31m", "more": {"a": 1}, "flag": True}
    contents = journal_file.read(journal_file.beginning(MARK, about, b"r", b""))
    assert contents.about == {"pid": 1}


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_a_torn_record_in_the_middle_costs_only_itself(cut: int) -> None:
    torn = spans_record(99, (0, span(b"torn by a kill in the middle of write()")))
    contents = journal_file.read(WHOLE + torn[:-cut] + spans_record(100, (0, span(b"after it"))))
    assert contents.spans == RECORDS | {100: [(0, span(b"after it"))]}
    assert contents.is_damaged


def test_the_text_of_a_span_that_looks_like_a_record_is_text() -> None:
    # Whoever writes a span does not know the mark, which is another one in each file.
    text = span(spans_record(2, (0, span(b"forged")), mark=b"anothers"))
    whole = spans_record(1, (0, text))
    assert journal_file.read(BEGINNING + whole).spans == {1: [(0, text)]}
    torn = journal_file.read(BEGINNING + whole[:-1] + spans_record(3, (0, span(b"x"))))
    assert torn.spans == {3: [(0, span(b"x"))]}


def test_spans_of_an_unknown_scope_are_read() -> None:
    contents = journal_file.read(BEGINNING + spans_record(1, (65535, span(b"x"))))
    assert contents.spans == {1: [(65535, span(b"x"))]}


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00\x00\x12" + b"\xff" * 20,  # a length that does not end
        b"\x00\x00\x12\x05abc",  # a length beyond the end
        b"\x00\x00\x0a\x01a",  # another field
        b"\x00",
        b"\x00\x00\x12",
    ],
)
def test_a_record_that_does_not_consist_of_spans_is_skipped_as_a_whole(payload: bytes) -> None:
    made = journal_file.record(MARK, SPANS, 9, b"\x00\x00" + span(b"good") + payload)
    contents = journal_file.read(WHOLE + made)
    assert contents.spans == RECORDS
    assert contents.is_damaged


def test_unknown_kinds_of_records_are_left_to_later_releases() -> None:
    later = journal_file.record(MARK, 200, 1, b"of a later release")
    contents = journal_file.read(BEGINNING + later + spans_record(1, (0, span(b"x"))))
    assert contents.spans == {1: [(0, span(b"x"))]}
    assert not contents.is_damaged


def test_settled_records_beyond_all_counting_do_not_hold_anybody_up() -> None:
    everything = journal_file.record(MARK, SETTLED, 0, struct.pack("<QQ", 0, 2**64 - 1) * 500_000)
    strangers = journal_file.record(MARK, SETTLED, 0, struct.pack("<QQ", 10_000, 2**64 - 1) * 500_000)
    many = {number: [(0, span(b"x"))] for number in range(10_000)}
    began = time.process_time()
    assert journal_file.read(file_of(many) + strangers).spans == many
    assert journal_file.read(file_of(many) + everything).spans == {}
    assert time.process_time() - began < 5


@pytest.mark.parametrize("mark", [b"\0" * 8, b"\0\0\x10\0" * 2])
def test_a_file_that_could_begin_a_record_anywhere_does_not_hold_anybody_up(mark: bytes) -> None:
    data = journal_file.beginning(mark, ABOUT_IT, b"r", b"") + mark * 1_000_000
    began = time.process_time()
    journal_file.read(data)
    assert time.process_time() - began < 5


def test_json_of_the_beginning_is_what_a_person_can_read() -> None:
    assert json.dumps(ABOUT_IT).encode() in BEGINNING
