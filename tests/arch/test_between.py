"""Permutation tests of two models' blocks."""

from itertools import combinations

import numpy as np
import pytest

from esa.arch.comparison.between import compare, within_strata
from esa.arch.comparison.findings import Options, adjusted
from esa.arch.comparison.sources import labelled
from esa.artifact.grouping import group
from tests.planted_runs import Planted

FAST = Options(("act_mag",), 10, permutations=99, resamples=99)


def depths(blocks: int) -> np.ndarray:
    """Return the relative depths of a model's blocks."""
    return (np.arange(blocks) + 0.5) / blocks


def test_a_planted_difference_is_found_and_its_size_given() -> None:
    """A constant difference between models that both vary strongly with depth is measured exactly, at a small p."""
    profile = lambda depth: 10 * depth**2  # noqa: E731
    x, y = profile(depths(12)) + 1.0, profile(depths(12))
    found = within_strata(x, depths(12), y, depths(12), FAST, "planted")
    assert found.difference == pytest.approx(1.0)
    assert found.num_strata == 5
    noise = np.random.default_rng(0).standard_normal((2, 24)) * 0.1
    rough = within_strata(noise[0] + 1.0, depths(24), noise[1], depths(24), FAST, "noisy")
    assert rough.p_value == rough.smallest_p == 1 / 100
    assert rough.low is not None
    assert rough.low < 1.0 < rough.high


def test_depth_alone_makes_no_difference() -> None:
    """Models of 30 and 7 blocks on one curve over depth do not differ: labels move within strata of the depth only."""
    x, y = 5 * depths(30), 5 * depths(7)
    found = within_strata(x, depths(30), y, depths(7), FAST, "curve")
    assert abs(found.difference) < 0.3
    assert found.p_value > 0.2


def test_the_p_value_is_calibrated() -> None:
    """Under exchangeable blocks with a depth profile, p is at most 10 % in about 10 % of 200 simulated pairs."""
    rejected = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        x, y = (3 * depths(n) + draw.standard_normal(n) for n in (8, 12))
        rejected += within_strata(x, depths(8), y, depths(12), FAST, str(trial)).p_value <= 0.1
    assert 6 <= rejected <= 36  # binomial(200, .1): within 3.3 standard deviations


def test_the_smallest_p_counts_the_labellings() -> None:
    """With few blocks p is that of the exact test, all labellings counted, and never under the smallest there is."""
    x, y = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    found = within_strata(x, np.array([0.2, 0.3]), y, np.array([0.25, 0.35]), FAST, "few")
    values = np.array([3.0, 4.0, 1.0, 2.0])
    every = [values[list(c)].mean() - np.delete(values, list(c)).mean() for c in combinations(range(4), 2)]
    exact = np.mean(np.abs(every) >= abs(found.difference) - 1e-12)
    assert found.smallest_p == pytest.approx(exact) == pytest.approx(2 / 6)
    assert found.p_value == pytest.approx(exact)


def test_all_labellings_within_strata_are_counted() -> None:
    """Of two strata with 2 of 4 blocks each, the 36 labellings give p; a null of random ones agrees with them."""
    x, y = np.array([5.0, 4.0, 9.0, 7.0]), np.array([1.0, 4.5, 2.0, 8.0])
    found = within_strata(x, depths(4), y, depths(4), FAST, "strata")
    values = [np.array([5.0, 4.0, 1.0, 4.5]), np.array([9.0, 7.0, 2.0, 8.0])]
    every = [
        [part[list(c)].mean() - np.delete(part, list(c)).mean() for c in combinations(range(4), 2)] for part in values
    ]
    null = np.abs(np.add.outer(*every)) / 2
    exact = float((null >= abs(found.difference) - 1e-12).mean())
    assert found.num_strata == 2
    assert (found.p_value, found.smallest_p) == pytest.approx((exact, 2 / 36))
    drawn = within_strata(x, depths(4), y, depths(4), Options(("act_mag",), 10, permutations=35, resamples=9), "strata")
    assert drawn.smallest_p == 1 / 36
    assert drawn.p_value == pytest.approx(exact, abs=0.15)


def test_pairs_and_features_are_adjusted_together(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Every two runs give each feature a difference with p and Cliff's delta; Holm's adjustment is over all of them."""
    made = [
        Planted(tmp_path, name, blocks=6, model_seed=n, ks=(10,), draws=1, steps=("score", "rank"), density=density)
        for n, (name, density) in enumerate([("a", {}), ("b", {}), ("c", {"mlp.up": 9.0, "mlp.down": 9.0, "mlp.gate": 9.0})])
    ]  # fmt: skip
    found = compare(labelled(group([one.write() for one in made]).runs), FAST)
    rows = adjusted(found.tables["comparison/1"], found.adjust)
    tests = [row for row in rows if row["quantity"] == "mean_difference"]
    assert len(tests) == 3 * 4
    assert len(rows) == 2 * len(tests)
    planted = next(row for row in tests if (row["a"], row["b"], row["subject"]) == ("a", "c", "log_density_attention"))
    assert planted["value"] > 0.5
    assert planted["p_value"] < 0.05
    assert planted["p_adjusted"] == pytest.approx(min(1.0, 12 * min(row["p_value"] for row in tests)), abs=0.12)
    assert all(row["p_adjusted"] >= row["p_value"] for row in tests)
    delta = next(row for row in rows if row["quantity"] == "cliffs_delta" and row["b"] == "c" and row["a"] == "a")
    assert delta["value"] == 1.0
