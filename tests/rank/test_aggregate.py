"""Outputs, inputs and tensors against dense sums."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import esa.rank
from esa.errors import ArtifactError, SelectionError
from esa.spec.sections import Rank
from tests.rank.conftest import ANATOMY, EXPERTS, MODES, UNIT, Dense, ranked, vouch_for


def statistics(dense: Dense, metric: str, seed: int | None, aggregate: str, name: str) -> list[tuple[float, int, str]]:
    """Return (value, tensor number, indices) of everything, by dense arithmetic."""
    reduce = {"sum": lambda x: float(x.sum(dtype=np.float64)), "max": lambda x: float(x.max())}[name]
    items = []
    for number, e in enumerate(dense.anatomy):
        score = dense.scores[metric, seed, e["parameter"]].reshape(e["shape"])
        if aggregate == "tensor":
            items.append((reduce(score), number, ":"))
            continue
        axis = e[f"{aggregate}_axis"]
        for position, row in enumerate(np.moveaxis(score, axis, 0)):
            items.append((reduce(row), number, f"({position}, :)" if axis == 0 else f"(:, {position})"))
    return items


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aggregate", ["output", "input", "tensor"])
@pytest.mark.parametrize("name", ["sum", "max"])
def test_aggregates_are_exact(mode: str, aggregate: str, name: str, dense: Dense, folder: Path) -> None:
    """The highest and lowest by sum or max over every score, not over the kept ones."""
    k = 1 if aggregate == "tensor" else 5
    groups = ("top_k", "bottom_k")
    frame = ranked(folder, mode=mode, aggregate=aggregate, statistic=name, k=(k,), groups=groups)
    for metric, seed in dense.pairs:
        units: dict[str, list[Any]] = {}
        for item in statistics(dense, metric, seed, aggregate, name):
            units.setdefault(UNIT[mode](ANATOMY[item[1]]), []).append(item)
        for unit, items in units.items():
            items.sort(key=lambda item: (-item[0], item[1]))
            for group, expected in (("top_k", items[:k]), ("bottom_k", items[: -k - 1 : -1])):
                at = pl.col("seed").eq_missing(pl.lit(seed, pl.Int64))
                found = frame.filter(at, metric=metric, unit_name=unit, group=group)
                assert found["score"].to_list() == pytest.approx([item[0] for item in expected], rel=1e-12)
                names = [ANATOMY[item[1]]["parameter"] for item in expected]
                assert found["parameter"].to_list() == names
                assert found["indices"].to_list() == [item[2] for item in expected]
    assert frame["index"].null_count() == len(frame)


@pytest.mark.parametrize("aggregate", ["output", "input", "tensor"])
def test_count_is_the_number_of_top_weights(aggregate: str, dense: Dense, folder: Path) -> None:
    """An output counts how many of the K highest weights lie in it; what holds none is not listed."""
    frame = ranked(folder, aggregate=aggregate, statistic="count", k=(3, 16), groups=("top_k",))
    counts: dict[tuple[str, str], int] = {}
    for _, number, index in dense.sorted("act_mag", 0, "global")["all"][:16]:
        e = ANATOMY[number]
        place = [":", ":"]
        if aggregate != "tensor":
            axis = e[f"{aggregate}_axis"]
            place[axis] = str(np.unravel_index(index, e["shape"])[axis])
        key = (e["parameter"], ":" if aggregate == "tensor" else f"({', '.join(place)})")
        counts[key] = counts.get(key, 0) + 1
    found = frame.filter(metric="act_mag", seed=0)
    assert {(p, i): c for p, i, c in found.select("parameter", "indices", "score").rows()} == counts
    assert found["score"].is_sorted(descending=True)


def test_groups_of_single_weights_are_dropped_with_a_note(folder: Path) -> None:
    """Random and matched weights have no whole outputs, and the lowest count is no ranking."""
    rank = Rank(aggregate="output", statistic="count", k=(5,), groups=("top_k", "random_k", "bottom_k"))
    result = esa.rank.run(folder, rank=rank, write=False)
    assert result.table.frame["group"].unique().to_list() == ["top_k"]
    assert result.notes == (
        "random_k: is a group of single weights; left out of aggregate = 'output'",
        "bottom_k: almost everything counts 0 of the K highest; left out of statistic = 'count'",
    )


def test_no_group_left_is_an_error(folder: Path) -> None:
    """A ranking without a group is refused."""
    with pytest.raises(SelectionError) as error:
        ranked(folder, aggregate="output", groups=("random_k",))
    assert str(error.value) == (
        "rank.groups: none of the groups random_k goes with aggregate = 'output'\n"
        "hint: ask for top_k, or bottom_k with statistic sum or max"
    )


def test_fused_experts_are_refused_by_name(tmp_path: Path) -> None:
    """A fused tensor has one output axis per expert; its tensor as a whole can be ranked."""
    folder = Dense(anatomy=EXPERTS).write(tmp_path)
    with pytest.raises(SelectionError) as error:
        ranked(folder, aggregate="input", k=(1,), groups=("top_k",))
    assert str(error.value) == (
        "rank.aggregate: h.1.experts.down.weight fuses experts, each with its own input axis\n"
        "hint: leave it out with score.exclude, or aggregate by tensor"
    )
    assert len(ranked(folder, aggregate="tensor", k=(4,), groups=("top_k",))) == 4 * 3


def test_a_file_alone_has_counts_but_no_sums(folder: Path) -> None:
    """Sums and maxima are in the folder; the kept scores give counts, whatever the path."""
    with pytest.raises(SelectionError) as error:
        ranked(folder / "scores.parquet", aggregate="output", k=(1,), groups=("top_k",))
    assert str(error.value) == (
        f"{folder}/scores.parquet: statistic 'sum' of a whole output needs more than the kept scores\n"
        "hint: rank the score step's folder: its margins and tensors hold the sums over all weights;"
        " or ask for statistic = 'count'"
    )
    rank = {"aggregate": "output", "statistic": "count", "groups": ("top_k",), "k": (9,)}
    assert ranked(folder / "scores.parquet", **rank).drop("run").equals(ranked(folder, **rank).drop("run"))


def test_more_outputs_than_there_are(folder: Path) -> None:
    """K is held against the outputs, not the weights."""
    with pytest.raises(SelectionError) as error:
        ranked(folder, aggregate="tensor", k=(7,), groups=("top_k",))
    assert str(error.value).startswith("rank.k: K = 7 is more than the 6 tensors of unit 'all'\n")


def test_incomplete_margins_are_refused(folder: Path) -> None:
    """A margin that lost a row is not ranked as if it were whole."""
    path = folder / "margins.parquet"
    pl.read_parquet(path).slice(1).write_parquet(path)
    vouch_for(path)
    with pytest.raises(ArtifactError) as error:
        ranked(folder, aggregate="output", k=(1,), groups=("top_k",))
    assert str(error.value) == f"{folder}: margins of embed.weight hold 5 of its 6 outputs"
