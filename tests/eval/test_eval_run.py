"""The eval step: its folder, its tables, its reuse."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch

import esa.eval
from esa.artifact import read_manifest, read_table
from esa.data import eval_windows, source_hash
from esa.errors import DataError
from esa.spec import Spec
from tests.conftest import VOCABULARY, load, tiny_spec
from tests.eval.naive import token_nlls


def spec() -> Spec:
    """Return a spec of five windows of sixteen tokens."""
    return tiny_spec(eval={"windows": 5, "length": 16})


def test_eval_writes_what_it_measured(tmp_path: Path) -> None:
    """The step's tables hold the naive numbers; windows add up to the NLL; value and intact are one."""
    loaded = load("llama")
    result = esa.eval.run(spec(), loaded=loaded, root=tmp_path)
    windows = eval_windows(spec().eval, loaded.tokenizer)
    nlls = token_nlls(loaded, windows)
    mean = float(torch.cat(nlls).mean())
    found = {row["metric"]: row for row in read_table(result.folder / "eval.csv", "eval/1").frame.iter_rows(named=True)}
    assert list(found) == ["nll", "perplexity", "bits_per_byte", "accuracy"]
    assert found["nll"]["value"] == pytest.approx(mean, rel=1e-6)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert found["bits_per_byte"]["value"] == pytest.approx(mean * 75 / math.log(2) / windows.num_bytes, rel=1e-6)
    for row in found.values():
        assert row["value"] == row["intact"]
        assert (row["num_items"], row["num_tokens"], row["task"]) == (5, 75, "language_modeling")
        assert row["stderr"] > 0
        assert (row["source"], row["length"], row["bos"]) == ("builtin:sentences", 16, False)
    parts = read_table(result.folder / "windows.csv", "windows/1").frame
    assert parts["window"].to_list() == list(range(5))
    assert parts["nll"].sum() / parts["num_tokens"].sum() == pytest.approx(found["nll"]["value"], rel=1e-12)
    assert parts["num_correct"].sum() / 75 == pytest.approx(found["accuracy"]["value"])
    assert set(parts["case"]) == {row["case"] for row in found.values()}
    assert len(set(parts["case"])) == 1


def test_eval_manifest(tmp_path: Path) -> None:
    """The manifest names the step's tables, windows and outcome."""
    result = esa.eval.run(spec(), loaded=load("llama"), root=tmp_path)
    manifest = read_manifest(result.folder)
    assert result.folder == tmp_path / "tiny" / f"eval-{manifest['run']}"
    assert manifest["kinds"] == {"eval.csv": "eval/1", "windows.csv": "windows/1"}
    windows = eval_windows(spec().eval, load("llama").tokenizer)
    assert manifest["inputs"] == {"builtin:sentences": source_hash("builtin:sentences")}
    assert manifest["data"] == [{**windows.facts(), "bytes": windows.num_bytes, "outcome": "collapsed"}]  # untrained


def test_eval_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same spec again measures nothing and returns the same table; force measures again, to the same bytes."""
    first = esa.eval.run(spec(), loaded=load("llama"), root=tmp_path)
    before = (first.folder / "eval.csv").read_bytes()
    monkeypatch.setattr(esa.eval.Evaluator, "measure", lambda _: pytest.fail("measured again"))
    again = esa.eval.run(spec(), loaded=load("llama"), root=tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert again.table.frame.equals(first.table.frame)
    monkeypatch.undo()
    assert not esa.eval.run(spec(), loaded=load("llama"), root=tmp_path, force=True).reused
    assert (first.folder / "eval.csv").read_bytes() == before


def test_score_keys_do_not_change_the_eval_step() -> None:
    """Metrics, seeds and perturbations leave the evaluation's id; its windows change it."""
    other = tiny_spec(eval={"windows": 5, "length": 16}, score={"seeds": [4]}, perturb=[{"method": "zero"}])
    more = tiny_spec(eval={"windows": 6, "length": 16})
    ids = [esa.eval.eval_step(one, loaded=load("llama")).id for one in (spec(), other, more)]
    assert (ids[0] == ids[1], ids[0] == ids[2]) == (True, False)


def test_a_broken_model_gives_nulls(tmp_path: Path) -> None:
    """A model full of NaN is nonfinite: every value null in the tables, none zero."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["model.layers.0.mlp.down_proj.weight"].fill_(float("nan"))
    result = esa.eval.run(spec(), loaded=loaded, root=tmp_path)
    assert result.table.frame["value"].null_count() == 4
    assert result.nonfinite == [("builtin:sentences", 16)]
    parts = read_table(result.folder / "windows.csv", "windows/1").frame
    assert parts.select(pl.col("nll", "num_correct").null_count()).row(0) == (5, 5)
    assert parts["num_tokens"].to_list() == [15] * 5
    assert read_manifest(result.folder)["data"][0]["outcome"] == "nonfinite"


def test_a_uniform_model_is_called_so(tmp_path: Path) -> None:
    """A head of zeros gives ln V exactly and the outcome uniform."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["lm_head.weight"].zero_()
    result = esa.eval.run(spec(), loaded=loaded, root=tmp_path)
    assert result.table.frame["value"][0] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert read_manifest(result.folder)["data"][0]["outcome"] == "uniform"


def test_a_short_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A text with too few windows says how many it holds, and no folder appears."""
    with pytest.raises(DataError, match=r"it holds \d+ windows of 60 tokens, 5000 are needed"):
        esa.eval.run(tiny_spec(eval={"windows": 5000, "length": 60}), loaded=load("llama"), root=tmp_path)
    assert not list(tmp_path.iterdir())
