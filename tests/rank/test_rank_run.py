"""The Python twin of ``esa rank``: sources, folders, reuse, and every refusal word for word."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import esa.rank
from esa.artifact import read_manifest, read_ranking, read_table, write_table
from esa.artifact.tables import Table
from esa.errors import ArtifactError, EsaError, SelectionError, SpecError
from esa.spec.sections import Rank
from tests.rank.conftest import ANATOMY, KEEP, Dense, ranked, vouch_for

ALL = {"groups": ("top_k", "random_k", "bottom_k", "matched_k"), "k": (1, 10), "draws": 2}


def test_ranking_needs_no_torch() -> None:
    """Ranking runs on a laptop: the package and its selectors import without torch."""
    code = "import sys, esa.rank, esa.rank.selectors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    failing = subprocess.run(
        [sys.executable, "-c", code.replace("import sys,", "import sys; sys.modules['torch'] = sys; import")],
        check=False,
    )
    assert failing.returncode == 1


def test_a_step_is_written(folder: Path, tmp_path: Path) -> None:
    """The folder holds ranking, anatomy and manifest, and the table comes back as it was returned."""
    result = esa.rank.run(folder, rank=Rank(**ALL), root=tmp_path)
    assert result.folder is not None
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "anatomy.json", "manifest.json", "ranking.csv", "spec.toml",
    ]  # fmt: skip
    manifest = read_manifest(result.folder)
    assert manifest["inputs"] == {"score": read_manifest(folder)["run"]}
    assert manifest["notes"] == list(result.notes)
    assert result.folder.name == f"rank-{manifest['run']}"
    assert result.table.meta["run"] == manifest["run"]
    assert result.table.meta["name"] == "dense"
    assert (
        json.loads(result.table.meta["anatomy"]) == json.loads((result.folder / "anatomy.json").read_text()) == ANATOMY
    )
    assert_frame_equal(read_ranking(result.folder).frame, result.table.frame)
    assert set(result.table.frame["run"]) == {manifest["run"]}


def test_a_long_ranking_is_parquet(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of a CSV the table is Parquet and carries its metadata."""
    monkeypatch.setattr(esa.rank, "MOST_CSV_ROWS", 10)
    result = esa.rank.run(folder, rank=Rank(**ALL), root=tmp_path)
    assert result.folder is not None
    table = read_table(result.folder / "ranking.parquet", "ranking/1")
    assert_frame_equal(table.frame, result.table.frame)
    assert table.meta == result.table.meta


def test_a_finished_step_is_reused(folder: Path, tmp_path: Path) -> None:
    """The second run reads what the first wrote, metadata and notes included; force writes it again, bit for bit."""
    first = esa.rank.run(folder, rank=Rank(**ALL), root=tmp_path)
    assert first.folder is not None
    manifest, ranking = first.folder / "manifest.json", first.folder / "ranking.csv"
    before = manifest.stat().st_mtime_ns, ranking.read_bytes()
    again = esa.rank.run(folder, rank=Rank(**ALL), root=tmp_path)
    assert_frame_equal(again.table.frame, first.table.frame)
    assert (again.table.meta, again.notes, again.folder) == (first.table.meta, first.notes, first.folder)
    assert manifest.stat().st_mtime_ns == before[0]
    esa.rank.run(folder, rank=Rank(**ALL), root=tmp_path, force=True)
    assert manifest.stat().st_mtime_ns != before[0]
    assert ranking.read_bytes() == before[1]


def test_another_ranking_is_another_step(folder: Path, tmp_path: Path) -> None:
    """Rank keys and the choice of metrics enter the id; which seeds are perturbed does not."""

    def step(**more: Any) -> str:
        rank = Rank(**{**ALL, **more.pop("rank", {})})
        return str(esa.rank.run(folder, rank=rank, root=tmp_path, **more).table.meta["run"])

    assert step() == step(rank={"seeds": "all"}) == step(name="other")
    assert len({step(), step(rank={"k": (2,)}), step(metrics=["magnitude"]), step(metrics=["act_mag"])}) == 4


def test_the_rows_are_in_order(folder: Path) -> None:
    """Metric as scored with the random groups last, seed, group as asked, draw, unit, rank."""
    frame = ranked(folder, **{**ALL, "groups": ("bottom_k", "random_k", "top_k")})
    keys = frame.group_by("metric", "seed", "group", "draw", maintain_order=True).len("rows").rows()
    scored = [("act_mag", 0), ("act_mag", 1), ("magnitude", None)]
    assert keys == [
        *((metric, seed, group, None, 10) for metric, seed in scored for group in ("bottom_k", "top_k")),
        *((None, seed, "random_k", draw, 10) for seed in (0, 1) for draw in (0, 1)),
    ]


def test_units_are_in_model_order(folder: Path) -> None:
    """Per-block rows follow the model, what lies outside the blocks first met first."""
    frame = ranked(folder, mode="per_block", k=(2,), groups=("top_k",)).filter(metric="act_mag", seed=0)
    assert frame["unit_name"].to_list() == ["no block"] * 2 + ["block 0"] * 2 + ["block 1"] * 2
    assert frame["rank"].to_list() == [1, 2] * 3


def test_metrics_can_be_filtered(folder: Path) -> None:
    """Only the metric asked for is ranked, by its alias too."""
    result = esa.rank.run(folder, rank=Rank(k=(2,), groups=("top_k",)), metrics=["activation_magnitude"], write=False)
    assert set(result.table.frame["metric"]) == {"act_mag"}


@pytest.mark.parametrize("form", ["scores.parquet", "copy.csv", "-", "- csv"])
def test_every_form_of_the_scores_gives_the_same_ranking(
    form: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder, Parquet file, CSV and pipe agree; a CSV only lacks what it does not hold."""
    expected = ranked(folder, **ALL).drop("run")
    table = read_table(folder / "scores.parquet", "scores/1")
    write_table(Table("scores/1", table.frame), folder / "copy.csv")
    source: Any = folder / form
    if form.startswith("-"):
        data = (folder / ("copy.csv" if "csv" in form else "scores.parquet")).read_bytes()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        source = "-"
    result = esa.rank.run(source, rank=Rank(**ALL), write=False)
    unknown = ["layer", "block", "component", "indices"] if "csv" in form else []
    if unknown:
        assert result.table.frame.select(unknown).null_count().row(0) == (len(expected),) * 4
        assert "anatomy" not in result.table.meta
    assert_frame_equal(result.table.frame.drop("run", *unknown), expected.drop(unknown))


def test_a_file_makes_a_step_under_its_own_hash(folder: Path, tmp_path: Path) -> None:
    """The id of a file's ranking comes from its bytes; a bare CSV names the folder."""
    result = esa.rank.run(folder / "scores.parquet", rank=Rank(k=(2,)), root=tmp_path)
    assert result.folder is not None
    assert list(read_manifest(result.folder)["inputs"]) == ["scores"]
    assert result.folder.parent == tmp_path / "dense"
    write_table(read_table(folder / "scores.parquet", "scores/1"), tmp_path / "my scores.csv")
    bare = esa.rank.run(tmp_path / "my scores.csv", rank=Rank(k=(2,)), root=tmp_path)
    assert bare.folder is not None
    assert bare.folder.parent == tmp_path / "my_scores"
    assert not (bare.folder / "anatomy.json").exists()


def test_standard_input_makes_no_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is ranked and nothing is written, though write is the default."""
    data = io.BytesIO((folder / "scores.parquet").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data, isatty=lambda: False))
    result = esa.rank.run("-", rank=Rank(k=(2,)), root=tmp_path / "none")
    assert result.folder is None
    assert not (tmp_path / "none").exists()


def test_out_is_a_folder_or_a_table(folder: Path, tmp_path: Path) -> None:
    """A folder takes the step, a .csv or .parquet path the table alone."""
    rank = Rank(k=(2,))
    assert esa.rank.run(folder, rank=rank, out=tmp_path / "mine").folder == tmp_path / "mine"
    for name in ("top.csv", "top.parquet"):
        result = esa.rank.run(folder, rank=rank, out=tmp_path / name, root=tmp_path / "none")
        assert result.folder is None
        assert_frame_equal(read_ranking(tmp_path / name).frame, result.table.frame)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ArtifactError, match="give another folder with -o, or --force"):
        esa.rank.run(folder, rank=Rank(k=(3,)), out=tmp_path / "mine")


def test_the_spec_names_the_folder_and_the_ranking(folder: Path, tmp_path: Path, dense: Dense) -> None:
    """A spec given is used; a name given takes the place of its name."""
    spec = dense.spec().model_copy(update={"name": "given", "rank": Rank(k=(3,), groups=("top_k",))})
    result = esa.rank.run(folder, spec=spec, root=tmp_path)
    assert result.folder is not None
    assert (result.folder.parent.name, len(result.table.frame)) == ("given", 9)
    renamed = esa.rank.run(folder, spec=spec, name="renamed", root=tmp_path)
    assert renamed.folder is not None
    assert (renamed.folder.parent.name, renamed.table.meta["name"]) == ("renamed", "renamed")
    with pytest.raises(SpecError, match="--name: name"):
        esa.rank.run(folder, name="a/b", root=tmp_path)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"k": (1, KEEP + 1), "groups": ("top_k",)},
        "rank.k: K = 17 is more than the 16 scores kept of embed.weight (180 weights): keep = 16\n"
        "hint: score again with score.keep = 17 or more, or ask for K up to 16",
    ),
    (
        {"k": (17,), "groups": ("bottom_k",), "mode": "per_component"},
        "rank.k: K = 17 is more than the 16 scores kept of embed.weight (180 weights): keep = 16\n"
        "hint: score again with score.keep = 17 or more, or ask for K up to 16",
    ),
    (
        {"k": (37,), "groups": ("top_k",), "mode": "per_layer"},
        "rank.k: K = 37 is more than the 36 weights of unit 'h.0.attn.q.weight'\n"
        "hint: ask for K up to 36, leave the unit out with score.exclude, or choose another mode",
    ),
    (
        {"k": (1000,), "groups": ("random_k",)},
        "rank.k: K = 1,000 is more than the 624 weights of unit 'all'\n"
        "hint: ask for K up to 624, leave the unit out with score.exclude, or choose another mode",
    ),
]


@pytest.mark.parametrize(("rank", "text"), REFUSED)
def test_a_k_that_the_scores_cannot_give(rank: dict[str, Any], text: str, folder: Path, tmp_path: Path) -> None:
    """K beyond keep, or beyond the unit, is refused with both numbers, and nothing is written."""
    with pytest.raises(SelectionError) as error:
        esa.rank.run(folder, rank=Rank(**rank), root=tmp_path / "none")
    assert str(error.value) == text
    assert not (tmp_path / "none").exists()


def test_matched_k_without_enough_partners(tmp_path: Path) -> None:
    """A tensor ranked whole leaves nobody to match."""
    folder = Dense(anatomy=[ANATOMY[1]], pairs=(("act_mag", 0),)).write(tmp_path)
    with pytest.raises(SelectionError) as error:
        ranked(folder, k=(20,), groups=("matched_k",))
    assert str(error.value) == (
        "rank.k: matched_k finds 16 kept partners for 20 top_k weights of h.0.attn.q.weight\n"
        "hint: ask for a smaller K, or score again with a larger score.keep"
    )


def test_a_small_tensor_is_ranked_beyond_keep(tmp_path: Path) -> None:
    """A tensor kept whole allows any K up to its size."""
    folder = Dense(anatomy=[ANATOMY[1], ANATOMY[3]]).write(tmp_path)
    assert len(ranked(folder, k=(36,), mode="per_layer", groups=("top_k", "bottom_k"))) == 36 * 2 * 2 * 3


@pytest.mark.parametrize("rank", [{"mode": "per_block"}, {"mode": "per_component"}])
def test_a_csv_knows_no_blocks(rank: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """What a CSV lacks is refused with the way out."""
    write_table(read_table(folder / "scores.parquet", "scores/1"), tmp_path / "scores.csv")
    with pytest.raises(SelectionError) as error:
        ranked(tmp_path / "scores.csv", **rank)
    assert str(error.value) == (
        f"rank.mode: mode '{rank['mode']}' needs what only a score step knows\n"
        "hint: rank the score step's folder or its Parquet file: a CSV does not say what its parameters are"
    )
    with pytest.raises(SelectionError) as error:
        ranked(tmp_path / "scores.csv", aggregate="input", statistic="count")
    assert str(error.value) == (
        "rank.aggregate: aggregate 'input' needs what only a score step knows\n"
        "hint: rank the score step's folder or its Parquet file: a CSV does not say what its parameters are"
    )


@pytest.mark.parametrize("file", ["bad.parquet", "bad.csv"])
@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN|nan"), (float("inf"), "inf"), (None, "null")])
def test_scores_that_are_no_numbers(file: str, value: float | None, said: str, folder: Path, tmp_path: Path) -> None:
    """NaN would sort as the largest score: it is refused wherever it stands, and so are infinity and nothing."""
    frame = pl.read_parquet(folder / "scores.parquet")
    at = frame.with_row_index("row").filter(stratum="sample")["row"][0]
    frame = frame.with_columns(pl.when(pl.int_range(pl.len()) == at).then(value).otherwise("score").alias("score"))
    frame = frame.with_columns(pl.col("score").cast(pl.Float32))
    (frame.write_parquet if file.endswith("parquet") else frame.write_csv)(tmp_path / file)
    with pytest.raises(ArtifactError, match=rf"scores/1: score: row {at}: ({said})"):
        ranked(tmp_path / file, k=(2,), groups=("top_k",))


def test_files_that_are_no_scores(folder: Path, tmp_path: Path) -> None:
    """A missing, truncated, foreign or incomplete file is told apart."""
    data = (folder / "scores.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    (tmp_path / "empty.csv").write_bytes(b"")
    pl.read_parquet(folder / "scores.parquet").drop("score").write_parquet(tmp_path / "lacking.parquet")
    pl.read_parquet(folder / "scores.parquet").clear().write_parquet(tmp_path / "rows.parquet")
    for name, text in {
        "none.parquet": "no such file",
        "cut.parquet": "is a truncated Parquet file: its footer is missing",
        "empty.csv": "is empty; a table of scores/1 was expected",
        "rows.parquet": "holds no scores",
    }.items():
        with pytest.raises(ArtifactError) as error:
            ranked(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {text}"
    with pytest.raises(ArtifactError, match=r"lacking.parquet: lacks score of scores/1; it has run, metric"):
        ranked(tmp_path / "lacking.parquet")
    with pytest.raises(ArtifactError, match=r"holds tensors/1 where scores/1 was expected"):
        ranked(folder / "tensors.parquet")
    with pytest.raises(ArtifactError, match="is not a finished step"):
        ranked(tmp_path)


def test_a_parameter_outside_the_anatomy(folder: Path) -> None:
    """Scores of a tensor that the table does not describe are refused."""
    table = read_table(folder / "scores.parquet", "scores/1")
    write_table(Table("scores/1", table.frame, {"anatomy": json.dumps(ANATOMY[1:])}), folder / "scores.parquet")
    vouch_for(folder / "scores.parquet")
    with pytest.raises(ArtifactError) as error:
        ranked(folder)
    assert str(error.value) == f"{folder}: scores a parameter that its own list of tensors lacks"


def test_metrics_that_are_not_there(folder: Path) -> None:
    """A metric that was not scored, and one that does not exist, are two errors."""
    with pytest.raises(SelectionError) as error:
        esa.rank.run(folder, metrics=["obd"], write=False)
    assert str(error.value) == (
        f"{folder}: 'obd' is not among the scored metrics: act_mag, magnitude\nhint: score it too: score.metrics"
    )
    with pytest.raises(EsaError, match="'act_mags' is not a metric \\(did you mean 'act_mag'\\?\\)"):
        esa.rank.run(folder, metrics=["act_mags"], write=False)
