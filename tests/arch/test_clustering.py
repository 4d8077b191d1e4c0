"""Clustering of top weights against brute force: expectations over all subsets, uniform draws, planted rows and columns."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esa.arch.comparison.clustering import Grid, compare, expected, grid_of, sample
from esa.arch.comparison.findings import Options, Row
from esa.arch.comparison.sources import Stored
from esa.spec import generator
from tests.arch.planted_mixtures import dense, mixture, opened, with_axes
from tests.planted_runs import Planted

OPTIONS = Options(("act_mag",), 10, permutations=999)
DOWN = "model.layers.1.mlp.down_proj.weight"


def asked(made: Planted, subject: str, quantity: str = "share_with_another", options: Options = OPTIONS) -> Row:
    """Return the answer on one axis of a planted run."""
    rows = compare(opened(with_axes(made)), options).tables["comparison/1"]
    return next(row for row in rows if (row["subject"], row["quantity"]) == (subject, quantity))


def test_a_planted_row_is_found(tmp_path: Path) -> None:
    """Ten critical weights in one row share an output and no input, far beyond chance."""
    made = dense(tmp_path, width=16, critical={f"{DOWN}:3,{j}": 100.0 + j for j in range(10)})
    output, into = asked(made, "output"), asked(made, "input")
    assert (output["value"], output["p_value"], output["num"]) == (1.0, 1 / 1000, 10)
    assert asked(made, "output", "share_in_fullest")["value"] == 1.0
    assert (into["value"], into["p_value"]) == (0.0, 1.0)


def test_a_planted_column_is_found(tmp_path: Path) -> None:
    """Eight critical weights in one column, and two elsewhere, share an input."""
    places = {f"{DOWN}:{i},5": 100.0 + i for i in range(8)} | {f"{DOWN}:0,7": 90.0, f"{DOWN}:1,9": 91.0}
    made = dense(tmp_path, width=16, critical=places)
    into = asked(made, "input")
    assert (into["value"], into["p_value"]) == (0.8, 1 / 1000)
    assert asked(made, "input", "share_in_fullest")["value"] == 0.8
    assert asked(made, "output")["value"] == 0.4  # rows 0 and 1 hold two each


def test_a_factor_that_inputs_share_is_said(tmp_path: Path) -> None:
    """Scores that are abs(w) times a factor of the input cluster in inputs by definition: the row says so, for inputs alone."""
    made = dense(tmp_path, metrics=("act_mag", "grad_x_weight"))
    options = Options(("act_mag", "grad_x_weight"), 10, permutations=99)
    rows = compare(opened(with_axes(made)), options).tables["comparison/1"]
    told = {(row["metric"], row["subject"]) for row in rows if row["why"]}
    assert told == {("act_mag", "input")}
    assert "share a factor of this score by definition" in asked(made, "input")["why"]


def test_scattered_weights_are_as_expected(tmp_path: Path) -> None:
    """Top weights that lie anywhere share lines as often as chance has it: p is not small and the value near."""
    row = asked(
        dense(tmp_path, width=12, ks=(1, 20, 40)), "output", options=Options(("act_mag",), 40, permutations=999)
    )
    assert row["p_value"] > 0.05
    assert row["expected"] == pytest.approx(row["value"], abs=0.25)


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_the_expectation_is_exact(axis: str, number: int) -> None:
    """The expected number of weights that share a line is its mean over all subsets of the tensor's cells."""
    grid = Grid(2, 2, 3, np.arange(number))
    counts = []
    for cells in combinations(range(grid.size), number):
        lines = Counter(grid.lines(np.array(cells), axis).tolist())
        counts.append(sum(count for count in lines.values() if count > 1))
    assert expected(grid, axis) == pytest.approx(np.mean(counts))


@pytest.mark.parametrize(("size", "number"), [(6, 2), (6, 3), (6, 5), (5, 5)])
def test_draws_are_uniform_and_without_replacement(size: int, number: int) -> None:
    """Every subset of cells comes about equally often, and none holds a cell twice."""
    drawn = sample(size, number, 6000, generator(0, "test"))
    assert all(len(set(row)) == number for row in drawn.tolist())
    counts = Counter(map(tuple, drawn.tolist()))
    every = list(combinations(range(size), number))
    assert set(counts) <= set(every)
    share = 6000 / len(every)
    assert all(abs(counts[one] - share) < 5 * share**0.5 for one in every)


def test_large_tensors_are_drawn_without_replacement() -> None:
    """Of a tensor of a million weights a thousand distinct ones are drawn, sorted."""
    drawn = sample(1_000_000, 1000, 20, generator(0, "test"))
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.mean() == pytest.approx(500_000, rel=0.02)


def test_semantic_axes_follow_the_storage() -> None:
    """A Conv1D stored (in, out) and a Linear stored (out, in) place the same weight on the same output and input."""
    linear = grid_of(Stored((3, 4), 0, 1, None), np.array([2 * 4 + 1]))
    conv = grid_of(Stored((4, 3), 1, 0, None), np.array([1 * 3 + 2]))
    assert linear is not None
    assert conv is not None
    for axis in ("output", "input"):
        assert linear.lines(linear.cells, axis).tolist() == conv.lines(conv.cells, axis).tolist()
    assert (
        (linear.per_line("output"), linear.per_line("input"))
        == (conv.per_line("output"), conv.per_line("input"))
        == (4, 3)
    )


def test_an_expert_s_rows_are_its_own(tmp_path: Path) -> None:
    """The same row of two experts is two rows: weights there do not share it."""
    name = "model.layers.1.mlp.experts.down_proj"
    places = {f"{name}:{expert},2,{expert}": 100.0 + expert for expert in range(5)}
    made = mixture(tmp_path, critical=places, ks=(1, 5))
    options = Options(("act_mag",), 5, permutations=999)
    assert asked(made, "output", options=options)["value"] == 0.0
    apart = mixture(tmp_path, name="row", critical={f"{name}:3,2,{j}": 100.0 + j for j in range(5)}, ks=(1, 5))
    assert asked(apart, "output", options=options)["value"] == 1.0


@pytest.mark.parametrize(
    "stored", [Stored((4, 4), None, None, None), Stored((9,), 0, None, None), Stored((2, 3, 4), 1, 2, None)]
)
def test_unknown_axes_give_no_grid(stored: Stored) -> None:
    """A tensor whose outputs or inputs are not known, or which has an axis of another meaning, is left out."""
    assert grid_of(stored, np.array([0, 1])) is None


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Without a record of the axes there is no value, and the reason counts the weights."""
    made = dense(tmp_path)
    rows = compare(opened(made.write()), OPTIONS).tables["comparison/1"]
    assert {row.get("value") for row in rows} == {None}
    assert rows[0]["why"].startswith("10 of 10 weights left out: which axes")


def test_without_a_ranking_there_is_a_reason(tmp_path: Path) -> None:
    """A run without a rank step, beside one with it, has a row that says so."""
    one, two = dense(tmp_path, steps=("score",)), dense(tmp_path, name="two")
    rows = compare(opened(one.write(), with_axes(two)), OPTIONS).tables["comparison/1"]
    assert [row["why"] for row in rows if row["a"] == "dense"] == ["no ranking"]
    assert all("value" in row for row in rows if row["a"] == "two")


def test_the_same_seed_gives_the_same_draws(tmp_path: Path) -> None:
    """p depends on the seed alone: twice the same, and another under another."""
    made: Any = dense(tmp_path, width=4, ks=(1, 20))
    values = [
        asked(made, "output", options=Options(("act_mag",), 20, seed=seed, permutations=999))["p_value"]
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]
