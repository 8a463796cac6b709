"""Secrets in texts that others wrote."""

from __future__ import annotations

import pytest

from mackerel_otel_server.settings.masking import MARK, Mask


@pytest.mark.parametrize(
    "odd", ["&apo\N{LATIN SMALL LETTER LONG S};", "%\N{KELVIN SIGN}1", "\\u\N{LATIN SMALL LETTER LONG S}"]
)
def test_a_letter_that_is_taken_for_another_one_where_case_is_ignored_hides_no_secret(odd: str) -> None:
    assert Mask(["s3cret-words"])(f"{odd} s3cret-words {odd}") == f"{odd} {MARK} {odd}"
