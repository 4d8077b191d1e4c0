"""The detector step finds the planted truth: who is critical alone, who with its twin, and that an eraser is harmless."""

import json
from pathlib import Path
from typing import Any

import pytest

import esa.perturb
import esa.rank
import esa.score
from esa.artifact import read_table
from esa.errors import ArtifactError
from esa.eval import Evaluator
from esa.model import LoadedModel, fingerprint
from esa.model.published import parse
from esa.perturb import detector
from esa.perturb.detector import DetectorResult
from esa.spec import Spec, apply_overrides
from tests.conftest import load, tiny_spec
from tests.perturb.super_weights import CHANNEL, ERASER, TWIN, WRITER, planted, spec_on, write_text

PUBLISHED = """
[[model]]
name = "Tiny"
ids = ["someone/tiny"]
shape = { model_type = "llama", hidden_size = 16, intermediate_size = 24, num_hidden_layers = 3 }
weights = [[1, 5, 7], [2, 3, 2]]
"""


def detect(loaded: LoadedModel, root: Path, **more: Any) -> tuple[Spec, DetectorResult]:
    """Score a planted model and test what stands out, on the text that it writes itself."""
    spec = more.pop("spec", None) or spec_on(write_text(loaded, root / "own.txt"))
    scored = esa.score.run(spec, loaded=loaded, root=root)
    return spec, detector.run(spec, scored.folder, loaded=loaded, root=root, **more)


def rows(result: DetectorResult) -> dict[str, dict[str, Any]]:
    """Return the rows of the table as it stands in its file, by address."""
    table = read_table(result.folder / "detector.csv", "detector/1").frame
    return {row["target"]: row for row in table.to_dicts()}


def test_a_planted_super_weight_is_critical_alone(tmp_path: Path) -> None:
    """The one weight on which everything depends is the one candidate: a writer, in no group, critical."""
    loaded = planted()
    before = fingerprint(loaded.weights)
    _, result = detect(loaded, tmp_path)
    [row] = rows(result).values()
    assert (row["target"], row["role"], row["verdict"], row["group"]) == (WRITER, "writer", "critical", None)
    assert (row["block"], row["row"], row["column"], row["expert"]) == (1, CHANNEL, 7, None)
    assert row["peak_ratio"] > 1000 < row["growth"]
    assert row["delta_low"] > 1
    assert row["below_floor"] is False
    assert row["ppl"] > 100 * row["ppl_base"]
    assert row["published"] is None
    assert result.manifest["verdicts"] == {"critical": 1, "critical_together": 0, "harmless": 0, "unclear": 0}
    assert result.manifest["checksum"]["restored"]
    assert fingerprint(loaded.weights) == before


def test_twins_are_harmless_alone_and_critical_together(tmp_path: Path) -> None:
    """Of two weights that write the same, either may go; the row that they share is named, and both gone leave nothing."""
    _, result = detect(planted(twin=True), tmp_path)
    found = rows(result)
    assert set(found) == {WRITER, TWIN}
    for row in found.values():
        assert (row["group"], row["verdict"]) == (f"row {CHANNEL} of block 1", "critical_together")
        assert row["delta_high"] < 0.01
        assert row["group_delta_low"] > 1 < row["added_low"]
        assert row["group_ppl"] > 100 * row["ppl"]
    together = result.manifest["all_writers"]
    assert together["num_weights"] == 2
    assert together["delta_nll"] == found[WRITER]["group_delta_nll"]


def test_an_eraser_comes_out_harmless(tmp_path: Path) -> None:
    """A late block that peaks because it takes some away is tested as the early one is, and does no harm."""
    _, result = detect(planted(eraser=True), tmp_path)
    found = rows(result)
    assert list(found) == [WRITER, ERASER]
    assert [row["rank"] for row in found.values()] == [1, 2]
    assert found[ERASER]["peak_ratio"] >= 20
    assert (found[ERASER]["role"], found[ERASER]["verdict"], found[ERASER]["group"]) == ("eraser", "harmless", None)
    assert found[ERASER]["growth"] < -1
    assert found[WRITER]["verdict"] == "critical"
    assert result.manifest["all_writers"] is None


def test_damages_are_those_of_a_campaign(tmp_path: Path) -> None:
    """Alone, together and added: each number equals that of esa perturb on the same targets, or their difference."""
    loaded = planted(twin=True)
    spec, result = detect(loaded, tmp_path)
    found = rows(result)
    spec = spec.model_copy(update={"perturb": tiny_spec(perturb=[{"method": "zero"}]).perturb})
    damage = {
        names: esa.perturb.run(spec, list(names), loaded=loaded, root=tmp_path).damage.frame.row(0, named=True)
        for names in ((WRITER,), (TWIN,), (WRITER, TWIN))
    }
    joint = damage[WRITER, TWIN]
    for target, other in ((WRITER, TWIN), (TWIN, WRITER)):
        alone = damage[(target,)]
        row = found[target]
        for key in ("delta_nll", "delta_low", "delta_high", "ppl", "ppl_base", "outcome"):
            assert row[key] == alone[key]
        for key in ("delta_nll", "delta_low", "delta_high", "ppl", "outcome"):
            assert row[f"group_{key}"] == joint[key]
        assert row["added_nll"] == pytest.approx(joint["nll"] - damage[(other,)]["nll"])


@pytest.fixture
def tiny_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the planted weight of the tiny Llama, and one that is nothing."""
    table = parse(PUBLISHED)
    for module in ("esa.model.published", "esa.perturb.detector"):
        monkeypatch.setattr(f"{module}.published", lambda: table)


@pytest.mark.parametrize(("model_id", "exact"), [("Someone/Tiny", True), ("tiny", False)])
def test_published_weights_are_found_and_missed(
    model_id: str, exact: bool, tiny_is_published: None, tmp_path: Path
) -> None:
    """On a published model table and manifest say which of its weights stood out and which did not; those are tested too."""
    loaded = planted()
    text = write_text(loaded, tmp_path / "own.txt")
    loaded.facts["revision"] = "c0ffee"
    spec = spec_on(text, model={"id": model_id})
    _, result = detect(loaded, tmp_path, spec=spec)
    found = rows(result)
    missed = "model.layers.2.mlp.down_proj.weight:3,2"
    assert [(row["target"], row["published"], row["role"]) for row in found.values()] == [
        (WRITER, True, "writer"), (missed, True, None),
    ]  # fmt: skip
    assert found[missed]["verdict"] == "harmless"
    assert found[missed]["growth"] is None
    assert found[missed]["num_seeds"] == 0
    assert result.manifest["published"] == [{"model": "Tiny", "exact": exact, "found": [WRITER], "missed": [missed]}]


def test_a_null_model_is_no_published_one(tiny_is_published: None, tmp_path: Path) -> None:
    """A shuffled model has the shape of a published one and none of its weights: nothing is said to be missed."""
    loaded = load("llama", null="shuffled")
    spec = spec_on(write_text(loaded, tmp_path / "own.txt"), model={"id": "tiny", "null": "shuffled"})
    _, result = detect(loaded, tmp_path, spec=spec)
    assert result.manifest["published"] == []
    assert result.table.frame.is_empty()


def test_without_candidates_there_is_nothing_to_test(tmp_path: Path) -> None:
    """An innocent model gives an empty table and a warning, and no evaluation."""
    _, result = detect(load("llama"), tmp_path)
    assert result.table.frame.is_empty()
    assert (result.manifest["num_cases"], result.manifest["noise_floor"]) == (0, None)
    assert any("stands out: there is nothing to test" in text for text in result.manifest["warnings"])


def test_a_rank_folder_leads_to_its_scores(tmp_path: Path) -> None:
    """The folder of a ranking stands for the scores that it was made from: the same step."""
    loaded = planted()
    spec, result = detect(loaded, tmp_path)
    scored = esa.score.run(spec, loaded=loaded, root=tmp_path)
    ranked = esa.rank.run(scored.folder, spec=spec, root=tmp_path)
    again = detector.run(spec, ranked.folder, loaded=loaded, root=tmp_path)
    assert (again.reused, again.id) == (True, result.id)
    assert again.table.frame.equals(result.table.frame)


def test_what_has_no_candidates_is_refused(tmp_path: Path) -> None:
    """Scores without super_activation, a step that is neither, and scores of other weights are errors that say what to do."""
    loaded = planted()
    spec, result = detect(loaded, tmp_path)
    with pytest.raises(ArtifactError, match="is a detector step; allowed: score, rank"):
        detector.run(spec, result.folder, loaded=loaded, root=tmp_path)
    other = esa.score.run(apply_overrides(spec, ['score.metrics=["magnitude"]']), loaded=loaded, root=tmp_path)
    with pytest.raises(ArtifactError, match="was scored without super_activation") as caught:
        detector.run(spec, other.folder, loaded=loaded, root=tmp_path)
    assert caught.value.hint == 'esa score --set score.metrics=["super_activation"]'
    scored = esa.score.run(spec, loaded=loaded, root=tmp_path)
    with pytest.raises(ArtifactError, match="was computed on a model with other weights"):
        detector.run(spec, scored.folder, loaded=load("llama"), root=tmp_path / "elsewhere")
    manifest = scored.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: value for key, value in content.items() if key != "candidates"}))
    with pytest.raises(ArtifactError, match="was scored by a version that kept no candidates"):
        detector.run(spec, scored.folder, loaded=loaded, root=tmp_path / "elsewhere")


def test_a_ranking_without_its_scores_is_refused(tmp_path: Path) -> None:
    """A ranking that lies elsewhere, or was made from a file, cannot lead to its scores."""
    loaded = planted()
    spec, _ = detect(loaded, tmp_path)
    scored = esa.score.run(spec, loaded=loaded, root=tmp_path)
    away = esa.rank.run(scored.folder, spec=spec, root=tmp_path, out=tmp_path / "away" / "ranked")
    with pytest.raises(ArtifactError, match="its scores are not beside it"):
        detector.run(spec, away.folder, loaded=loaded, root=tmp_path)


def test_few_windows_are_said(tmp_path: Path) -> None:
    """Under statistics.few_windows the step warns that its intervals are rough, and still says what it saw."""
    loaded = planted()
    spec = apply_overrides(spec_on(write_text(loaded, tmp_path / "own.txt")), ["eval.windows=5"])
    _, result = detect(loaded, tmp_path, spec=spec)
    assert "few_windows: 5 windows, under 30: intervals are rough" in result.manifest["warnings"]


def test_a_killed_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that broke off between its cases takes the finished ones over; its table is that of an undisturbed one."""
    loaded = planted(twin=True)
    spec, whole = detect(loaded, tmp_path)
    scored = esa.score.run(spec, loaded=loaded, root=tmp_path)
    compare, calls = Evaluator.compare, []

    def breaking(self: Evaluator, edits: Any) -> Any:
        calls.append(len(edits))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare(self, edits)

    monkeypatch.setattr(Evaluator, "compare", breaking)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        detector.run(spec, scored.folder, loaded=loaded, out=folder)
    assert not (folder / "manifest.json").exists()
    kept = len((folder / "cases.jsonl").read_text().splitlines())
    assert kept > 2
    result = detector.run(spec, scored.folder, loaded=loaded, out=folder)
    assert sum(calls[2:]) + calls[0] == len((folder / "cases.jsonl").read_text().splitlines()) - 2
    assert (folder / "detector.csv").read_bytes() == (whole.folder / "detector.csv").read_bytes()
    assert result.id == whole.id


def test_the_margin_is_the_bar(tmp_path: Path) -> None:
    """With a margin of more nats than the damage nothing is critical: it is another step with another verdict."""
    loaded = planted()
    spec, first = detect(loaded, tmp_path)
    _, lenient = detect(loaded, tmp_path, spec=apply_overrides(spec, ["statistics.margin=50.0"]))
    assert lenient.id != first.id
    assert [row["verdict"] for row in rows(lenient).values()] == ["harmless"]
