"""Planning from a pilot: how many windows a paired test needs, and how many draws a Monte-Carlo test."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from esa.statistics.bootstrap import ratios

MOST_WINDOWS = 10_000_000
MOST_DRAWS = 1_000_000
Alternative = Literal["greater", "two-sided"]


def window_sd(differences: Sequence[float], num_tokens: Sequence[int]) -> float | None:
    """Return the standard deviation of one window's mean difference per token, windows weighted by their tokens.

    ``sd = s sqrt(N)``, s the linearised standard error of ``sum d / sum T`` (see ``paired_interval``); with equal
    windows the ordinary one, N - 1 below the line. Args: NLL sums per window. Returns: nats; None under two windows.
    """
    if len(differences) < 2:
        return None
    error = ratios(np.asarray(differences, dtype=float)[None], np.asarray(num_tokens, dtype=float)[None])[1]
    return float(error[0]) * math.sqrt(len(differences))


def power_of(
    num_windows: int, effect: float, sd: float, alpha: float = 0.05, alternative: Alternative = "two-sided"
) -> float:
    """Return the power of the paired t test: the probability of ``t > t_(1 - alpha / sides, N - 1)``.

    t is non-central with N - 1 degrees of freedom and ``effect / sd * sqrt(N)``. A two-sided test that rejects on the
    wrong side counts as a miss. Returns: in [0, 1]; 0 under two windows.
    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2; statsmodels' TTestPower.
    """
    from statsmodels.stats.power import TTestPower

    if num_windows < 2:
        return 0.0
    size = alpha / (2 if alternative == "two-sided" else 1)
    if effect * math.sqrt(num_windows) > 30 * sd and num_windows > 10:
        return 1.0  # beyond any doubt, and where the non-central t of SciPy is not always a number
    return float(TTestPower().power(abs(effect) / sd, num_windows, size, alternative="larger"))


def windows_needed(
    effect: float, sd: float, power: float = 0.8, alpha: float = 0.05, alternative: Alternative = "two-sided"
) -> int | None:
    """Return the fewest windows whose paired test sees an effect with the given power (see ``power_of``).

    Args: effect and sd (``window_sd`` of a pilot) in the same unit. Returns: at least 2; None where more than ten
    million would be needed, as for no effect. Raises: ValueError where sd is not above zero.
    Cost: under 50 evaluations of the non-central t distribution.
    """
    if not sd > 0:
        raise ValueError(f"the standard deviation is {sd}; allowed: above 0")

    def enough(count: int) -> bool:
        return power_of(count, effect, sd, alpha, alternative) >= power

    return _fewest(enough, 2, MOST_WINDOWS)


def draws_needed(alpha: float) -> int:
    """Return the fewest draws with which a Monte-Carlo test can reach alpha at all: the smallest R, 1 / (R + 1) <= alpha."""
    count = max(0, math.ceil(1 / alpha) - 2)
    while 1 / (count + 1) > alpha:
        count += 1
    return count


def monte_carlo_power(num_draws: int, exceedance: float, alpha: float = 0.05) -> float:
    """Return the power of a Monte-Carlo test: ``P(B <= alpha (R + 1) - 1)``, B binomial (R, exceedance).

    ``exceedance`` is the probability that one random draw is as large as the tested value; at the null, where it is
    uniform, the test has size alpha. Returns: in [0, 1]; 0 where R draws cannot reach alpha.
    """
    from scipy.special import bdtr

    most = math.floor(alpha * (num_draws + 1) * (1 + 1e-12)) - 1
    if most < 0:
        return 0.0
    return float(bdtr(most, num_draws, exceedance)) if most < num_draws else 1.0


def draws_for_power(exceedance: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the fewest draws with ``monte_carlo_power`` of at least the given power, of the counts that use alpha up.

    Between two R with ``alpha (R + 1)`` whole, more draws only lower the power: those R are looked at, along which it
    rises. None where even a million draws do not do, as for an exceedance of alpha and more.
    """
    if exceedance >= alpha:
        return None

    def count(used: int) -> int:
        return max(draws_needed(alpha), math.ceil(used / alpha * (1 - 1e-12)) - 1)

    used = _fewest(lambda used: monte_carlo_power(count(used), exceedance, alpha) >= power, 1, int(MOST_DRAWS * alpha))
    return None if used is None else count(used)


def _fewest(enough: Callable[[int], bool], low: int, most: int) -> int | None:
    """Return the smallest count from ``low`` that is enough, doubling then halving; None beyond ``most``."""
    high = low
    while not enough(high):
        if high >= most:
            return None
        low, high = high + 1, min(most, 2 * high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
