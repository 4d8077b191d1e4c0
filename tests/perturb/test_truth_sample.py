"""The sample of weights that are zeroed: its chances, its strata, and sums over the model without bias."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from esa.errors import SpecError
from esa.perturb.truth.sample import Sample, cell_sizes, draw_rows, draw_sample, proportional_chances, systematic
from esa.spec.sections import Truth

DRAW = np.random.default_rng(2)
SIZES = {"a": 4000, "b": 600, "c": 40}
SCORES = {name: np.stack([DRAW.lognormal(0, 2, n), DRAW.lognormal(0, 1, n)]) for name, n in SIZES.items()}
SCORES["a"][1, :1500] = 0  # equal scores, as of embedding rows that no token reads
KEPT = 150  # of each tensor, at most
NUM_WEIGHTS = sum(SIZES.values())


def frame(parameter: str, index: np.ndarray) -> pl.DataFrame:
    """Return weights of one tensor with both metrics' scores, as they are read from a score step."""
    scores = SCORES[parameter][:, index]
    return pl.DataFrame(
        {
            "parameter": [parameter] * len(index), "index": index, "numel": [SIZES[parameter]] * len(index),
            "score_0": scores[0], "score_1": scores[1],
        }
    )  # fmt: skip


def uniform(draw: np.random.Generator) -> pl.DataFrame:
    """Return an even sample of each tensor."""
    return pl.concat([frame(p, np.sort(draw.choice(n, min(KEPT, n), replace=False))) for p, n in SIZES.items()])


def tops(number: int = 3) -> pl.DataFrame:
    """Return the highest scores' weights of both metrics over all tensors."""
    every = pl.concat([frame(p, np.arange(n)) for p, n in SIZES.items()])
    best = [every.sort(f"score_{m}", descending=True).head(number) for m in range(2)]
    return pl.concat(best).unique(["parameter", "index"], maintain_order=True)


def drawn(seed: int, **rules: Any) -> Sample:
    """Return a sample of 100 weights from an even one drawn by the same seed."""
    chosen = Truth(**{"weights": 100, "strata": 5, "top": 3, **rules})
    return draw_sample(uniform(np.random.default_rng(seed)), tops(), 2, NUM_WEIGHTS, chosen, seed)


def test_weighted_sums_estimate_the_model_without_bias() -> None:
    """Over 400 draws the weighted number of weights, their scores and a planted effect average to those of all weights."""
    planted = {p: np.log1p(scores[0]) * (scores[1] + 0.1) for p, scores in SCORES.items()}
    truth = np.array([NUM_WEIGHTS, *(sum(float(v.sum()) for v in part) for part in (
        [scores[1] > 0 for scores in SCORES.values()], [np.log1p(s[0]) for s in SCORES.values()], planted.values())
    )])  # fmt: skip
    found = []
    for seed in range(400):
        sample = drawn(seed).frame
        weight = sample["sampling_weight"].to_numpy()
        score = sample.select("score_0", "score_1").to_numpy()
        effect = np.array([planted[p][i] for p, i in sample.select("parameter", "index").iter_rows()])
        columns = (np.ones(len(weight)), score[:, 1] > 0, np.log1p(score[:, 0]), effect)
        found.append([float((weight * column).sum()) for column in columns])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / 20
    assert bool((np.abs(mean - truth) < 4 * error).all())
    assert bool((error < 0.02 * truth).all())


def test_the_plain_mean_would_be_biased() -> None:
    """The check above can fail: without the sampling weights the same sums are far off."""
    sample = drawn(0).frame
    share = float((sample["score_1"] > 0).mean())
    truth = sum(int((scores[1] > 0).sum()) for scores in SCORES.values()) / NUM_WEIGHTS
    weight = sample["sampling_weight"]
    assert abs(share - truth) > 2 * abs(float((weight * (sample["score_1"] > 0)).sum() / weight.sum()) - truth)


def test_every_stratum_of_every_metric_is_drawn_from() -> None:
    """Of each fifth of each metric's scores, by mass, as many weights come as the design says, but for double ones."""
    pool = uniform(np.random.default_rng(1))
    scores = pool.select("score_0", "score_1").to_numpy().T
    mass = (pool["numel"] / pool.select(pl.len().over("parameter")).to_series()).to_numpy()
    chance, picked = draw_rows(scores, mass, 100, 5, seed=1)
    assert 80 <= picked.sum() <= 100
    assert chance.sum() == pytest.approx(picked.sum(), abs=6)
    for score in scores:
        order = np.lexsort((np.zeros(len(mass)), score))
        fifth = np.minimum((np.cumsum(mass[order]) / mass.sum() * 5).astype(int), 4)
        counts = np.bincount(fifth, picked[order], 5)
        assert counts.min() >= 8


def test_top_ones_are_certain_and_stand_for_themselves() -> None:
    """The three highest of each metric come first, with a sampling weight of 1; no other row is one of them."""
    best = tops()
    sample = drawn(7).frame
    assert sample.head(len(best)).select("parameter", "index").equals(best.select("parameter", "index"))
    assert sample.head(len(best))["sampling_weight"].to_list() == [1.0] * len(best)
    assert sample.head(len(best))["certain"].all()
    assert sample.select("parameter", "index").is_unique().all()
    assert not sample[len(best) :]["certain"].any()


def test_a_small_model_is_taken_whole() -> None:
    """Where no more weights are left than are to be drawn, each is taken and stands for itself."""
    part = frame("c", np.arange(40))
    sample = draw_sample(part, part.sort("score_0", descending=True).head(2), 2, 40, Truth(weights=60), 0)
    assert len(sample.frame) == 40
    assert sample.frame["certain"].all()
    assert sample.frame["sampling_weight"].to_list() == [1.0] * 40


def test_fewer_draws_than_strata_are_refused() -> None:
    """A sample that leaves strata of some metric without a weight is refused, with the number that would do."""
    with pytest.raises(SpecError) as caught:
        drawn(0, weights=20, strata=10)
    assert str(caught.value) == (
        "truth.weights: 20 leave 14 beside 6 top ones; 10 strata of 2 metrics need 20\n"
        "hint: truth.weights = 26 or more, or fewer of truth.strata or truth.top"
    )


def test_a_draw_is_the_seeds() -> None:
    """The same seed draws the same weights, another seed others."""
    assert drawn(3).frame.equals(drawn(3).frame)
    assert not drawn(3).frame.equals(drawn(4).frame)


def test_cells_share_the_draws_and_the_highest_get_what_is_over() -> None:
    """Seven draws over two metrics and three strata: one each, and one more for a metric's highest stratum."""
    assert cell_sizes(7, 2, 3).tolist() == [[1, 1, 2], [1, 1, 1]]
    assert cell_sizes(60, 2, 3).tolist() == [[10] * 3] * 2


def test_chances_are_proportional_and_at_most_one() -> None:
    """Chances add up to the number drawn; what would exceed 1 is certain, and the others share the rest."""
    assert proportional_chances(np.array([1.0, 1.0, 2.0]), 2).tolist() == [0.5, 0.5, 1.0]
    assert proportional_chances(np.array([1.0, 1.0, 100.0]), 2).tolist() == [0.5, 0.5, 1.0]
    assert proportional_chances(np.array([1.0, 3.0]), 5).tolist() == [1.0, 1.0]
    assert proportional_chances(np.zeros(0), 3).tolist() == []


def test_systematic_draws_have_their_chances_and_their_number() -> None:
    """Over many combs every row comes as often as its chance says, and each comb draws the sum of the chances."""
    chance = np.array([0.1, 0.9, 0.5, 1.0, 0.25, 0.25])
    draw = np.random.default_rng(0)
    picks = np.array([systematic(chance, draw) for _ in range(4000)])
    assert set(picks.sum(1).tolist()) == {3}
    assert picks.mean(0) == pytest.approx(chance, abs=0.03)
