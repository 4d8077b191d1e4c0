"""Sizes as people write them."""

import pytest

from esa.errors import EsaError
from esa.scale.sizes import parse_size, parse_sizes, size_words


@pytest.mark.parametrize(
    ("text", "value"), [("7B", 7e9), ("350m", 350e6), ("1.3e9", 1.3e9), ("10 k", 1e4), ("2T", 2e12), ("672", 672.0)]
)
def test_a_size_is_read(text: str, value: float) -> None:
    """A number, with a suffix in either case."""
    assert parse_size(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "7 billion", "-7B", "0", "nan", "1e999", "7BB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """The text and what is allowed are named."""
    with pytest.raises(EsaError) as caught:
        parse_size(text)
    assert caught.value.where == "--to"
    assert caught.value.what == (
        f"'{text}' is no size; allowed: a number above zero, K, M, B or T behind it, as 350M or 7B"
    )


def test_several_sizes_stand_once_each_in_their_order() -> None:
    """Options and commas both set sizes apart."""
    assert parse_sizes(["7B,1B", "7e9"]) == (7e9, 1e9)


@pytest.mark.parametrize(("value", "words"), [(7e9, "7B"), (134_515_008, "135M"), (672, "672"), (None, "-")])
def test_sizes_are_shown_short(value: float | None, words: str) -> None:
    """Three digits and the suffix."""
    assert size_words(value) == words
