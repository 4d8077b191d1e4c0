"""A planted dose-response is read back: where it rises, from where top stands apart, where all is broken alike."""

import math

import numpy as np
import pytest

from esa.statistics.dose import monotonicity, page_p, random_ceiling, separation

DOSES = [0.01, 0.02, 0.05, 0.1, 0.2]


def test_a_rising_curve_is_monotone() -> None:
    """Five rising damages have every correlation at one and the smallest p there is, 1 / 5!, in whatever order given."""
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        found = monotonicity([DOSES[i] for i in order], [[0.1, 0.3, 1.0, 4.0, 4.5][i] for i in order])
        assert found == pytest.approx((1, 1, 1 / 120, 1, 1))


def test_a_fall_is_seen() -> None:
    """One fall of four steps: three quarters rise, Kendall's tau counts the pairs, a monotone curve explains less than all."""
    found = monotonicity(DOSES, [0.0, 1.0, 3.0, 2.0, 4.0])
    assert found.rising == 0.75
    assert found.kendall == pytest.approx((9 - 1) / 10)
    assert found.p_value == pytest.approx(5 / 120)  # the identity, and four permutations with one inversion
    assert found.isotonic_r2 == pytest.approx(1 - 0.5 / 10)
    assert monotonicity(DOSES, [0.0, 1.0, 3.0, 2.0, 4.0], tolerance=1.0).rising == 1


def test_a_falling_curve_is_not() -> None:
    """Damage that falls has correlation -1, no p for a rise, and nothing that a rising curve explains; its negative rises."""
    found = monotonicity(DOSES, [5.0, 4.0, 3.0, 2.0, 1.0])
    assert found == pytest.approx((-1, -1, 1, 0, 0))
    assert monotonicity([-dose for dose in DOSES], [5.0, 4.0, 3.0, 2.0, 1.0]).spearman == pytest.approx(1)


def test_equal_doses_count_once() -> None:
    """Repeats of a dose are averaged."""
    assert monotonicity([1.0, 1.0, 2.0, 3.0], [5.0, 1.0, 4.0, 6.0]) == monotonicity([1.0, 2.0, 3.0], [3.0, 4.0, 6.0])


def test_what_does_not_vary_has_no_trend() -> None:
    """A constant damage never falls and has no correlation; one dose, or a broken one, gives nothing."""
    assert monotonicity(DOSES, [0.1] * 5) == (None, None, None, 1.0, None)
    assert monotonicity([0.1], [1.0]) is None
    assert monotonicity(DOSES, [0.0, 1.0, 2.0, 3.0, math.inf]) is None


def test_pages_example() -> None:
    """Three series that all rise alike over four doses: 1 of (4!)^3 orders; shuffled series show nothing."""
    assert page_p([[1, 2, 3, 4], [0, 5, 6, 9], [2, 4, 6, 8]]) == pytest.approx(1 / 24**3, rel=1e-6)
    assert page_p(np.random.default_rng(0).normal(size=(20, 4))) > 0.05
    assert page_p([[1, 2, 3]]) is None
    assert page_p([[1, 2], [1, 2]]) is None


def test_from_where_and_to_where_they_stand_apart() -> None:
    """A window of doses tells top from random: below it neither is harmed, above it both are broken."""
    top = [0.001, 0.1, 1.0, 3.0, 8.0]
    random = random_ceiling([[0.0, 0.002], [0.01, 0.03], [0.2, 0.1], [2.0, 1.0], [7.0, 9.0]])
    found = separation(DOSES, top, random)
    assert found == ((False, True, True, True, False), 0.02, 0.2)
    turned = separation(DOSES[::-1], top[::-1], random[::-1])
    assert turned == found


def test_a_gap_merges_at_its_first_dose() -> None:
    """Where they stand apart again after a gap, they merged at the gap."""
    found = separation(DOSES, [1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 2.0, 0.0])
    assert (found.separates_at, found.merges_at) == (0.01, 0.02)


def test_never_apart_and_never_together() -> None:
    """No dose that separates gives none; none that merges gives none."""
    assert separation(DOSES, [0.0] * 5, [0.1] * 5)[1:] == (None, None)
    assert separation(DOSES, [1.0] * 5, [0.1] * 5)[1:] == (0.01, None)


def test_floor_and_unknown_ends_do_not_separate() -> None:
    """What is below the noise floor is not apart, nor is an interval without ends; a draw that broke the model is above all."""
    found = separation([1, 2, 3, 4], [0.05, None, 5.0, 5.0], [-0.1, 0.0, math.inf, None], floor=0.1)
    assert found == ((False, False, False, False), None, None)
    assert separation([1], [0.05], [-0.1]).separates_at == 1


def test_the_ceiling_of_the_draws() -> None:
    """The largest draw per dose; infinite stays, none without draws, NaN is refused."""
    assert random_ceiling([[0.1, 0.4, 0.2], [math.inf, 0.0], []]) == [0.4, math.inf, None]
    with pytest.raises(ValueError, match="NaN"):
        random_ceiling([[0.1, math.nan]])
