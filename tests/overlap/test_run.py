"""The Python twin: from files to a table, and from a spec to a step folder."""

import json
import math
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from esa.artifact import Step, find_table, make_table, read_manifest, write_json
from esa.errors import SelectionError
from esa.overlap import run
from esa.progress import Silent
from esa.spec import Spec, spec_from_dict
from tests.overlap.planted import DOWN, TENSORS, joined, older, ranking, saved

SEEDS = {0: [1, 2, 3, 4], 1: [1, 2, 3, 5], 2: [1, 6, 7, 8]}


def make_spec(**sections: object) -> Spec:
    """Return a small spec."""
    return spec_from_dict({"name": "tiny", "model": {"id": "x"}, "rank": {"k": [1, 4, 100]}, **sections})


def rank_step(root: Path, seeds: dict[int, list[int]] = SEEDS) -> Path:
    """Write a finished rank step as ``esa rank`` does, and return its folder."""
    step = Step("rank", make_spec(), {"score": "feedfeedfeed"}, root=root)
    step.begin()
    tables = [ranking([(DOWN, i) for i in ix], seed=seed) for seed, ix in seeds.items()]
    step.write(joined(*tables, ranking([(DOWN, 9)], metric=None, group="random_k", draw=0)), "ranking.csv")
    write_json(step.folder / "anatomy.json", TENSORS)
    step.finish(tables={"ranking.csv": "ranking/1"})
    return step.folder


def test_a_run_writes_table_summary_and_manifest(tmp_path: Path) -> None:
    """With a spec the step's folder holds what the call returns, and the rank step is its input."""
    folder = rank_step(tmp_path)
    result = run([folder], spec=make_spec(overlap={"by": ["weight", "output"]}), root=tmp_path)
    assert result.folder is not None
    manifest = read_manifest(result.folder)
    assert result.folder == tmp_path / "tiny" / f"overlap-{manifest['run']}"
    assert manifest["inputs"] == {folder.name: read_manifest(folder)["run"]}
    assert manifest["kinds"] == {
        "overlap.csv": "overlap/1", "stability_summary.json": "stability/1", "confidence.csv": "confidence/1",
    }  # fmt: skip
    table = find_table(result.folder, "overlap/1").frame
    assert_frame_equal(table, result.table.frame)
    assert set(table["run"]) == {manifest["run"]}
    assert table["k"].unique().sort().to_list() == [1, 4]  # of rank.k, what the lists hold
    assert len(table) == 3 * 2 * 2
    summary = json.loads((result.folder / "stability_summary.json").read_text(encoding="utf-8"))
    assert summary == result.summary
    assert (summary["num_seeds"], summary["k"], len(summary["jaccard_all"])) == (3, 4, 3)
    assert result.confidence is not None
    assert_frame_equal(find_table(result.folder, "confidence/1").frame, result.confidence.frame)
    assert set(result.confidence.frame["run"]) == {manifest["run"]}


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    """The same spec and inputs are not computed twice, and ``force`` gives the same bytes."""
    folder = rank_step(tmp_path)
    first = run([folder], spec=make_spec(), root=tmp_path)
    assert first.folder is not None
    before = (first.folder / "overlap.csv").stat().st_mtime_ns, (first.folder / "overlap.csv").read_bytes()
    again = run([folder], spec=make_spec(), root=tmp_path)
    assert_frame_equal(again.table.frame, first.table.frame)
    assert again.summary == first.summary
    assert (first.folder / "overlap.csv").stat().st_mtime_ns == before[0]
    run([folder], spec=make_spec(), root=tmp_path, force=True)
    assert (first.folder / "overlap.csv").read_bytes() == before[1]


def test_what_changes_numbers_changes_the_step(tmp_path: Path) -> None:
    """The spec's keys, the universe and the seed of the permutations enter the step's id."""
    folder = rank_step(tmp_path)
    folders = {
        run([folder], spec=make_spec(), root=tmp_path).folder,
        run([folder], spec=make_spec(overlap={"p": 0.9}), root=tmp_path).folder,
        run([folder], spec=make_spec(), root=tmp_path, universe=1000).folder,
        run([folder], spec=make_spec(), root=tmp_path, seed=1).folder,
    }
    assert len(folders) == 4


def test_one_list_of_a_spec_is_an_empty_table_and_a_warning(tmp_path: Path) -> None:
    """A run of one metric and one seed goes on: there is nothing to compare, and the manifest says so."""
    folder = rank_step(tmp_path, {0: [1, 2]})
    progress = Silent()
    result = run([folder], spec=make_spec(), root=tmp_path, progress=progress)
    assert result.folder is not None
    assert result.table.frame.is_empty()
    assert result.summary is None
    assert not (result.folder / "stability_summary.json").exists()
    warning = f"{folder.name}: one list alone has nothing to be compared with; the table is empty"
    assert read_manifest(result.folder)["warnings"] == progress.warnings == [warning]


def test_one_list_without_a_spec_is_an_error(tmp_path: Path) -> None:
    """Asked to compare one list, the twin says that it needs two."""
    path = older(tmp_path / "a.csv", [(DOWN, "(0, 1)", 1.0)])
    with pytest.raises(SelectionError) as error:
        run([path])
    assert str(error.value) == (
        f"{path}: 1 lists to compare; at least 2 are needed\n"
        "hint: name two rankings, or one that holds several metrics or seeds"
    )


def test_older_lists_without_a_spec(tmp_path: Path) -> None:
    """Two older lists called top_weights.csv are compared by score, whole; ``out`` gets the table."""
    rows = [(DOWN, f"({n}, {n})", 1 - n / 10) for n in range(4)]
    paths = [older(tmp_path / "a/top_weights.csv", rows), older(tmp_path / "b/top_weights.csv", rows[::-1])]
    result = run(paths, out=tmp_path / "overlap.csv")
    [row] = result.table.frame.to_dicts()
    assert (row["label_a"], row["label_b"]) == ("a/top_weights.csv", "b/top_weights.csv")
    assert (row["k"], row["jaccard"], row["spearman"]) == (4, 1, pytest.approx(1))
    assert math.isclose(row["rbo"], 1)
    assert result.folder is None
    assert result.summary is None
    assert_frame_equal(find_table(tmp_path / "overlap.csv", "overlap/1").frame, result.table.frame)


def test_an_older_list_with_equal_quotas_gets_a_warning(tmp_path: Path) -> None:
    """A list that holds as many weights of every tensor was hardly drawn from all weights: its null needs a warning."""
    rows = [(name, f"(0, {n})", 1 / (n + 1)) for name in (DOWN, "h.1.down.weight") for n in range(3)]
    path = older(tmp_path / "a.csv", rows)
    other = saved(ranking([(DOWN, 0), (DOWN, 1)], anatomy=False), tmp_path / "b.csv")
    progress = Silent()
    run([path, other], universe=1000, progress=progress)
    assert progress.warnings == [
        "a.csv: holds 3 weights of each of its 2 tensors, as if ranked per layer; the null supposes draws from all"
        " weights, and understates what chance would share"
    ]


def test_a_universe_is_no_help_per_layer(tmp_path: Path) -> None:
    """One number does not say how large each tensor is, and the run says that it was not used."""
    paths = [saved(ranking([(DOWN, n)], mode="per_layer", anatomy=False), tmp_path / f"{n}.csv") for n in range(2)]
    progress = Silent()
    run(paths, universe=1000, progress=progress)
    assert progress.warnings == ["a universe of 1000 weights gives no null per_layer: the size of every unit is needed"]


def test_an_outlier_among_the_seeds_is_a_warning(tmp_path: Path) -> None:
    """The seed whose list is another is named in the summary, on the way, and in the manifest."""
    lists = {seed: [*range(9), 10 + seed] for seed in range(4)} | {9: list(range(14, 24))}
    progress = Silent()
    result = run([rank_step(tmp_path, lists)], spec=make_spec(overlap={"k": [10]}), root=tmp_path, progress=progress)
    assert result.summary is not None
    assert result.summary["outlier_seeds"] == [9]
    assert result.folder is not None
    warnings = read_manifest(result.folder)["warnings"]
    assert warnings == progress.warnings
    assert [text.partition(":")[2] for text in warnings] == [
        " the list of seed 9 is an outlier: mean Jaccard 0.000 with the others, median of the seeds 0.614"
    ]


def test_lists_without_scores_have_no_confidence(tmp_path: Path) -> None:
    """Lists that give ranks alone are compared; how sure a place is cannot be told without scores, and the step says so."""
    paths = []
    for seed in (0, 1):
        table = ranking([(DOWN, 1), (DOWN, 2 + seed)], seed=seed)
        frame = table.frame.with_columns(score=None)
        paths.append(saved(make_table("ranking/1", frame, table.meta), tmp_path / f"{seed}.parquet"))
    result = run(paths, spec=make_spec(), root=tmp_path)
    assert result.folder is not None
    assert result.confidence is not None
    assert result.confidence.frame.is_empty()
    assert read_manifest(result.folder)["warnings"] == [
        "confidence.csv: lists without scores are left out, such as 0.parquet"
    ]


def test_overlap_works_without_torch() -> None:
    """Importing the comparison does not import torch."""
    import subprocess
    import sys

    code = "import sys, esa.overlap; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
