"""Reading: which rows make a list, in which order, under which label."""

from pathlib import Path

import pytest

from esa.artifact import Table, make_table
from esa.errors import ArtifactError, SelectionError
from esa.overlap import read_lists
from esa.overlap.lists import source_labels
from tests.overlap.planted import DOWN, joined, lists, older, ranking, saved


def test_one_list_per_metric_and_seed() -> None:
    """A file of two metrics and two seeds holds four lists, sorted, each labelled by both."""
    parts = [ranking([(DOWN, seed)], metric=metric, seed=seed) for metric in ("wanda", "act_mag") for seed in (1, 0)]
    found = lists(joined(*parts))
    assert [ranked.label for ranked in found] == [
        "0.csv:act_mag:seed 0", "0.csv:act_mag:seed 1", "0.csv:wanda:seed 0", "0.csv:wanda:seed 1",
    ]  # fmt: skip
    assert [ranked.frame["index"].to_list() for ranked in found] == [[0], [1], [0], [1]]


def test_metrics_come_in_the_order_of_the_spec(tmp_path: Path) -> None:
    """The metrics of a spec come in its order."""
    path = saved(joined(*(ranking([(DOWN, 0)], metric=m) for m in ("act_mag", "wanda"))), tmp_path / "r.csv")
    assert [ranked.metric for ranked in read_lists([path], ["wanda", "act_mag"])] == ["wanda", "act_mag"]


def test_only_top_k_rows_are_taken() -> None:
    """The other groups of a ranking do not enter its list."""
    table = joined(ranking([(DOWN, 3)]), ranking([(DOWN, 9)], group="bottom_k"), ranking([(DOWN, 5)], group="random_k"))
    [only] = lists(table)
    assert only.frame["index"].to_list() == [3]


def test_a_file_of_one_other_group_is_taken_whole() -> None:
    """A list of bottom_k, or of no group, is compared as it is; random draws are a list each."""
    [bottom] = lists(ranking([(DOWN, 9), (DOWN, 8)], group="bottom_k"))
    assert bottom.frame["index"].to_list() == [9, 8]
    draws = lists(joined(*(ranking([(DOWN, n)], metric=None, group="random_k", draw=n) for n in (0, 1))))
    assert [ranked.label for ranked in draws] == ["0.csv:seed 0:draw 0", "0.csv:seed 0:draw 1"]


def test_several_groups_without_top_k_are_refused() -> None:
    """There is no telling which of two other groups is meant."""
    table = joined(ranking([(DOWN, 9)], group="bottom_k"), ranking([(DOWN, 5)], group="random_k", metric=None))
    with pytest.raises(SelectionError) as error:
        lists(table)
    assert str(error.value) == (
        "0.csv: holds the groups bottom_k, random_k and no top_k; a comparison takes top_k, or a file of one group\n"
        "hint: leave one group's rows in the file, or rank with rank.groups = ['top_k']"
    )


def test_order_is_that_of_ranks_not_of_lines() -> None:
    """Shuffled lines give the same list."""
    table = ranking([(DOWN, index) for index in (7, 1, 5, 2, 11)])
    shuffled = Table(table.kind, table.frame.sample(fraction=1, shuffle=True, seed=3), table.meta)
    assert shuffled.frame["index"].to_list() != [7, 1, 5, 2, 11]
    assert lists(shuffled)[0].frame["index"].to_list() == [7, 1, 5, 2, 11]


def test_older_lists_are_ordered_by_score_even_in_ties(tmp_path: Path) -> None:
    """An older list's lines do not matter: not their order, and not that of equal scores."""
    rows = [(DOWN, "(0, 1)", 0.5), (DOWN, "(0, 2)", 0.9), (DOWN, "(3, 3)", 0.5), (DOWN, "(1, 1)", 0.7)]
    first = older(tmp_path / "a.csv", rows)
    second = older(tmp_path / "b.csv", rows[::-1], header="parameter_name,indices,sensitivity_score")
    expected = ["(0, 2)", "(1, 1)", "(0, 1)", "(3, 3)"]
    for ranked in read_lists([first, second]):
        assert ranked.frame["indices"].to_list() == expected
        assert ranked.mode is None


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/a/top_weights.csv", "runs/b/top_weights.csv"], ["a/top_weights.csv", "b/top_weights.csv"]),
        (["x/a/t.csv", "y/a/t.csv", "z.csv"], ["x/a/t.csv", "y/a/t.csv", "z.csv"]),
        (["/d/x/t.csv", "/d/y/x/t.csv"], ["d/x/t.csv", "y/x/t.csv"]),
        (["a/t.csv", "a/../a/u.csv", "-"], ["t.csv", "u.csv", "-"]),
        (["one/rank-0a/", "two/rank-0b"], ["rank-0a", "rank-0b"]),
    ],
)
def test_labels_are_the_shortest_that_differ(paths: list[str], labels: list[str]) -> None:
    """A label is the shortest ending of a path that ends no other."""
    assert source_labels(paths) == labels


def test_labels_are_unique_for_equal_names_and_equal_files(tmp_path: Path) -> None:
    """Files that are all called top_weights.csv, and one file given twice, have different labels."""
    paths = [older(tmp_path / name / "top_weights.csv", [(DOWN, "(0, 1)", 1.0)]) for name in "abc"]
    assert [ranked.label for ranked in read_lists([*paths, paths[0]])] == [
        "a/top_weights.csv", "b/top_weights.csv", "c/top_weights.csv", "a/top_weights.csv (2)",
    ]  # fmt: skip


def test_anatomy_comes_with_the_parquet_or_from_beside_the_csv(tmp_path: Path) -> None:
    """The tensors are found in a Parquet file's metadata and in the folder of a CSV, and else are not known."""
    table = ranking([(DOWN, 1)])
    parquet = saved(table, tmp_path / "a.parquet")
    bare = saved(table, tmp_path / "b.csv")
    beside = saved(table, tmp_path / "step" / "ranking.csv")
    (beside.parent / "anatomy.json").write_text(table.meta["anatomy"], encoding="utf-8")
    anatomies = [ranked.anatomy for ranked in read_lists([parquet, bare, beside])]
    assert anatomies[0] is not None
    assert anatomies[1] is None
    assert anatomies[2] is anatomies[0]


def test_a_broken_anatomy_is_named(tmp_path: Path) -> None:
    """An anatomy that lacks a field is an error that names it."""
    table = make_table("ranking/1", ranking([(DOWN, 1)]).frame, {"anatomy": '[{"parameter": "x"}]'})
    with pytest.raises(ArtifactError, match="its anatomy cannot be read: KeyError: 'shape'"):
        lists(table)


def test_a_weight_named_twice_is_refused() -> None:
    """A list that holds one weight twice has no ranks to compare."""
    with pytest.raises(ArtifactError) as error:
        lists(ranking([(DOWN, 7), (DOWN, 2), (DOWN, 7)]))
    assert str(error.value) == "0.csv: names the weight h.0.down.weight:1, 1 twice"


def test_an_empty_ranking_is_refused() -> None:
    """A ranking without rows is an error, not an empty comparison."""
    with pytest.raises(SelectionError) as error:
        lists(make_table("ranking/1", []))
    assert str(error.value) == "0.csv: holds no rows; a list to compare needs at least one"


def test_two_modes_in_one_list_are_refused() -> None:
    """Rows of one metric and seed from two modes are two rankings."""
    with pytest.raises(ArtifactError, match=r"0\.csv: mode: holds rows of several: global, per_layer"):
        lists(joined(ranking([(DOWN, 1)]), ranking([(DOWN, 2)], mode="per_layer")))
