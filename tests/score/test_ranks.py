"""Several processes give the scores of one: windows split, sums added, the first process writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import esa.score
from esa.artifact import read_manifest, read_table
from esa.errors import EsaError, LostError, ModelError, SpecError
from esa.model import eligible
from esa.progress import Recording
from esa.score.engine import Effort, Engine, load_metrics
from esa.score.ranks import ALONE, Ranks, joined
from esa.score.scored import ScoredTensor
from esa.score.strategy import Strategy
from esa.score.streaming import Window
from tests.conftest import load, tiny_spec
from tests.score.naive import dense, engine_scores, unequal_windows
from tests.score.processes import in_processes
from tests.score.test_streaming import assert_same_bits

METRICS = [
    "magnitude", "act_mag", "wanda", "super_activation", "grad_x_weight", "grad_squared", "fisher_obd", "ggn_diag",
    "hutchinson_diag", "obd", "taylor2",
]  # fmt: skip
LENGTHS = (9, 12, 5, 7)
Scores = dict[str, dict[str, Any]]


def scores_of(name: str, size: int, metrics: list[str] = METRICS, strategy: Strategy | None = None) -> Scores:
    """Return every metric's dense scores from so many processes together, each tensor from its owner."""
    models = [load(name) for _ in range(size)]  # here: their numbers come from the generator that all threads share

    def work(ranks: Ranks) -> tuple[Scores, list[str]]:
        loaded = models[ranks.rank]
        found: Scores = {metric: {} for metric in metrics}
        chosen, said = eligible(loaded.table), Recording(None)

        def emit(metric: Any, info: Any, weight: Tensor, scores: ScoredTensor, usage: Tensor | None) -> None:
            found[metric.name][info.name] = scores.whole, usage

        Engine(
            loaded, chosen, load_metrics(metrics), emit, said, Effort(3, resamples=2, peak_ratio=1.0),
            strategy or Strategy(), ranks, ranks.owners(chosen),
        ).run(unequal_windows(lengths=LENGTHS), 0)  # fmt: skip
        return found, said.warnings

    results = in_processes(size, work)
    joint: Scores = {metric: {} for metric in metrics}
    for found, _ in results:
        for metric, tensors in found.items():
            assert not joint[metric].keys() & tensors.keys(), "a tensor is scored by one process"
            joint[metric] |= tensors
    joint["warnings"] = dict(enumerate(results[0][1]))
    return joint


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless numbers agree to 1e-5 of themselves, or of a hundredth of the largest where terms cancel."""
    atol = 1e-7 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol, msg=lambda text: f"{what}: {text}")


def assert_same_scores(found: Scores, expected: Scores) -> None:
    """Raise AssertionError, naming metric and tensor, unless score, sign, error and usage agree everywhere."""
    assert found.keys() == expected.keys()
    assert found["warnings"] == expected["warnings"]
    for metric in found.keys() - {"warnings"}:
        assert found[metric].keys() == expected[metric].keys(), metric
        for name, (scores, usage) in found[metric].items():
            truth, usual = expected[metric][name]
            for field in ("score", "signed", "stderr"):
                one, other = getattr(scores, field), getattr(truth, field)
                assert (one is None) == (other is None)
                if one is not None:
                    assert_close(one, other, f"{metric}, {field} of {name}")
            assert (usage is None) == (usual is None)
            assert usage is None or torch.equal(usage, usual), f"{metric}: usage of {name}"


@pytest.mark.parametrize("name", ["llama_tied", "mixtral", "gpt2"])
def test_scores_do_not_depend_on_the_number_of_processes(name: str) -> None:
    """Two and three processes give every metric's scores, signs, errors, usages and warnings of one."""
    expected = scores_of(name, 1)
    for size in (2, 3):
        assert_same_scores(scores_of(name, size), expected)


def test_the_comparison_can_fail() -> None:
    """A score that is off by 3e-5 of itself fails the comparison."""
    numbers = torch.tensor([1.0, 2.0])
    assert_close(numbers * (1 + 3e-6), numbers, "near")
    with pytest.raises(AssertionError, match="far"):
        assert_close(numbers * (1 + 3e-5), numbers, "far")


@pytest.mark.parametrize("way", [{"waves": 2}, {"keep_graphs": True}, {"in_files": 1}])
def test_processes_go_any_way(way: dict[str, Any], tmp_path: Path) -> None:
    """Waves, kept graphs and accumulators in files give several processes the scores of one."""
    metrics = ["act_mag", "super_activation", "grad_x_weight", "ggn_diag"]
    found = scores_of("mixtral", 2, metrics, Strategy(**way, folder=tmp_path))
    assert_same_scores(found, scores_of("mixtral", 1, metrics))


def test_alone_is_bit_for_bit_as_without() -> None:
    """A single process on the wire gives the very bits of one without."""
    found = scores_of("llama_tied", 1)
    with sdpa_kernel(SDPBackend.MATH):  # as in_processes has it
        plain = engine_scores(
            load("llama_tied"), unequal_windows(lengths=LENGTHS), METRICS, probes=3, resamples=2, peak_ratio=1.0
        )
    for metric in METRICS:
        assert_same_bits({name: one.score for name, (one, _) in found[metric].items()}, dense(plain[metric]))


def test_what_one_process_never_reaches_is_scored_all_the_same() -> None:
    """A parameter that only the other process's windows reach is no error, and its gradient is divided by all tokens."""
    expected, found = scores_of("mixtral", 1, ["grad_squared"]), {}

    def work(ranks: Ranks) -> dict[str, Tensor]:
        loaded, mine = models[ranks.rank], {}
        frozen = "model.layers.1.mlp.experts.down_proj"
        if (
            ranks.rank == 1
        ):  # its windows do not reach this tensor: the block computes with a copy that no gradient follows
            experts = loaded.model.model.layers[1].mlp.experts
            forward = experts.forward

            def cut(*given: Any) -> Tensor:
                with torch.no_grad():
                    return forward(*given)

            experts.forward = cut
        assert frozen in eligible(loaded.table)
        Engine(
            loaded, eligible(loaded.table), load_metrics(["grad_squared"]),
            lambda metric, info, weight, scores, usage: mine.update({info.name: scores.score}),
            Recording(None), ranks=ranks,
        ).run(unequal_windows(lengths=LENGTHS), 0)  # fmt: skip
        return mine

    models = [load("mixtral") for _ in range(2)]
    found = in_processes(2, work)
    assert not found[1], "nobody owns a tensor: the first scores them all"
    assert found[0].keys() == expected["grad_squared"].keys()


def test_every_window_goes_to_one_process_and_the_tokens_are_even() -> None:
    """The windows are split without loss, nobody has many more tokens than another, and each keeps their order."""
    windows = [Window(n, torch.zeros(1, length)) for n, length in enumerate([50, 3, 3, 3, 3, 40, 3, 5])]
    shares = [Ranks(rank, 3).share(windows) for rank in range(3)]
    assert sorted(window.number for share in shares for window in share) == list(range(8))
    assert all([w.number for w in share] == sorted(w.number for w in share) for share in shares)
    assert sorted(sum(w.ids.numel() for w in share) for share in shares) == [20, 40, 50]
    assert ALONE.share(windows) == windows


def test_tensors_are_owned_evenly() -> None:
    """Each process scores about as many weights, in every block too."""
    chosen = eligible(load("llama").table)
    owners = Ranks(0, 2).owners(chosen)
    assert owners.keys() == chosen.keys()
    for block in (0, 1, 2):
        sizes = [0, 0]
        for name, info in chosen.items():
            if info.block == block:
                sizes[owners[name]] += info.numel
        assert min(sizes) > 0.6 * max(sizes)


def test_texts_numbers_and_files_travel() -> None:
    """A text reaches all from the first, parts of any length reach the first, sums reach whom they are for."""

    def work(ranks: Ranks) -> tuple[Any, ...]:
        total = torch.tensor([1.5, float(ranks.rank)], dtype=torch.float64)
        ranks.add(total, 2)
        return (
            ranks.tell(lambda: f"from {ranks.rank}: \u00b1"),
            ranks.decide(lambda: ranks.rank == 0),
            ranks.gather([bytes([ranks.rank]) * (ranks.rank + 1)] * ranks.rank + [b"x"]),
            ranks.union({f"n{ranks.rank}"}, ["n0", "n1", "other"]),
            total.tolist(),
        )

    first, second, third = in_processes(3, work)
    assert {one[0] for one in (first, second, third)} == {"from 0: \u00b1"}
    assert first[1] is second[1] is third[1] is True
    assert first[2] == [[b"x"], [b"\1\1", b"x"], [b"\2\2\2", b"\2\2\2", b"x"]]
    assert second[2] == third[2] == []
    assert first[3] == second[3] == {"n0", "n1"}
    assert third[4] == [4.5, 3.0]


def run_in(size: int, folder: Path, **score: Any) -> Path:
    """Return the folder of a score step that so many processes made."""
    models = [load("llama_tied") for _ in range(size)]
    spec = tiny_spec(score={"metrics": ["magnitude", "wanda", "grad_x_weight", "obd"], "seeds": [0, 1], **score})
    results = in_processes(size, lambda ranks: esa.score.run(spec, loaded=models[ranks.rank], root=folder, ranks=ranks))
    assert len({(result.folder, result.id, result.reused) for result in results}) == 1
    return results[0].folder


@pytest.mark.parametrize("dense_too", [False, True])
def test_the_artifact_is_that_of_one_process(dense_too: bool, tmp_path: Path) -> None:
    """Every table has the same rows in the same order, numbers but for rounding; the step's id is the same."""
    one, two = (run_in(size, tmp_path / str(size), probes=2, dense=dense_too) for size in (1, 2))
    assert one.name == two.name
    assert (read_manifest(two)["processes"], read_manifest(one).get("processes")) == (2, None)
    assert read_manifest(one)["kinds"] == read_manifest(two)["kinds"]
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    for name, kind in esa.score.TABLES.items():
        left, right = read_table(one / name, kind).frame, read_table(two / name, kind).frame
        assert left.schema == right.schema
        for column in left.columns:
            if left[column].dtype not in (pl.Float32, pl.Float64):
                assert left[column].equals(right[column]), f"{name}: {column}"
            else:
                a, b = (frame[column].to_numpy() for frame in (left, right))
                assert np.allclose(a, b, rtol=1e-5, atol=1e-7 * np.nanmax(np.abs(a), initial=0), equal_nan=True), column


def test_a_complete_step_is_reused_by_all(tmp_path: Path) -> None:
    """Every process leaves where the first finds the step complete, and a step of one process serves several."""
    folder = run_in(1, tmp_path, metrics=["wanda"])
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert run_in(2, tmp_path, metrics=["wanda"]) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written


def test_more_processes_than_windows_are_refused(tmp_path: Path) -> None:
    """A process without a window is refused before anything is loaded."""
    with pytest.raises(SpecError) as caught:
        esa.score.run(tiny_spec(), root=tmp_path, ranks=Ranks(0, 4))
    assert str(caught.value) == (
        "calibration.windows: 3 cannot be split over 4 processes\nhint: --nproc-per-node 3 at most, or more windows"
    )


def test_processes_with_different_models_are_refused(tmp_path: Path) -> None:
    """One whose model has other weights ends the run before anything is written."""
    models = [load("llama"), load("llama")]
    models[1].facts["fingerprint"] = "of another"
    with pytest.raises(ModelError, match="process 1 sees another spec, model or text than process 0"):
        in_processes(2, lambda ranks: esa.score.run(tiny_spec(), loaded=models[ranks.rank], root=tmp_path, ranks=ranks))
    assert not list(tmp_path.rglob("*.*"))


def test_one_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of one process alone is the run's; the step is marked, unlocked, and goes on when it is called again."""
    original = Engine.run

    def failing(self: Engine, windows: Any, seed: int) -> None:
        if seed == 1 and self.ranks.rank == 1:
            raise EsaError("a fault")
        original(self, windows, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", failing)
        with pytest.raises(EsaError, match="a fault"):
            run_in(2, tmp_path)
    (folder,) = tmp_path.glob("*/*")
    assert not (folder / "manifest.json").exists()
    assert json.loads((folder / "failed.json").read_text())["error"] == "another thread ended"
    calls: list[int] = []
    monkeypatch.setattr(Engine, "run", lambda self, windows, seed: (calls.append(seed), original(self, windows, seed)))
    assert (run_in(2, tmp_path) / "manifest.json").exists()
    assert set(calls) == {1}, "the finished seed is not scored again"


def test_without_torchrun_nobody_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that no torchrun started is alone, also where a cluster sets some of its variables."""
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with joined() as ranks:
        assert ranks is ALONE


@pytest.mark.parametrize(
    ("device", "gpus", "said"),
    [
        ("cuda:1", 2, "model.device: 'cuda:1' is one device, and 2 processes run; allowed: auto, cuda, cpu"),
        ("auto", 1, "model.device: 2 processes run on a machine with 1 GPUs; each needs one"),
        ("auto", 2, None),
        ("cuda", 2, None),
    ],
)
def test_every_process_has_its_gpu(device: str, gpus: int, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU number LOCAL_RANK, or an error where there are not enough of them or one is named."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    ranks, section = Ranks(3, 4, 1, 2), tiny_spec(model={"id": "tiny", "device": device}).model
    if said is None:
        assert ranks.place(section).device == "cuda:1"
        assert ALONE.place(section) is section
        return
    with pytest.raises(SpecError) as caught:
        Ranks(0, 2, 0, 2).place(section)
    assert caught.value.lines() == [said]


def test_processes_may_share_a_cpu() -> None:
    """On the CPU each process takes the device that the spec names."""
    section = tiny_spec(model={"id": "tiny", "device": "cpu"}).model
    assert Ranks(1, 2, 1, 2).place(section).device == "cpu"


def test_who_is_lost_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.distributed raises where a process is gone reaches a person as text."""
    from esa.score import ranks as module

    def broken(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer\nand a page of stack")

    monkeypatch.setattr(module.dist, "all_reduce", broken)
    with pytest.raises(LostError) as caught:
        module._Distributed(None).add(torch.zeros(1), None)
    assert caught.value.what == "the processes of this run lost each other: Connection closed by peer"
