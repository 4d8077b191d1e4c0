"""An ensemble ranks every weight under each member; it is the naive one of sorted ranks, and a metric like any other."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import rankdata

import esa.rank
import esa.score
from esa.artifact import read_manifest
from esa.errors import EsaError
from esa.model import LoadedModel
from esa.score import ensemble as of
from esa.score.engine import Engine
from esa.score.passes import Passes
from tests.conftest import load
from tests.score.test_score_run import frame, spec

MEMBERS = ["magnitude", "act_mag", "grad_x_weight"]


def score(loaded: LoadedModel, root: Path, *, metrics: list[str] = MEMBERS, **ensemble: Any) -> Path:
    """Score with an ensemble of all metrics and every score kept, and return the step's folder."""
    section = spec(metrics, dense=True, ensemble={"metrics": metrics, **ensemble})
    return esa.score.run(section, loaded=loaded, root=root).folder


def naive(folder: Path, seed: int, members: list[str], rule: str, depth: int) -> dict[str, np.ndarray]:
    """Combine the dense maps with scipy's ranks over all weights that every member scores, exact to a bin."""
    files = [
        load_file(folder / f"dense/{name}{'' if name == 'magnitude' else f'.{seed}'}.safetensors") for name in members
    ]
    names = [name for name in files[0] if all(name in file for file in files)]
    sizes = np.cumsum([files[0][name].numel() for name in names])[:-1]
    flat = [torch.cat([file[name].flatten() for name in names]).numpy() for file in files]
    coarse = [(one.view(np.int32) >> 9).astype(np.float64) for one in flat]
    ranks = np.array([rankdata(-one, method="average") for one in coarse])
    number = ranks.shape[1]
    scores = {
        "mean_rank": 1 / ranks.mean(axis=0),
        "borda": np.clip(depth + 1 - ranks, 0, None).sum(axis=0),
        "quantile_product": (product := np.prod(1 - ranks / (number + 1), axis=0)) / (1 - product),
    }[rule]
    return dict(zip(names, np.split(scores, sizes), strict=True))


@pytest.mark.parametrize("rule", ["mean_rank", "borda", "quantile_product"])
@pytest.mark.parametrize("model", ["llama_tied", "mixtral"])
def test_the_rules_are_those_of_sorted_ranks(tmp_path: Path, model: str, rule: str) -> None:
    """Every weight's combined score is what rankdata over all weights gives, for dense and fused expert tensors."""
    folder = score(load(model), tmp_path, rule=rule, depth=50)
    for seed in (0, 1):
        expected = naive(folder, seed, MEMBERS, rule, 50)
        found = load_file(folder / f"dense/ensemble.{seed}.safetensors")
        assert set(found) == set(expected)
        for name, scores in expected.items():
            np.testing.assert_allclose(found[name].flatten().numpy(), scores, rtol=1e-5, err_msg=name)


def test_a_weight_that_all_rank_high_is_number_one(tmp_path: Path) -> None:
    """A planted weight that is large, read by large inputs and followed by large gradients comes first by every rule."""
    loaded = load("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        dict(loaded.model.named_parameters())[name][3, 5] = 4.0
    for rule in ("mean_rank", "borda", "quantile_product"):
        folder = score(loaded, tmp_path / rule, rule=rule)
        ranking = esa.rank.run(folder, metrics=["ensemble"], overrides=["rank.k=[1]"], root=tmp_path / rule).table.frame
        top = ranking.filter((pl.col("group") == "top_k") & (pl.col("seed") == 0)).row(0, named=True)
        assert (top["metric"], top["parameter"], top["indices"]) == ("ensemble", name, "(3, 5)"), rule


def test_the_ensemble_stands_in_every_table(tmp_path: Path) -> None:
    """It has scores, statistics, a histogram and margins of every seed, behind its members, and dense maps go at the end."""
    section = spec(MEMBERS, ensemble={"metrics": ["magnitude", "grad_x_weight"]})
    folder = esa.score.run(section, loaded=load("llama"), root=tmp_path).folder
    for kind in ("scores/1", "tensors/1", "histogram/1", "margins/1"):
        found = frame(folder, kind)
        assert found["metric"].unique(maintain_order=True).to_list() == [*MEMBERS, "ensemble"], kind
        assert found.filter(pl.col("metric") == "ensemble")["seed"].unique(maintain_order=True).to_list() == [0, 1]
    numel = read_manifest(folder)["model"]["num_eligible"]
    own = (pl.col("metric") == "ensemble") & (pl.col("seed") == 0)
    assert frame(folder, "histogram/1").filter(own)["count"].sum() == numel
    assert frame(folder, "scores/1").filter(own)["score"].min() > 0
    facts = read_manifest(folder)["ensemble"]
    assert facts == {
        "metrics": ["magnitude", "grad_x_weight"], "rule": "mean_rank", "depth": 4096, "num_weights": numel,
    }  # fmt: skip
    assert not (folder / "dense").exists()
    assert not list(folder.glob(".parts-*"))


def test_without_an_ensemble_the_members_are_the_same(tmp_path: Path) -> None:
    """The members' own rows do not depend on whether they are combined."""
    plain = esa.score.run(spec(MEMBERS), loaded=load("llama"), root=tmp_path).folder
    combined = esa.score.run(spec(MEMBERS, ensemble={"metrics": MEMBERS}), loaded=load("llama"), root=tmp_path).folder
    own = frame(combined).filter(pl.col("metric") != "ensemble").drop("run")
    assert own.equals(frame(plain).drop("run"))


def test_weights_that_a_member_does_not_score_are_left_out_and_counted(tmp_path: Path) -> None:
    """super_activation scores MLP projections alone: the ensemble ranks those, and says how many weights it leaves out."""
    metrics = ["magnitude", "super_activation"]
    folder = score(load("llama"), tmp_path, metrics=metrics)
    found = frame(folder, "tensors/1").filter(pl.col("metric") == "ensemble")
    assert set(found["component"]) == {"mlp.down"}
    manifest = read_manifest(folder)
    rest = manifest["model"]["num_eligible"] - 3 * 16 * 24
    [warning] = [text for text in manifest["warnings"] if text.startswith("ensemble")]
    assert warning == (
        f"ensemble scores 3 of {manifest['model']['num_tensors']} tensors: {rest:,} weights are left out, which not every"
        " member scores, such as those of model.embed_tokens.weight"
    )
    np.testing.assert_allclose(
        load_file(folder / "dense/ensemble.0.safetensors")["model.layers.1.mlp.down_proj.weight"].flatten().numpy(),
        naive(folder, 0, metrics, "mean_rank", 0)["model.layers.1.mlp.down_proj.weight"],
        rtol=1e-5,
    )


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    """Where members score different tensors there is nothing to rank, and the step says which key to change."""
    maps = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    from safetensors.torch import save_file

    for path, name in zip(maps, "ab", strict=True):
        save_file({name: torch.ones(2, 2)}, path)
    with of.MemberMaps({"act_mag": maps[0], "obd": maps[1]}) as found, pytest.raises(EsaError) as error:
        found.ranked({})
    assert "score.ensemble.metrics: no parameter is scored by all of act_mag, obd" in str(error.value)


@pytest.mark.parametrize("stop", ["second seed", "ensemble", "finish"])
def test_a_killed_run_goes_on_with_the_same_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    """Killed in a pass, in the ensemble's second seed or behind the moving of the maps, a run gives the same tables."""
    whole = score(load("llama"), tmp_path / "whole")
    calls: list[int] = []

    def interrupt(owner: Any, name: str, at: int) -> Any:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return lambda: monkeypatch.setattr(owner, name, wrapped)

    from esa.artifact import Step

    with monkeypatch.context():
        {
            "second seed": interrupt(Engine, "run", 3),
            "ensemble": interrupt(Passes, "combine", 2),
            "finish": interrupt(Step, "finish", 1),
        }[stop]()
        with pytest.raises(KeyboardInterrupt):
            score(load("llama"), tmp_path / "broken")
    folder = score(load("llama"), tmp_path / "broken")
    for path in sorted([*whole.glob("*.parquet"), *whole.glob("dense/*")]):
        same = path.read_bytes() == (folder / path.relative_to(whole)).read_bytes()
        assert same, path.name


def test_a_bin_is_narrow_and_ordered() -> None:
    """Bins ascend with the score, tell numbers a ten-thousandth apart, and put zeros first."""
    scores = torch.tensor([0.0, 1e-30, 1.0, 1.0001, 3e38])
    found = of.bins(scores)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    assert of.bins(torch.tensor([-0.0])) == [0]


def test_neighbours_at_the_top_of_a_large_model_stay_apart() -> None:
    """As float32 the first hundred places of 134 million weights are a hundred different scores, in order."""
    number = 134_515_008
    ranks = [np.arange(1.0, 101.0), np.arange(1.0, 101.0)]
    for found in (of.mean_rank(ranks), of.quantile_product(ranks, number), of.borda(ranks, 4096)):
        assert (np.diff(found.astype(np.float32)) < 0).all()
    lost = (number + 1 - ranks[0]).astype(np.float32)
    assert len(np.unique(lost)) < 20  # why the scores are not N + 1 - rank


def test_an_ensemble_of_nothing_is_a_warning(tmp_path: Path) -> None:
    """A rule without metrics combines nothing, and the step says so."""
    folder = esa.score.run(spec(["magnitude"], ensemble={"rule": "borda"}), loaded=load("llama"), root=tmp_path).folder
    expected = "score.ensemble has keys that are set and no metrics: there is no ensemble"
    assert expected in read_manifest(folder)["warnings"]


def test_rank_asks_for_an_ensemble_where_there_is_none(tmp_path: Path) -> None:
    """The metric named ensemble is known by name, and missing where none was combined."""
    folder = esa.score.run(spec(["magnitude"]), loaded=load("llama"), root=tmp_path).folder
    with pytest.raises(EsaError) as error:
        esa.rank.run(folder, metrics=["ensemble"], root=tmp_path)
    assert "'ensemble' is not among the scored metrics: magnitude" in str(error.value)
    assert "score it too: score.ensemble.metrics" in str(error.value)
