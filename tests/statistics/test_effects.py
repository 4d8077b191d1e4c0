"""Effect sizes are their definitions, their intervals cover, and nothing is stated where nothing is known."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from esa.statistics.effects import auc, cliffs_delta, conservative_ratio, z_score
from esa.statistics.proportions import wilson_interval


def test_z_is_in_standard_deviations_of_the_draws() -> None:
    """Three deviations above the mean is three; the deviation divides by R - 1."""
    draws = [1.0, 2.0, 3.0]
    assert z_score(5.0, draws) == pytest.approx(3)
    assert z_score(-1.0, draws) == pytest.approx(-3)


@pytest.mark.parametrize(
    ("value", "draws"),
    [(1.0, []), (1.0, [0.5]), (1.0, [0.1, 0.1, 0.1]), (math.inf, [0.0, 1.0]), (1.0, [0.0, math.inf]), (1.0, [0.0, math.nan])],
)  # fmt: skip
def test_no_z_without_spread(value: float, draws: list[float]) -> None:
    """One draw, equal draws and broken ones give no z, not an infinite one."""
    assert z_score(value, draws) is None


def test_delta_and_area_count_pairs() -> None:
    """Delta and the area are the naive counts over pairs, ties half, and Mann and Whitney's U."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 13).tolist(), rng.integers(0, 7, 17).tolist()
    pairs = [(a > b) - (a < b) for a in x for b in y]
    delta, area = cliffs_delta(x, y), auc(x, y)
    assert delta.value == pytest.approx(sum(pairs) / len(pairs))
    assert area.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / (13 * 17))
    assert (area.low, area.high) == pytest.approx(((1 + delta.low) / 2, (1 + delta.high) / 2))
    assert cliffs_delta(y, x).value == -delta.value
    assert cliffs_delta(y, x)[1:] == pytest.approx((-delta.high, -delta.low))


def test_delta_variance_by_hand() -> None:
    """On four values the interval is that of the formula worked out on paper: d = 1/2, v = 1/4, t = 4.3027."""
    found = cliffs_delta([2.0, 4.0], [1.0, 3.0])
    t = 4.302652729911275
    d, v = 0.5, 0.25
    # rows of d_ij: (1, -1), (1, 1); row means 0, 1, column means 1, 0: v = (4*.5 + 4*.5 - 3) / 4
    reach = t * v**0.5 * (1 - 2 * d**2 + d**4 + t**2 * v) ** 0.5
    assert found.value == d
    assert found.low == pytest.approx((d - d**3 - reach) / (1 - d**2 + t**2 * v))
    assert found.high == pytest.approx(min(1, (d - d**3 + reach) / (1 - d**2 + t**2 * v)))


def test_the_deltas_interval_covers() -> None:
    """Of 400 pairs of shifted normal samples about 95 % of the intervals hold the true delta."""
    rng, inside = np.random.default_rng(1), 0
    truth = 2 * stats.norm.cdf(0.8 / 2**0.5) - 1
    for _ in range(400):
        _, low, high = cliffs_delta(rng.normal(0.8, 1, 20), rng.normal(0, 1, 25))
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_apart_and_empty_samples() -> None:
    """Samples apart have delta one and still an interval; single values have none, empty ones no delta."""
    low, high = cliffs_delta([5.0] * 20, [1.0] * 30)[1:]
    assert (high, cliffs_delta([1.0] * 20, [5.0] * 30).low) == (1, -1)
    assert 0.6 < low < 0.9
    assert cliffs_delta([1.0] * 20, [5.0] * 30).high == pytest.approx(-low)
    assert cliffs_delta([math.inf], [1.0, 2.0]) == (1, None, None)
    assert cliffs_delta([], [1.0]) is None
    assert auc([1.0], []) is None
    assert auc([1.0, 2.0], [1.0, 2.0]).value == 0.5


def test_the_windows_of_many_draws_fit_in_memory() -> None:
    """A thousand windows against those of 199 draws: no matrix of all pairs, which alone would take 1.6 GB."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.5, 1, 1000), rng.normal(0, 1, 199_000)
    tracemalloc.start()
    try:
        found = cliffs_delta(x, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64e6
    assert found.value == pytest.approx(2 * stats.norm.cdf(0.5 / 2**0.5) - 1, abs=0.05)


@pytest.mark.parametrize(
    ("low", "high", "floor", "ratio"),
    [
        (3.0, 0.5, 0.1, 6.0),
        (3.0, 0.05, 0.1, 30.0),  # the floor is what is below the line
        (3.0, -0.2, 0.1, 30.0),
        (-1.0, 0.5, 0.1, 0.0),  # the effect may be none
        (3.0, 0.5, None, 6.0),
        (3.0, -0.2, None, None),  # nothing to divide by
        (3.0, 0.0, 0.0, None),
        (None, 0.5, 0.1, None),
        (3.0, None, 0.1, None),
        (3.0, math.inf, 0.1, 0.0),
    ],
)
def test_the_ratio_stays_on_the_cautious_end(low: float, high: float, floor: float, ratio: float | None) -> None:
    """The low end over the larger of reference and floor, zero at least, and none where nothing stands below."""
    assert conservative_ratio(low, high, floor) == (None if ratio is None else pytest.approx(ratio))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (120, 2000)])
def test_wilson_solves_its_equation(successes: int, trials: int) -> None:
    """At either end the observed share is exactly z standard errors away, and the ends stay within [0, 1]."""
    ends = wilson_interval(successes, trials, 0.9)
    z, share = stats.norm.ppf(0.95), successes / trials
    assert 0 <= ends.low <= share <= ends.high <= 1
    for end in ends:
        if end not in (0, 1):
            assert abs(share - end) == pytest.approx(z * (end * (1 - end) / trials) ** 0.5)
    assert ends.high > ends.low
    assert wilson_interval(0, 0) == (None, None)
