"""The step of ``esa arch RUN...``: its tables, id, reuse, options and refusals, and real runs of tiny models under it."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.arch.comparison import FILES, PARTS, ArchResult, prepare, run
from esa.arch.comparison.findings import adjusted, out_of_reach
from esa.arch.comparison.sources import common_k, labelled
from esa.artifact import read_manifest, read_table
from esa.artifact.grouping import group
from esa.errors import ArtifactError, SelectionError
from esa.progress import Silent
from tests.arch.planted_mixtures import dense, mixture, opened, with_axes

FAST: dict[str, Any] = {"permutations": 99}
QUICK = ("shares", "attention", "depth", "experts", "specialisation", "clustering")


def compared(root: Path, *folders: Path, **options: Any) -> ArchResult:
    """Compare runs quickly below a folder."""
    return run(folders, root=root / "outputs", **{**FAST, **options})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask but for what takes no time."""
    monkeypatch.setattr("esa.arch.comparison.PARTS", {name: PARTS[name] for name in QUICK})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Write a dense run and a mixture."""
    return with_axes(dense(tmp_path)), with_axes(
        mixture(tmp_path, name="moe", usage=lambda block, expert: 0.1 * (expert + 1))
    )


@pytest.mark.usefixtures("quick")
def test_two_runs_are_compared(tmp_path: Path, two: tuple[Path, Path]) -> None:
    """The step holds the tables of all parts in fixed files, its manifest names labels and options, and they read back."""
    found = compared(tmp_path, *two, k=10)
    assert found.folder.parent == tmp_path / "outputs" / "dense_moe"
    assert found.labels == ("dense", "moe")
    manifest = read_manifest(found.folder)
    assert manifest["step"] == "arch"
    assert manifest["labels"] == ["dense", "moe"]
    assert manifest["options"] == {"metrics": ["act_mag"], "k": 10, "seed": 0, "permutations": 99}
    assert {"comparison/1", "shares/1", "experts/1"} <= set(found.tables)
    for kind, table in found.tables.items():
        assert read_table(found.folder / FILES[kind], kind).frame.equals(table.frame)
        assert set(table.frame["run"]) == {manifest["run"]}
    assert set(found.tables["experts/1"].frame["label"]) == {"moe"}
    questions = found.tables["comparison/1"].frame["question"].unique().to_list()
    assert {"attention against MLP", "depth", "expert against shared", "score against usage", "clustering"} <= set(
        questions
    )


@pytest.mark.usefixtures("quick")
def test_a_row_has_a_value_or_a_reason(tmp_path: Path, two: tuple[Path, Path]) -> None:
    """Every row of the comparison answers or says why it cannot; p lies between its smallest and one; adjusted ones are no less."""
    frame = compared(tmp_path, *two).tables["comparison/1"].frame
    assert frame.filter(pl.col("value").is_null() & pl.col("why").is_null()).is_empty()
    tested = frame.filter(pl.col("p_value").is_not_null())
    assert tested.height > 10
    assert tested.filter((pl.col("p_value") < pl.col("smallest_p") - 1e-12) | (pl.col("p_value") > 1)).is_empty()
    own = tested.filter(pl.col("question") == "depth")
    assert own.filter(pl.col("p_adjusted").is_null() | (pl.col("p_adjusted") < pl.col("p_value"))).is_empty()


@pytest.mark.usefixtures("quick")
def test_the_same_request_is_the_same_step(tmp_path: Path) -> None:
    """A finished comparison is read, not computed again; force gives the same bytes; other options are another step."""
    folder, other = with_axes(dense(tmp_path)), dense(tmp_path, name="b").write()
    first = compared(tmp_path, folder)
    before = {path.name: path.read_bytes() for path in first.folder.glob("*.csv")}
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    again = compared(tmp_path, folder)
    assert (first.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert again.folder == first.folder
    assert again.warnings == first.warnings
    assert {kind: table.frame.height for kind, table in again.tables.items()} == {
        kind: table.frame.height for kind, table in first.tables.items()
    }
    compared(tmp_path, folder, force=True)
    assert {path.name: path.read_bytes() for path in first.folder.glob("*.csv")} == before
    for options in ({"k": 1}, {"seed": 1}, {"permutations": 199}):
        assert prepare([folder], root=tmp_path / "outputs", **{**FAST, **options}).step.id != first.folder.name[5:]
    assert prepare([folder, other], root=tmp_path / "outputs", **FAST).step.id != first.folder.name[5:]


@pytest.mark.usefixtures("quick")
def test_another_folder_may_be_named(tmp_path: Path) -> None:
    """With ``out`` the step lies there; a folder of another step there is refused."""
    folder = dense(tmp_path).write()
    assert compared(tmp_path, folder, out=tmp_path / "mine").folder == tmp_path / "mine"
    with pytest.raises(ArtifactError, match="holds arch-"):
        compared(tmp_path, folder, out=tmp_path / "mine", k=1)


def test_metrics_and_k_are_resolved(tmp_path: Path) -> None:
    """By default all metrics that a run scored, and the K that every list holds."""
    one = dense(tmp_path, metrics=("act_mag", "magnitude"), ks=(1, 10))
    other = dense(tmp_path, name="b", metrics=("grad_x_weight", "act_mag"), ks=(1, 20))
    runs = opened(one.write(), other.write())
    assert common_k(runs, ("act_mag", "magnitude", "grad_x_weight")) == 10
    found = prepare([one.root / "outputs" / name for name in ("dense", "b")], root=tmp_path)
    assert found.options.metrics == ("act_mag", "magnitude", "grad_x_weight")
    assert found.options.k == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "act_mgg"}, r"no run scored 'act_mgg' \(did you mean 'act_mag'\?\); scored: act_mag"),
        ({"k": 21}, "21 weights are asked for, and a list holds 20 weights"),
    ],
)
def test_what_no_run_holds_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    """A metric or K that the runs do not hold is an error that says what they hold."""
    folder = dense(tmp_path).write()
    with pytest.raises(SelectionError, match=words):
        compared(tmp_path, folder, **options)


def test_runs_without_scores_are_refused(tmp_path: Path) -> None:
    """Runs that hold an evaluation alone have nothing to compare."""
    folder = dense(tmp_path, steps=("eval",)).write()
    with pytest.raises(SelectionError, match="no run holds scores or a ranking"):
        compared(tmp_path, folder)


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    """One run twice, in one folder or in a copy, would count as two models: the error says where they are."""
    folder = dense(tmp_path).write()
    with pytest.raises(
        SelectionError, match="'dense' is given twice, with the same steps; allowed: each run once"
    ) as one:
        compared(tmp_path, folder, folder)
    assert one.value.where == str(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(SelectionError, match="is given twice") as two:
        compared(tmp_path, folder, copy)
    assert two.value.where == f"{folder} and {copy}"
    assert not list((tmp_path / "outputs").glob("dense_*"))


def test_more_tests_than_permutations_can_carry_are_warned_of() -> None:
    """Holm's smallest p is the smallest of a test times the tests: where that is over .05, a warning says so; else none."""
    rows = [
        {"question": "between", "p_value": 0.01, "smallest_p": 0.01, "p_adjusted": None},
        {"question": "between", "p_value": 0.5, "smallest_p": 0.01, "p_adjusted": None},
        {"question": "variants", "p_value": 1e-9, "smallest_p": None, "p_adjusted": None},
    ]
    many = adjusted([*rows * 4], frozenset({"between", "variants"}))
    assert out_of_reach(many) == [
        "no adjusted p can be small, whatever the data, for between (not under 0.08, 8 tests): fewer runs or one metric bring it"
        " within reach, and more permutations where they are random"
    ]
    assert out_of_reach(adjusted(rows, frozenset({"between"}))) == []


def test_runs_of_one_name_have_their_own_labels(tmp_path: Path) -> None:
    """Two runs of one name are told apart by the id of a step."""
    folders = [dense(tmp_path / side, model_seed=n, seeds=(n,)).write() for n, side in enumerate("ab")]
    first, second = labelled(group(folders).runs)
    assert first.label == "dense"
    assert second.label == f"dense-{second.run.manifests['perturb']['run']}"


@pytest.mark.usefixtures("quick")
def test_older_manifests_are_warned_of(tmp_path: Path) -> None:
    """Without the architecture's facts the blocks are counted from the scores, and a warning says so."""
    folder = dense(tmp_path, facts={"shape": None}).write()
    progress = Silent()
    found = compared(tmp_path, folder, progress=progress)
    words = "dense: its manifests do not say how many blocks the model has; counted up to the highest scored, 4"
    assert words in found.warnings
    assert words in progress.warnings
    assert words in read_manifest(found.folder)["warnings"]


def test_a_list_per_tensor_is_put_in_order(tmp_path: Path) -> None:
    """Of a list ranked per tensor, the top K of the whole are the K of the highest score, no more than each tensor gave."""
    made = dense(tmp_path, ks=(1, 6), seeds=(0,))

    def per_tensor(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for name, scores in made.scores["act_mag", 0].items():
            flat = scores.ravel()
            for rank, index in enumerate((-flat).argsort(kind="stable")[:6], start=1):
                base = {
                    "metric": "act_mag",
                    "seed": 0,
                    "mode": "per_layer",
                    "unit_name": name,
                    "group": "top_k",
                    "rank": rank,
                }
                found.append({**base, "parameter": name, "index": int(index), "score": float(flat[index])})
        return found

    made.tables = {"ranking.csv": per_tensor}
    (one,) = opened(made.write())
    top = one.top("act_mag")
    assert top is not None
    assert top.select("parameter", "index").rows() == [row[:2] for row in made.ordered("act_mag", 0)[:6]]
    assert top["place"].to_list() == [1, 2, 3, 4, 5, 6]
    assert one.top("act_mag", 7) is None


@pytest.mark.usefixtures("quick")
def test_a_broken_record_of_axes_is_an_error(tmp_path: Path) -> None:
    """An anatomy that cannot be read is an error that names the file."""
    made = dense(tmp_path)
    folder = with_axes(made)
    (made.folders["rank"] / "anatomy.json").write_text(json.dumps([{"parameter": "x"}]))
    with pytest.raises(ArtifactError, match=r"anatomy\.json: cannot be read: KeyError: 'shape'"):
        compared(tmp_path, folder)


@pytest.mark.usefixtures("quick")
def test_a_part_that_fails_leaves_no_finished_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a part marks the step as failed; the same request computes it afterwards."""
    folder = dense(tmp_path).write()
    step = prepare([folder], root=tmp_path / "outputs", **FAST).step.folder

    def fail(*_: Any) -> None:
        raise SelectionError("no")

    with monkeypatch.context() as patch:
        patch.setattr("esa.arch.comparison.depth.compare", fail)
        with pytest.raises(SelectionError):
            compared(tmp_path, folder)
    assert json.loads((step / "failed.json").read_text())["error"] == "no"
    assert not (step / "manifest.json").exists()
    assert compared(tmp_path, folder).folder == step
    assert not (step / "failed.json").exists()


def test_every_part_is_there_and_documented() -> None:
    """Every part loads and says in its docstring what it returns."""
    from importlib import import_module

    for place in PARTS.values():
        module, _, name = place.partition(":")
        found = getattr(import_module(module), name)
        assert any(kind in found.__doc__ for kind in FILES)
