"""From rank folders to a curve: the step, the summary, the windows read from the manifests, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from esa.artifact import Step, Table, find_table, read_manifest, write_json
from esa.cli.main import app
from esa.errors import ArtifactError, SelectionError
from esa.overlap import curve
from esa.overlap.study import num_windows, summarise
from esa.spec import Spec, spec_from_dict
from esa.spec.sections import Curve, Overlap
from tests.overlap.noisy import noisy
from tests.overlap.planted import TENSORS, saved


def make_spec(windows: int = 8, **sections: Any) -> Spec:
    """Return a small spec."""
    tree = {"name": "tiny", "model": {"id": "x"}, "calibration": {"windows": windows}, "rank": {"k": [1, 10, 500]}}
    return spec_from_dict({**tree, **sections})


def rank_step(root: Path, table: Table, windows: int = 8, ranked_under: int | None = None) -> Path:
    """Write a finished score step (its manifest alone) and the rank step made from it; return the latter's folder."""
    score = Step("score", make_spec(windows), {"model": "a"}, root=root)
    score.begin()
    score.finish(tables={})
    spec = make_spec(ranked_under or windows)
    step = Step("rank", spec, {"score": score.id, "mode": table.frame["mode"][0]}, root=root)
    step.begin()
    step.write(table, "ranking.csv")
    write_json(step.folder / "anatomy.json", TENSORS)
    step.finish(tables={"ranking.csv": "ranking/1"})
    return step.folder


def test_a_curve_is_a_step(tmp_path: Path) -> None:
    """With a spec the folder holds table, summary and manifest; it is read back, and each kind is a step of its own."""
    folder = rank_step(tmp_path, noisy(0.5))
    result = curve([folder], "k", spec=make_spec(curve={"level": 0.3}), root=tmp_path)
    assert result.folder is not None
    manifest = read_manifest(result.folder)
    assert result.folder == tmp_path / "tiny" / f"curve-{manifest['run']}"
    assert manifest["kinds"] == {"curve.csv": "curve/1", "curve_summary.json": "curve_summary/1"}
    assert_frame_equal(find_table(result.folder, "curve/1").frame, result.table.frame)
    assert json.loads((result.folder / "curve_summary.json").read_text(encoding="utf-8")) == result.summary
    before = (result.folder / "curve.csv").stat().st_mtime_ns
    again = curve([folder], "k", spec=make_spec(curve={"level": 0.3}), root=tmp_path)
    assert again.summary == result.summary
    assert (result.folder / "curve.csv").stat().st_mtime_ns == before
    other = curve([folder], "seeds", spec=make_spec(curve={"level": 0.3}), root=tmp_path)
    assert other.folder != result.folder
    data = (result.folder / "curve.csv").read_bytes()
    curve([folder], "k", spec=make_spec(curve={"level": 0.3}), root=tmp_path, force=True)
    assert (result.folder / "curve.csv").read_bytes() == data


def test_windows_come_from_the_score_step(tmp_path: Path) -> None:
    """The number of windows is that of the scores, not of the spec that they were ranked under; without them it is not known."""
    folder = rank_step(tmp_path / "a", noisy(0.5), windows=4, ranked_under=32)
    assert num_windows(folder) == 4
    [score] = (tmp_path / "a/tiny").glob("score-*")
    (score / "manifest.json").unlink()
    with pytest.raises(ArtifactError) as error:
        num_windows(folder)
    assert "its number of calibration windows is not known" in str(error.value)
    with pytest.raises(ArtifactError) as error:
        num_windows(saved(noisy(0.5), tmp_path / "a.csv"))
    assert "does not say how many calibration windows its scores come from" in str(error.value)


def test_a_curve_over_windows_of_several_runs(tmp_path: Path) -> None:
    """Runs of 2, 8 and 32 windows, given in any order, become one line that says from how many on it stays above."""
    folders = [rank_step(tmp_path / str(n), noisy(n**-0.5), windows=n) for n in (8, 32, 2)]
    result = curve(folders, "windows", overlap=Overlap(k=(20,)), section=Curve(level=0.6))
    between = result.table.frame.filter(result.table.frame["pair"] == "between_seeds")
    assert between["x"].to_list() == [2, 8, 32]
    values = between["corrected"].to_list()
    assert values == sorted(values)
    first = next(x for x, value in zip((2, 8, 32), values, strict=True) if value >= 0.6)
    [line, _] = result.summary["lines"]
    assert (line["pair"], line["from"], line["smallest"], line["largest"]) == ("between_seeds", first, 2, 32)
    with pytest.raises(SelectionError) as error:
        curve(folders[:1], "windows")
    assert "all lists are of 8 calibration windows; a curve needs two numbers of them" in str(error.value)


def test_both_modes_bring_a_recommendation(tmp_path: Path) -> None:
    """Rankings of both modes make two lines per metric, and the summary says which mode is the steadier."""
    sources = [
        saved(noisy(0.3, k=20), tmp_path / "a.parquet"),
        saved(noisy(0.3, k=5, mode="per_layer"), tmp_path / "b.parquet"),
    ]
    summary = curve(sources, "k").summary
    assert [(line["mode"], line["largest"]) for line in summary["lines"]] == [("global", 20), ("per_layer", 5)]
    assert summary["modes"]["act_mag"]["recommended"] in ("global", "per_layer")


def test_the_k_of_windows_and_seeds(tmp_path: Path) -> None:
    """overlap.k where given, else those of rank.k that the lists hold, else the lists' length."""
    source = saved(noisy(0.5, k=15), tmp_path / "a.parquet")

    def ks(**options: Any) -> list[int]:
        return sorted(set(curve([source], "seeds", root=tmp_path, **options).table.frame["k"]))

    assert ks() == [15]
    assert ks(spec=make_spec()) == [1, 10]
    assert ks(spec=make_spec(overlap={"k": [3]})) == [3]
    assert ks(overlap=Overlap(k=(2, 5))) == [2, 5]
    with pytest.raises(SelectionError, match="k = 20: the list holds 15 weights"):
        ks(overlap=Overlap(k=(20,)))


def test_splits_are_those_of_the_spec(tmp_path: Path) -> None:
    """curve.splits halves are drawn where there are more."""
    source = saved(noisy(0.5, seeds=range(8)), tmp_path / "a.parquet")
    frame = curve([source], "seeds", section=Curve(splits=7)).table.frame
    assert frame["num_pairs"].to_list() == [7, 7, 7, 7]


def test_one_seed_gives_no_curve(tmp_path: Path) -> None:
    """Without two seeds there is nothing to compare, and the error says what to score."""
    source = saved(noisy(0.5, seeds=[0]), tmp_path / "a.parquet")
    with pytest.raises(SelectionError) as error:
        curve([source], "k")
    assert "no metric is ranked from two seeds" in str(error.value)
    assert "score.seeds" in str(error.value)


def test_the_summary_keeps_lines_apart() -> None:
    """Of two lines, one that rises over the level and one without a correction: an onset, and never, with a reason."""
    row = {"curve": "seeds", "metric": "a", "mode": "global", "by": "weight", "k": 5, "pair": "split_half"}
    rows = [{**row, "x": x, "corrected": value} for x, value in ((1, 0.2), (2, 0.6), (3, 0.7))]
    rows += [{**row, "metric": "b", "x": x, "corrected": None} for x in (1, 2)]
    first, second = summarise(rows, 0.5)["lines"]
    assert (first["from"], first["chance_known"]) == (2, True)
    assert (second["from"], second["chance_known"]) == (None, False)


def test_the_command_gives_table_and_words(tmp_path: Path) -> None:
    """The table goes to stdout; from where the curve stays above the level, and the better mode, to stderr."""
    sources = [
        saved(noisy(0.3, k=20), tmp_path / "a.parquet"),
        saved(noisy(0.3, k=5, mode="per_layer"), tmp_path / "b.parquet"),
    ]
    words = ["overlap", "--curve", "k", *map(str, sources), "--set", "curve.level=0.05"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("run,curve,metric,mode,by,k,x,pair,jaccard")
    assert "act_mag global by weight, between seeds: stays above 0.05 from k = 1 on (k = 1 to 20)." in result.stderr
    assert "hotspots" in result.stderr
    assert "agrees better across seeds" in result.stderr
    assert CliRunner().invoke(app, [*words, "-q"]).stderr == ""


def test_the_command_refuses_another_kind(tmp_path: Path) -> None:
    """A curve that there is none of is a content error that names those there are."""
    result = CliRunner().invoke(app, ["overlap", "--curve", "depth", str(saved(noisy(0.5), tmp_path / "a.csv"))])
    assert result.exit_code == 3
    assert "--curve: 'depth' is not a curve; allowed: k, windows, seeds" in result.stderr
