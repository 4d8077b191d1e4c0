"""Random-effects meta-analysis: one effect per model, combined, with how much the models differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RandomEffects:
    """The combined effect; ``reason`` says why there is none, and then all numbers are None and weights empty.

    ``mean`` with its interval and p value (of a mean of zero, two-sided); the prediction interval of a new model's true
    effect (None under three models); ``tau2`` the variance between models, ``i2`` the share of the observed variance
    that is not sampling error, ``q`` Cochran's Q with its p value; ``weights`` ``(K,)``, adding up to one.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    prediction_low: float | None = None
    prediction_high: float | None = None
    p_value: float | None = None
    tau2: float | None = None
    i2: float | None = None
    q: float | None = None
    q_p: float | None = None
    weights: tuple[float, ...] = ()
    reason: str | None = None


def random_effects(effects: Sequence[float], stderrs: Sequence[float], level: float = 0.95) -> RandomEffects:
    """Combine the effects of K models, each with its standard error, into their mean effect.

    Model i has a true effect of its own, theta_i ~ (mean, tau2), observed as y_i with standard error s_i::

        w_i = 1 / (s_i^2 + tau2),  mean = sum w y / sum w,  tau2 >= 0 solves sum w (y - mean)^2 = K - 1   (Paule-Mandel)
        variance = max(1, sum w (y - mean)^2 / (K - 1)) / sum w                    (Hartung-Knapp-Sidik-Jonkman)
        mean -+ t_(K-1) sqrt(variance),   prediction: mean -+ t_(K-2) sqrt(tau2 + variance)
        Q = sum (y - m)^2 / s^2 about the mean m weighted by 1 / s^2,  chi2 with K - 1;  I2 = max(0, (Q - K + 1) / Q)

    With Paule-Mandel's tau2 the factor is one wherever tau2 is above zero; where the models agree by chance better than
    their errors allow it would fall below one and the interval below the fixed-effect one, which the maximum forbids.

    Args: effects, stderrs ``(K,)``, in any one unit. Returns: RandomEffects; with a reason under two models.
    Raises: ValueError for numbers that are not finite, or a standard error that is not above zero.
    Source: Paule and Mandel, "Consensus values and weighting factors", J. Research NBS 87, 1982; Hartung and Knapp,
    Statistics in Medicine 20, 2001; Sidik and Jonkman, Statistics in Medicine 21, 2002; Roever, Knapp and Friede, BMC
    Medical Research Methodology 15, 2015 (the maximum); Higgins, Thompson and Spiegelhalter, "A re-evaluation of
    random-effects meta-analysis", JRSS A 172, 2009 (prediction); Higgins and Thompson, Statistics in Medicine 21, 2002 (I2).
    """
    y, errors = np.asarray(effects, dtype=float), np.asarray(stderrs, dtype=float)
    if len(y) != len(errors):
        raise ValueError(f"{len(y)} effects and {len(errors)} standard errors")
    if not (np.isfinite(y).all() and np.isfinite(errors).all() and (errors > 0).all()):
        raise ValueError("effects must be finite, and their standard errors finite and above zero")
    number = len(y)
    if number < 2:
        return RandomEffects(reason=f"{number} model, random effects need 2" if number else "no model")
    from scipy.special import chdtrc, stdtr, stdtrit

    tau2 = _paule_mandel(y, errors)
    weights = 1 / (errors**2 + tau2)
    mean = float(weights @ y / weights.sum())
    factor = max(1.0, float(weights @ (y - mean) ** 2) / (number - 1))
    variance = factor / float(weights.sum())
    reach = float(stdtrit(number - 1, (1 + level) / 2)) * math.sqrt(variance)
    q = _spread(y, errors, 0.0)
    ahead = float(stdtrit(number - 2, (1 + level) / 2)) * math.sqrt(tau2 + variance) if number > 2 else None
    return RandomEffects(
        mean, mean - reach, mean + reach,
        None if ahead is None else mean - ahead, None if ahead is None else mean + ahead,
        2 * float(stdtr(number - 1, -abs(mean) / math.sqrt(variance))), tau2,
        max(0.0, (q - number + 1) / q) if q > 0 else 0.0, q, float(chdtrc(number - 1, q)),
        tuple(float(weight) for weight in weights / weights.sum()),
    )  # fmt: skip


def _spread(y: Array, errors: Array, tau2: float) -> float:
    """Return ``sum w (y - mean)^2`` about the mean weighted by ``w = 1 / (s^2 + tau2)``: it falls as tau2 grows."""
    weights = 1 / (errors**2 + tau2)
    return float(weights @ (y - float(weights @ y / weights.sum())) ** 2)


def _paule_mandel(y: Array, errors: Array) -> float:
    """Return the tau2 at which the spread is K - 1, 0 where it is no more than that without any.

    A bracketed root: the fixed-point iteration of statsmodels' ``combine_effects`` oscillates where the effects differ by
    many of their errors, and ends unconverged on a tau2 of zero, which turns the interval into the fixed-effect one.
    """
    freedom = len(y) - 1
    if _spread(y, errors, 0.0) <= freedom:
        return 0.0
    from scipy.optimize import brentq

    # All weights are at most 1 / tau2, so at this tau2 the spread is under K - 1; sought in its logarithm.
    most = 2 * float(((y - y.mean()) ** 2).sum()) / freedom
    least = most
    while _spread(y, errors, least) <= freedom and least > 1e-300:
        least /= 16
    found = brentq(lambda log: _spread(y, errors, math.exp(log)) - freedom, math.log(least), math.log(most), xtol=1e-12)
    return float(math.exp(found))
