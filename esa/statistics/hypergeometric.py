"""What two unrelated lists share: independent draws with the same quota per unit, exactly."""

import math
import sys
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Floats = NDArray[np.float64]
Units = tuple[tuple[int, int, int], ...]  # (a_u, b_u, N_u) per unit

SMALLEST_P = sys.float_info.min  # 2.2e-308
_TRIM = 1e-40  # ends of a distribution below this share of its peak are cut: far under any digit of the results


def expected_shared(units: Units) -> float:
    """Return ``E[X] = sum_u a_u b_u / N_u``: how many weights independent draws share on average.

    ``units`` holds (a_u, b_u, N_u): the weights that either list has in unit u, and the weights of the unit.
    """
    return math.fsum(a * b / n for a, b, n in units)


@lru_cache(maxsize=64)
def expected_jaccard(units: Units) -> float:
    """Return ``E[X / (|A| + |B| - X)]``, the mean Jaccard index of independent draws with these quotas.

    X = sum_u X_u with X_u hypergeometric (N_u, a_u, b_u); the expectation is taken over the convolved distribution of
    X, exact to rounding. ``E[X] / (|A| + |B| - E[X])`` would be smaller: the index is convex in X.
    """
    total = sum(a + b for a, b, _ in units)
    if not total:
        return 1.0
    low, chances = _convolve(_log_table(units), 0.0)
    shared = low + np.arange(len(chances))
    return float(chances @ (shared / (total - shared)))


@lru_cache(maxsize=4096)
def p_value(units: Units, shared: int) -> float:
    """Return ``P(X >= shared)`` for X the sum over units of hypergeometric (N_u, a_u, b_u): one-sided.

    The tail itself is summed, never ``1 - cdf``, after exponential tilting: every unit's distribution is weighted by
    ``exp(theta x)``, theta such that ``E[X] = shared``. The convolution then peaks where it is needed, and ::

        log P = log M(theta) - theta shared + log sum_{x >= shared} tilted(x) exp(-theta (x - shared))

    keeps all its digits however small P is. A p value under 2.2e-308 is given as that number.
    Cost: under 0.1 s for hundreds of units of quota 100.
    Source: Esscher, "On the probability function in the collective theory of risk", Skandinavisk Aktuarietidskrift 15,
    1932; here the tilted sum is not approximated.
    """
    return max(SMALLEST_P, min(1.0, math.exp(log_p_value(units, shared))))


def log_p_value(units: Units, shared: int) -> float:
    """Return the natural logarithm of ``P(X >= shared)``; -inf where it cannot be (see ``p_value``)."""
    table = _log_table(units)
    lows, logs = table
    highest = sum(min(a, b) for a, b, _ in units)
    if shared <= int(lows.sum()):
        return 0.0
    if shared > highest:
        return -math.inf
    if shared == highest:
        return float(sum(row[np.isfinite(row)][-1] for row in logs))
    theta = 0.0 if shared <= expected_shared(units) else _tilt(table, shared)
    log_total = float(_log_sums(logs + theta * np.arange(logs.shape[1])).sum() + theta * lows.sum())
    low, tilted = _convolve(table, theta)
    tail = tilted[max(0, shared - low) :]
    start = max(shared, low)
    terms = tail * np.exp(-theta * (start - shared + np.arange(len(tail))))
    return min(0.0, log_total - theta * shared + math.log(float(terms.sum())))


def _log_table(units: Units) -> tuple[NDArray[np.int64], Floats]:
    """Return the least value of every X_u, and log P(X_u = least + column), -inf beyond its support.

    From the ratio of neighbours ``P(x+1)/P(x) = (a-x)(b-x) / ((x+1)(N-a-b+x+1))``: differences of log gammas would
    leave four digits at N = 8e9.
    """
    lows = np.asarray([max(0, a + b - n) for a, b, n in units], dtype=np.int64)
    width = max((min(a, b) - int(low) + 1 for (a, b, _), low in zip(units, lows, strict=True)), default=1)
    a, b, n = (np.asarray([unit[i] for unit in units], dtype=np.float64)[:, None] for i in range(3))
    x = lows[:, None] + np.arange(width - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = x < np.minimum(a, b)
        steps = np.where(inside, np.log((a - x) * (b - x)) - np.log((x + 1) * (n - a - b + x + 1)), -np.inf)
    logs = np.concatenate([np.zeros((len(units), 1)), np.cumsum(steps, axis=1)], axis=1)
    return lows, logs - _log_sums(logs)[:, None]


def _log_sums(logs: Floats) -> Floats:
    """Return log sum exp of every row."""
    peak = logs.max(axis=1)
    sums: Floats = peak + np.log(np.exp(logs - peak[:, None]).sum(axis=1))
    return sums


def _tilt(table: tuple[NDArray[np.int64], Floats], shared: int) -> float:
    """Return theta > 0 such that the tilted mean of X is ``shared``, which lies between the mean and the maximum."""
    lows, logs = table
    x = np.arange(logs.shape[1])
    target = shared - int(lows.sum())

    def excess(theta: float) -> float:
        tilted = logs + theta * x
        chances = np.exp(tilted - _log_sums(tilted)[:, None])
        return float((chances @ x).sum()) - target

    upper = 1.0
    while excess(upper) < 0 and upper < 1e3:
        upper *= 2
    return float(optimize.brentq(excess, 0.0, upper, xtol=1e-6)) if excess(upper) > 0 else upper


def _convolve(table: tuple[NDArray[np.int64], Floats], theta: float) -> tuple[int, Floats]:
    """Return the least kept value of X and the chances from there on, every unit tilted by ``theta``."""
    lows, logs = table
    tilted = logs + theta * np.arange(logs.shape[1])
    rows = np.exp(tilted - _log_sums(tilted)[:, None])
    low, chances = int(lows.sum()), np.ones(1)
    for row in rows:
        start, kept = _trimmed(row)
        shift, chances = _trimmed(np.convolve(chances, kept))
        low += start + shift
    return low, chances


def _trimmed(chances: Floats) -> tuple[int, Floats]:
    kept = np.flatnonzero(chances > chances.max() * _TRIM)
    return int(kept[0]), chances[kept[0] : kept[-1] + 1]
