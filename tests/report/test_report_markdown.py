"""Numbers and escapes."""

import math

import polars as pl
import pytest

from esa.report.charts import tick_label
from esa.report.frames import log_ticks
from esa.report.markdown import MISSING, block, code, escape, join, number, percent, size, spread, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING), (math.nan, MISSING), (math.inf, MISSING), (0.0, "0"), (134515008, "134,515,008"), (19.5, "19.50"),
        (104.8, "104.8"), (2612345.6, "2,612,000"), (12345.6, "12,350"), (5.6e9, "5.600e9"), (2.5e-6, "2.500e-6"),
        (0.99996, "1.000"), (9999.96, "10,000"), (-0.0123456, "-0.01235"), (9.99996e-4, "0.001000"), (999.96, "1,000"),
    ],
)  # fmt: skip
def test_a_number_has_four_digits_and_is_never_nan(value: float | None, text: str) -> None:
    """Numbers show 4 significant digits, thousands apart; what is no number is a dash."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"), ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"), ("a & b", "a &amp; b"),
        ("`x`", "\\`x\\`"), ("[x](http://y)", "\\[x\\](http://y)"), ("act_mag", "act_mag"), ("_x_ *y*", "\\_x\\_ \\*y\\*"),
        ("# head", "\\# head"), ("1. item", "1\\. item"), ("3.11.7", "3.11.7"), ("two\nlines", "two lines"), ("- x", "\\- x"),
        (None, MISSING),
    ],
)  # fmt: skip
def test_text_from_files_is_shown_as_it_is(text: str | None, shown: str) -> None:
    """Nothing in a file's text becomes markup."""
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", "`a\\|b`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("", MISSING), (None, MISSING), ("a\nb", "`a b`")],
)
def test_a_code_span_cannot_be_left(text: str | None, shown: str) -> None:
    """Backticks inside lengthen the fence, a bar is escaped, a line break is a space."""
    assert code(text) == shown


def test_a_block_cannot_be_left() -> None:
    """The fence is longer than any run of backticks inside."""
    assert block(["echo ````"], "sh") == "`````sh\necho ````\n`````"


def test_small_forms() -> None:
    """Spreads, shares, sizes, lists of words and tables read as one writes them."""
    assert spread(2.0, 1.0, 3.0) == "2.000 [1.000, 3.000]"
    assert spread(2.0, 2.0, 2.00001) == "2.000"
    assert [percent(x) for x in (0.421, 0.0263, 0.0, None, 1.0)] == ["42.1 %", "2.63 %", "0 %", MISSING, "100 %"]
    assert [size(x) for x in (None, 2**20, 3 * 2**30)] == [MISSING, "1.000 MiB", "3.000 GiB"]
    assert [join(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert table(["a", "b"], [["1", "2"]], "lr") == "| a | b |\n| :-- | --: |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.7, 2.2, [1, 2]), (0.6, 60, [1, 2, 5, 10, 20, 50]), (0.5, 2e5, [1, 10, 100, 1e3, 1e4, 1e5])],
)
def test_log_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    """A short axis has 1-2-5, a long one decades."""
    assert log_ticks(low, high, 7) == pytest.approx(ticks)


def test_log_ticks_are_few_and_labelled() -> None:
    """Twenty decades get no more ticks than asked for, and each has a short label."""
    ticks = log_ticks(1e-12, 1e8, 7)
    assert 3 <= len(ticks) <= 7
    assert [tick_label(x) for x in (1e-7, 0.01, 0.5, 1.0, 1000.0, 1e4, 2e5, 1e6)] == [
        "1e-7", "0.01", "0.5", "1", "1,000", "10,000", "2e5", "1e6",
    ]  # fmt: skip
    assert pl.Series(ticks).is_sorted()
