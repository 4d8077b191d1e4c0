"""Global against per_layer: a planted difference decides, a planted tie does not, and the words carry the numbers."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from esa.artifact import Table, make_table
from esa.overlap.curves import Chance
from esa.overlap.recommendation import compare_modes
from esa.overlap.seed_scores import groups_of
from tests.overlap.noisy import ADDRESSES, noisy
from tests.overlap.planted import TENSORS, joined, lists, ranking

SIZES = (1, 2, 5)  # per tensor; the four tensors of the planted model give 4, 8 and 20 weights


def modes(*tables: Table, **options: Any) -> dict[str, Any]:
    """Return what is said of rankings in both modes."""
    return compare_modes(groups_of(lists(*tables)), Chance(**options))


def fixed(mode: str, k: int, seeds: int = 5) -> Table:
    """Return the same list from every seed: the first weights of each tensor in turn."""
    names = [str(tensor["parameter"]) for tensor in TENSORS]
    addresses = [(name, index) for index in range(k) for name in names]
    return joined(*(ranking(addresses, seed=seed, mode=mode) for seed in range(seeds)))


def test_the_steadier_mode_is_recommended() -> None:
    """Where per_layer lists are the same in every seed and global ones are noise, per_layer is recommended, and decided."""
    found = modes(noisy(2.0, k=20), fixed("per_layer", 5))["act_mag"]
    assert (found["recommended"], found["decided"], found["equal_sizes"]) == ("per_layer", True, True)
    assert [row["k"] for row in found["sizes"]] == [{"global": 4 * k, "per_layer": k} for k in SIZES]
    assert [row["corrected"]["per_layer"] for row in found["sizes"]] == pytest.approx([1, 1, 1])
    mean = np.mean([row["corrected"]["global"] for row in found["sizes"]])
    assert found["difference"] == pytest.approx(1 - mean)
    assert found["low"] < found["difference"] < found["high"]
    assert found["reason"] == (
        f"per_layer agrees better across seeds: chance-corrected Jaccard 1.000 against {mean:.3f} global, mean over 3 equal"
        f" sizes, 4 to 20 weights; difference {found['difference']:.3f}, 95 % interval {found['low']:.3f} to {found['high']:.3f}"
    )


def test_the_other_way_round_global_is() -> None:
    """The recommendation follows the numbers, not the order of the modes; the interval is turned with the difference."""
    found = modes(fixed("global", 5), noisy(2.0, k=5, mode="per_layer"))["act_mag"]
    assert (found["recommended"], found["decided"]) == ("global", True)
    assert found["high"] < 0
    assert f"95 % interval {-found['high']:.3f} to {-found['low']:.3f}" in found["reason"]


def test_equal_lists_share_everything() -> None:
    """The same twenty weights in both modes are all in common, and neither mode is steadier: the simpler one."""
    found = modes(fixed("global", 5), fixed("per_layer", 5))["act_mag"]
    assert [(row["shared"], row["share"], row["jaccard"]) for row in found["sizes"]] == [
        (4, 1, 1),
        (8, 1, 1),
        (20, 1, 1),
    ]
    assert (found["recommended"], found["decided"], found["difference"]) == ("global", False, 0)
    assert found["reason"] == "both modes agree equally well across seeds, 1.000: global, the simpler one"


def test_the_share_in_common_is_that_of_sets() -> None:
    """Hotspots in common are counted within each seed, at equal numbers of weights."""
    whole, layered = noisy(0.5, seeds=[0, 1], k=20), noisy(0.5, seeds=[0, 1], k=5, mode="per_layer")
    found = modes(whole, layered)["act_mag"]["sizes"]
    for row, k in zip(found, SIZES, strict=True):
        shared = []
        for seed in (0, 1):
            mine = whole.frame.filter(pl.col("seed") == seed).head(4 * k).select("parameter", "index").rows()
            other = (
                layered.frame.filter((pl.col("seed") == seed) & (pl.col("rank") <= k))
                .select("parameter", "index")
                .rows()
            )
            shared.append(len(set(mine) & set(other)))
        assert row["shared"] == np.mean(shared)
        assert row["share"] == pytest.approx(np.mean(shared) / (4 * k))


def test_few_seeds_decide_nothing() -> None:
    """Two seeds give no interval, and the reason says so; like lists are told apart by no number of seeds."""
    two = modes(noisy(2.0, seeds=[0, 1], k=20), fixed("per_layer", 5, seeds=2))["act_mag"]
    assert (two["decided"], two["low"]) == (False, None)
    assert two["reason"].endswith("and 2 seeds give it no interval")
    alike = modes(noisy(0.5, seeds=range(4), k=20), noisy(0.5, seeds=range(4), k=5, mode="per_layer"))["act_mag"]
    assert alike["decided"] is (alike["low"] > 0 or alike["high"] < 0)
    assert alike["decided"] or alike["reason"].endswith("4 seeds do not tell the modes apart")


def test_without_an_equal_size_the_lists_are_taken_whole() -> None:
    """A global list shorter than one weight per tensor is compared as it is, and the reason says so."""
    found = modes(noisy(0.5, k=3), noisy(0.5, k=5, mode="per_layer"))["act_mag"]
    assert not found["equal_sizes"]
    assert found["sizes"][0]["num_weights"] == {"global": 3, "per_layer": 20}
    assert "at 3 weights globally and 20 per layer, for no equal number is in both lists" in found["reason"]


def test_unknown_chance_recommends_nothing() -> None:
    """Lists that do not say what they were drawn from cannot be corrected, and so not compared across modes."""

    def bare(table: Table) -> Table:
        return make_table("ranking/1", table.frame)

    found = modes(bare(fixed("global", 5)), bare(noisy(0.5, k=5, mode="per_layer")))["act_mag"]
    assert (found["recommended"], found["reason"]) == (
        None, "no recommendation: what chance gives these lists is not known",
    )  # fmt: skip


def test_one_mode_or_other_seeds_are_not_compared() -> None:
    """A metric ranked in one mode alone, or from different seeds, has no comparison."""
    assert modes(noisy(0.5)) == {}
    assert modes(noisy(0.5, seeds=[0, 1]), noisy(0.5, seeds=[0, 2], k=5, mode="per_layer")) == {}
    assert len(ADDRESSES) == sum(tensor["numel"] for tensor in TENSORS)
