"""Reliability and equivalence agree with the published example and with statsmodels, and know what they cannot say."""

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_paired

from esa.statistics.equivalence import tost
from esa.statistics.reliability import icc_2_1, split_means, spread

# Shrout and Fleiss 1979, table 2: six targets rated by four judges
JUDGED = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_the_published_example() -> None:
    """Shrout and Fleiss's judges have ICC(2,1) = 0.29; the interval 0.02 to 0.76 is the one that R's psych prints."""
    found = icc_2_1(JUDGED)
    assert found.value == pytest.approx(0.29, abs=0.005)
    assert (found.low, found.high) == pytest.approx((0.019, 0.761), abs=0.001)


def test_the_interval_covers() -> None:
    """Of 300 simulated tables about 95 % of the intervals hold the true share of the cases' variance."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        table = rng.normal(0, 1, (20, 1)) + rng.normal(0, 0.3, (1, 4)) + rng.normal(0, 0.7, (20, 4))
        found = icc_2_1(table)
        inside += found.low <= 1 / (1 + 0.09 + 0.49) <= found.high
    assert 0.92 <= inside / 300 <= 0.985


def test_agreement_is_absolute() -> None:
    """Measurements that agree are 1; the same order at shifted levels is less; noise is about 0."""
    cases = np.arange(6.0)[:, None]
    assert icc_2_1(np.tile(cases, 3)) == (1, 1, 1)
    assert icc_2_1(cases + np.asarray([0.0, 5.0])).value < 0.4
    assert abs(icc_2_1(np.random.default_rng(0).normal(size=(200, 3))).value) < 0.1


@pytest.mark.parametrize(
    "table", [[[1.0, 2.0]], [[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0]], [[1.0, np.nan], [2.0, 3.0]], []]
)
def test_no_correlation_without_variance(table: list[list[float]]) -> None:
    """One case, one measurement, no variance or a broken measurement: there is none."""
    assert icc_2_1(table) is None


def test_spread_over_repeats() -> None:
    """The deviation divides by R - 1; the coefficient is relative to the size of the mean, of either sign."""
    assert spread([-1.0, -2.0, -3.0]) == pytest.approx((-2, 1, 0.5))
    assert spread([2.0]) == (2, None, None)
    assert spread([-1.0, 1.0]) == (0, pytest.approx(2**0.5), None)
    assert spread([]) is None


def test_splits_are_disjoint_and_together_the_whole() -> None:
    """Windows are dealt in turn; weighted by their tokens the splits' means are the mean over all windows."""
    d, tokens = [[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 7.0, 0.0]], [1, 2, 3, 4, 5]
    found = split_means(d, tokens, 2)
    assert found == pytest.approx(np.asarray([[9 / 9, 6 / 6], [0.0, 7 / 6]]))
    assert (found * [9, 6]).sum(axis=1) == pytest.approx([15, 7])
    assert split_means(d, tokens, 5) == pytest.approx(np.asarray(d) / tokens)
    with pytest.raises(ValueError, match="5 windows cannot be dealt to 6 splits"):
        split_means(d, tokens, 6)


@pytest.mark.parametrize("margin", [0.05, 0.2, 0.6])
def test_equal_windows_are_statsmodels(margin: float) -> None:
    """With equal windows p is that of statsmodels' paired TOST, whichever of the two tests decides."""
    rng = np.random.default_rng(1)
    for shift in (-0.3, 0.0, 0.3):
        d = rng.normal(shift, 0.5, 24)
        expected = ttost_paired(d, np.zeros(24), -margin, margin)[0]
        assert tost((11 * d).tolist(), [11] * 24, margin).p_value == pytest.approx(expected, rel=1e-9)


def test_the_verdict_is_the_intervals() -> None:
    """Equivalent where the 90 % interval lies within the margin, beyond where it lies outside, undecided between."""
    rng, seen = np.random.default_rng(2), set()
    for shift in np.linspace(-0.5, 0.5, 101):
        tokens = rng.integers(5, 30, 30)
        found = tost((rng.normal(shift, 0.2, 30) * tokens).tolist(), tokens.tolist(), 0.1)
        within, outside = found.low >= -0.1 and found.high <= 0.1, found.low >= 0.1 or found.high <= -0.1
        assert found.verdict == ("equivalent" if within else "beyond" if outside else "undecided")
        assert (found.p_value <= 0.05) == within
        seen.add(found.verdict)
    assert len(seen) == 3


def test_no_spread_decides_alone() -> None:
    """Windows that all differ alike are inside or outside for certain; one window decides nothing; no margin is refused."""
    assert tost([0.4, 0.8], [40, 80], 0.02) == (0, pytest.approx(0.01), pytest.approx(0.01), "equivalent")
    assert tost([4.0, 8.0], [40, 80], 0.02)[::3] == (1, "beyond")
    assert tost([0.0, 0.0], [40, 80], 0.02).p_value == 0
    assert tost([0.4], [40], 0.02) is None
    with pytest.raises(ValueError, match="above 0"):
        tost([0.4, 0.8], [40, 80], 0.0)


def test_a_negative_correlation_without_degrees_of_freedom_has_no_ends() -> None:
    """Where measurements disagree more than cases the value stands alone: no end is NaN, none lies on the wrong side of it."""
    rng = np.random.default_rng(0)
    alone = 0
    for _ in range(300):
        found = icc_2_1(rng.standard_normal((3, 2)) * [1.0, -1.0] + rng.standard_normal((1, 2)))
        if found is None:
            continue
        alone += found.low is None
        assert (found.low is None) == (found.high is None)
        assert found.low is None or (found.high is not None and found.low <= found.value <= found.high)
    assert 0 < alone < 300


def test_cases_that_are_all_alike_have_no_correlation() -> None:
    """Where every case measures the same, and the measurements differ, none of the variance is the cases' own."""
    assert icc_2_1([[0.3, 0.5]] * 4) == (0.0, None, None)
    assert icc_2_1(np.tile([0.1, 0.7, 0.2], (5, 1))) == (0.0, None, None)
