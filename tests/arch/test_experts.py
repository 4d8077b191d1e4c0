"""Experts of a mixture: the table against sums by hand, planted density and usage, and concentration of known shares."""

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import entropy, spearmanr

from esa.arch.comparison.block_ranks import mean_correlation_p, rank_correlation, within_ranks
from esa.arch.comparison.concentration import effective_number, gini, jensen_shannon, normalised_entropy
from esa.arch.comparison.experts import compare
from esa.arch.comparison.findings import Options, Row
from esa.artifact import make_table
from esa.spec import generator
from tests.arch.planted_mixtures import dense, mixture, opened
from tests.planted_runs import Planted

OPTIONS = Options(("act_mag",), 10, permutations=1999, resamples=499)
USED = [0.1, 0.2, 0.3, 0.6, 0.8]  # of the five experts


def used(block: int, expert: int) -> float:
    """Return a usage that differs between experts and little between blocks."""
    return USED[expert] * (1 - 0.01 * block)


def answers(made: Planted, question: str, options: Options = OPTIONS) -> list[Row]:
    """Return the rows of a question about a planted run."""
    rows = compare(opened(made.write()), options).tables["comparison/1"]
    return [row for row in rows if row["question"] == question]


def test_the_table_of_experts_is_sums_by_hand(tmp_path: Path) -> None:
    """Score, share and density of an expert are over both of its tensors; its usage is what the score step recorded."""
    made = mixture(tmp_path, usage=used)
    found = make_table("experts/1", list(compare(opened(made.write()), OPTIONS).tables["experts/1"])).frame
    assert found.height == 2 * 4 * 5
    (row,) = found.filter(pl.col("seed") == 1, pl.col("block") == 2, pl.col("expert") == 3).to_dicts()
    scores = made.scores["act_mag", 1]
    own = [scores[f"model.layers.2.mlp.experts.{name}"][3] for name in ("gate_up_proj", "down_proj")]
    total = sum(float(one.sum()) for one in scores.values())
    assert row["numel"] == sum(one.size for one in own)
    assert row["usage"] == used(2, 3)
    assert row["score"] == pytest.approx(sum(float(one.sum()) for one in own))
    assert row["score_share"] == pytest.approx(row["score"] / total)
    assert row["density"] == pytest.approx(row["score_share"] / (row["numel"] / made.num_weights))


def test_top_weights_are_counted_by_expert(tmp_path: Path) -> None:
    """Of the top K, those in an expert's tensors count for it, and no other expert's."""
    name = "model.layers.1.mlp.experts.down_proj"
    made = mixture(tmp_path, critical={f"{name}:3,1,{j}": 100.0 + j for j in range(10)})
    found = make_table("experts/1", list(compare(opened(made.write()), OPTIONS).tables["experts/1"])).frame
    top = found.filter(pl.col("num_top") > 0, pl.col("seed") == 0)
    assert top.select("block", "expert", "num_top").rows() == [(1, 3, 10)]


def test_a_metric_without_inputs_takes_the_usage_of_another(tmp_path: Path) -> None:
    """The usage that an activation metric recorded stands beside a metric that saw no inputs, of the same seed."""
    made = mixture(tmp_path, metrics=("grad_x_weight", "act_mag"), usage=used)
    folder = made.write()
    hidden = pl.when(pl.col("metric") == "act_mag").then(pl.col("usage"))
    run = opened(folder)[0]
    run.run.__dict__["tensors"] = run.run.tensors.with_columns(hidden.alias("usage"))  # type: ignore[union-attr]
    options = Options(("grad_x_weight", "act_mag"), 10, permutations=199, resamples=99)
    rows = compare([run], options).tables["experts/1"]
    assert {row["usage"] for row in rows if row["metric"] == "grad_x_weight"} == {
        used(block, expert) for block in range(4) for expert in range(5)
    }


def test_denser_experts_are_found(tmp_path: Path) -> None:
    """Experts of three times the other weights' scores have a density ratio of three, its interval around it."""
    made = mixture(tmp_path, blocks=12, spread=0.3, density={"expert.gate_up": 3.0, "expert.down": 3.0})
    (row,) = answers(made, "expert against shared")
    assert row["low"] < 3 < row["high"]
    assert row["value"] == pytest.approx(3, rel=0.15)
    assert row["p_value"] < 0.01
    (same,) = answers(mixture(tmp_path, name="same", blocks=12, spread=0.3), "expert against shared")
    assert same["low"] < 1 < same["high"]


def test_scores_that_follow_usage_are_found(tmp_path: Path) -> None:
    """Where an expert's scores grow with its usage the mean correlation is one, with the smallest p; the blocks are exact."""
    made = mixture(tmp_path, spread=0.1, usage=used)
    rows, (every,) = answers(made, "score against usage by block"), answers(made, "score against usage")
    assert [row["subject"] for row in rows] == [f"block {b}" for b in range(4)]
    for row in rows:
        assert row["value"] == pytest.approx(1)
        assert row["p_value"] == row["smallest_p"] == pytest.approx(2 / math.factorial(5))
        assert (row["low"], row["high"]) == (None, None)  # of ranks in perfect order there is no spread to go by
    assert every["value"] == pytest.approx(1)
    assert every["p_value"] == 1 / 2000
    assert "usage enters this score by definition" in every["why"]


def test_scores_apart_from_usage_are_not(tmp_path: Path) -> None:
    """Where usage says nothing of the score, the correlation is the naive mean of the blocks' and p is not small."""
    made = mixture(tmp_path, metrics=("grad_x_weight",), usage=used, spread=0.5)
    made.usage = None
    folder = made.write()
    run = opened(folder)[0]
    mark = generator(3, "test").random(4 * 5)
    usage = pl.struct("block", "expert").map_elements(
        lambda one: None if one["expert"] is None else float(mark[one["block"] * 5 + one["expert"]]),
        return_dtype=pl.Float64,
    )
    run.run.__dict__["tensors"] = run.run.tensors.with_columns(usage.alias("usage"))  # type: ignore[union-attr]
    found = compare([run], Options(("grad_x_weight",), 10, permutations=1999, resamples=99))
    row = next(row for row in found.tables["comparison/1"] if row["subject"] == "all blocks")
    table = make_table("experts/1", list(found.tables["experts/1"])).frame
    means = table.group_by("block", "expert").agg(pl.col("score").mean(), pl.col("usage").mean())
    naive = np.mean([spearmanr(part["score"], part["usage"]).statistic for part in means.partition_by("block")])
    assert row["value"] == pytest.approx(naive)
    assert row["p_value"] > 0.05
    assert row["why"] is None


def test_without_usage_there_is_a_reason(tmp_path: Path) -> None:
    """Where no metric recorded usage there is no correlation, and the row says why."""
    (row,) = answers(mixture(tmp_path), "score against usage")
    assert row["why"] == "no metric that sees inputs was scored: usage is not known"
    usage = [
        row for row in answers(mixture(tmp_path, name="b"), "concentration over experts") if row["subject"] == "usage"
    ]
    assert {row.get("value") for row in usage} == {None}


def test_concentration_of_planted_usage(tmp_path: Path) -> None:
    """Gini, entropy and effective number of planted usage are those of its shares; the uniform's stand beside them."""
    rows = answers(mixture(tmp_path, usage=lambda block, expert: USED[expert]), "concentration over experts")
    found = {row["quantity"]: row for row in rows if row["subject"] == "usage"}
    shares = np.array(USED) / sum(USED)
    naive = sum(abs(a - b) for a in shares for b in shares) / (2 * 5**2 * shares.mean())
    assert found["gini"]["value"] == pytest.approx(naive)
    assert found["normalised_entropy"]["value"] == pytest.approx(entropy(shares) / math.log(5))
    assert found["effective_number"]["value"] == pytest.approx(math.exp(entropy(shares)))
    assert [found[name]["expected"] for name in ("gini", "normalised_entropy", "effective_number")] == [0.0, 1.0, 5.0]


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    """Of a dense model nothing is said about experts."""
    found = compare(opened(dense(tmp_path).write()), OPTIONS)
    assert found.tables == {"experts/1": [], "comparison/1": []}
    assert found.warnings == ()


@pytest.mark.parametrize("number", [2, 3, 8])
def test_measures_at_their_ends(number: int) -> None:
    """Equal shares and a single one are the ends of every measure of concentration."""
    equal, alone = np.full(number, 1 / number), np.eye(number)[0]
    assert gini(equal) == pytest.approx(0)
    assert gini(alone) == pytest.approx(1 - 1 / number)
    assert (effective_number(equal), effective_number(alone)) == pytest.approx((number, 1))
    assert (normalised_entropy(equal), normalised_entropy(alone)) == pytest.approx((1, 0))
    assert jensen_shannon(alone, np.eye(number)[1]) == pytest.approx(1)
    assert jensen_shannon(equal, equal) == 0


def test_divergence_is_its_definition() -> None:
    """The Jensen-Shannon divergence is the mean Kullback-Leibler divergence from the middle, in bits."""
    p, q = np.array([0.7, 0.2, 0.1, 0.0]), np.array([0.1, 0.4, 0.0, 0.5])
    middle = (p + q) / 2
    assert jensen_shannon(p, q) == pytest.approx((entropy(p, middle, base=2) + entropy(q, middle, base=2)) / 2)


def ranks(values: Any) -> Any:
    """Return the ranks of a few values."""
    return within_ranks(np.array([values], dtype=float))[0]


def test_rank_correlation_is_scipy_s() -> None:
    """Row by row the correlation of ranks is Spearman's, ties averaged, NaN without spread."""
    a, b = np.array([[1.0, 2, 2, 5], [1, 1, 1, 1]]), np.array([[3.0, 1, 4, 9], [1, 2, 3, 4]])
    found = rank_correlation(within_ranks(a), within_ranks(b))
    assert found[0] == pytest.approx(spearmanr(a[0], b[0]).statistic)
    assert np.isnan(found[1])


def test_p_of_one_block_counts_all_orders() -> None:
    """With few experts p is the share of all orders that correlate as much; ties keep the smallest p from 2/n!."""
    a, b = ranks([1, 2, 3, 4]), ranks([2, 1, 3, 4])
    observed = abs(spearmanr(a, b).statistic)
    every = [abs(spearmanr(a, order).statistic) for order in permutations(b)]
    p, smallest = mean_correlation_p([(a, b)], generator(0, "test"), 999)
    assert p == pytest.approx(np.mean([one >= observed - 1e-9 for one in every]))
    assert smallest == pytest.approx(2 / 24)
    assert mean_correlation_p([(a, ranks([1, 1, 1, 4]))], generator(0, "test"), 999)[1] == pytest.approx(12 / 24)


def test_p_of_several_blocks_is_monte_carlo() -> None:
    """Over several blocks p agrees with the exact share of all pairs of orders within its error."""
    pairs = [(ranks([1, 2, 3, 4]), ranks(order)) for order in ([1, 2, 4, 3], [2, 1, 3, 4])]
    observed = abs(np.mean([spearmanr(a, b).statistic for a, b in pairs]))
    one = [rank_correlation(pairs[0][0][None], np.array(order)[None])[0] for order in permutations(pairs[0][1])]
    exact = np.mean([abs((x + y) / 2) >= observed - 1e-9 for x in one for y in one])
    p, smallest = mean_correlation_p(pairs, generator(0, "test"), 9999)
    assert p == pytest.approx(exact, abs=0.02)
    assert smallest == 1 / 10000
