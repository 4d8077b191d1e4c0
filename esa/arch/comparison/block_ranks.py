"""Rank correlations within blocks, many resamples at once, and the permutation p of their mean over blocks."""

import math
from collections.abc import Sequence
from itertools import permutations as all_orders

import numpy as np
import numpy.typing as npt

from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

Array = npt.NDArray[np.float64]
_SLACK = 1e-12
_BLOCK = 2_000_000  # numbers permuted at once


def within_ranks(values: Array) -> Array:
    """Return the ranks within each row of ``(R, n)``, ascending from 1, equal values their mean rank."""
    from scipy.stats import rankdata

    found: Array = np.asarray(rankdata(values, axis=1), dtype=float)
    return found


def rank_correlation(a: Array, b: Array) -> Array:
    """Return Pearson's correlation of two ``(R, n)`` arrays of ranks row by row, ``(R,)``: NaN where one is constant."""
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    found = np.full(len(spread), np.nan)
    np.divide((a * b).sum(axis=1), spread, out=found, where=spread > _SLACK)
    return found


def mean_correlation_p(
    pairs: Sequence[tuple[Array, Array]], draw: np.random.Generator, permutations: int
) -> tuple[float, float]:
    """Return the two-sided p of the mean Spearman correlation of pairs of ranks ``(n,)``, and the smallest it can be.

    The second of each pair is permuted on its own. All orders of a single pair are counted where they are at most
    ``permutations``: ``p = #{|r*| >= |r|} / n!``, the observed among them; else Monte Carlo, ``(1 + #) / (1 + R)``.
    Cost: permutations * the values of all pairs.
    """
    observed = abs(float(np.mean([rank_correlation(a[None], b[None])[0] for a, b in pairs])))
    if len(pairs) == 1 and math.factorial(len(pairs[0][0])) <= permutations:
        a, b = pairs[0]
        every = b[np.array(list(all_orders(range(len(b)))))]
        null = np.abs(rank_correlation(np.broadcast_to(a, every.shape), every))
        return float((null >= observed - _SLACK).mean()), float((null >= null.max() - _SLACK).mean())
    total = np.zeros(permutations)
    for a, b in pairs:
        rows = max(1, _BLOCK // len(b))
        for start in range(0, permutations, rows):
            here = np.tile(b, (min(rows, permutations - start), 1))
            found = rank_correlation(np.broadcast_to(a, here.shape), draw.permuted(here, axis=1))
            total[start : start + len(here)] += found
    return monte_carlo_p(observed, np.abs(total / len(pairs))), smallest_monte_carlo_p(permutations)
