"""Planted effects of covariates are found beside size, and terms that say nothing are refused by name."""

import numpy as np
import pytest
from scipy.stats import t as student

from esa.statistics.covariates import CovariateEffect, _term_p, covariate_effects

MODELS = 12
FAMILY = ["a", "b", "a", "c"] * 3
KIND = ["dense"] * 6 + ["moe"] * 6


def effects(
    columns: dict, shift: float = 0.5, noise: float = 0.05, seed: int = 0, seeds: int = 2
) -> list[CovariateEffect]:
    """Return the effects on ``y = x^-0.3 exp(shift [family b] + noise)``, every model with its seeds."""
    rng, x = np.random.default_rng(seed), np.geomspace(1e5, 1e8, MODELS)[np.random.default_rng(9).permutation(MODELS)]
    z = -0.3 * np.log(x) + shift * (np.asarray(FAMILY) == "b") + noise * rng.normal(size=MODELS)
    spread = {name: [level for level in levels for _ in range(seeds)] for name, levels in columns.items()}
    names = [f"model-{number}" for number in range(MODELS) for _ in range(seeds)]
    return covariate_effects(np.exp(np.repeat(z, seeds)), np.repeat(x, seeds), names, spread, "log", 499, seed)


def test_a_planted_effect_is_found() -> None:
    """Family b is 0.5 above the commonest family in ln y, its p the smallest there is; kind is not significant."""
    b, c, moe = effects({"family": FAMILY, "kind": KIND})
    assert (b.term, b.level, b.against) == ("family", "b", "a")
    assert b.low < 0.5 < b.high
    assert b.estimate == pytest.approx(0.5, abs=0.15)
    assert c.low < 0 < c.high
    assert b.p_value == c.p_value <= 0.01
    assert b.p_adjusted == min(1.0, 2 * b.p_value)
    assert (moe.term, moe.level, moe.against) == ("kind", "moe", "dense")
    assert moe.p_value > 0.05
    assert (b.num_models, b.num_points, b.why) == (12, 24, None)


def test_the_estimates_are_those_of_least_squares() -> None:
    """Estimates are NumPy's least squares on the model means, the intervals those of HC3 written out model by model."""
    b, c, moe = effects({"family": FAMILY, "kind": KIND}, noise=0.3)
    rng, x = np.random.default_rng(0), np.geomspace(1e5, 1e8, MODELS)[np.random.default_rng(9).permutation(MODELS)]
    family, kind = np.asarray(FAMILY), np.asarray(KIND)
    z = -0.3 * np.log(x) + 0.5 * (family == "b") + 0.3 * rng.normal(size=MODELS)
    design = np.column_stack([np.ones(MODELS), np.log(x), family == "b", family == "c", kind == "moe"]).astype(float)
    coefficients, _, _, _ = np.linalg.lstsq(design, z, rcond=None)
    bread, meat = np.linalg.inv(design.T @ design), np.zeros((5, 5))
    for row, response in zip(design, z, strict=True):
        left_out = (response - row @ coefficients) / (1 - row @ bread @ row)
        meat += left_out**2 * np.outer(row, row)
    errors = np.sqrt(np.diag(bread @ meat @ bread))
    for place, one in ((2, b), (3, c), (4, moe)):
        assert one.estimate == pytest.approx(coefficients[place])
        assert one.high - one.estimate == pytest.approx(student.ppf(0.975, MODELS - 5) * errors[place])


def test_no_effect_is_rarely_found() -> None:
    """Of 100 families without an effect p is at most 0.05 in no more than 12."""
    family = np.column_stack([np.asarray(FAMILY) == "b", np.asarray(FAMILY) == "c"])
    design = np.column_stack([np.ones(MODELS), np.linspace(-1, 1, MODELS), family]).astype(float)
    draws = np.random.default_rng(0).normal(size=(100, MODELS))
    found = [_term_p("family", design, [2, 3], draw, 199, seed) for seed, draw in enumerate(draws)]
    assert sum(p <= 0.05 for p in found) <= 12
    assert sum(p <= 0.5 for p in found) >= 25


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"kind": ["dense"] * 12}, "the same for all models: dense"),
        ({"kind": ["dense"] * 11 + [None]}, "unknown for 1 of 12 models"),
        ({"kind": ["dense"] * 11 + ["moe"]}, "fewer than 2 models of moe"),
        ({"family": FAMILY, "maker": [level.upper() for level in FAMILY]}, "cannot be told from family"),
        ({"kind": list("aabbccddeeff"), "family": list("ab" * 6), "p": list("abbaabbaabba"), "q": list("abababbababa"),
              "r": list("abbabaabbaab")}, "leaves 1 residual degrees of freedom of 12 models, needs 2"),
    ],
)  # fmt: skip
def test_a_term_that_says_nothing_is_refused(columns: dict, why: str) -> None:
    """Constant, unknown, lonely or aliased terms, and those for which no model is left, have a reason and no number."""
    rows = effects(columns)
    refused = [row for row in rows if row.why]
    assert why in [row.why for row in refused]
    assert all(row.estimate is row.p_value is row.level is None for row in refused)
    assert list(dict.fromkeys(row.term for row in rows)) == list(columns)


def test_a_model_has_one_level() -> None:
    """Two seeds of one model in two families are a ValueError."""
    with pytest.raises(ValueError, match="must share one family"):
        covariate_effects([1.0, 2.0], [1.0, 1.0], ["m", "m"], {"family": ["a", "b"]}, "log")
