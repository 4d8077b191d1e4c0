"""The score step: its tables are the same for the same spec, whole or not there, and resumed where they broke off."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch

import esa.score
from esa.artifact import read_manifest, read_table
from esa.data import calibration_windows
from esa.errors import ArtifactError, EsaError, ModelError, SpecError
from esa.model import LoadedModel
from esa.progress import Silent
from esa.score.engine import Engine
from esa.spec import Spec
from tests.conftest import load, tiny_spec

METRICS = ["magnitude", "act_mag", "grad_x_weight", "obd"]


def spec(metrics: list[str] = METRICS, **score: Any) -> Spec:
    """Return a spec of two seeds and two probes."""
    return tiny_spec(score={"metrics": metrics, "seeds": [0, 1], "probes": 2, **score})


def tables(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every table of a step."""
    return {name: (folder / name).read_bytes() for name in esa.score.TABLES}


def frame(folder: Path, kind: str = "scores/1") -> pl.DataFrame:
    """Return a table of a step."""
    return read_table(folder / f"{kind.partition('/')[0]}.parquet", kind).frame


def assert_same_tables(left: Path, right: Path) -> None:
    """Raise AssertionError, naming the table, unless two steps hold the same bytes."""
    found, expected = tables(left), tables(right)
    for name in esa.score.TABLES:
        same = found[name] == expected[name]  # not inside the assert: a diff of megabytes would be drawn
        assert same, name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    return esa.score.run(spec(), loaded=load("llama"), root=tmp_path_factory.mktemp("whole")).folder


def test_dense_scores_are_every_score(tmp_path: Path) -> None:
    """With dense = true every score is there as safetensors, under the parameters' names, named in the manifest."""
    from safetensors.torch import load_file

    from tests.score.naive import engine_scores
    from tests.score.test_streaming import assert_same_bits

    loaded, metrics = load("mixtral"), ["magnitude", "wanda", "super_activation"]
    chosen = spec(metrics, dense=True, peak_ratio=1.0)
    folder = esa.score.run(chosen, loaded=loaded, root=tmp_path).folder
    names = ["magnitude", "wanda.0", "wanda.1", "super_activation.0", "super_activation.1"]
    kinds = read_manifest(folder)["kinds"]
    assert [name for name, kind in kinds.items() if kind == "dense"] == [f"dense/{name}.safetensors" for name in names]
    windows = calibration_windows(chosen.calibration, loaded.tokenizer, [0, 1])
    for seed in (0, 1):
        found = engine_scores(loaded, windows[seed], metrics, seed=seed, peak_ratio=1.0)
        for metric in metrics:
            file = f"{metric}.safetensors" if metric == "magnitude" else f"{metric}.{seed}.safetensors"
            tensors = load_file(folder / "dense" / file)
            assert set(tensors) == set(found[metric])
            assert_same_bits(tensors, {name: scores.score for name, scores in found[metric].items()})
    assert not list(folder.glob(".parts-*"))


def test_dense_scores_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed in its second seed goes on there; its dense files are those of an uninterrupted one."""
    chosen = spec(["magnitude", "act_mag"], dense=True)
    whole = esa.score.run(chosen, loaded=load("llama"), root=tmp_path / "whole").folder
    original, calls = Engine.run, []

    def interrupted(self: Engine, windows: Any, seed: int) -> None:
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, windows, seed)

    monkeypatch.setattr(Engine, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        esa.score.run(chosen, loaded=load("llama"), root=tmp_path / "broken")
    folder = esa.score.run(chosen, loaded=load("llama"), root=tmp_path / "broken").folder
    assert len(calls) == 4
    for path in sorted((whole / "dense").iterdir()):
        same = path.read_bytes() == (folder / "dense" / path.name).read_bytes()
        assert same, path.name


@pytest.mark.parametrize("moved", [1, 2])
def test_dense_scores_survive_an_interruption_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Killed while the dense files are put into their place, or behind that, a run goes on and loses none."""
    from esa.score import parts

    chosen, original, calls = spec(["act_mag"], dense=True), parts.os.replace, []

    def interrupted(source: Any, target: Any) -> None:
        if Path(target).parent.name == "dense":
            calls.append(1)
            if len(calls) == moved + 1:
                raise KeyboardInterrupt
        original(source, target)

    def unfinished(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.os, "replace", interrupted)
        patch.setattr("esa.artifact.Step.finish", unfinished)
        with pytest.raises(KeyboardInterrupt):
            esa.score.run(chosen, loaded=load("llama"), root=tmp_path)
    assert len(calls) == 2
    folder = esa.score.run(chosen, loaded=load("llama"), root=tmp_path).folder
    assert sorted(path.name for path in (folder / "dense").iterdir()) == [
        "act_mag.0.safetensors",
        "act_mag.1.safetensors",
    ]


def test_no_room_for_dense_scores_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without room is an error with both sizes, and no folder is left."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match="1,000 B free"):
        esa.score.run(spec(["act_mag"], dense=True), loaded=load("llama"), root=tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_what_each_round_found_is_in_the_manifest(tmp_path: Path) -> None:
    """The manifest tells, seed by seed and round by round, which super weight was found, and the tensors tell of the peaks."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["model.layers.1.mlp.down_proj.weight"][5, 7] = 400.0
    folder = esa.score.run(spec(["super_activation"], rounds=5), loaded=loaded, root=tmp_path).folder
    found = read_manifest(folder)["super_weights"]
    assert [(one["seed"], one["round"], one["address"]) for one in found] == [
        (0, 1, "model.layers.1.mlp.down_proj.weight:5,7"),
        (1, 1, "model.layers.1.mlp.down_proj.weight:5,7"),
    ]
    tensors = frame(folder, "tensors/1").filter(pl.col("block") == 1)
    assert tensors["peak_row"].to_list() == [5, 5]
    assert tensors["peak_ratio"].min() >= 20  # type: ignore[operator]
    assert (tensors["peak"].abs() > 0).all()
    assert tensors["peak_token"].is_between(0, 11).all()


@pytest.mark.parametrize(("metric", "reduction"), [("grad_x_weight", "mean"), ("grad_squared", "mean")])
def test_the_reduction_is_another_step(tmp_path: Path, metric: str, reduction: str) -> None:
    """score.reduction changes the scores and the step's id; of the mean gradient the sign is kept where it means something."""
    loaded = load("llama")
    each = esa.score.run(spec([metric]), loaded=loaded, root=tmp_path)
    mean = esa.score.run(spec([metric], reduction=reduction), loaded=loaded, root=tmp_path)
    assert each.id != mean.id
    scores = [frame(result.folder)["score"] for result in (each, mean)]
    assert scores[0].sum() > scores[1].sum()
    assert (frame(mean.folder)["signed"].null_count() == 0) == (metric == "grad_x_weight")


def test_same_spec_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """Run twice, a spec gives the same four tables bit for bit."""
    assert_same_tables(esa.score.run(spec(), loaded=load("llama"), root=tmp_path).folder, finished)


def test_the_comparison_can_fail(finished: Path, tmp_path: Path) -> None:
    """Another model gives other tables, and the comparison says which."""
    with pytest.raises(AssertionError, match=r"scores\.parquet"):
        assert_same_tables(esa.score.run(spec(), loaded=load("llama_tied"), root=tmp_path).folder, finished)


def test_rows_come_by_metric_seed_and_tensor(finished: Path) -> None:
    """Rows follow the spec's metrics, then seeds, then named_parameters(); a metric without data has one null seed."""
    names = [name for name, info in load("llama").table.items() if len(info.shape) >= 2]
    seeds = {metric: [None] if metric == "magnitude" else [0, 1] for metric in METRICS}
    expected = [(metric, seed, name) for metric in METRICS for seed in seeds[metric] for name in names]
    for kind in ("scores/1", "tensors/1", "histogram/1", "margins/1"):
        found = frame(finished, kind).select("metric", "seed", "parameter").unique(maintain_order=True)
        assert found.rows() == expected, kind


def test_only_the_curvatures_have_sign_and_stderr(finished: Path) -> None:
    """Signed scores and standard errors stand for obd and are null elsewhere."""
    found = frame(finished).group_by("metric", maintain_order=True).agg(pl.col("signed", "stderr").count())
    num_obd = frame(finished).filter(pl.col("metric") == "obd").height
    assert found.rows() == [("magnitude", 0, 0), ("act_mag", 0, 0), ("grad_x_weight", 0, 0), ("obd", num_obd, num_obd)]


def test_seeds_give_other_scores(finished: Path) -> None:
    """Each seed scores its own windows: statistics differ, those of the weights alone do not exist twice."""
    data = frame(finished, "tensors/1").filter(pl.col("metric") != "magnitude")
    sums = data.pivot("seed", index=["metric", "parameter"], values="sum")
    assert (sums["0"] != sums["1"]).all()


def test_scores_carry_their_anatomy(finished: Path) -> None:
    """The Parquet file holds the description of every scored tensor, so that it can be ranked in a pipe."""
    table = read_table(finished / "scores.parquet", "scores/1")
    chosen = [info for info in load("llama").table.values() if len(info.shape) >= 2]
    assert json.loads(table.meta["anatomy"]) == [json.loads(json.dumps(info.record())) for info in chosen]
    assert table.meta["run"] == read_manifest(finished)["run"]
    assert json.loads(table.meta["spec"])["score"]["probes"] == 2


def test_manifest_tells_windows_and_seeds(finished: Path) -> None:
    """The manifest names each seed's windows by hash, the number of scored weights, and that nothing temporary is left."""
    manifest = read_manifest(finished)
    assert manifest["seeds"] == [0, 1]
    assert len({data["sha256"] for data in manifest["data"]}) == 2
    assert manifest["model"]["num_eligible"] == sum(i.numel for i in load("llama").table.values() if len(i.shape) >= 2)
    assert sorted(path.name for path in finished.iterdir()) == sorted([*esa.score.TABLES, "manifest.json", "spec.toml"])


def test_experts_stand_in_their_rows(tmp_path: Path) -> None:
    """For fused experts every score row names its expert, and each expert has a row of statistics with its usage."""
    folder = esa.score.run(tiny_spec(score={"keep": 4096}), loaded=load("mixtral"), root=tmp_path).folder
    down = pl.col("parameter") == "model.layers.0.mlp.experts.down_proj"
    scores, rows = frame(folder).filter(down), frame(folder, "tensors/1").filter(down)
    assert scores["expert"].to_list() == [index // (16 * 24) for index in scores["index"]]
    assert rows["expert"].to_list() == [None, 0, 1, 2, 3]
    assert rows["shape"].to_list() == ["(4, 16, 24)", *["(16, 24)"] * 4]
    assert sum(rows["usage"].to_list()[1:]) == pytest.approx(2)  # two experts per token
    sums = scores.group_by("expert", maintain_order=True).agg(pl.col("score").cast(pl.Float64).sum())
    assert rows["sum"].to_list()[1:] == pytest.approx(sums["score"].to_list())


def test_a_finished_step_is_reused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same spec again reads nothing and computes nothing; force computes it again, to the same bytes."""
    root, before = finished.parents[1], tables(finished)
    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("computed again"))
    again = esa.score.run(spec(), loaded=load("llama"), root=root)
    assert (again.reused, again.folder) == (True, finished)
    monkeypatch.undo()
    forced = esa.score.run(spec(), loaded=load("llama"), root=root, force=True)
    assert not forced.reused
    assert tables(finished) == before


@pytest.mark.parametrize("change", [{"probes": 3}, {"keep": 17}, {"exclude": ["*k_proj*"]}, {"seeds": [1, 0]}])
def test_what_the_step_reads_makes_another_step(change: dict[str, Any]) -> None:
    """A key that the step reads changes its id; one that it does not read leaves it."""
    loaded = load("llama")
    assert esa.score.score_step(spec(**change), loaded=loaded).id != esa.score.score_step(spec(), loaded=loaded).id
    same = tiny_spec(score={"metrics": METRICS, "seeds": [0, 1], "probes": 2}, rank={"k": [5]}, eval={"windows": 3})
    assert esa.score.score_step(same, loaded=loaded).id == esa.score.score_step(spec(), loaded=loaded).id


def kill_at(monkeypatch: pytest.MonkeyPatch, seed: int) -> list[int]:
    """Interrupt the engine when it comes to a data pass of ``seed``; return the list of the passes it began."""
    begun: list[int] = []
    original = Engine.run

    def run(self: Engine, windows: Any, number: int) -> None:
        if windows is not None:
            begun.append(number)
            if number == seed:
                raise KeyboardInterrupt
        original(self, windows, number)

    monkeypatch.setattr(Engine, "run", run)
    return begun


def test_a_killed_run_goes_on_at_the_next_seed(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second seed, a run does not compute the first again, and its tables equal an uninterrupted run's."""
    kill_at(monkeypatch, seed=1)
    with pytest.raises(KeyboardInterrupt):
        esa.score.run(spec(), loaded=load("llama"), root=tmp_path)
    step = esa.score.score_step(spec(), tmp_path, loaded=load("llama"))
    assert not step.complete
    assert not [name for name in esa.score.TABLES if (step.folder / name).exists()]
    monkeypatch.undo()
    begun = kill_at(monkeypatch, seed=-1)
    result = esa.score.run(spec(), loaded=load("llama"), root=tmp_path)
    assert begun == [1]
    assert not result.reused
    assert_same_tables(result.folder, finished)


def test_force_forgets_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With force nothing of the killed run is used."""
    kill_at(monkeypatch, seed=1)
    with pytest.raises(KeyboardInterrupt):
        esa.score.run(spec(["act_mag"]), loaded=load("llama"), root=tmp_path)
    monkeypatch.undo()
    begun = kill_at(monkeypatch, seed=-1)
    esa.score.run(spec(["act_mag"]), loaded=load("llama"), root=tmp_path, force=True)
    assert begun == [0, 1]


def test_a_named_folder_takes_nothing_from_another_killed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run left in a folder given by name is not mixed into another spec's scores."""
    folder = tmp_path / "here"
    kill_at(monkeypatch, seed=1)
    with pytest.raises(KeyboardInterrupt):
        esa.score.run(spec(["act_mag"], keep=8), loaded=load("llama"), out=folder)
    monkeypatch.undo()
    esa.score.run(spec(["act_mag"]), loaded=load("llama"), out=folder)
    whole = esa.score.run(spec(["act_mag"]), loaded=load("llama"), root=tmp_path)
    assert_same_tables(folder, whole.folder)


def test_a_folder_of_another_step_is_not_overwritten(finished: Path) -> None:
    """A finished folder given by name is refused for another spec."""
    with pytest.raises(ArtifactError, match=f"holds score-{read_manifest(finished)['run']}, not score-"):
        esa.score.run(spec(probes=7), loaded=load("llama"), out=finished)


def break_at(loaded: LoadedModel, name: str) -> LoadedModel:
    """Put one NaN into a tensor."""
    with torch.no_grad():
        loaded.parameters()[name].view(-1)[3] = float("nan")
    return loaded


@pytest.mark.parametrize(
    ("metric", "named"),
    [
        ("magnitude", "magnitude of model.layers.2.mlp.up_proj.weight: 1 of 384 scores"),
        ("act_mag", "act_mag of model.layers.2.mlp.up_proj.weight: 1 of 384 scores"),
        ("grad_x_weight", "grad_x_weight of lm_head.weight: 1536 of 1536 scores"),
        ("obd", "obd of model.embed_tokens.weight: "),
    ],
)
def test_nan_scores_are_refused(tmp_path: Path, metric: str, named: str) -> None:
    """A NaN in the model is one clear error, and no table is left half written."""
    loaded = break_at(load("llama"), "model.layers.2.mlp.up_proj.weight")
    with pytest.raises(EsaError) as raised:
        esa.score.run(spec([metric]), loaded=loaded, root=tmp_path)
    assert raised.value.what.startswith(named)
    assert raised.value.what.endswith("scores are NaN or infinite")
    assert raised.value.exit_code == 3
    folder = esa.score.score_step(spec([metric]), tmp_path, loaded=loaded).folder
    assert not folder.exists()


def test_weights_that_no_metric_reads_are_refused_too(tmp_path: Path) -> None:
    """A NaN in the embedding of an unseen token gives finite squared gradients, but not a table with NaN weights."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["model.embed_tokens.weight"][95] = float("nan")  # no printable character has token 95
    with pytest.raises(
        EsaError, match=r"^score\.metrics: model\.embed_tokens\.weight: 16 of 1536 weights are NaN or infinite"
    ):
        esa.score.run(spec(["grad_squared"]), loaded=loaded, root=tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["component=mlp.down"], [], [f"model.layers.{b}.mlp.down_proj.weight" for b in range(3)]),
        (["block=1"], ["*mlp*", "*norm*"], [f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkvo"]),
        (["component=attn.[qk]"], ["block=[02]"], [f"model.layers.1.self_attn.{p}_proj.weight" for p in "qk"]),
        (["lm_head.weight"], [], ["lm_head.weight"]),
    ],
)
def test_include_and_exclude(tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]) -> None:
    """Globs on the parameter, component= and block= choose what is scored, with the scores it has among all."""
    chosen = spec(["act_mag", "grad_x_weight"], include=include, exclude=exclude, keep=4096)
    found = frame(esa.score.run(chosen, loaded=load("llama"), root=tmp_path).folder)
    assert found["parameter"].unique(maintain_order=True).to_list() == expected
    whole = frame(
        esa.score.run(spec(["act_mag", "grad_x_weight"], keep=4096), loaded=load("llama"), root=tmp_path).folder
    )
    assert found.drop("run").equals(whole.filter(pl.col("parameter").is_in(expected)).drop("run"))


def test_include_brings_in_vectors(tmp_path: Path) -> None:
    """Weights of one dimension are scored where they are named; act_mag warns of those that enter no product."""
    progress = Silent()
    chosen = spec(["magnitude", "act_mag", "grad_squared"], include=["model.norm.weight", "*down_proj*"])
    folder = esa.score.run(chosen, loaded=load("llama"), root=tmp_path, progress=progress).folder
    found = frame(folder).group_by("metric", maintain_order=True).agg(pl.col("parameter").n_unique())
    assert found.rows() == [("magnitude", 4), ("act_mag", 3), ("grad_squared", 4)]
    what = "act_mag scores 3 of 4 tensors; it has no meaning for the others, such as model.norm.weight"
    unread = "score.probes = 2 is read by hutchinson_diag, obd, taylor2 alone, and none of them is scored"
    assert set(progress.warnings) == {unread, what}
    assert read_manifest(folder)["warnings"] == [unread, what]


def test_a_pattern_without_match_is_refused(tmp_path: Path) -> None:
    """A pattern that matches nothing is an error before anything is written."""
    with pytest.raises(SpecError, match=r"score\.include: 'component=mlp\.dwn' matches no parameter"):
        esa.score.run(spec(include=["component=mlp.dwn"]), loaded=load("llama"), root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_parameter_without_gradient_leaves_no_table(tmp_path: Path) -> None:
    """A parameter that no gradient reaches is refused by name, and no table is written."""
    from tests.score.naive import in_double

    model = load("llama").model
    model.model.layers[1].unused = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ModelError, match=r"1 of the parameters to score: model\.layers\.1\.unused"):
        esa.score.run(spec(["grad_x_weight"]), loaded=in_double(model), root=tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))
