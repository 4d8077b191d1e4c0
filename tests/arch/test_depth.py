"""Depth profiles and densities of parts: planted ratios are found, even ones are not, and intervals hold the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esa.arch.comparison import attention, depth
from esa.arch.comparison.blocks import blocks_of
from esa.arch.comparison.depth import within
from esa.arch.comparison.findings import Options, Row, adjusted
from tests.arch.planted_mixtures import dense, mixture, opened
from tests.planted_runs import Planted

OPTIONS = Options(("act_mag",), 10, permutations=1999, resamples=499)


def asked(part: Any, made: Planted, quantity: str, options: Options = OPTIONS) -> Row:
    """Return the first row of a quantity that a part answers about a planted run."""
    found = part.compare(opened(made.write()), options)
    return next(row for row in found.tables["comparison/1"] if row["quantity"] == quantity)


def even(root: Path, **knobs: Any) -> Planted:
    """Return a model of many blocks whose scores vary little."""
    return dense(root, **{"blocks": 12, "spread": 0.3, "width": 6, **knobs})


def test_blocks_are_averages_over_seeds(tmp_path: Path) -> None:
    """Score by block and part is the mean over the seeds of the shares, each seed's scores summing to one."""
    made = dense(tmp_path, seed_noise=1.0)
    blocks = blocks_of(opened(made.write())[0], "act_mag")
    assert blocks is not None
    naive = 0.0
    for seed in (0, 1):
        scores = made.scores["act_mag", seed]
        inside = [n for n in scores if ".2.self_attn." in n]
        naive += sum(float(scores[n].sum()) for n in inside) / sum(float(s.sum()) for s in scores.values()) / 2
    assert blocks.score["attention"][2] == pytest.approx(naive)
    assert blocks.weights["attention"][2] == 4 * 8 * 8
    everything = blocks.total()[0].sum() + sum(score for score, _ in blocks.outside.values())
    assert everything == pytest.approx(1)


def test_a_planted_density_ratio_is_recovered(tmp_path: Path) -> None:
    """Attention four times as dense as the MLP is found, with an interval that holds 4 and not 1, and a small p."""
    row = asked(attention, even(tmp_path, density={f"attn.{p}": 4.0 for p in "qkvo"}), "density_ratio")
    assert row["low"] < 4 < row["high"]
    assert row["low"] > 3
    assert row["value"] == pytest.approx(4, rel=0.1)
    assert row["p_value"] == pytest.approx(2 / (1 + 1999), rel=1.1)
    assert row["num"] == 12


def test_equal_densities_are_not_told_apart(tmp_path: Path) -> None:
    """Without a planted difference one is in the interval and p is not small."""
    row = asked(attention, even(tmp_path), "density_ratio")
    assert row["low"] < 1 < row["high"]
    assert row["p_value"] > 0.05


def test_the_smallest_p_of_few_blocks_is_said(tmp_path: Path) -> None:
    """Four blocks can give p = 2/16 at best, however large the difference."""
    row = asked(attention, dense(tmp_path, density={f"attn.{p}": 50.0 for p in "qkvo"}), "density_ratio")
    assert row["smallest_p"] == row["p_value"] == 2 / 16


def test_two_blocks_give_no_interval(tmp_path: Path) -> None:
    """Of two blocks there is a ratio, no interval, and the reason."""
    row = asked(attention, dense(tmp_path, blocks=2), "density_ratio")
    assert row["value"] > 0
    assert (row["low"], row["high"], row["why"]) == (None, None, "fewer than 3 blocks hold both: no interval")


def test_experts_count_as_the_mlp_of_a_mixture(tmp_path: Path) -> None:
    """In a mixture attention is held against the experts: they are its MLP."""
    row = asked(attention, mixture(tmp_path, density={"expert.gate_up": 9.0, "expert.down": 9.0}), "density_ratio")
    assert row["value"] < 0.25


def test_embedding_and_head_stand_apart(tmp_path: Path) -> None:
    """An embedding of tripled scores has three times the blocks' density; a head that is tied to it is no second tensor."""
    found = attention.compare(opened(even(tmp_path, density={"embed": 3.0}).write()), OPTIONS).tables["comparison/1"]
    by = {row["subject"]: row for row in found if row["question"] == "embedding and head"}
    assert by["embedding / blocks"]["value"] == pytest.approx(3, rel=0.15)
    assert by["embedding / blocks"]["low"] < by["embedding / blocks"]["value"] < by["embedding / blocks"]["high"]
    assert by["head / blocks"]["value"] == pytest.approx(1, rel=0.15)
    tied = attention.compare(opened(even(tmp_path, name="t", tied=True).write()), OPTIONS).tables["comparison/1"]
    by = {row["subject"]: row for row in tied if row["question"] == "embedding and head"}
    assert by["head / blocks"]["why"] == "tied to the embedding: one tensor, counted there"
    assert "value" not in by["head / blocks"]
    assert by["embedding / blocks"]["why"] == "the head is the same tensor"


def test_a_run_without_scores_has_a_reason(tmp_path: Path) -> None:
    """Without a score step the answers are rows without a value that say why."""
    row = asked(attention, dense(tmp_path, steps=("rank",)), "density_ratio")
    assert row["why"] == "no scores"
    assert asked(depth, dense(tmp_path, steps=("rank",)), "centre_of_mass")["why"] == "no scores in blocks"


def test_late_scores_are_found_late(tmp_path: Path) -> None:
    """Scores that grow with depth lie beyond the middle, mostly in the last quarter, with small p."""
    late = even(tmp_path, depth=lambda block: 1.5**block)
    centre, last = asked(depth, late, "centre_of_mass"), asked(depth, late, "last_quarter")
    assert centre["low"] > 0.5
    assert centre["expected"] == pytest.approx(0.5)
    assert last["value"] == pytest.approx(sum(1.5**b for b in (9, 10, 11)) / sum(1.5**b for b in range(12)), rel=0.1)
    assert centre["p_value"] <= 0.002
    assert asked(depth, late, "late_minus_early")["value"] > 0.7


def test_even_profiles_are_rarely_called_uneven() -> None:
    """Of 200 profiles without a trend about one in twenty has p at most 0.05."""
    draw, at = np.random.default_rng(0), np.arange(10)
    options = Options(("x",), 10, permutations=199, resamples=9)
    profiles = np.exp(0.5 * draw.standard_normal((200, 1, 10)))
    found = [depth.measured(one, np.ones(10), (at + 0.5) / 10, str(n), options) for n, one in enumerate(profiles)]
    assert 2 <= sum(row["p_value"] <= 0.05 for row in found) <= 20


def test_few_blocks_count_all_orders(tmp_path: Path) -> None:
    """Of four blocks p is twice the share of the 24 orders that lie as far out: 2/24 where the scores only rise."""
    rising = asked(depth, dense(tmp_path, depth=lambda block: 10.0**block), "centre_of_mass")
    assert rising["p_value"] == rising["smallest_p"] == pytest.approx(2 / 24)
    back = asked(
        depth, dense(tmp_path, name="b", depth=lambda block: (1.0, 100.0, 10.0, 1000.0)[block]), "centre_of_mass"
    )
    assert back["p_value"] == pytest.approx(
        6 / 24
    )  # of the 24 but (1, 10, 100, 1000) and (10, 1, 100, 1000) lie further out


def test_the_centre_is_that_of_a_naive_sum(tmp_path: Path) -> None:
    """The centre of mass is the mean of the blocks' middles, weighted by their scores."""
    made = dense(tmp_path, seeds=(0,))
    scores = made.scores["act_mag", 0]
    by_block = [sum(float(s.sum()) for n, s in scores.items() if f"layers.{b}." in n) for b in range(4)]
    row = asked(depth, made, "centre_of_mass")
    assert row["value"] == pytest.approx(np.dot(by_block, [0.125, 0.375, 0.625, 0.875]) / sum(by_block))
    assert row["why"] == "interval over 4 blocks"


def test_three_seeds_give_the_interval(tmp_path: Path) -> None:
    """With three score seeds the interval is Student's over their centres, computed here by hand."""
    made = dense(tmp_path, seeds=(0, 1, 2), seed_noise=0.5)
    row = asked(depth, made, "centre_of_mass")
    centres = []
    for seed in (0, 1, 2):
        scores = made.scores["act_mag", seed]
        by_block = [sum(float(s.sum()) for n, s in scores.items() if f"layers.{b}." in n) for b in range(4)]
        centres.append(np.dot(by_block, [0.125, 0.375, 0.625, 0.875]) / sum(by_block))
    half = 4.302652729911275 * np.std(centres, ddof=1) / 3**0.5  # t of 2 degrees of freedom
    assert (row["low"], row["high"]) == pytest.approx((np.mean(centres) - half, np.mean(centres) + half))
    assert row["why"] == "interval over 3 score seeds"


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 5, 7, 30])
def test_quarters_hold_a_quarter_of_every_depth(num_blocks: int) -> None:
    """Whatever the number of blocks, quarters and halves hold their share of an even profile."""
    at = np.arange(num_blocks)
    for low, high in ((0, 0.25), (0.75, 1), (0, 0.5), (0.5, 1)):
        assert within(at, num_blocks, low, high).sum() / num_blocks == pytest.approx(high - low)


def test_holm_runs_over_one_question() -> None:
    """p is adjusted over all rows of a question, rows without p aside, and other questions keep theirs."""
    rows = [{"question": "x", "p_value": p} for p in (0.01, None, 0.04)] + [{"question": "y", "p_value": 0.01}]
    found = adjusted(rows, frozenset({"x"}))
    assert [row.get("p_adjusted") for row in found] == [0.02, None, 0.04, None]
    assert "p_adjusted" not in rows[0]
