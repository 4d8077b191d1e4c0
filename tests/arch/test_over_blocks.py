"""Intervals over a handful of blocks: by hand, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from esa.arch.comparison.over_blocks import (
    clipped,
    density_ratio_interval,
    mean_interval,
    spearman_interval,
    weighted_interval,
)
from esa.statistics.bootstrap import UNKNOWN, Interval


def test_the_mean_has_students_interval() -> None:
    """It is scipy's t interval, and of two values there is none."""
    values = np.array([1.0, 3.0, 4.0, 8.0])
    assert mean_interval(values, 0.95) == pytest.approx(stats.t.interval(0.95, 3, 4.0, stats.sem(values)))
    assert mean_interval(values[:2], 0.95) == UNKNOWN


def test_a_unit_that_holds_everything_leaves_no_interval() -> None:
    """Five units of which one has nearly all the weight are effectively one; equal weights are the plain mean's."""
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert weighted_interval(values, np.array([597.0, 1, 1, 1, 1]), 0.95) == UNKNOWN
    assert weighted_interval(values, np.full(5, 7.0), 0.95) == pytest.approx(mean_interval(values, 0.95))
    assert weighted_interval(values, np.zeros(5), 0.95) == UNKNOWN


@pytest.mark.parametrize("number", [3, 5, 7])
def test_a_density_ratio_of_few_blocks_is_covered(number: int) -> None:
    """Of 400 simulated models of a few blocks with one true ratio, 91 to 99 % of the intervals hold it."""
    held = 0
    for trial in range(400):
        s, t = np.exp(0.3 * np.random.default_rng(trial).standard_normal((2, number)))
        ends = density_ratio_interval(s, np.ones(number), t, np.ones(number), 0.95)
        assert ends.low is not None
        assert ends.high is not None
        held += ends.low <= 1 <= ends.high
    assert 0.91 <= held / 400 <= 0.99  # the percentile bootstrap: 75 to 88 %


def test_ratios_that_are_not_defined_have_no_interval() -> None:
    """Under three blocks, or without a score, nothing is stated; constant densities leave no doubt."""
    one, none = np.ones(4), np.zeros(4)
    assert density_ratio_interval(one[:2], one[:2], one[:2], one[:2], 0.95) == UNKNOWN
    assert density_ratio_interval(none, one, one, one, 0.95) == UNKNOWN
    assert density_ratio_interval(3 * one, one, one, one, 0.95) == pytest.approx((3.0, 3.0))


def test_spearmans_interval_is_bonett_and_wrights() -> None:
    """By hand at one value; wide for few pairs; none where the order is perfect."""
    half = 1.959963984540054 * np.sqrt((1 + 0.125) / 9)
    assert spearman_interval(0.5, 12, 0.95) == pytest.approx(
        (np.tanh(np.arctanh(0.5) - half), np.tanh(np.arctanh(0.5) + half))
    )
    few = spearman_interval(0.5, 4, 0.95)
    assert few.low is not None
    assert few.low < -0.9
    assert spearman_interval(1.0, 8, 0.95) == spearman_interval(0.2, 3, 0.95) == UNKNOWN


def test_clipping_keeps_to_what_is_possible() -> None:
    """Ends beyond what the quantity can be are cut; what is not known stays so."""
    assert clipped(Interval(-0.2, 1.3), 0.0, 1.0) == Interval(0.0, 1.0)
    assert clipped(UNKNOWN, 0.0, 1.0) == UNKNOWN
