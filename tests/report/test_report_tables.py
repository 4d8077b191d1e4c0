"""The pure functions that the report and the console share."""

import json
import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from esa.artifact import find_table, make_table
from esa.report.findings import agreement_sentences, comparison_sentences, group_sentences
from esa.report.frames import damage_points, drawn, jaccard_matrix, score_distribution, shares, thresholds
from esa.report.sections import agreement_table
from esa.report.tables import collapse, damage_summary, fault_summary, label, worst_single
from tests.report.conftest import WORST


def rows(*changes: dict[str, Any]) -> pl.DataFrame:
    """Return a damage table of joint cases on top_k, each changed as told."""
    base = {
        "metric": "act_mag", "seed": 0, "group": "top_k", "method": "zero", "options": "{}", "unit": "joint", "k": 10,
        "nll": 3.0, "nll_base": 2.0, "delta_nll": 1.0, "ppl": 20.0, "ppl_base": 10.0, "noise_floor": 1e-6,
        "below_floor": False, "outcome": "ok",
    }  # fmt: skip
    return make_table("damage/1", [{"case": str(n), **base, **change} for n, change in enumerate(changes)]).frame


def test_the_summary_has_the_columns_the_console_prints(damage: pl.DataFrame) -> None:
    """damage_summary gives one row per method, unit, metric, group and k, under agreed names."""
    summary = damage_summary(damage)
    assert summary.columns == [
        "method", "options", "unit", "metric", "group", "k", "cases", "ppl_mean", "ppl_min", "ppl_max", "ratio", "outcome",
    ]  # fmt: skip
    assert summary.height == summary.select("method", "options", "unit", "metric", "group", "k").n_unique()
    assert summary["cases"].sum() == damage.height


def test_draws_fall_together_as_mean_and_extremes() -> None:
    """The mean, the extremes and the ratio are those of the cases."""
    row = damage_summary(rows({"ppl": 11.0}, {"ppl": 13.0, "draw": 1})).row(0, named=True)
    assert (row["cases"], row["ppl_mean"], row["ppl_min"], row["ppl_max"]) == (2, 12.0, 11.0, 13.0)
    assert row["ratio"] == pytest.approx(1.2)


def test_nonfinite_cases_are_counted_and_enter_no_mean() -> None:
    """A nonfinite case is named in the outcome; the mean is over the others; alone it leaves null."""
    lost = {"ppl": None, "nll": None, "delta_nll": None, "outcome": "nonfinite"}
    mixed = collapse(rows({}, lost, {"outcome": "collapsed"})).row(0, named=True)
    assert mixed["outcome"] == "1 ok, 1 collapsed, 1 nonfinite"
    assert (mixed["cases"], mixed["measured"], mixed["ppl_mean"]) == (3, 2, 20.0)
    alone = damage_summary(rows(lost)).row(0, named=True)
    assert (alone["ppl_mean"], alone["ratio"], alone["outcome"]) == (None, None, "nonfinite")


def test_an_overflowing_perplexity_is_not_left_out_of_the_mean() -> None:
    """Where exp overflows, no mean or maximum is claimed."""
    row = collapse(rows({}, {"ppl": None, "nll": 800.0, "delta_nll": 798.0, "outcome": "collapsed"})).row(0, named=True)
    assert (row["overflow"], row["ppl_mean"], row["ppl_max"], row["ppl_min"]) == (1, None, None, 20.0)


def test_the_worst_single_weight_comes_first_with_value_and_ranks(fake: Callable[..., Any]) -> None:
    """worst_single orders by damage and looks value and ranks up in the ranking."""
    made = fake(methods=({"method": "zero"},))
    damage = find_table(made.folders["perturb"], "damage/1").frame
    ranking = find_table(made.folders["rank"], "ranking/1").frame
    worst = worst_single(damage, ranking)
    first = worst.row(0, named=True)
    assert worst.columns[:6] == ["target", "weight", "ppl", "ratio", "delta_nll", "metrics"]
    assert first["target"] == f"{WORST}:507,1229"
    assert first["weight"] == 5.876
    assert first["metrics"] == "magnitude 4, act_mag 1, grad_x_weight 4"
    assert first["ppl"] == pytest.approx(19.5 * math.exp(1.68))
    assert worst["delta_nll"].is_sorted(descending=True)
    assert worst_single(damage)["weight"].null_count() == worst.height


def test_a_nonfinite_single_weight_is_worse_than_any_finite_one() -> None:
    """A weight that breaks the logits stands first, though it has no number; a case listed twice counts once."""
    lost = {"case": "b", "target": "w:1,1", "ppl": None, "nll": None, "delta_nll": None, "outcome": "nonfinite"}
    twice = {"case": "a", "target": "w:0,0"}
    found = worst_single(rows(twice, {**twice, "metric": "obd"}, lost, {"target": None}))
    assert found["target"].to_list() == ["w:1,1", "w:0,0"]
    assert found["repeats"].to_list() == [1, 1]


def test_of_repeats_the_worst_stands() -> None:
    """A method that draws is shown at its worst, with the number of its repeats."""
    found = worst_single(rows(*({"target": "w:0,0", "repeat": n, "delta_nll": n / 10} for n in range(3)))).row(
        0, named=True
    )
    assert (found["delta_nll"], found["repeats"]) == (0.2, 3)


def test_faults_are_summed_by_field() -> None:
    """Bits, flips, cases and their cost stand per field of the stored number; the highest bit's field first."""
    damage = rows({"case": "a", "ppl": 30.0}, {"case": "b", "ppl": 10.0})
    flips = [("a", 14, "exponent"), ("a", 3, "mantissa"), ("b", 3, "mantissa"), ("b", 2, "mantissa")]
    faults = make_table("faults/1", [{"case": case, "bit": bit, "field": field} for case, bit, field in flips]).frame
    found = fault_summary(faults, damage)
    assert found["field"].to_list() == ["exponent", "mantissa"]
    assert found["bits"].to_list() == [[14], [3, 2]]
    assert found["flips"].to_list() == [1, 3]
    assert found["cases"].to_list() == [1, 2]
    assert found["ppl_mean"].to_list() == [30.0, 20.0]


def test_options_are_read_as_words() -> None:
    """A method's options follow its name; text that is no JSON is kept."""
    assert label("zero", "{}") == label("zero", None) == "zero"
    assert (
        label("gauss_noise", json.dumps({"sigma": 0.1, "relative_to": "weight"}))
        == "gauss_noise, relative_to weight, sigma 0.1"
    )
    assert label("x", "what") == "x, what"


def test_shared_groups_stand_beside_every_metric() -> None:
    """A group that belongs to no metric is drawn in each metric's panel."""
    points = damage_points(rows({}, {"metric": "obd"}, {"metric": None, "group": "random_k"}))
    assert sorted(points.filter(pl.col("group") == "random_k")["metric"]) == ["act_mag", "obd"]
    alone = damage_points(rows({"metric": None, "group": "targets"}))
    assert alone["metric"].to_list() == ["all"]


def test_the_distribution_keeps_every_weight_of_the_first_seed(fake: Callable[..., Any]) -> None:
    """Rebinning loses no count, other seeds stay out, and what is drawn leaves out at most 1 in 10,000."""
    histogram = find_table(fake().folders["score"], "histogram/1").frame
    whole = score_distribution(histogram)
    first = histogram.filter((pl.col("metric") == "act_mag") & (pl.col("seed") == 0))
    assert whole.filter(pl.col("metric") == "act_mag")["count"].sum() == first["count"].sum()
    assert whole["metric"].unique(maintain_order=True).to_list() == ["magnitude", "act_mag", "grad_x_weight"]
    for _, part in whole.group_by("metric"):
        kept = drawn(part)
        assert kept["count"].sum() >= (1 - 1e-4) * part["count"].sum()
        assert kept["high"].max() == part["high"].max()


def test_thresholds_are_the_scores_at_rank_k(fake: Callable[..., Any]) -> None:
    """Each metric has a threshold per k, and a ranking that is not global has none."""
    ranking = find_table(fake().folders["rank"], "ranking/1").frame
    cuts = thresholds(ranking, [1, 100])
    assert cuts.height == 6
    wanted = (
        (pl.col("metric") == "act_mag") & (pl.col("group") == "top_k") & (pl.col("seed") == 0) & (pl.col("rank") == 100)
    )
    assert (
        cuts.filter((pl.col("metric") == "act_mag") & (pl.col("k") == 100))["score"][0]
        == ranking.filter(wanted)["score"][0]
    )
    assert thresholds(ranking.with_columns(pl.lit("per_layer").alias("mode")), [1]).is_empty()
    assert thresholds(None, [1]).is_empty()


def test_shares_sum_to_one(fake: Callable[..., Any]) -> None:
    """The shares of score and of weights add up to one per metric, the weights outside the blocks included."""
    tensors = find_table(fake().folders["score"], "tensors/1").frame
    for by in ("component", "block"):
        sums = shares(tensors, by).group_by("metric").agg(pl.col("score_share", "weight_share").sum())
        assert sums["score_share"].to_list() == pytest.approx([1.0] * 3)
        assert sums["weight_share"].to_list() == pytest.approx([1.0] * 3)
    assert shares(tensors.with_columns(pl.lit(0.0).alias("sum")), "block").is_empty()


def test_the_matrix_is_symmetric_at_the_largest_k(fake: Callable[..., Any]) -> None:
    """Both halves of the heat map are there, without the diagonal, at the largest k by weight."""
    overlap = find_table(fake().folders["overlap"], "overlap/1").frame
    matrix = jaccard_matrix(overlap)
    assert matrix.height == 7 * 6
    assert set(matrix["k"]) == {100}
    turned = matrix.rename({"a": "b", "b": "a"}).select(matrix.columns)
    assert matrix.sort("a", "b").equals(turned.sort("a", "b"))
    assert jaccard_matrix(overlap.with_columns(pl.lit("component").alias("by"))).is_empty()


def test_lists_of_two_runs_keep_their_labels(fake: Callable[..., Any]) -> None:
    """Where metric and seed do not tell two lists apart, their labels do."""
    overlap = find_table(fake().folders["overlap"], "overlap/1").frame.head(1)
    same = overlap.with_columns(pl.lit("act_mag").alias("metric_a"), pl.lit("act_mag").alias("metric_b"))
    same = same.with_columns(pl.lit(0).alias("seed_a"), pl.lit(0).alias("seed_b"))
    same = same.with_columns(pl.lit("one").alias("label_a"), pl.lit("two").alias("label_b"))
    assert set(jaccard_matrix(same)["a"]) == {"one", "two"}


def test_single_weights_are_compared_by_their_worst() -> None:
    """For weights one at a time the sentence gives mean and maximum, and sets the worst against the random ones."""
    random = {"metric": None, "group": "random_k", "unit": "single", "k": 1, "ppl": 10.0}
    top = {"unit": "single", "k": 1}
    (text,) = group_sentences(rows({**top, "ppl": 40.0}, {**top, "ppl": 12.0}, random, {**random, "ppl": 11.0}))
    assert "26.00 on average, 40.00 at most over 2 weights (2.600 times)" in text
    assert text.endswith("Above every random one.")
    (text,) = group_sentences(rows({**top, "ppl": 10.5}, random, {**random, "ppl": 11.0}))
    assert text.endswith("Not above the largest random one.")


def test_the_verdict_counts_comparisons() -> None:
    """The verdict says in how many comparisons the top is above every random draw, and leaves out those without a number."""
    random = {"metric": None, "group": "random_k", "ppl": 11.0, "draw": 0}
    draws = [{**random, "k": k, "ppl": ppl, "draw": n} for k in (1, 10, 100) for n, ppl in enumerate((10.5, 11.0))]
    lost = {"k": 100, "ppl": None, "nll": None, "delta_nll": None, "outcome": "nonfinite"}
    (text,) = comparison_sentences(rows({"k": 1, "ppl": 10.9}, {"k": 10, "ppl": 40.0}, lost, *draws))
    assert "more harm than every random draw of as many in 1 of 2 comparisons** (`act_mag`; k = 1 and 10)" in text
    assert text.endswith("Perplexity over intact: top 1.090 to 4.000, random 1.100 at most.")
    (text,) = comparison_sentences(rows({"k": 1, "ppl": 10.9}, *draws))
    assert text.startswith("**zero: in the one comparison there is, the top weights do no more harm than random ones**")
    (text,) = comparison_sentences(rows({"k": 1, "ppl": 12.0, "below_floor": True}, {"k": 10, "ppl": 9.0}, *draws))
    assert text.startswith("**zero: in none of 2 comparisons do the top weights do more harm than random ones**")
    assert comparison_sentences(rows({"k": 1}, lost)) == []
    assert comparison_sentences(rows({"unit": "single"}, {**random, "unit": "single"})) == []


def test_seeds_that_agree_alike_share_a_sentence(fake: Callable[..., Any]) -> None:
    """One sentence holds all metrics with as many pairs of seeds and the same chance."""
    overlap = find_table(fake().folders["overlap"], "overlap/1").frame
    first = agreement_sentences(overlap)[0]
    assert first.startswith(
        "Between seeds, the top 100 agree with Jaccard 0.8182 by `act_mag` and 0.8182 by `grad_x_weight`"
    )
    assert "(mean over 3 pairs of seeds; 3.717e-7 by chance)" in first


def test_short_lists_have_no_rank_biased_overlap(fake: Callable[..., Any]) -> None:
    """Where a list holds fewer than k members its rank-biased overlap is left out, and the page says why."""
    overlap = find_table(fake().folders["overlap"], "overlap/1").frame.head(1).with_columns(pl.lit(0.9876).alias("rbo"))
    assert "| 0.9876 |" in agreement_table(overlap)[0]
    assert len(agreement_table(overlap)) == 1
    short = overlap.with_columns(pl.lit("component").alias("by"), pl.lit(4, pl.Int64).alias("size_a"))
    table, note = agreement_table(pl.concat([overlap, short]))
    assert table.count("0.9876") == 1
    assert "extrapolation" in note
