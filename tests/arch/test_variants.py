"""Base against instruct: weights that stay, move, vanish and appear, and the damage of the other's list."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from esa.arch.comparison import transfer
from esa.arch.comparison.findings import Options
from esa.arch.comparison.moves import random_moves
from esa.arch.comparison.sources import Labelled, labelled
from esa.arch.comparison.variants import compare, matched, target_of
from esa.artifact.grouping import group
from esa.errors import ArtifactError
from tests.planted_runs import Planted

NOW = Options(("act_mag",), 10, permutations=99)
SHAPES = {"w": (4, 5), "v": (4, 5), "bias": (5,)}
DOWN = "model.layers.{}.mlp.down_proj.weight:{},{}"


def at(row: int, column: int, name: str = "w") -> tuple[str, int]:
    """Return a weight of a 4 x 5 matrix."""
    return name, 5 * row + column


def test_a_weight_moves_along_its_row_or_column_only() -> None:
    """What enters takes the best-ranked weight that leaves on its row or column; each is taken once; the rest come or go."""
    one = [at(0, 0), at(1, 1), at(1, 3), at(3, 4), ("bias", 0)]
    two = [at(0, 0), at(1, 2), at(1, 4), at(2, 2, "v"), ("bias", 1)]
    rows = {weight: row for weight, row in matched(one, two, SHAPES)}  # noqa: C416
    shown = {w: (row["status"], row["rank_a"], row["rank_b"], row["moved_from"]) for w, row in rows.items()}
    assert shown == {
        at(0, 0): ("stays", 1, 1, None),
        at(1, 2): ("moves", 2, 2, "w:1,1"),
        at(1, 4): ("moves", 3, 3, "w:1,3"),  # (3, 4) leaves on its column, but ranks behind
        at(2, 2, "v"): ("appears", None, 4, None),
        ("bias", 1): ("appears", None, 5, None),  # a vector has no other line
        at(3, 4): ("vanishes", 4, None, None),
        ("bias", 0): ("vanishes", 5, None, None),
    }
    assert target_of("w", 13, SHAPES) == "w:2,3"


def test_random_moves_are_as_many_as_the_lines_hold() -> None:
    """Of a 4 x 5 matrix with one weight that leaves, a random other one lies in line with it 7 times out of 19."""
    found = random_moves([at(1, 1)], [at(3, 3)], SHAPES, 4000, np.random.default_rng(0))
    assert np.mean(found) == pytest.approx(7 / 19, abs=0.03)  # never the weight itself
    assert random_moves([at(1, 1)], [at(1, 1)], SHAPES, 3, np.random.default_rng(0)) == [0, 0, 0]


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
def test_random_moves_are_those_of_matching_weight_by_weight(shape: tuple[int, ...]) -> None:
    """The count of every draw is what matching the very same list gives, in two axes and three, with lists near the tensor's size."""
    draw = np.random.default_rng(0)
    size = int(np.prod(shape))
    shapes = {"w": shape, "bias": (9,)}
    for number in (1, size // 4, size // 2):
        cells = draw.permutation(size)
        one = [("w", int(cell)) for cell in cells[:number]] + [("bias", 1)]
        two = [("w", int(cell)) for cell in cells[number // 3 : number // 3 + number]] + [("bias", 2)]
        found = random_moves(one, two, shapes, 300, np.random.default_rng(1))
        stay = [weight for weight in two if weight in one]
        others = [("w", cell) for cell in range(size) if ("w", cell) not in one]
        naive = []
        for _ in range(300):
            picks = draw.permutation(len(others))[: sum(name == "w" for name, _ in two if (name, _) not in one)]
            entering = [*stay, *(others[pick] for pick in picks)]
            naive.append(sum(row["status"] == "moves" for _, row in matched(one, entering, shapes)))
        spread = max(np.std(naive), np.std(found), 0.1)
        assert abs(np.mean(found) - np.mean(naive)) < 4 * spread * (2 / 300) ** 0.5


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., tuple[list[Labelled], Planted, Planted]]:
    """Return a base and an instruct run with planted lists of ten; ``cross``: and the base's list tested in the instruct."""

    def make(*, cross: bool = False) -> tuple[list[Labelled], Planted, Planted]:
        same = {DOWN.format(0, 3, n): 90.0 - n for n in range(6)}
        base = same | {DOWN.format(1, 1, n): 30.0 - n for n in range(4)}
        tuned = same | {DOWN.format(1, 1, 10 + n): 30.0 - n for n in range(2)} | {DOWN.format(0, 7, 20 + n): 20.0 for n in range(2)}  # fmt: skip
        harms = dict.fromkeys(same, 0.1)
        a = Planted(tmp_path, "base", critical=base, ks=(1, 10), draws=1, harms=harms | {DOWN.format(1, 1, 0): 2.0})
        b = Planted(
            tmp_path, "tuned", critical=tuned, ks=(1, 10), draws=1, model_seed=1, chat_template=True, harms=harms
        )
        sources = [a.write(), b.write()]
        if cross:
            sources.append(b.cross(a))
        grouped = group(sources)
        return labelled(grouped.runs, grouped.crossed), a, b

    return make


def test_planted_fates_are_told(two: Callable[..., tuple[list[Labelled], Planted, Planted]]) -> None:
    """Six weights stay, two move along a row, two vanish, two appear; Jaccard and its null are those of scipy."""
    runs, a, _ = two()
    found = compare(runs, NOW)
    positions = found.tables["positions/1"]
    fates = [row["status"] for row in positions]
    assert {fate: fates.count(fate) for fate in fates} == {"stays": 6, "moves": 2, "appears": 2, "vanishes": 2}
    moved = next(row for row in positions if row["status"] == "moves")
    assert (moved["target"], moved["moved_from"]) == (DOWN.format(1, 1, 10), DOWN.format(1, 1, 0))
    assert (moved["component"], moved["block"], moved["rank_a"], moved["rank_b"]) == ("mlp.down", 1, 7, 7)
    rows = {row["quantity"]: row for row in found.tables["comparison/1"]}
    assert rows["jaccard"]["value"] == 6 / 14
    size = next(math.prod(one.shape) for one in a.parameters if one.component == "mlp.down")
    first, second = stats.hypergeom(size, 6, 8), stats.hypergeom(size, 4, 2)  # in block 0 and in block 1
    chance = np.convolve(first.pmf(np.arange(7)), second.pmf(np.arange(3)))
    assert rows["jaccard"]["p_value"] == pytest.approx(chance[6:].sum())
    shared = np.arange(9)
    assert rows["jaccard"]["expected"] == pytest.approx((chance * shared / (20 - shared)).sum())
    assert [rows[f"num_{fate}"]["value"] for fate in ("stay", "move", "vanish", "appear")] == [6, 2, 2, 2]
    assert rows["num_move"]["p_value"] < 0.1
    assert rows["num_move"]["expected"] < 1


def test_the_other_models_list_is_set_beside_the_models_own(
    two: Callable[..., tuple[list[Labelled], Planted, Planted]],
) -> None:
    """A campaign in the instruct model by the base's ranking gives the damage of that list there, with its interval."""
    runs, _, _ = two(cross=True)
    assert [one.label for one in runs] == ["base", "tuned"]
    assert [len(one.crossed) for one in runs] == [0, 1]
    rows = [row for row in compare(runs, NOW).tables["comparison/1"] if row["quantity"].startswith("damage_of")]
    told = {(row["quantity"], row["a"], row["b"], row["num"]): row for row in rows}
    other = told["damage_of_other_list", "base", "tuned", 10]
    assert other["value"] == pytest.approx(0.6 + 4e-5)  # the six that stay; the base's own four do nothing in the other
    assert other["low"] < other["value"] < other["high"]
    assert other["subject"] == "top 10 by zero"
    assert told["damage_of_own_list", "tuned", "tuned", 10]["value"] == pytest.approx(0.6 + 4e-5)
    assert len(rows) == 4  # at both K
    assert not [row for row in compare(two()[0], NOW).tables["comparison/1"] if "damage" in row["quantity"]]


def test_a_campaign_without_its_models_run_is_refused(tmp_path: Path) -> None:
    """A campaign in a model that no run is of cannot be set beside anything: the error names it and says what is missing."""
    a = Planted(tmp_path, "a", ks=(10,), draws=1)
    b = Planted(tmp_path, "b", ks=(10,), draws=1, model_seed=1)
    sources = [a.write(), b.write(), b.cross(a)]
    grouped = group([sources[0], sources[2]])
    with pytest.raises(
        ArtifactError, match="changed b by the ranking of another model, and no run of it is given"
    ) as error:
        labelled(grouped.runs, grouped.crossed)
    assert error.value.where == str(sources[2])


def test_models_of_different_training_seeds_are_no_variants(tmp_path: Path) -> None:
    """Two models of one shape and two training seeds are not compared by address: a row says why, and transfer asks instead."""
    made = [
        Planted(
            tmp_path,
            f"s{n}",
            ks=(10,),
            draws=1,
            model_seed=n,
            steps=("score", "rank"),
            training={"seed": n, "step": step},
        )
        for n, step in ((0, 10), (1, 10))
    ]
    later = Planted(tmp_path, "later", ks=(10,), draws=1, model_seed=5, steps=("score", "rank"), training={"seed": 0, "step": 20})  # fmt: skip
    runs = labelled(group([one.write() for one in (*made, later)]).runs)
    rows = compare(runs, NOW).tables["comparison/1"]
    assert {(row["a"], row["b"]) for row in rows if row.get("value") is not None} == {("s0", "later")}
    (apart,) = [row for row in rows if row.get("value") is None]
    assert (apart["a"], apart["why"]) == (
        "2 pairs of runs",
        "trained from different seeds: an address is not the same unit in both; transfer asks of their positions",
    )
    asked = {(row["a"], row["b"]) for row in transfer.compare(runs, NOW).tables["comparison/1"]}
    assert asked == {("s0", "s1"), ("s1", "s0"), ("s1", "later"), ("later", "s1")}


def test_lists_in_one_tensor_do_not_agree_by_that_alone(tmp_path: Path) -> None:
    """Two lists that lie in one small tensor share weights by chance: the tensor's size, not the model's, is the universe."""
    name = "model.layers.0.self_attn.q_proj.weight"
    made = []
    for n in range(2):
        cells = np.random.default_rng(n).permutation(64)[:20]
        critical = {f"{name}:{cell // 8},{cell % 8}": 90.0 - place for place, cell in enumerate(cells)}
        made.append(
            Planted(tmp_path, f"r{n}", critical=critical, ks=(20,), draws=1, model_seed=n, steps=("score", "rank"))
        )
    rows = compare(labelled(group([one.write() for one in made]).runs), Options(("act_mag",), 20)).tables[
        "comparison/1"
    ]
    jaccard = next(row for row in rows if row["quantity"] == "jaccard")
    assert jaccard["value"] > 0.1
    assert jaccard["expected"] > 0.1
    assert jaccard["p_value"] > 0.05


def test_models_whose_addresses_do_not_compare_are_passed_over(tmp_path: Path) -> None:
    """Other sizes have other places, and one model under two names has nothing to compare."""
    small = Planted(tmp_path, "small", ks=(10,), draws=1, steps=("score", "rank"))
    wide = Planted(tmp_path, "wide", width=10, ks=(10,), draws=1, steps=("score", "rank"))
    again = Planted(tmp_path, "again", ks=(10,), draws=1, steps=("score", "rank"), fingerprint="small-fingerprint")
    runs = labelled(group([small.write(), wide.write(), again.write()]).runs)
    assert compare(runs, NOW).tables == {"positions/1": [], "comparison/1": []}


def test_specs_that_leave_out_other_tensors_still_compare(tmp_path: Path) -> None:
    """Where each run scored what the other left out, the universe is what either scored, and no list is lost."""
    target = "lm_head.weight:1,2"
    a = Planted(tmp_path, "a", ks=(10,), draws=1, steps=("score", "rank"))
    b = Planted(tmp_path, "b", ks=(10,), draws=1, model_seed=1, steps=("score", "rank"), critical={target: 50.0})
    a.tables = {"tensors.parquet": lambda rows: [row for row in rows if row["parameter"] != "lm_head.weight"]}
    runs = labelled(group([a.write(), b.write()]).runs)
    found = compare(runs, NOW)
    first = found.tables["positions/1"][0]
    assert (first["target"], first["rank_b"]) == (target, 1)
    jaccard = next(row for row in found.tables["comparison/1"] if row["quantity"] == "jaccard")
    shared = round(20 * jaccard["value"] / (1 + jaccard["value"]))
    assert jaccard["p_value"] == pytest.approx(stats.hypergeom(b.num_weights, 10, 10).sf(shared - 1))
