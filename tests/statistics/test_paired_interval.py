"""The interval of a paired difference covers the truth as often as it says."""

import tracemalloc

import numpy as np
import pytest

from esa.statistics.bootstrap import paired_bca_interval, paired_interval


def draw(rng: np.random.Generator, number: int, unequal: bool) -> tuple[list[float], list[float], list[int]]:
    """Return NLL sums of changed and intact windows whose mean difference per token is one half."""
    tokens = rng.integers(5, 30, number) if unequal else np.full(number, 11)
    base = rng.normal(3, 0.5, number) * tokens
    return (base + rng.normal(0.5, 0.3, number) * tokens).tolist(), base.tolist(), tokens.tolist()


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("number", [8, 16])
def test_coverage(number: int, unequal: bool) -> None:
    """Of 300 simulated campaigns about 95 % have the true difference inside, with equal and unequal windows."""
    rng = np.random.default_rng(0)
    inside = 0
    for name in range(300):
        low, high = paired_interval(*draw(rng, number, unequal), 0, str(name))
        inside += low <= 0.5 <= high
    assert 0.90 <= inside / 300 <= 0.99


def test_the_interval_narrows_with_windows() -> None:
    """Four times the windows give about half the width."""
    rng = np.random.default_rng(1)
    width = {}
    for number in (16, 64):
        spans = [paired_interval(*draw(rng, number, False), 0, str(name)) for name in range(30)]
        width[number] = np.mean([high - low for low, high in spans])
    assert 0.35 < width[64] / width[16] < 0.6


@pytest.mark.parametrize("number", [0, 1, 2])
def test_under_three_windows_there_is_none(number: int) -> None:
    """Fewer than three windows say nothing of the spread: null."""
    assert paired_interval([5.0] * number, [4.0] * number, [3] * number, 0, "a") == (None, None)


@pytest.mark.parametrize(("shift", "tokens"), [(0.0, [4, 7, 5]), (0.25, [4, 8, 16]), (0.1, [11, 11, 11, 11])])
def test_equal_differences_have_no_width(shift: float, tokens: list[int]) -> None:
    """Windows that all differ by the same per token, or not at all, give that number as both ends."""
    base = [2.0 * t + 0.3 for t in tokens]
    low, high = paired_interval([b + shift * t for b, t in zip(base, tokens)], base, tokens, 0, "a")
    assert low == high == pytest.approx(shift)


def test_few_windows_give_sane_intervals() -> None:
    """Resamples of one window over and over have no spread but rounding, and must not blow the interval up."""
    rng = np.random.default_rng(0)
    for name in range(40):
        low, high = paired_interval(*draw(rng, 3, False), 0, str(name))
        assert high - low < 1e3


def test_the_seed_and_the_case_fix_the_resamples() -> None:
    """The same case has the same interval whenever it is computed; another seed moves it a little."""
    given = draw(np.random.default_rng(2), 12, True)
    assert paired_interval(*given, 0, "a") == paired_interval(*given, 0, "a")
    assert paired_interval(*given, 0, "a") != paired_interval(*given, 1, "a")
    assert paired_interval(*given, 0, "a") == pytest.approx(paired_interval(*given, 1, "a"), rel=0.2)


def test_a_wider_level_is_a_wider_interval() -> None:
    """Ninety-nine percent reaches further than ninety."""
    given = draw(np.random.default_rng(3), 12, True)
    narrow, wide = (paired_interval(*given, 0, "a", level) for level in (0.9, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_its_numbers_are_what_they_were() -> None:
    """Tables written before rest on these digits: the resamples and the way they are summed are part of the contract."""
    changed, base = (
        [34.5, 20.75, 31.0, 35.25, 17.5, 23.0, 33.75, 18.5],
        [33.0, 20.5, 28.25, 35.5, 16.0, 22.75, 30.5, 18.0],
    )
    found = paired_interval(changed, base, [11, 7, 9, 12, 5, 8, 10, 6], 0, "case")
    assert found == pytest.approx((0.01387514110911578, 0.32032782407114846), rel=1e-12)


def test_resamples_are_an_argument() -> None:
    """Fewer resamples are another draw of about the same interval, many more the same to a percent."""
    given = draw(np.random.default_rng(2), 12, True)
    few, usual, many = (paired_interval(*given, 0, "a", resamples=count) for count in (99, 1999, 20_000))
    assert few != usual
    assert paired_interval(*given, 0, "a", 0.95, 1999) == usual
    assert usual == pytest.approx(many, rel=0.1)


def test_ten_thousand_items_take_megabytes() -> None:
    """The items of a whole task are resampled a few resamples at a time: memory does not grow with their product."""
    values = np.random.default_rng(0).integers(0, 2, (2, 10_000)).astype(float).tolist()
    for interval in (paired_interval, paired_bca_interval):
        tracemalloc.start()
        try:
            interval(*values, [1] * 10_000, 0, "a", 0.95, 500)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 30e6
