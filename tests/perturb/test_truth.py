"""Metric truth on a tiny Llama: a score step in, zeroed weights, and figures that follow from the written tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import esa.score
from esa.artifact import Journal, read_manifest, read_table
from esa.data import eval_windows
from esa.errors import ArtifactError, EsaError
from esa.model import fingerprint
from esa.perturb import truth
from esa.perturb.truth.agreement import Spearman
from esa.perturb.truth.scores import open_scores, top_weights, uniform_weights
from esa.spec import Spec
from tests.conftest import build, load, tiny_spec
from tests.eval.naive import token_nlls

METRICS = ("magnitude", "act_mag", "grad_squared", "taylor2", "super_activation")
INCLUDE = ("component=mlp.down", "component=mlp.up", "component=attn.q")
FILES = ("truth.csv", "truth_weights.csv")


def spec(**sections: Any) -> Spec:
    """Return a spec of few weights to zero, with enough of them for the strata."""
    score = {"metrics": list(METRICS), "keep": 24, "probes": 2, "include": list(INCLUDE), **sections.pop("score", {})}
    chosen = {"truth": {"weights": 60, "top": 4, "strata": 5}, "statistics": {"resamples": 199}, **sections}
    return tiny_spec(score=score, eval={"windows": 4, "length": 12, "rewrites": 6}, **chosen)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where this module's steps lie."""
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def scores(home: Path) -> Path:
    """Return a score step that kept 24 rows of a kind per tensor."""
    return esa.score.run(spec(), loaded=load("llama"), root=home).folder


@pytest.fixture(scope="module")
def dense(home: Path) -> Path:
    """Return a score step with every score, on seeds 3 and 4, of the very windows that damage is measured on."""
    windows = {"source": "builtin:sentences", "windows": 4, "length": 12, "sample": "first"}
    chosen = spec(score={"dense": True, "seeds": [3, 4], "probes": 40}, calibration=windows)
    return esa.score.run(chosen, loaded=load("llama"), root=home).folder


@pytest.fixture(scope="module")
def finished(home: Path, dense: Path) -> truth.TruthResult:
    """Return an uninterrupted comparison on dense scores."""
    return truth.run(spec(), dense, loaded=load("llama"), root=home)


def table(result: truth.TruthResult, name: str) -> pl.DataFrame:
    """Return a table as it was written."""
    return read_table(result.folder / name, truth.TABLES[name]).frame


def test_each_weight_was_zeroed_alone(finished: truth.TruthResult) -> None:
    """Zeroing by hand and looping over the windows gives the listed change of the NLL; the model came back bit for bit."""
    weights = table(finished, "truth_weights.csv").unique(["parameter", "index"], maintain_order=True)
    loaded = load("llama")
    windows = eval_windows(spec().eval, loaded.tokenizer)
    base = float(torch.cat(token_nlls(loaded, windows)).mean())
    assert 40 <= len(weights) <= 60
    for row in weights[::6].to_dicts():
        flat = loaded.parameters()[row["parameter"]].detach().view(-1)
        value = float(flat[row["index"]])
        assert value == pytest.approx(row["weight"])
        flat[row["index"]] = 0
        changed = float(torch.cat(token_nlls(loaded, windows)).mean())
        flat[row["index"]] = value
        assert row["delta_nll"] == pytest.approx(changed - base, abs=2e-7)
        assert row["below_floor"] == (abs(row["delta_nll"]) <= row["noise_floor"])
    assert read_manifest(finished.folder)["checksum"]["restored"]


def test_the_figures_follow_from_the_weights(finished: truth.TruthResult) -> None:
    """Spearman's correlation of truth/1 is that of the columns of truth_weights/1, changes under the floor tied at zero."""
    figures, weights = table(finished, "truth.csv"), table(finished, "truth_weights.csv")
    assert figures["metric"].unique(maintain_order=True).to_list() == list(METRICS)
    for metric in METRICS:
        mine = weights.filter(pl.col("metric") == metric)
        size = np.where(mine["below_floor"], 0.0, mine["delta_nll"].abs())
        expected = Spearman(mine["score"].to_numpy(), size, mine["sampling_weight"].to_numpy())(
            np.arange(len(mine))[None]
        )
        row = figures.filter((pl.col("metric") == metric) & (pl.col("quantity") == "spearman")).to_dicts()[0]
        if metric == "super_activation":  # nothing stands out in a random model: every score is zero
            assert (row["value"], row["low"], row["high"]) == (None, None, None)
            continue
        assert row["value"] == pytest.approx(expected[0])
        assert row["low"] <= row["value"] <= row["high"]
        assert row["num_weights"] == len(mine)
        assert row["num_censored"] == mine["below_floor"].sum()


def test_on_its_own_windows_the_second_order_prediction_tells_the_truth(finished: truth.TruthResult) -> None:
    """Scored on the windows of the damage taylor2 predicts it, in order and in size, far better than magnitude; a warning says so."""
    found = table(finished, "truth.csv")
    value = {(row["metric"], row["quantity"]): row["value"] for row in found.to_dicts()}
    assert value["taylor2", "spearman"] > 0.9
    assert value["taylor2", "spearman"] > value["magnitude", "spearman"] + 0.2
    assert value["taylor2", "slope"] == pytest.approx(1.0, abs=0.15)
    assert abs(value["taylor2", "intercept"]) < 1e-3
    assert found.filter(pl.col("quantity") == "slope")["metric"].to_list() == ["taylor2"]
    assert read_manifest(finished.folder)["warnings"] == [
        "the scores were computed on the evaluation windows: metrics that read them know the text that damage is measured on"
    ]


def test_the_top_ones_of_every_metric_are_in_the_sample(finished: truth.TruthResult, dense: Path) -> None:
    """The four highest of each metric's dense scores were zeroed, each with a sampling weight of 1 and every metric's score."""
    from safetensors.numpy import load_file

    weights = table(finished, "truth_weights.csv")
    for metric in METRICS[:-1]:
        maps = load_file(
            dense / "dense" / (f"{metric}.safetensors" if metric == "magnitude" else f"{metric}.3.safetensors")
        )
        every = [(float(s), name, n) for name, part in maps.items() for n, s in enumerate(part.reshape(-1).tolist())]
        mine = weights.filter(pl.col("metric") == metric)
        by_address = {(row["parameter"], row["index"]): row for row in mine.to_dicts()}
        for score, name, index in sorted(every, reverse=True)[:4]:
            row = by_address[name, index]
            assert (row["sampling_weight"], row["certain"]) == (1.0, True)
            assert row["score"] == pytest.approx(score)
        for (name, index), row in by_address.items():
            assert row["score"] == pytest.approx(float(maps[name].reshape(-1)[index])), name
    assert weights["seed"].drop_nulls().unique().to_list() == [3]


def test_what_a_metric_did_not_keep_is_left_out_with_a_warning(home: Path, scores: Path) -> None:
    """Without dense scores top ones that some metric kept no score of are listed and measured, and no figure has them."""
    result = truth.run(spec(), scores, loaded=load("llama"), root=home)
    weights, figures = table(result, "truth_weights.csv"), table(result, "truth.csv")
    unknown = weights.filter(pl.col("score").is_null())["target"].n_unique()
    assert unknown > 0
    total = weights["target"].n_unique()
    assert figures.filter(pl.col("quantity") == "spearman")["num_weights"].unique().to_list() == [total - unknown]
    (warning,) = read_manifest(result.folder)["warnings"]
    assert warning == (
        f"{unknown} of {total} weights, top ones of some metric, are left out of the comparison: not every metric kept a score"
        " of them (score.dense = true keeps all)"
    )


def test_all_metrics_keep_the_same_uniform_sample(scores: Path, dense: Path) -> None:
    """Every metric has a score of every weight of the even sample, magnitude's is abs(w) on whatever seed, 24 per tensor."""
    for folder in (scores, dense):
        scored = open_scores(folder)
        frame = uniform_weights(scored)
        assert frame["parameter"].value_counts()["count"].to_list() == [24] * 9
        assert sum(frame[f"score_{m}"].null_count() for m in range(len(METRICS))) == 0
        assert frame["score_0"].to_list() == frame["weight"].abs().to_list()
        assert frame["score_4"].to_list() == [0.0] * len(frame)
    top = top_weights(open_scores(dense), 4, list(load("llama").table))
    assert sum(top[f"score_{m}"].null_count() for m in range(len(METRICS))) == 0


def test_a_finished_comparison_is_reused_and_a_killed_one_goes_on(
    home: Path, dense: Path, finished: truth.TruthResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call finds the step; broken off at the 20th case it evaluates the others alone, and writes the same bytes."""
    again = truth.run(spec(), dense, loaded=load("llama"), root=home)
    assert (again.reused, again.id) == (True, finished.id)
    append: Callable[..., None] = Journal.append

    def dies(self: Journal, key: str, entry: dict[str, Any]) -> None:
        append(self, key, entry)
        if len(self.done) == 20:
            raise KeyboardInterrupt

    loaded = load("llama")
    before = fingerprint(loaded.weights)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            truth.run(spec(), dense, loaded=loaded, root=tmp_path)
    assert fingerprint(loaded.weights) == before
    counted: list[str] = []

    def counts(self: Journal, key: str, entry: dict[str, Any]) -> None:
        counted.append(key)
        append(self, key, entry)

    monkeypatch.setattr(Journal, "append", counts)
    resumed = truth.run(spec(), dense, loaded=loaded, root=tmp_path)
    lines = (finished.folder / "cases.jsonl").read_text().splitlines()
    assert len(counted) == len(lines) - 20
    for name in FILES:
        assert (resumed.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name


def test_without_rewrites_nothing_is_censored(home: Path, dense: Path) -> None:
    """No noise floor: nothing is tied, and the tables say that nothing was counted."""
    chosen = spec()
    chosen = chosen.model_copy(update={"eval": chosen.eval.model_copy(update={"rewrites": 0})})
    result = truth.run(chosen, dense, loaded=load("llama"), root=home)
    assert table(result, "truth.csv")["num_censored"].null_count() == table(result, "truth.csv").height
    assert table(result, "truth_weights.csv")["below_floor"].null_count() == table(result, "truth_weights.csv").height


def test_another_model_and_another_step_are_refused(
    home: Path, dense: Path, finished: truth.TruthResult, tmp_path: Path
) -> None:
    """Scores of other weights, a folder of another step, and no folder at all are refused in words."""
    from esa.model import prepare
    from tests.conftest import make_tokenizer

    other = prepare(build("llama", seed=1), make_tokenizer(), spec().model, torch.device("cpu"))
    with pytest.raises(ArtifactError, match="scored a model with other weights than tiny as float32"):
        truth.run(spec(), dense, loaded=other, root=tmp_path)
    with pytest.raises(ArtifactError, match="is a truth step; a score step is needed"):
        truth.run(spec(), finished.folder, loaded=load("llama"), root=home)
    with pytest.raises(ArtifactError, match="is no folder of a score step"):
        truth.run(spec(), home / "none", loaded=load("llama"), root=home)


def test_too_few_weights_are_refused(home: Path, dense: Path) -> None:
    """A sample that cannot reach every stratum is refused before anything is evaluated."""
    with pytest.raises(EsaError, match=r"truth\.weights: 20 leave"):
        truth.run(spec(truth={"weights": 20, "top": 4, "strata": 10}), dense, loaded=load("llama"), root=home)


def test_the_journal_holds_a_line_per_weight(finished: truth.TruthResult) -> None:
    """Model, intact model, rewrites and every weight: nothing is evaluated twice."""
    keys = [json.loads(line)["key"] for line in (finished.folder / "cases.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys))
    cases = table(finished, "truth_weights.csv")["case"].unique()
    assert len(keys) == 2 + 6 + len(cases)
