"""Each group of a ranking against the sort of every score."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import esa.rank
from esa.registry import SELECTORS, load
from esa.spec.sections import Rank
from tests.rank.conftest import ANATOMY, EXPERTS, KEEP, MODES, UNIT, Dense, ranked

NAMES = [e["parameter"] for e in ANATOMY]
PAIRS = Dense().pairs


def chosen(frame: pl.DataFrame, metric: str | None, seed: int | None, group: str, unit: str) -> pl.DataFrame:
    """Return the rows of one group in one unit."""
    return frame.filter(
        pl.col("metric").eq_missing(pl.lit(metric, pl.String)), pl.col("seed").eq_missing(pl.lit(seed, pl.Int64)),
        group=group, unit_name=unit,
    )  # fmt: skip


def assert_top(frame: pl.DataFrame, dense: Dense, mode: str, k: int) -> None:
    """Hold top_k against the head of the sorted scores."""
    for metric, seed in dense.pairs:
        for unit, rows in dense.sorted(metric, seed, mode).items():
            found = chosen(frame, metric, seed, "top_k", unit)
            expected = [(score, dense.anatomy[t]["parameter"], index) for score, t, index in rows[:k]]
            assert found.select("score", "parameter", "index").rows() == expected
            assert found["rank"].to_list() == list(range(1, k + 1))


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_loads_and_defines_itself(name: str) -> None:
    """The registry's selectors import and say what they select."""
    assert len(load("group", name).__doc__.splitlines()) > 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", [None, 5])
def test_top_k_is_the_head_of_all_scores(mode: str, levels: int | None, tmp_path: Path) -> None:
    """In every mode, with and without ties, from kept rows alone."""
    dense = Dense(levels=levels)
    frame = ranked(dense.write(tmp_path), mode=mode, k=(3, KEEP), groups=("top_k",))
    assert_top(frame, dense, mode, KEEP)


def test_assert_top_can_fail(dense: Dense, folder: Path) -> None:
    """A ranking with one score moved is told from the truth."""
    frame = ranked(folder, k=(3,), groups=("top_k",))
    with pytest.raises(AssertionError):
        assert_top(frame.with_columns(pl.col("score") * 2), dense, "global", 3)


@pytest.mark.parametrize("mode", MODES)
def test_bottom_k_is_the_tail_of_all_scores(mode: str, dense: Dense, folder: Path) -> None:
    """Without ties the lowest K are the end of the sorted scores, lowest first."""
    frame = ranked(folder, mode=mode, k=(KEEP,), groups=("bottom_k",))
    for metric, seed in dense.pairs:
        for unit, rows in dense.sorted(metric, seed, mode).items():
            found = chosen(frame, metric, seed, "bottom_k", unit).select("score", "parameter", "index").rows()
            assert found == [(score, NAMES[t], index) for score, t, index in rows[: -KEEP - 1 : -1]]


@pytest.mark.parametrize("mode", MODES)
def test_bottom_k_with_ties_has_the_lowest_scores(mode: str, tmp_path: Path) -> None:
    """Where scores tie the values are exact, and each weight holds the score it is listed with, once."""
    dense = Dense(levels=4, zeros={NAMES[0]: 0.6, NAMES[2]: 0.1, NAMES[5]: 0.9})
    frame = ranked(dense.write(tmp_path), mode=mode, k=(KEEP,), groups=("bottom_k",))
    for metric, seed in dense.pairs:
        for unit, rows in dense.sorted(metric, seed, mode).items():
            found = chosen(frame, metric, seed, "bottom_k", unit)
            assert found["score"].to_list() == [row[0] for row in rows[: -KEEP - 1 : -1]]
            assert found.select("parameter", "index").is_unique().all()
            for parameter, index, score in found.select("parameter", "index", "score").rows():
                assert dense.scores[metric, seed, parameter][index] == score


def test_massive_ties_are_shared_by_their_numbers(tmp_path: Path) -> None:
    """Two tensors of zeros, one with five times as many: it gives about five of six over the seeds."""
    pairs = tuple(("act_mag", seed) for seed in range(60))
    dense = Dense(pairs=pairs, keep=9, zeros={NAMES[0]: 1.0, NAMES[3]: 1.0})  # 180 and 36 zeros, both kept whole or not
    frame = ranked(dense.write(tmp_path), k=(9,), groups=("bottom_k",))
    assert set(frame["parameter"]) == {NAMES[0], NAMES[3]}
    share = (frame["parameter"] == NAMES[0]).mean()
    assert share == pytest.approx(180 / 216, abs=0.05)  # 540 draws: 3 standard errors


def test_ties_at_the_bottom_are_counted(tmp_path: Path) -> None:
    """The note says how many weights tie at the cut, zeros that were not kept included."""
    dense = Dense(pairs=(("act_mag", 0),), zeros={NAMES[0]: 1.0})
    folder = dense.write(tmp_path)
    rank = Rank(groups=("bottom_k",), k=(1, 10))
    notes = esa.rank.run(folder, rank=rank, write=False).notes
    assert notes == ("bottom_k: act_mag, seed 0: 180 weights tie at the cut 0, 10 of them drawn by seed",)
    notes = esa.rank.run(folder / "scores.parquet", rank=rank, write=False).notes
    assert notes == ("bottom_k: act_mag, seed 0: at least 16 weights tie at the cut 0, 10 of them drawn by seed",)
    notes = esa.rank.run(folder, rank=Rank(groups=("bottom_k",), k=(10,), mode="per_layer"), write=False).notes
    assert notes == (
        "bottom_k: act_mag, seed 0: in 1 of 6 units more weights tie at the cut than fit; most in 'embed.weight': "
        "180 weights tie at the cut 0, 10 of them drawn by seed",
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", ["top_k", "bottom_k", "random_k"])
def test_a_smaller_k_is_a_prefix(mode: str, group: str, tmp_path: Path) -> None:
    """The first ranks of a large K are the ranking of a small one, ties and draws included."""
    folder = Dense(levels=4, zeros={NAMES[0]: 0.7}).write(tmp_path)
    small, large = (ranked(folder, mode=mode, k=k, groups=(group,), draws=2) for k in ((5,), (1, KEEP)))
    assert_frame_equal(small.drop("run"), large.filter(pl.col("rank") <= 5).drop("run"))


@pytest.mark.parametrize("mode", MODES)
def test_random_k_has_the_quota_of_every_unit(mode: str, dense: Dense, folder: Path) -> None:
    """K distinct weights per unit, draw and score seed; none for the seed of metrics that read no data."""
    frame = ranked(folder, mode=mode, k=(2, KEEP), groups=("random_k",), draws=3)
    units = list(dict.fromkeys(UNIT[mode](e) for e in ANATOMY))
    keys = frame.group_by("seed", "draw", "unit_name", maintain_order=True).len().rows()
    assert keys == [(seed, draw, unit, KEEP) for seed in (0, 1) for draw in range(3) for unit in units]
    assert frame.select("seed", "draw", "parameter", "index").is_unique().all()
    assert frame.select("metric", "score", "signed", "weight", "match_ratio").null_count().row(0) == (len(frame),) * 5
    sizes = {e["parameter"]: e["numel"] for e in ANATOMY}
    assert (frame["index"] < frame["parameter"].replace_strict(sizes)).all()


def test_random_k_is_drawn_by_the_seed_alone(folder: Path) -> None:
    """The same seed draws the same weights whatever else is ranked; another seed and draw do not."""
    alone = ranked(folder, groups=("random_k",), k=(10,), draws=1)
    beside = ranked(folder, groups=("top_k", "random_k"), k=(10,), draws=2).filter(group="random_k")
    assert_frame_equal(alone.drop("run"), beside.filter(draw=0).drop("run"))
    draws = beside.group_by("seed", "draw").agg(pl.struct("parameter", "index"))
    assert draws["parameter"].n_unique() == 4


def test_random_k_is_uniform_over_all_weights(folder: Path) -> None:
    """Each tensor is drawn as often as it is large."""
    frame = ranked(folder, groups=("random_k",), k=(KEEP,), draws=200).filter(seed=0)
    sizes = np.array([e["numel"] for e in ANATOMY])
    shares = np.array([(frame["parameter"] == name).mean() for name in NAMES])
    assert shares == pytest.approx(sizes / sizes.sum(), abs=0.03)


def test_random_k_of_data_free_metrics_uses_the_seeds_of_the_spec(tmp_path: Path) -> None:
    """Magnitude has no seed; its random groups are those of score.seeds."""
    folder = Dense(pairs=(("magnitude", None),)).write(tmp_path)
    assert ranked(folder, groups=("random_k",), k=(3,))["seed"].unique().to_list() == [0, 1]


@pytest.mark.parametrize("mode", MODES)
def test_matched_k_is_the_nearest_kept_weight(mode: str, dense: Dense, folder: Path) -> None:
    """Rank by rank: same tensor, nearest log abs(w) of the kept rows outside top_k that no earlier rank took."""
    k = 12
    frame = ranked(folder, mode=mode, k=(k,), groups=("top_k", "matched_k"))
    kept = pl.read_parquet(folder / "scores.parquet")
    for metric, seed in dense.pairs:
        for unit in dense.sorted(metric, seed, mode):
            top, matched = (chosen(frame, metric, seed, group, unit) for group in ("top_k", "matched_k"))
            assert matched["parameter"].to_list() == top["parameter"].to_list()
            for name in top["parameter"].unique():
                rows = kept.filter(pl.col("seed").eq_missing(pl.lit(seed, pl.Int64)), metric=metric, parameter=name)
                mine = top.filter(parameter=name)
                free = set(rows["index"]) - set(mine["index"])
                size = np.abs(dense.weights[name].astype(np.float64))
                for row, partner in zip(mine.rows(named=True), matched.filter(parameter=name).rows(named=True)):
                    best = min(free, key=lambda i: abs(np.log(size[i]) - np.log(size[row["index"]])))
                    assert partner["index"] == best
                    assert partner["score"] == dense.scores[metric, seed, name][best]
                    ratio = size[best] / size[row["index"]]
                    assert partner["match_ratio"] == pytest.approx(max(ratio, 1 / ratio), rel=1e-12)
                    free.remove(best)


def test_matched_k_of_zero_weights(tmp_path: Path) -> None:
    """A zero meets a zero; without one left, the smallest weight, ratio null; other weights never meet a zero."""
    dense = Dense(anatomy=[ANATOMY[1]], pairs=(("act_mag", 0),))
    weights, score = np.arange(36, dtype=np.float32) + 10, np.zeros(36, np.float32)
    weights[[0, 1, 2]], weights[3] = 0, 1e-3
    score[[0, 1, 3]] = 3, 2, 1  # two zeros and a small one on top; one zero is left
    dense.weights[NAMES[1]], dense.scores["act_mag", 0, NAMES[1]] = weights, score

    result = esa.rank.run(dense.write(tmp_path), rank=Rank(groups=("matched_k",), k=(3,)), write=False)
    rows = result.table.frame.select("index", "match_ratio").rows()
    assert rows[:2] == [(2, 1.0), (4, None)]
    assert rows[2] == (5, pytest.approx(15 / 1e-3))
    assert result.notes == (
        "matched_k: act_mag, seed 0: 2 of 3 matches differ in abs(weight) by more than 1.25 (a zero has no zero left)",
    )


def test_loose_matches_are_noted(tmp_path: Path) -> None:
    """A ratio beyond 1.25 is said, with its number."""
    dense = Dense(anatomy=[ANATOMY[1]], pairs=(("act_mag", 0),))
    weights = np.ones(36, np.float32)
    weights[7] = 3
    dense.weights[NAMES[1]] = weights
    dense.scores["act_mag", 0, NAMES[1]] = np.where(weights == 3, 5, 1).astype(np.float32)

    notes = esa.rank.run(dense.write(tmp_path), rank=Rank(groups=("matched_k",), k=(2,)), write=False).notes
    assert notes == (
        "matched_k: act_mag, seed 0: 1 of 2 matches differ in abs(weight) by more than 1.25 (the worst by 3)",
    )


def test_rows_know_what_they_are(folder: Path, dense: Dense) -> None:
    """Each row carries layer, block, component, coordinates and the weight."""
    frame = ranked(folder, mode="per_layer", k=(4,), groups=("top_k", "random_k"))
    for row in frame.iter_rows(named=True):
        e = ANATOMY[NAMES.index(row["parameter"])]
        assert (row["layer"], row["block"], row["component"]) == (e["layer"], e["block"], e["component"])
        assert row["indices"] == str(tuple(int(i) for i in np.unravel_index(row["index"], e["shape"])))
        if row["group"] == "top_k":
            assert row["weight"] == dense.weights[row["parameter"]][row["index"]]


def test_rows_of_fused_experts_name_the_expert(tmp_path: Path) -> None:
    """The first axis of a fused tensor is the expert, for scored and for random rows."""
    folder = Dense(anatomy=EXPERTS).write(tmp_path)
    frame = ranked(folder, mode="per_layer", k=(10,), groups=("top_k", "random_k"), draws=5)
    fused = frame.filter(parameter="h.1.experts.down.weight")
    assert fused["expert"].to_list() == (fused["index"] // 40).to_list()
    assert fused["indices"].str.starts_with("(").all()
    assert frame.filter(parameter="embed.weight")["expert"].null_count() == 30 + 10 * 10
