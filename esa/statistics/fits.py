"""Fit curves to measurements: least squares, profile intervals of the parameters, and which curve the data prefer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from esa.statistics.bootstrap import UNKNOWN, Interval
from esa.statistics.curves import FITS, Array, Curve

_REACH = 14.0  # a profile is followed over this many e-folds of a positive parameter: a factor of 1.2 million
_CLOSE = 1e-5  # to this the ends of an interval are found
_MOST_EVALUATIONS = 1000  # a ceiling that the data do not bound drifts away for ever
_EXACT = 1e-12  # residuals below this share of the largest y are rounding: an exact fit, whose AICc would be -inf


@dataclass(frozen=True)
class Fit:
    """A fitted curve; ``reason`` says why there is none, and then everything behind it is empty."""

    model: str
    num_points: int
    reason: str | None = None
    values: tuple[float, ...] = ()
    intervals: tuple[Interval, ...] = ()
    r2: float | None = None
    aicc: float | None = None
    weight: float | None = None


def fit_curve(
    name: str, x: Sequence[float] | Array, y: Sequence[float] | Array, errors: Sequence[float] | None = None,
    level: float = 0.95,
) -> Fit:  # fmt: skip
    """Return the least-squares fit of one of ``FITS`` to points, from several starts, without any random draw.

    Minimises ``RSS = sum ((y - f(x)) / error)^2``; errors are the points' standard errors up to a common factor, all
    equal by default (then large y decide: pass errors where y spans decades). With N points and p parameters::

        r2   = 1 - RSS / sum ((y - mean) / error)^2,  mean weighted by 1 / error^2
        aicc = N ln(RSS / N) + sum ln error^2 + 2 q + 2 q (q + 1) / (N - q - 1),  q = p + 1 (the variance counts)

    aicc is None where ``N = p + 2``, which leaves its denominator empty. A parameter's interval is its profile: where
    the RSS, the others fitted anew, reaches ``RSS (1 + F / (N - p))``, F the quantile ``level`` of F(1, N - p).
    An end is None where the data do not bound the parameter on that side, as a ceiling that was never approached.

    Args: x ``(N,)`` above zero; y ``(N,)``. Returns: Fit; with a reason and nothing else where points are fewer than
    p + 2, at fewer than p + 1 distinct x, not finite, at x <= 0, or where y is nowhere above zero or does not vary.
    Raises: KeyError for a name not in FITS; ValueError for errors that are not above zero. Cost: about 0.1 s.
    Source: Burnham and Anderson, Model Selection and Multimodel Inference, 2002 (AICc, weights); Bates and Watts,
    Nonlinear Regression Analysis and its Applications, 1988, section 6.1 (profiles).
    """
    curve, xs, ys = FITS[name], np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    sigma = np.ones(len(xs)) if errors is None else np.asarray(errors, dtype=float)
    if not (sigma > 0).all():
        raise ValueError("a point's standard error must be above zero")
    reason = _refusal(curve, xs, ys)
    if reason:
        return Fit(name, len(xs), reason)
    problem = _Problem(curve, xs, ys, sigma)
    best = problem.solve(problem.starts())
    count, number = len(curve.parameters), len(xs)
    rss = max(problem.rss(best), number * (_EXACT * float(np.abs(ys / sigma).max())) ** 2)
    mean = float(np.average(ys, weights=sigma**-2))
    q = count + 1
    room = number - q - 1
    aicc = (
        number * math.log(rss / number) + 2 * float(np.log(sigma).sum()) + 2 * q + 2 * q * (q + 1) / room
        if room
        else None
    )
    return Fit(
        name,
        number,
        values=tuple(float(value) for value in problem.natural(best)),
        intervals=tuple(_profile(problem, best, rss, axis, level) for axis in range(count)),
        r2=1 - problem.rss(best) / float((((ys - mean) / sigma) ** 2).sum()),
        aicc=aicc,
    )


def compare_curves(
    x: Sequence[float] | Array, y: Sequence[float] | Array, errors: Sequence[float] | None = None,
    models: Sequence[str] = tuple(FITS), level: float = 0.95,
) -> list[Fit]:  # fmt: skip
    """Return the fits of several curves to the same points, in the order given, with their Akaike weights.

    ``weight_i = exp(-(aicc_i - min) / 2) / sum_j exp(-(aicc_j - min) / 2)`` over the fits that have an AICc: how far
    the data prefer a curve among these. None for the others; a weight of 1 among one says nothing.
    """
    fits = [fit_curve(name, x, y, errors, level) for name in models]
    known = [fit.aicc for fit in fits if fit.aicc is not None]
    if not known:
        return fits
    total = math.fsum(math.exp((min(known) - aicc) / 2) for aicc in known)
    return [
        fit if fit.aicc is None else replace(fit, weight=math.exp((min(known) - fit.aicc) / 2) / total) for fit in fits
    ]


def fit_rows(run: str, quantity: str, fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """Return the rows of ``fits/1``: one per parameter of every curve, in order; a refused curve has none."""
    return [
        {
            "run": run, "quantity": quantity, "model": fit.model, "parameter": parameter, "value": value, "low": low,
            "high": high, "r2": fit.r2, "aicc": fit.aicc, "weight": fit.weight, "num_points": fit.num_points,
        }
        for fit in fits
        if fit.reason is None
        for parameter, value, (low, high) in zip(FITS[fit.model].parameters, fit.values, fit.intervals, strict=True)
    ]  # fmt: skip


def _refusal(curve: Curve, x: Array, y: Array) -> str | None:
    """Return why the points cannot carry the curve, or None."""
    count = len(curve.parameters)
    if len(x) < count + 2:
        return f"{len(x)} points, {curve.name} needs {count + 2}"
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return "a point is not finite"
    if not (x > 0).all():
        return "an x is not above zero"
    if len(np.unique(x)) < count + 1:
        return f"{len(np.unique(x))} distinct x, {curve.name} needs {count + 1}"
    if not (y > 0).any():
        return "no y is above zero"
    if np.ptp(y) == 0:
        return "y does not vary"
    return None


class _Problem:
    """Least squares of a curve on points, in coordinates where positive parameters are logarithms."""

    def __init__(self, curve: Curve, x: Array, y: Array, sigma: Array) -> None:
        self.curve, self.x, self.y, self.sigma = curve, x, y, sigma
        self.positive = np.asarray(curve.positive)
        self.names = len(curve.parameters)

    def natural(self, theta: Array) -> Array:
        """Return the parameters themselves."""
        return np.where(self.positive, np.exp(np.where(self.positive, theta, 0.0)), theta)

    def residuals(self, theta: Array) -> Array:
        """Return ``(f(x) - y) / error``, far away where the curve overflows."""
        with np.errstate(all="ignore"):
            found = (self.curve(self.x, self.natural(theta)) - self.y) / self.sigma
        return np.where(np.isfinite(found), found, 1e100)

    def rss(self, theta: Array) -> float:
        """Return the residual sum of squares."""
        return float((self.residuals(theta) ** 2).sum())

    def starts(self) -> list[Array]:
        """Return the starting points, the scale at its least-squares value for the shape."""
        found = []
        for rest in self.curve.starts(self.x):
            with np.errstate(all="ignore"):
                shape = self.curve.shape(self.x, *rest) / self.sigma
                scale = float(shape @ (self.y / self.sigma) / (shape @ shape))
            if not (np.isfinite(scale) and scale > 0):
                scale = float(self.y.max())
            values = np.asarray([scale, *rest])
            found.append(np.where(self.positive, np.log(np.where(self.positive, values, 1.0)), values))
        return found

    def solve(self, starts: Sequence[Array], held: tuple[int, float] | None = None) -> Array:
        """Return the best minimum from the starts, one coordinate held fast where asked."""
        from scipy.optimize import (
            leastsq,
        )  # MINPACK itself, derivatives and all: several times faster than least_squares

        free = np.asarray([held is None or axis != held[0] for axis in range(self.names)])

        def whole(part: Array) -> Array:
            theta = np.empty(self.names)
            theta[free] = part
            if held is not None:
                theta[held[0]] = held[1]
            return theta

        found = []
        for start in starts:
            done = leastsq(
                lambda part: self.residuals(whole(part)), start[free], full_output=True, xtol=1e-12, ftol=1e-12, gtol=1e-12,
                maxfev=_MOST_EVALUATIONS,
            )  # fmt: skip
            found.append(whole(done[0]))
        return min(found, key=self.rss)


def _profile(problem: _Problem, best: Array, rss: float, axis: int, level: float) -> Interval:
    """Return where the profile of one coordinate crosses the threshold, on either side of the best fit."""
    from scipy.special import fdtri

    freedom = len(problem.x) - problem.names
    if freedom < 1:
        return UNKNOWN
    threshold = rss * (1 + float(fdtri(1, freedom, level)) / freedom)
    low, high = (_crossing(problem, best, threshold, axis, sign) for sign in (-1.0, 1.0))
    return Interval(low, high)


def _crossing(problem: _Problem, best: Array, threshold: float, axis: int, sign: float) -> float | None:
    """Walk from the best fit until the profile is above the threshold, then close in; None where it never is."""
    positive = bool(problem.positive[axis])
    inside, theta, step = float(best[axis]), best, 1e-3 if positive else 1e-3 * max(1.0, abs(float(best[axis])))
    while True:
        outside = inside + sign * step
        if abs(outside - float(best[axis])) > _REACH:
            return None
        moved = problem.solve([_at(theta, axis, outside)], (axis, outside))
        if problem.rss(moved) > threshold:
            break
        inside, theta, step = outside, moved, 2 * step
    while abs(outside - inside) > _CLOSE * max(1.0, abs(inside)):
        middle = (inside + outside) / 2
        moved = problem.solve([_at(theta, axis, middle)], (axis, middle))
        if problem.rss(moved) > threshold:
            outside = middle
        else:
            inside, theta = middle, moved
    return math.exp(inside) if positive else inside


def _at(theta: Array, axis: int, value: float) -> Array:
    """Return the coordinates with one of them moved."""
    moved: npt.NDArray[np.float64] = theta.copy()
    moved[axis] = value
    return moved
