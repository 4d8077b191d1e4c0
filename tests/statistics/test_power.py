"""Plans keep their promise: as many windows or draws as they say give the power they say."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from esa.statistics.permutation import monte_carlo_p
from esa.statistics.power import (
    draws_for_power,
    draws_needed,
    monte_carlo_power,
    power_of,
    window_sd,
    windows_needed,
)


def test_a_textbook_number() -> None:
    """An effect of half a deviation needs 34 pairs at power 0.8 and 5 % two-sided (Cohen 1988), one-sided 27."""
    assert windows_needed(0.5, 1.0) == 34
    assert windows_needed(0.5, 1.0, alternative="greater") == 27
    assert windows_needed(5.0, 10.0) == 34


@pytest.mark.parametrize("size", [0.01, 0.1, 0.45, 1.3, 4.7])
def test_it_is_the_fewest_and_statsmodels(size: float) -> None:
    """One window fewer is not enough, and the number is statsmodels' own solution rounded up."""
    count = windows_needed(size, 1.0)
    assert power_of(count, size, 1.0) >= 0.8
    assert count == 2 or power_of(count - 1, size, 1.0) < 0.8
    if 0.05 < size < 1:
        assert count == int(np.ceil(TTestPower().solve_power(size, power=0.8, alpha=0.05)))


def test_simulated_tests_find_the_effect() -> None:
    """Of 2,000 simulated pilots of the planned size four in five reach p < 0.05."""
    number = windows_needed(0.4, 1.0)
    samples = np.random.default_rng(0).normal(0.4, 1, (2000, number))
    found = np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.03)


def test_power_is_a_number_everywhere() -> None:
    """Where SciPy's non-central t is no number, and at either extreme, the power still rises with the windows."""
    for effect in (1e-4, 0.3, 3.0, 4.754372705593898, 50.0):
        found = [power_of(count, effect, 1.0) for count in (1, 2, 3, 10, 64, 1000, 10**6)]
        assert np.isfinite(found).all()
        assert found == sorted(found)


def test_nothing_to_find_and_nothing_to_measure() -> None:
    """No effect needs more windows than there are; no spread is refused; an effect of either sign needs the same."""
    assert windows_needed(0.0, 1.0) is None
    assert windows_needed(-0.5, 1.0) == 34
    with pytest.raises(ValueError, match="above 0"):
        windows_needed(0.5, 0.0)


@pytest.mark.parametrize(
    ("alpha", "draws"), [(0.05, 19), (0.01, 99), (0.005, 199), (0.5, 1), (0.07, 14), (1.0, 0), (1e-6, 999_999)]
)
def test_draws_to_reach_alpha(alpha: float, draws: int) -> None:
    """As many as make 1 / (R + 1) at most alpha, and no more."""
    assert draws_needed(alpha) == draws
    assert 1 / (draws + 1) <= alpha
    assert draws == 0 or 1 / draws > alpha


@pytest.mark.parametrize("draws", [18, 19, 39, 199])
def test_monte_carlo_power_by_simulation(draws: int) -> None:
    """Tested values that 1 % of random draws exceed are significant as often as announced."""
    rng = np.random.default_rng(0)
    reached = [monte_carlo_p(0.99, rng.random(draws)) <= 0.05 for _ in range(2000)]
    assert np.mean(reached) == pytest.approx(monte_carlo_power(draws, 0.01), abs=0.03)


def test_the_null_has_size_alpha() -> None:
    """Averaged over a uniform exceedance the test rejects in alpha of the cases."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    assert np.mean([monte_carlo_power(199, share) for share in grid]) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("exceedance", [0.0, 0.001, 0.005, 0.01, 0.02, 0.04])
def test_draws_for_power_are_the_fewest(exceedance: float) -> None:
    """No smaller number of draws reaches the power."""
    found = draws_for_power(exceedance)
    powers = [monte_carlo_power(count, exceedance) for count in range(found + 1)]
    assert powers[found] >= 0.8
    assert max(powers[:found], default=0) < 0.8
    assert draws_for_power(0.05) is None


def test_unequal_windows_have_a_deviation_too() -> None:
    """Equal windows give the ordinary deviation per token; unequal ones that of the ratio, N times its squared error."""
    d = np.random.default_rng(0).normal(0.2, 1, 40)
    assert window_sd((11 * d).tolist(), [11] * 40) == pytest.approx(d.std(ddof=1))
    tokens = np.random.default_rng(1).integers(5, 30, 100_000)
    many = np.random.default_rng(2).normal(0.2, 1, 100_000) * tokens
    expected = np.sqrt((tokens**2).mean()) / tokens.mean()
    assert window_sd(many.tolist(), tokens.tolist()) == pytest.approx(expected, rel=0.02)
    assert window_sd([1.0], [11]) is None
