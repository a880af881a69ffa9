"""Texts of numbers."""

import pytest

from shards.text import size_of


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.9, "1 KB"), (4213, "4.21 KB"), (999_499, "999 KB"), (999_500, "1 MB")],
)
def test_a_size_has_three_digits_in_the_unit_that_suits_it(count: float, text: str) -> None:
    assert size_of(count) == text
