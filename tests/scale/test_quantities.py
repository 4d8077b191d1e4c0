"""The quantities of a run against naive calculations on the planted scores and damages themselves."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esa.artifact.gather import Gathered
from esa.artifact.grouping import group
from esa.scale.quantities import QUANTITIES, Measured, Wanted, measure
from tests.planted_runs import Case, Planted

Make = Callable[..., tuple[Planted, Gathered]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a maker of a planted run and of what is gathered from it."""

    def made(**knobs: Any) -> tuple[Planted, Gathered]:
        planted = Planted(tmp_path, **knobs)
        return planted, group([planted.write()]).runs[0]

    return made


def of(run: Gathered, quantity: str, **wanted: Any) -> list[Measured]:
    """Return one quantity of a run."""
    return list(QUANTITIES[quantity](run, Wanted(**wanted)))


def naive_half_share(scores: np.ndarray) -> float:
    """Return the share of the highest scores that first reach half of the sum, by sorting all of them."""
    falling = np.sort(scores)[::-1]
    return float(np.searchsorted(np.cumsum(falling), falling.sum() / 2) + 1) / len(falling)


def every(planted: Planted, metric: str, seed: int | None) -> np.ndarray:
    """Return all scores of a metric and seed."""
    return np.concatenate([scores.ravel() for scores in planted.scores[metric, seed].values()])


def test_half_share_is_that_of_the_sorted_scores(make: Make) -> None:
    """From bins it comes within their width of the exact share, which lies between its bounds."""
    planted, run = make(width=16, metrics=("act_mag", "magnitude"), spread=1.5)
    found = of(run, "half_share")
    assert [(one.subject, one.seed) for one in found] == [("act_mag", 0), ("act_mag", 1), ("magnitude", None)]
    for one in found:
        exact = naive_half_share(every(planted, one.subject, one.seed))
        assert one.low is not None
        assert one.high is not None
        assert one.value is not None
        assert one.low <= exact <= one.high + 1 / planted.num_weights
        assert one.value == pytest.approx(exact, rel=0.01)
        assert one.high / one.low < 1.15


def test_half_share_of_equal_scores_is_a_half(make: Make) -> None:
    """Where all weights count the same, half of them hold half; where one outweighs all, it alone does."""
    _, equal = make(name="equal", spread=0.0, seed_noise=0.0)
    assert of(equal, "half_share")[0].value == pytest.approx(0.5, rel=1e-6)
    target = "model.layers.0.mlp.down_proj.weight:1,2"
    planted, one = make(name="one", critical={target: 1e6})
    assert of(one, "half_share")[0].value == pytest.approx(0.5 / planted.num_weights, rel=0.1)


def test_half_share_of_nothing_is_left_out(make: Make) -> None:
    """A metric whose scores are all zero has no half, and says so."""
    _, run = make(
        density=dict.fromkeys(
            ("embed", "lm_head", "mlp.gate", "mlp.up", "mlp.down", "attn.q", "attn.k", "attn.v", "attn.o"), 0.0
        )
    )
    found = of(run, "half_share")[0]
    assert (found.value, found.excluded) == (None, "every score is zero")


def test_top_to_median_is_that_of_the_sorted_scores(make: Make) -> None:
    """The mean of the top 1 % over the median, within a bin's width of the exact one."""
    planted, run = make(width=16, spread=2.0)
    scores = np.sort(every(planted, "act_mag", 0))
    top = scores[-round(len(scores) / 100) :]
    assert of(run, "top_to_median")[0].value == pytest.approx(top.mean() / np.median(scores), rel=0.04)


def test_a_median_of_zero_has_no_ratio(make: Make) -> None:
    """Where most scores are zero the ratio is left out, with how many there are."""
    _, run = make(vocabulary=2000, density={"embed": 0.0, "lm_head": 0.0})
    found = of(run, "top_to_median")[0]
    assert found.value is None
    assert found.excluded == "the median score is zero: 32,000 of 33,664 scores are"


def test_the_tail_index_is_hill_s(make: Make) -> None:
    """It is the inverse mean log excess of the highest scores over the lowest of them."""
    planted, run = make(width=24, spread=1.0)
    scores = np.sort(every(planted, "act_mag", 0))[::-1]
    m = round(len(scores) / 100)
    hill = 1 / np.mean(np.log(scores[:m] / scores[m]))
    assert of(run, "tail_index")[0].value == pytest.approx(hill, rel=0.15)


def test_damage_of_the_top_k_is_the_campaign_s(make: Make) -> None:
    """Each K, method and metric has its damage and interval; a method of several doses is asked for by name."""
    methods = ({"method": "zero"}, *({"method": "gauss_noise", "sigma": sigma} for sigma in (0.5, 1.0)))
    _, run = make(methods=methods, damage=lambda one, case: 0.1 * case.k)
    found = of(run, "damage_top_k")
    assert [(one.subject, one.k, one.value) for one in found] == [
        ("act_mag, zero, top 1", 1, pytest.approx(0.1)),
        ("act_mag, zero, top 10", 10, pytest.approx(1.0)),
        ("act_mag, zero, top 100", 100, None),
    ]
    assert (found[1].low, found[1].high) == (pytest.approx(0.9), pytest.approx(1.1))
    assert found[2].excluded == "collapsed: a perplexity over half the vocabulary"
    noisy = of(run, "damage_top_k", methods=("gauss_noise",), ks=(10,))
    assert [one.subject for one in noisy] == [f"act_mag, gauss_noise sigma={sigma}, top 10" for sigma in (0.5, 1.0)]


def test_a_method_of_one_dose_needs_no_name(make: Make) -> None:
    """A factor that is never varied is an option like others."""
    _, run = make(methods=({"method": "sign_flip", "factor": 1.0},), damage=lambda one, case: case.dose or 0.5)
    assert [(one.subject, one.value) for one in of(run, "damage_top_k", ks=(1,))] == [
        ("act_mag, sign_flip factor=1.0, top 1", 1.0)
    ]


def test_a_broken_model_has_no_damage(make: Make) -> None:
    """NaN in the logits leaves no value but a reason; so does the worst single weight."""
    _, run = make(damage=lambda one, case: None if case.group == "top_k" else 0.0)
    for quantity in ("damage_top_k", "damage_single"):
        assert {(one.value, one.excluded) for one in of(run, quantity)} == {
            (None, "nonfinite: NaN or Inf in the logits")
        }


def test_a_uniform_model_is_collapsed(make: Make) -> None:
    """A model at the NLL of guessing is a collapsed one by another name, so its damage is no value either."""

    def uniform(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | ({"outcome": "uniform"} if row["group"] == "top_k" else {}) for row in rows]

    _, run = make(tables={"damage.csv": uniform}, damage=lambda one, case: 1.0)
    for quantity in ("damage_top_k", "damage_single"):
        assert {one.excluded for one in of(run, quantity)} == {"collapsed: a perplexity over half the vocabulary"}


def test_a_model_that_guesses_intact_has_nothing_to_lose(make: Make) -> None:
    """Where the intact model's perplexity is over half the vocabulary, as an early checkpoint's is, it is not collapsed."""
    _, run = make(stated_vocabulary=79, damage=lambda one, case: 6.0)  # perplexity 40
    for quantity in ("damage_top_k", "damage_single"):
        assert {one.excluded for one in of(run, quantity)} == {
            "untrained: the intact model's own perplexity is over half the vocabulary"
        }
    _, trained = make(name="trained", stated_vocabulary=81, damage=lambda one, case: 1.0)
    assert all(one.excluded is None for one in of(trained, "damage_top_k"))


def test_k_of_each_unit_is_no_share_of_the_model(make: Make) -> None:
    """A run ranked by layer, whose K counts in every tensor, has no damage of a share of all weights."""
    _, run = make(settings={"rank": {"mode": "per_layer"}}, damage=lambda one, case: 0.1)
    assert of(run, "damage_fraction", fractions=(1e-4,), num_parameters=1_000_000) == []


@pytest.mark.parametrize(
    ("weights", "k"), [(1_000_000, 100), (150_000, 10), (200_000, 10), (40_000, None), (50_000_000, None)]
)
def test_a_fixed_fraction_takes_the_nearest_measured_k_or_none(make: Make, weights: int, k: int | None) -> None:
    """Of K 1, 10 and 100 the one within a factor of 2 of a ten-thousandth of the weights is taken, and no other stands in."""
    _, run = make(stated_parameters=weights, damage=lambda one, case: 0.01 * case.k)
    (found,) = of(run, "damage_fraction", fractions=(1e-4,), num_parameters=weights)
    assert found.subject == "act_mag, zero, K nearest to 1e-4 of the weights"
    assert found.k == k
    assert found.value == (None if k is None else pytest.approx(0.01 * k))
    if k is None:
        aim = {40_000: "4", 50_000_000: "5,000"}[weights]
        assert found.excluded == f"no K within a factor of 2 of {aim}; measured: 1, 10, 100"


def test_the_worst_single_weight_need_not_be_the_first(make: Make) -> None:
    """The largest damage of the weights changed one by one, of how many the subject says; of k = 1 where none were."""

    def second(one: Planted, case: Case) -> float:
        ranked = [one.target(name, index) for name, index, _ in one.ordered("act_mag", 0)[:3]]
        return 2.0 if case.unit == "single" and case.targets[0] == ranked[1] else 0.5

    _, run = make(damage=second)
    (found,) = of(run, "damage_single")
    assert (found.subject, found.value, found.k) == ("act_mag, zero, worst of 3 alone", pytest.approx(2.0), 1)
    _, without = make(name="without", singles=0, damage=second)
    (found,) = of(without, "damage_single")
    assert (found.subject, found.value) == ("act_mag, zero, worst of 1 alone", pytest.approx(0.5))


@pytest.mark.parametrize("steps", [("score", "rank", "overlap"), ("score", "rank")])
def test_seed_jaccard_is_that_of_the_lists(make: Make, steps: tuple[str, ...]) -> None:
    """The mean over pairs of seeds comes out the same from the overlap step and from the ranking alone."""
    planted, run = make(width=12, seeds=(0, 1, 2), seed_noise=0.6, steps=steps)
    for k, found in zip((1, 10, 100), of(run, "seed_jaccard"), strict=True):
        tops = [{row[:2] for row in planted.ordered("act_mag", seed)[:k]} for seed in (0, 1, 2)]
        pairs = [len(a & b) / len(a | b) for a, b in combinations(tops, 2)]
        assert found.subject == f"act_mag, top {k}"
        assert found.value == pytest.approx(sum(pairs) / 3)
        assert (found.low, found.high) == (pytest.approx(min(pairs)), pytest.approx(max(pairs)))


def noise(damage: Callable[[float], float | None]) -> dict[str, Any]:
    """Return the knobs of a campaign of Gaussian noise at four doses."""
    doses = (0.1, 0.2, 0.4, 0.8)
    return {
        "methods": tuple({"method": "gauss_noise", "sigma": dose} for dose in doses),
        "damage": lambda one, case: damage(case.dose or 1.0) if case.group == "top_k" else 0.0,
        "ks": (10,),
    }


def test_the_doubling_dose_lies_where_damage_is_ln_2(make: Make) -> None:
    """A damage linear in ln sigma gives its dose exactly, and a larger damage a smaller dose at the other end."""
    _, run = make(**noise(lambda dose: math.log(2) + math.log(dose / 0.3)))
    found = next(one for one in of(run, "noise_doubling") if one.subject == "act_mag, top_k 10")
    assert found.value == pytest.approx(0.3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.3 < found.high


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda dose: 0.01, "perplexity is not doubled by the largest dose, 0.8"),
        (lambda dose: 1.0, "perplexity is more than doubled by the smallest dose, 0.1"),
        (
            lambda dose: None if dose > 0.3 else 0.1,
            "NaN or Inf in the logits at dose 0.4, before any finite damage above ln 2",
        ),
    ],
)
def test_a_doubling_that_is_not_bracketed_is_left_out(
    make: Make, damage: Callable[[float], float | None], why: str
) -> None:
    """Doses that do not bracket a doubling give no dose but the reason: nothing is extrapolated."""
    _, run = make(**noise(damage))
    found = next(one for one in of(run, "noise_doubling") if one.subject == "act_mag, top_k 10")
    assert (found.value, found.low, found.high, found.excluded) == (None, None, None, why)


def test_the_intact_model_s_loss_is_the_eval_step_s_or_the_campaign_s(make: Make) -> None:
    """The eval step speaks with its standard error, the campaign's base without one."""
    _, run = make(nll_base=3.0)
    (found,) = of(run, "intact_nll")
    assert (found.subject, found.value) == ("builtin:prose_eval, length 32", 3.0)
    assert found.low == pytest.approx(3.0 - 1.96 * 0.03, abs=1e-3)
    _, bare = make(name="bare", nll_base=3.0, steps=("score", "rank", "perturb"))
    (found,) = of(bare, "intact_nll")
    assert (found.value, found.low) == (3.0, None)


def test_a_missing_step_is_no_quantity_and_no_error(make: Make) -> None:
    """A run of a score step alone has the quantities of its scores; nothing is made up for the rest."""
    _, run = make(steps=("score",))
    assert {one.quantity for one in measure(run, Wanted())} == {"half_share", "top_to_median", "tail_index"}
    assert {one.subject for one in measure(run, Wanted(metrics=("obd",)))} == set()
