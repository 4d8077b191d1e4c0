"""How heavy a tail is: Hill's estimator from binned counts."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[np.float64]

_FEWEST = 10  # values in the tail: Hill's standard error is the index over the root of their number, 32 % at ten


def hill_tail_index(
    bin_low: Values, bin_high: Values, count: Sequence[int] | npt.NDArray[np.int64], share: float
) -> float | None:
    """Return the tail index a of ``P(X > x) ~ x^-a`` from the largest values, given as counts in bins.

    With m values in the fewest top bins that hold at least the share of all values, and x_0 the lower edge of the
    lowest of these bins, ``a = m / sum over their values of ln(x / x_0)``, every value at its bin's geometric middle.
    Small is heavy: the mean of a tail with a <= 1, and the variance with a <= 2, is carried by its few largest values.
    A share of half of all weights held by a handful of them goes with a near one. The middle costs ``(a w)^2 / 12`` of
    the index, w the bins' width in ln x: 0.04 % at a = 2 in 64 bins a decade. Standard error about ``a / sqrt(m)``.

    Args: bin_low, bin_high, count: bins in any order, those with the same edges adding up; bins at or below zero count as
    values but have no place in a tail. share of the values, above 0 and at most 1. Returns: a; None where the tail has
    fewer than 10 values, lies in a single bin (its width would be all that is seen) or reaches down to zero.
    Raises: ValueError for a share outside (0, 1].
    Source: Hill, "A simple general approach to inference about the tail of a distribution", Annals of Statistics 3, 1975.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of a tail must be above 0 and at most 1, not {share:g}")
    low, high, counts = (
        np.asarray(bin_low, dtype=float),
        np.asarray(bin_high, dtype=float),
        np.asarray(count, dtype=float),
    )
    edges, places = np.unique(low, return_inverse=True)
    numbers = np.bincount(places, weights=counts, minlength=len(edges))
    tops = np.zeros(len(edges))
    np.maximum.at(tops, places, high)
    above = np.cumsum(numbers[::-1])[::-1]
    held = np.flatnonzero(above >= share * numbers.sum() * (1 - 1e-12))
    if not len(held):
        return None
    first = int(held[-1])
    kept = numbers[first:] > 0
    if edges[first] <= 0 or above[first] < _FEWEST or np.count_nonzero(kept) < 2:
        return None
    middles = (np.log(edges[first:][kept]) + np.log(tops[first:][kept])) / 2 - math.log(edges[first])
    return float(above[first] / (numbers[first:][kept] @ middles))
