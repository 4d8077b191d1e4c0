"""Random effects agree with a published meta-analysis, with a naive transcription, and with their limits."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, t

from esa.statistics.random_effects import random_effects

# Colditz et al., JAMA 271, 1994: 13 trials of the BCG vaccine; cases and others, vaccinated and not.
BCG = np.asarray([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
], dtype=float)  # fmt: skip


def bcg() -> tuple[np.ndarray, np.ndarray]:
    """Return the log risk ratios and their standard errors."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b) / (c / (c + d))), np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))


def naive(y: np.ndarray, s: np.ndarray) -> dict[str, float]:
    """Return the numbers of the definition, tau2 by bisection."""

    def spread(tau2: float) -> float:
        w = 1 / (s**2 + tau2)
        return (w * (y - (w * y).sum() / w.sum()) ** 2).sum()

    low, high, k = 0.0, 100.0, len(y)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spread(middle) > k - 1 else (low, middle)
    w = 1 / (s**2 + low)
    mean, error = (w * y).sum() / w.sum(), math.sqrt(1 / w.sum())
    q = spread(0.0)
    return {
        "mean": mean, "low": mean - t.ppf(0.975, k - 1) * error, "high": mean + t.ppf(0.975, k - 1) * error,
        "prediction_low": mean - t.ppf(0.975, k - 2) * math.sqrt(low + error**2),
        "prediction_high": mean + t.ppf(0.975, k - 2) * math.sqrt(low + error**2),
        "p_value": 2 * t.sf(abs(mean / error), k - 1), "tau2": low, "i2": max(0, 1 - (k - 1) / q), "q": q,
        "q_p": chi2.sf(q, k - 1),
    }  # fmt: skip


def test_the_published_meta_analysis() -> None:
    """BCG: Q = 152.2330 and the combined ratio near 0.49 as published, tau2 = 0.3181 where REML's is 0.3132."""
    found = random_effects(*bcg())
    assert found.q == pytest.approx(152.2330, abs=1e-4)
    assert found.tau2 == pytest.approx(0.3181, abs=1e-4)
    assert math.exp(found.mean) == pytest.approx(0.489, abs=1e-3)
    assert found.i2 == pytest.approx(0.9212, abs=1e-4)
    assert len(found.weights) == 13
    assert math.fsum(found.weights) == pytest.approx(1)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_definition(seed: int, unit: float) -> None:
    """In any unit all numbers are those of a naive transcription, with and without a spread between models."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(0.1, 0.5, 4 + seed)
    y = rng.normal(0.4, 0.0 if seed % 2 else 1.0, len(s)) + (0.3 if seed % 2 else 1.0) * s * rng.normal(size=len(s))
    found, expected = random_effects(y * unit, s * unit), naive(y, s)
    assert (expected["tau2"] == pytest.approx(0, abs=1e-9)) == bool(seed % 2)
    for name, value in expected.items():
        scale = {"tau2": unit**2, "i2": 1, "q": 1, "q_p": 1, "p_value": 1}.get(name, unit)
        assert getattr(found, name) == pytest.approx(value * scale, rel=1e-5, abs=1e-7 * scale), name


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e6, 1e9])
def test_models_that_differ_by_many_errors_have_a_spread(ratio: float) -> None:
    """Where effects differ by up to 1e9 of their errors, as damages of several models do, tau2 still solves its equation."""
    rng = np.random.default_rng(3)
    for k in (2, 3, 6, 12):
        y, s = rng.normal(size=k), np.exp(rng.normal(size=k)) / ratio
        found = random_effects(y, s)
        w = 1 / (s**2 + found.tau2)
        assert w @ (y - found.mean) ** 2 == pytest.approx(k - 1, rel=1e-6)
        assert found.tau2 == pytest.approx(y.var(ddof=1), rel=0.1)


def test_where_statsmodels_converges_it_agrees() -> None:
    """Mean, tau2 and Q of the published trials are those of ``combine_effects`` with its iterated tau2."""
    from statsmodels.stats.meta_analysis import combine_effects

    y, s = bcg()
    found, expected = random_effects(y, s), combine_effects(y, s**2, method_re="iterated", atol=1e-12, maxiter=500)
    assert (found.tau2, found.q) == pytest.approx((expected.tau2, expected.q), rel=1e-6)
    assert found.mean == pytest.approx(expected.mean_effect_re, rel=1e-6)


def test_agreement_by_chance_is_no_certainty() -> None:
    """Three effects that agree better than their errors allow keep the fixed-effect width: the factor is not below one."""
    found = random_effects([1.0, 1.01, 0.99], [0.1, 0.1, 0.1])
    assert found.tau2 == 0
    assert found.high - found.mean == pytest.approx(t.ppf(0.975, 2) * 0.1 / math.sqrt(3))


def test_two_models_have_no_prediction_and_one_nothing() -> None:
    """Two models leave no degree of freedom to predict with; one gives a reason; broken numbers are a ValueError."""
    two = random_effects([1.0, 2.0], [0.1, 0.1])
    assert two.prediction_low is two.prediction_high is None
    assert two.mean == pytest.approx(1.5)
    assert random_effects([1.0], [0.1]).reason == "1 model, random effects need 2"
    assert random_effects([], []).reason == "no model"
    for effects, stderrs in (([1.0, math.inf], [0.1, 0.1]), ([1.0, 2.0], [0.1, 0.0])):
        with pytest.raises(ValueError, match="above zero"):
            random_effects(effects, stderrs)
    with pytest.raises(ValueError, match="2 effects and 1 standard"):
        random_effects([1.0, 2.0], [0.1])
