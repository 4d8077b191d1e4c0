"""The table: pairs, prefixes, units, nulls, and the errors of a comparison."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from esa.artifact import Table, make_table
from esa.artifact.schemas import SCHEMAS
from esa.errors import ArtifactError, SelectionError
from esa.overlap import compare, read_lists
from esa.overlap.agreement import rank_biased_overlap, spearman
from esa.statistics.hypergeometric import expected_jaccard, p_value
from tests.overlap.planted import DOWN, NUM_WEIGHTS, TENSORS, joined, lists, older, ranking, saved

UP, EMBED, LAST = "h.0.c_fc.weight", "wte.weight", "h.1.down.weight"
BY = ("weight", "output", "input", "layer", "block", "component")
FIRST = [(DOWN, 1), (UP, 2), (EMBED, 40), (LAST, 4), (DOWN, 5), (LAST, 9)]
SECOND = [(UP, 2), (DOWN, 1), (LAST, 9), (EMBED, 41), (DOWN, 6), (LAST, 4)]


def rows(*tables: Table, **options: Any) -> list[dict[str, Any]]:
    """Return the rows of a comparison."""
    return compare(lists(*tables), **options).frame.to_dicts()


def test_sets_and_orders_of_one_pair() -> None:
    """The numbers of a small pair are those that its lists give by hand."""
    [row] = rows(ranking(FIRST), ranking(SECOND, seed=1))
    assert (row["k"], row["size_a"], row["size_b"], row["shared"]) == (6, 6, 6, 4)
    assert row["jaccard"] == 4 / 8
    assert row["overlap_coefficient"] == 4 / 6
    assert row["rbo"] == pytest.approx(rank_biased_overlap(FIRST, SECOND, 1 - 1 / 6))
    places = [(FIRST.index(one), SECOND.index(one)) for one in FIRST if one in SECOND]
    assert row["spearman"] == pytest.approx(spearman(*zip(*places, strict=True)))
    assert (row["seed_a"], row["seed_b"], row["label_a"], row["run_a"]) == (0, 1, "0.csv", "0123456789ab")
    assert row["universe"] == NUM_WEIGHTS
    assert row["null"] == "hypergeometric"
    assert row["expected_jaccard"] == expected_jaccard(((6, 6, NUM_WEIGHTS),))
    assert row["p_value"] == p_value(((6, 6, NUM_WEIGHTS),), 4)


def test_every_k_is_a_prefix() -> None:
    """At each k the lists are cut to their best k weights; rbo's p follows k unless it is given."""
    found = rows(ranking(FIRST), ranking(SECOND), ks=[1, 2, 4])
    assert [(row["k"], row["shared"]) for row in found] == [(1, 0), (2, 2), (4, 2)]
    assert [row["rbo"] for row in found] == [
        pytest.approx(rank_biased_overlap(FIRST[:k], SECOND[:k], 1 - 1 / k)) for k in (1, 2, 4)
    ]
    [fixed] = rows(ranking(FIRST), ranking(SECOND), ks=[4], p=0.9)
    assert fixed["rbo"] == pytest.approx(rank_biased_overlap(FIRST[:4], SECOND[:4], 0.9))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("mode", ["global", "per_layer", "per_block", "per_component"])
def test_identical_lists_agree_fully(by: str, mode: str) -> None:
    """A list agrees with itself in every measure, by every kind of member, in every mode."""
    [row] = rows(ranking(FIRST, mode=mode), ranking(FIRST, mode=mode), by=[by])
    assert row["jaccard"] == row["overlap_coefficient"] == 1
    assert row["rbo"] == pytest.approx(1)
    assert row["spearman"] in (None, pytest.approx(1))
    assert row["p_value"] is not None
    assert 0 < row["expected_jaccard"] <= 1


def test_pairs_come_in_the_order_given() -> None:
    """Rows run over pairs i < j, then kinds of member, then k."""
    tables = [ranking(FIRST, seed=seed) for seed in (2, 0, 1)]
    found = rows(*tables, by=["weight", "layer"], ks=[1, 2])
    order = [(row["label_a"], row["label_b"], row["by"], row["k"]) for row in found]
    assert order == [
        (f"{i}.csv", f"{j}.csv", by, k)
        for i, j in [(0, 1), (0, 2), (1, 2)]
        for by in ("weight", "layer")
        for k in (1, 2)
    ]


def test_order_of_lines_changes_nothing(tmp_path: Path) -> None:
    """Files whose lines are shuffled give an identical table."""
    kept = joined(*(ranking(rows, seed=seed) for seed, rows in enumerate([FIRST, SECOND])))
    shuffled = Table(kept.kind, kept.frame.sample(fraction=1, shuffle=True, seed=1), kept.meta)
    old = [(DOWN, f"({n % 4}, {n % 5})", (n % 3) / 2) for n in range(12)]
    tables = []
    for name, table, lines in [("a", kept, old), ("b", shuffled, old[::-1])]:
        paths = [saved(table, tmp_path / name / "r.parquet"), older(tmp_path / name / "old.csv", lines)]
        tables.append(compare(read_lists(paths), by=["weight", "output", "layer"]).frame)
    assert_frame_equal(tables[0], tables[1])


def test_per_layer_lists_are_compared_unit_by_unit() -> None:
    """In mode per_layer k counts per tensor, sets are over the union, and orders are means over the tensors."""
    a = {DOWN: [1, 2, 3, 4], LAST: [5, 6, 7, 8]}
    b = {DOWN: [1, 2, 4, 3], LAST: [8, 9, 10, 5]}
    tables = [ranking([(p, i) for p, ix in one.items() for i in ix], mode="per_layer") for one in (a, b)]
    found = rows(*tables, ks=[2, 4])
    assert [(row["size_a"], row["shared"]) for row in found] == [(4, 2), (8, 6)]
    for row, k in zip(found, (2, 4), strict=True):
        expected = [rank_biased_overlap(a[name][:k], b[name][:k], 1 - 1 / k) for name in a]
        assert row["rbo"] == pytest.approx(sum(expected) / 2)
    assert found[0]["spearman"] is None
    assert found[1]["spearman"] == pytest.approx(0.8)  # of the one tensor that shares three
    units = tuple((4, 4, next(t["numel"] for t in TENSORS if t["parameter"] == name)) for name in sorted(a))
    assert found[1]["p_value"] == pytest.approx(p_value(units, 6))
    assert found[1]["expected_jaccard"] == pytest.approx(expected_jaccard(units))


def test_a_unit_that_one_list_lacks_counts_as_no_agreement() -> None:
    """A tensor that only one list has weighs in the mean over units with 0."""
    first = ranking([(DOWN, 1), (LAST, 1)], mode="per_layer")
    [row] = rows(first, ranking([(DOWN, 1)], mode="per_layer"))
    assert row["rbo"] == 0.5


def test_units_smaller_than_k_give_all_they_have() -> None:
    """A unit with fewer weights than k is compared whole."""
    table = ranking([(DOWN, 1), (DOWN, 2), (LAST, 1)], mode="per_layer")
    [row] = rows(table, table)
    assert (row["k"], row["size_a"]) == (2, 3)


def test_null_by_output_is_a_permutation() -> None:
    """By anything but weight the null is the permutation one; agreement that chance cannot give has a small p."""
    same = ranking([(EMBED, 4 * n) for n in range(5)])
    [row] = rows(same, same, by=["input"])
    assert row["null"] == "permutation"
    assert row["p_value"] < 0.05
    assert row["expected_jaccard"] < 0.3
    [apart] = rows(same, ranking([(DOWN, 6 * n) for n in range(4)]), by=["input"], ks=[4])
    assert apart["p_value"] == 1


def test_without_a_universe_there_is_no_null() -> None:
    """Where nothing says how many weights there are, the null is null; a given number fills it in by weight."""
    bare = [ranking(one, anatomy=False) for one in (FIRST, SECOND)]
    found = rows(*bare, by=["weight", "layer"])
    assert all(row[name] is None for row in found for name in ("universe", "null", "expected_jaccard", "p_value"))
    weight, layer = rows(*bare, by=["weight", "layer"], universe=1000)
    assert weight["p_value"] == p_value(((6, 6, 1000),), 4)
    assert (layer["universe"], layer["null"], layer["p_value"]) == (1000, None, None)
    [per_layer] = rows(*(ranking(FIRST, mode="per_layer", anatomy=False),) * 2, universe=1000)
    assert per_layer["null"] is None


def test_lists_of_whole_outputs_have_no_null() -> None:
    """The quotas of a ranking of whole outputs are not numbers of weights."""
    frame = ranking(FIRST).frame.with_columns(
        pl.lit(None, pl.Int64).alias("index"),
        pl.concat_str(pl.lit("("), pl.col("index"), pl.lit(", :)")).alias("indices"),
    )
    table = make_table("ranking/1", frame, ranking(FIRST).meta)
    for row in rows(table, table, by=["weight", "layer"]):
        assert row["jaccard"] == 1
        assert row["null"] is None
        assert row["universe"] is None


def test_a_universe_smaller_than_a_list_is_refused() -> None:
    """Six weights cannot have been drawn from five."""
    with pytest.raises(ArtifactError) as error:
        rows(ranking(FIRST), ranking(SECOND), universe=5)
    assert str(error.value) == (
        "universe: 6 weights cannot be drawn from 5\n"
        "hint: the universe is the number of weights that the lists were drawn from (--universe)"
    )


def test_a_k_larger_than_a_list_is_refused() -> None:
    """The error names the list, its size and k: a shorter list is never compared at its own length."""
    with pytest.raises(SelectionError) as error:
        rows(ranking(FIRST), ranking(SECOND[:4]), ks=[2, 5])
    assert str(error.value) == (
        "1.csv: k = 5: the list holds 4 weights; allowed for these lists: 1 to 4\n"
        "hint: compare at k up to 4, or rank again with rank.k = 5"
    )
    with pytest.raises(SelectionError, match="the list holds 2 weights per unit; allowed for these lists: 1 to 2"):
        rows(*(ranking(FIRST, mode="per_layer"),) * 2, ks=[3])


def test_without_k_the_shortest_list_sets_it() -> None:
    """Whole lists are compared at the length of the shortest."""
    assert [row["k"] for row in rows(ranking(FIRST), ranking(SECOND[:4]))] == [4]


def test_modes_do_not_mix() -> None:
    """K in all and K per tensor are different selections."""
    with pytest.raises(SelectionError) as error:
        rows(ranking(FIRST), ranking(FIRST, mode="per_layer"))
    assert str(error.value) == (
        "1.csv: was ranked per_layer, and 0.csv global: the same k is not the same selection\n"
        "hint: rank both in one mode (rank.mode)"
    )


def test_an_older_list_takes_the_mode_of_the_other(tmp_path: Path) -> None:
    """An older list does not say its mode: beside a per_layer ranking it is read per layer."""
    path = older(tmp_path / "old.csv", [(DOWN, "(0, 1)", 0.2), (LAST, "(0, 5)", 0.9), (LAST, "(0, 6)", 0.8)])
    full = saved(ranking([(DOWN, 1), (LAST, 6), (LAST, 5)], mode="per_layer"), tmp_path / "full.parquet")
    [row] = compare(read_lists([path, full]), ks=[1]).frame.to_dicts()
    assert (row["size_a"], row["shared"], row["null"]) == (2, 1, "hypergeometric")


def test_weights_of_different_models_are_not_compared() -> None:
    """A parameter of two shapes has no common addresses, but layers and components can be compared."""
    other = ranking(FIRST)
    other = Table(other.kind, other.frame, {"anatomy": other.meta["anatomy"].replace("[4, 6]", "[6, 4]")})
    with pytest.raises(SelectionError) as error:
        rows(ranking(FIRST), other)
    assert str(error.value) == (
        "1.csv: h.0.c_fc.weight has shape (6, 4), and (4, 6) in 0.csv: weights of different models have no address in"
        " common\nhint: compare by layer, block or component"
    )
    [row] = rows(ranking(FIRST), other, by=["component"])
    assert (row["jaccard"], row["null"], row["universe"]) == (1, None, None)


def test_no_pair_is_an_empty_table() -> None:
    """One list alone gives the columns of overlap/1 and no row."""
    table = compare(lists(ranking(FIRST)))
    assert dict(table.frame.schema) == SCHEMAS["overlap/1"]
    assert table.frame.is_empty()
