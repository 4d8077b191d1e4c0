"""Dose-response: is damage monotone in the dose, and from where to where do top weights stand apart from random ones."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Values = Sequence[float] | Array


class Monotonicity(NamedTuple):
    """How far damage rises with the dose: rank correlations, the trend's p, rising steps, the share a monotone curve explains."""

    spearman: float | None
    kendall: float | None
    p_value: float | None
    rising: float
    isotonic_r2: float | None


class Separation(NamedTuple):
    """Per dose whether top and random stand apart; the smallest dose that does, and the first larger that does not."""

    apart: tuple[bool, ...]
    separates_at: float | None
    merges_at: float | None


def monotonicity(doses: Values, damages: Values, tolerance: float = 0.0) -> Monotonicity | None:
    """Return how monotone damage is in the dose, from one value per dose.

    Points are taken in the order of their doses. ``rising``: the share of steps between neighbouring doses with
    ``damage_(i+1) >= damage_i - tolerance`` (the noise floor, say: a fall below it is none). spearman and kendall
    (tau-b): rank correlations of dose and damage; p_value: Kendall's test against tau > 0, exact where no values are
    equal, at best ``1 / D!``. isotonic_r2: ``1 - SS(damage - m) / SS(damage - mean)``, m the least-squares
    non-decreasing curve: 1 where damage is monotone. The first three are None where either does not vary, isotonic_r2
    where damage does not. Of an option that heals as it grows (bits of a quantisation) pass the negative.

    Args: doses, damages ``(D,)``; equal doses are averaged first. Returns: Monotonicity; None under two doses, or
    where a number is not finite (cut the doses that broke the model).
    Source: Kendall, "A new measure of rank correlation", Biometrika 30, 1938; Barlow et al., Statistical Inference
    under Order Restrictions, 1972.
    """
    from scipy.optimize import isotonic_regression
    from scipy.stats import kendalltau, spearmanr

    where, values = np.asarray(doses, dtype=float), np.asarray(damages, dtype=float)
    if not (np.isfinite(where).all() and np.isfinite(values).all()):
        return None
    x, group = np.unique(where, return_inverse=True)
    if len(x) < 2:
        return None
    y = np.bincount(group, values) / np.bincount(group)
    rising = float(np.mean(np.diff(y) >= -tolerance))
    total = float(((y - y.mean()) ** 2).sum())
    if np.ptp(y) == 0:
        return Monotonicity(None, None, None, rising, None)
    explained = 1 - float(((y - isotonic_regression(y).x) ** 2).sum()) / total
    trend = kendalltau(x, y, alternative="greater")
    correlation = float(spearmanr(x, y).statistic)
    return Monotonicity(correlation, float(trend.statistic), float(trend.pvalue), rising, explained)


def page_p(table: Sequence[Sequence[float]] | Array) -> float | None:
    """Return the p value of Page's trend test: that damage rises with the dose in each of several series alike.

    ``L = sum_j j R_j``, j the dose's rank and R_j the sum over series of the rank of dose j within its series; against
    no trend. Args: ``(series, doses)``, doses ascending; series: evaluation windows, targets or seeds.
    Returns: p of scipy.stats.page_trend_test (exact for few series and doses); None under two series or three doses.
    Source: Page, "Ordered hypotheses for multiple treatments", JASA 58, 1963.
    """
    from scipy.stats import page_trend_test

    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3:
        return None
    return float(page_trend_test(values).pvalue)


def separation(
    doses: Values, top_low: Sequence[float | None], random_high: Sequence[float | None], floor: float = 0.0
) -> Separation:
    """Return from which dose top weights are told apart from random ones, and from which they no longer are.

    At a dose they stand apart where the lower end of the top's interval is above the upper end of random's and above
    the noise floor: ``low > max(high, floor)``. ``separates_at`` is the smallest dose at which they stand apart;
    ``merges_at`` the first larger one at which they do not (all is broken alike); None where there is none.
    An end that is None, or top's NaN, is no separation; random's ``inf`` (a draw that broke the model) neither.

    Args: doses ``(D,)``, distinct, in any order; random_high: the largest of the draws (``random_ceiling``), or the
    upper end of their interval. Returns: Separation, ``apart`` in the order of ascending doses.
    """
    order = np.argsort(np.asarray(doses, dtype=float), kind="stable")
    apart = tuple(_stands_apart(top_low[i], random_high[i], floor) for i in order)
    ascending = [float(doses[i]) for i in order]
    first = apart.index(True) if True in apart else None
    if first is None:
        return Separation(apart, None, None)
    later = [i for i in range(first + 1, len(apart)) if not apart[i]]
    return Separation(apart, ascending[first], ascending[later[0]] if later else None)


def random_ceiling(draws: Sequence[Values]) -> list[float | None]:
    """Return per dose the largest damage among the random draws, ``max_r damage_(dose, r)``; None without draws.

    A draw that broke the model counts as ``inf`` and is passed as such; NaN is the caller's mistake (ValueError).
    """
    found: list[float | None] = []
    for values in draws:
        if any(math.isnan(value) for value in values):
            raise ValueError("a draw's damage is NaN; allowed: a number, or inf where the draw broke the model")
        found.append(float(max(values)) if len(values) else None)
    return found


def _stands_apart(low: float | None, high: float | None, floor: float) -> bool:
    return low is not None and high is not None and low > max(high, floor)
