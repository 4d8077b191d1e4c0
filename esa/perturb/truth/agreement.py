"""How well scores agree with measured damage on a weighted sample: rank correlation, shared top, calibration, intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esa.spec import generator
from esa.spec.sections import Statistics
from esa.statistics.bootstrap import UNKNOWN, Interval, percentile_interval

SHARES = {"top_1_percent": 0.01, "top_10_percent": 0.1}

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Changes:
    """What zeroing each weight of a sample did: ``(n,)`` each.

    ``weight``: how many weights of the model it stands for. ``certain``: taken for sure, not drawn. ``delta``: change of the NLL,
    nats; infinite where the logits were not finite. ``below_floor``: not told from the noise.
    """

    weight: Array
    certain: Flags
    delta: Array
    below_floor: Flags

    @property
    def signed(self) -> Array:
        """Return the changes, those under the noise floor tied at zero."""
        return np.where(self.below_floor, 0.0, self.delta)


@dataclass(frozen=True)
class Agreement:
    """One figure of a metric, with its interval; None where the sample does not give it."""

    quantity: str
    value: float | None
    ends: Interval
    num_weights: int


def agreements(
    score: Array, predicted: Array | None, changes: Changes, top: int, rules: Statistics, seed: int
) -> list[Agreement]:
    """Return every figure of one metric, in a fixed order.

    With ``|delta|`` the size of the measured change, those under the noise floor tied at zero, and each weight counted as often
    as it stands for weights of the model:

    - ``spearman``: of score and ``|delta|``; ``spearman_signed``: of score and delta, where only harm counts as large;
    - ``top_1_percent``, ``top_10_percent``: share of the truly largest p % that the p % of highest scores hold;
      None where the sample is too small for it, one weight standing for more than p %;
    - ``spearman_measured``, ``top_measured``: Spearman's correlation with ``|delta|``, and the share of the ``top`` largest
      changes held by the ``top`` highest scores, among the measured weights, each counted once: the sample is rich in top ones,
      and these say how a metric orders the weights that matter;
    - with ``predicted`` (a signed prediction of delta, nan where unknown): ``slope`` and ``intercept`` of the weighted least
      squares line of delta on it, changes under the floor as they were measured.

    Intervals are percentile bootstraps over the sample's weights, the certain and the drawn ones resampled apart; all metrics
    share the resamples (``behind_best`` needs that).
    Source: Spearman, The proof and measurement of association between two things, 1904; ranks are mid-ranks of the weighted
    sample, ties count half.
    Cost: resamples x n per figure.
    """
    size = np.abs(changes.signed)
    one = np.ones(len(size))
    found = [
        _figure("spearman", Spearman(score, size, changes.weight), changes, rules, seed),
        _figure("spearman_signed", Spearman(score, changes.signed, changes.weight), changes, rules, seed),
    ]
    for name, share in SHARES.items():
        if share * changes.weight.sum() < changes.weight.max(initial=0.0):
            found.append(Agreement(name, None, UNKNOWN, len(size)))
            continue
        found.append(_figure(name, TopShare(score, size, changes.weight, share=share), changes, rules, seed))
    found.append(_figure("spearman_measured", Spearman(score, size, one), changes, rules, seed))
    found.append(
        _figure("top_measured", TopShare(score, size, one, share=min(1.0, top / len(size))), changes, rules, seed)
    )
    if predicted is not None:
        known = np.isfinite(predicted) & np.isfinite(changes.delta)
        part = Changes(changes.weight[known], changes.certain[known], changes.delta[known], changes.below_floor[known])
        line = Line(predicted[known], part.delta, part.weight)
        found.append(_figure("slope", line.slope, part, rules, seed))
        found.append(_figure("intercept", line.intercept, part, rules, seed))
    return found


def behind_best(scores: Sequence[Array], changes: Changes, rules: Statistics, seed: int) -> list[Agreement]:
    """Return per metric how far its ``spearman`` is behind that of the best one, with the interval of that difference.

    The difference is taken on the same resamples of the same weights, so that what the metrics have in common cancels: an
    interval above zero says that the best one orders the damage better. The best one itself is 0 behind.
    """
    size = np.abs(changes.signed)
    found = [Spearman(score, size, changes.weight) for score in scores]
    whole = np.arange(len(size))[None]
    values = np.array([float(one(whole)[0]) if len(size) > 2 else np.nan for one in found])
    if np.isnan(values).all():
        return [Agreement("spearman_behind_best", None, UNKNOWN, len(size)) for _ in scores]
    best = found[int(np.nanargmax(values))]
    return [_figure("spearman_behind_best", Behind(best, one), changes, rules, seed) for one in found]


def _figure(
    quantity: str, statistic: Callable[[Ints], Array], changes: Changes, rules: Statistics, seed: int
) -> Agreement:
    """Return a statistic of the whole sample with its interval."""
    number = len(changes.delta)
    if number < 3:
        return Agreement(quantity, None, UNKNOWN, number)
    value = float(statistic(np.arange(number)[None])[0])
    if np.isnan(value):
        return Agreement(quantity, None, UNKNOWN, number)
    draw = generator(seed, "bootstrap", "truth")
    strata = changes.certain.astype(np.int64)
    ends = percentile_interval(statistic, number, rules.level, rules.resamples, draw, strata)
    return Agreement(quantity, value, ends, number)


class Spearman:
    """Spearman's correlation of two columns on weighted resamples: Pearson's of their weighted mid-ranks; nan without spread."""

    def __init__(self, x: Array, y: Array, weight: Array) -> None:
        self._x, self._y, self._weight = codes(x), codes(y), weight

    def __call__(self, picks: Ints) -> Array:
        """Return the correlation of each row of indices ``(R, n)``."""
        weight = self._weight[picks]
        x, y = (middles(code[picks], weight) for code in (self._x, self._y))
        total = weight.sum(1, keepdims=True)
        x = x - (weight * x).sum(1, keepdims=True) / total
        y = y - (weight * y).sum(1, keepdims=True) / total
        spread = np.sqrt((weight * x**2).sum(1) * (weight * y**2).sum(1))
        flat = spread <= 1e-12 * total[:, 0] ** 3
        found: Array = np.where(flat, np.nan, (weight * x * y).sum(1) / np.where(flat, 1.0, spread))
        return found


class Behind:
    """How far one statistic is behind another on the same resamples."""

    def __init__(self, best: Spearman, other: Spearman) -> None:
        self._best, self._other = best, other

    def __call__(self, picks: Ints) -> Array:
        """Return the difference for each row of indices ``(R, n)``."""
        return self._best(picks) - self._other(picks)


class TopShare:
    """The part of the largest ``share`` by y that the largest ``share`` by x hold, on weighted resamples.

    Of equal numbers at the border each counts in part, as if they were taken at random. One weight at the border of both that
    stands for more than fits counts with the smaller part: what it stands for comes in one order. nan where all x or all y are
    equal.
    """

    def __init__(self, x: Array, y: Array, weight: Array, *, share: float) -> None:
        self._x, self._y, self._weight, self.share = codes(x), codes(y), weight, share
        self._alone = (np.bincount(self._x)[self._x] == 1) & (np.bincount(self._y)[self._y] == 1)

    def __call__(self, picks: Ints) -> Array:
        """Return the part for each row of indices ``(R, n)``."""
        weight = self._weight[picks]
        mass = self.share * weight.sum(1, keepdims=True)
        chosen = [code[picks] for code in (self._x, self._y)]
        x, y = (inside(code, weight, mass) for code in chosen)
        flat = np.any([code.min(1) == code.max(1) for code in chosen], axis=0)
        both = np.where(self._alone[picks], np.minimum(x, y), x * y)
        found: Array = np.where(flat, np.nan, (weight * both).sum(1) / mass[:, 0])
        return found


class Line:
    """The weighted least squares line of y on x, on weighted resamples; nan where x has no spread."""

    def __init__(self, x: Array, y: Array, weight: Array) -> None:
        self._x, self._y, self._weight = x, y, weight

    def slope(self, picks: Ints) -> Array:
        """Return the slope for each row of indices ``(R, n)``."""
        return self._fit(picks)[0]

    def intercept(self, picks: Ints) -> Array:
        """Return the intercept for each row of indices ``(R, n)``."""
        return self._fit(picks)[1]

    def _fit(self, picks: Ints) -> tuple[Array, Array]:
        x, y, weight = self._x[picks], self._y[picks], self._weight[picks]
        total = weight.sum(1, keepdims=True)
        mean_x, mean_y = (weight * x).sum(1, keepdims=True) / total, (weight * y).sum(1, keepdims=True) / total
        spread = (weight * (x - mean_x) ** 2).sum(1)
        flat = spread <= 1e-24 * (weight * x**2).sum(1)
        slope = np.where(flat, np.nan, (weight * (x - mean_x) * (y - mean_y)).sum(1) / np.where(flat, 1.0, spread))
        return slope, mean_y[:, 0] - slope * mean_x[:, 0]


def codes(values: Array) -> Ints:
    """Return numbers as their places among the distinct ones, ascending: all that ranks need of them."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def middles(code: Ints, weight: Array) -> Array:
    """Return weighted mid-ranks ``(R, n)``: the weight of all smaller numbers and half of that of equal ones."""
    classes = _by_class(code, weight)
    upto = np.cumsum(classes, axis=1)
    return np.take_along_axis(upto - classes / 2, code, axis=1)


def inside(code: Ints, weight: Array, mass: Array) -> Array:
    """Return how far each belongs to the largest of weight ``mass`` ``(R, 1)``: 1, 0, or between for equal ones at the border."""
    classes = _by_class(code, weight)
    above = np.cumsum(classes[:, ::-1], axis=1)[:, ::-1] - classes
    part = np.clip((mass - above) / np.where(classes > 0, classes, 1.0), 0.0, 1.0)
    return np.take_along_axis(part, code, axis=1)


def _by_class(code: Ints, weight: Array) -> Array:
    """Return the weight of every distinct number, ``(R, classes)``."""
    rows, number = len(code), int(code.max()) + 1
    flat = (np.arange(rows)[:, None] * number + code).reshape(-1)
    found: Array = np.bincount(flat, weight.reshape(-1), rows * number).astype(np.float64).reshape(rows, number)
    return found
