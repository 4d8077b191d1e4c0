"""A campaign: every row of damage adds up, nothing is evaluated twice, and a killed one goes on where it was."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from esa.artifact import read_manifest
from esa.data import eval_windows
from esa.errors import CheckError, EsaError, SpecError
from esa.eval import INTACT, Edit, Evaluator
from esa.eval.evaluator import Measured
from esa.model import LoadedModel, fingerprint
from esa.perturb import campaign
from esa.spec.sections import Eval
from esa.statistics.bootstrap import paired_interval
from tests.conftest import VOCABULARY, load
from tests.eval.naive import pick, token_nlls, window_logits
from tests.perturb.planted import DOWN, HEAD, RANDOM, TOP, UP, frame, perturb, ranking, rows, spec

NUM_REWRITES = Eval().rewrites
FULL = spec(
    {"method": "zero"},
    {"method": "gauss_noise", "sigma": 0.5, "repeats": 2},
    {"method": "bit_flip", "bits": 2, "repeats": 2, "groups": ["top_k"]},
    {"method": "sign_flip", "unit": "single", "groups": ["top_k"]},
)
FILES = ("damage.csv", "windows.csv", "faults.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return an uninterrupted campaign."""
    return perturb(FULL, ranking(), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the evaluations of the intact and of changed models."""
    counts = {"remember": 0, "compare": 0}
    remember, compare = Evaluator.remember, Evaluator.compare

    def remembered(self: Evaluator, starts: set[int]) -> Measured:
        counts["remember"] += 1
        return remember(self, starts)

    def compared(self: Evaluator, edits: list[Edit]) -> list[Measured]:
        counts["compare"] += len(edits)
        return compare(self, edits)

    monkeypatch.setattr(Evaluator, "remember", remembered)
    monkeypatch.setattr(Evaluator, "compare", compared)
    return counts


def assert_same_tables(left: Path, right: Path) -> None:
    """Raise AssertionError, naming the file, unless two campaigns wrote the same bytes."""
    for name in FILES:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_the_comparison_can_fail(finished: Any, tmp_path: Path) -> None:
    """A file with another number fails the comparison."""
    for name in FILES:
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(AssertionError, match=r"damage\.csv"):
        assert_same_tables(tmp_path, finished.folder)


def test_damage_is_what_a_plain_loop_measures(tmp_path: Path) -> None:
    """Zeroing by hand and looping over the windows gives the same NLL, accuracy, agreement and KL, joint and single."""
    found = frame(
        perturb(
            spec({"method": "zero"}, {"method": "zero", "unit": "single"}),
            ranking(rows("act_mag", 0, "top_k", TOP)),
            tmp_path,
        )
    )
    windows = eval_windows(FULL.eval, load("llama").tokenizer)
    intact = window_logits(load("llama"), windows)
    assert found["unit"].to_list() == ["joint"] * 2 + ["single"] * 3
    for row, targets in zip(found.iter_rows(named=True), [TOP[:1], TOP, *([t] for t in TOP)], strict=True):
        loaded = load("llama")
        with torch.no_grad():
            for name, index in targets:
                loaded.parameters()[name].view(-1)[index] = 0
        nll = torch.cat(token_nlls(loaded, windows))
        changed = window_logits(loaded, windows)
        logp, logq = (torch.cat(each).log_softmax(-1) for each in (intact, changed))
        target_ids = torch.tensor([token for ids in windows.ids for token in ids[1:]])
        assert row["nll"] == pytest.approx(float(nll.mean()), rel=1e-6)
        assert row["accuracy"] == pytest.approx(float((pick(changed) == target_ids).double().mean()))
        assert row["agreement"] == pytest.approx(float((pick(changed) == pick(intact)).double().mean()))
        assert row["kl"] == pytest.approx(float((logp.exp() * (logp - logq)).sum(-1).mean()), rel=1e-4, abs=1e-7)


def test_columns_of_damage_are_consistent(finished: Any) -> None:
    """Delta = nll - base, ppl = exp(nll), below_floor = |delta| <= floor; the base is one model's throughout."""
    found = frame(finished)
    assert found.height == 2 * 4 + 2 * 2 * 4 + 2 * 2 + 3
    assert found["nll_base"].n_unique() == found["ppl_base"].n_unique() == found["noise_floor"].n_unique() == 1
    for row in found.iter_rows(named=True):
        assert row["delta_nll"] == row["nll"] - row["nll_base"]
        assert row["ppl"] == math.exp(row["nll"])
        assert row["ppl_base"] == math.exp(row["nll_base"])
        assert row["below_floor"] == (abs(row["delta_nll"]) <= row["noise_floor"])
        assert row["delta_low"] <= row["delta_nll"] <= row["delta_high"]
        assert row["outcome"] == Measured([row["nll"]], [1], [0]).outcome(VOCABULARY)


def test_doses_options_and_targets(finished: Any) -> None:
    """The dose is the method's strength, options its other settings; a case of one weight names its address."""
    found = frame(finished)
    doses = found.group_by("method", maintain_order=True).agg(pl.col("dose", "options").first())
    assert doses.rows() == [
        ("zero", None, "{}"),
        ("gauss_noise", 0.5, '{"relative_to":"weight","sigma":0.5}'),
        ("bit_flip", 2.0, '{"bits":2}'),
        ("sign_flip", 1.0, '{"factor":1.0}'),
    ]
    alone = found.filter(pl.col("method") == "sign_flip")
    assert alone["target"].to_list() == [f"{DOWN}:5,7", f"{UP}:0,5", f"{HEAD}:2,8"]
    assert found.filter(pl.col("k") == 3)["target"].null_count() == found.filter(pl.col("k") == 3).height


def test_windows_add_up(finished: Any) -> None:
    """The windows of each case sum to its NLL and accuracy, the intact model's to the base; intervals follow from them."""
    parts = frame(finished, "windows/1")
    sums = {key[0]: part for key, part in parts.group_by("case", maintain_order=True)}
    assert next(iter(sums)) == INTACT
    base = sums[INTACT]
    for row in frame(finished).iter_rows(named=True):
        part = sums[row["case"]]
        tokens = part["num_tokens"].sum()
        assert part["window"].to_list() == [0, 1, 2, 3]
        assert part["nll"].sum() / tokens == pytest.approx(row["nll"], rel=1e-12)
        assert part["num_correct"].sum() / tokens == row["accuracy"]
        assert base["nll"].sum() / tokens == pytest.approx(row["nll_base"], rel=1e-12)
        columns = (part["nll"].to_list(), base["nll"].to_list(), base["num_tokens"].to_list())
        assert (row["delta_low"], row["delta_high"]) == paired_interval(*columns, 0, row["case"])
    assert len(sums) == 1 + frame(finished)["case"].n_unique()


def test_faults_are_the_bits_of_the_model(finished: Any) -> None:
    """Flipping the listed bits in the model by hand gives the very NLL of the case."""
    faults, windows = frame(finished, "faults/1"), eval_windows(FULL.eval, load("llama").tokenizer)
    damage = {row["case"]: row for row in frame(finished).iter_rows(named=True)}
    assert set(faults["case"]) == {case for case, row in damage.items() if row["method"] == "bit_flip"}
    for (case,), part in faults.group_by("case"):
        loaded = load("llama")
        for row in part.iter_rows(named=True):
            numbers = loaded.parameters()[row["parameter"]].detach().view(-1).numpy().view(np.uint32)
            numbers[row["index"]] ^= np.uint32(1 << row["bit"])
        for row in part.iter_rows(named=True):
            weight = loaded.parameters()[row["parameter"]].detach().view(-1)[row["index"]]
            assert int(row["new_bits"], 16) == int(weight.numpy().view(np.uint32))
        assert part.height == 2 * damage[case]["k"]
        expected = torch.cat(token_nlls(loaded, windows)).mean()
        if damage[case]["outcome"] != "nonfinite":
            assert damage[case]["nll"] == pytest.approx(float(expected), rel=1e-6)


def test_without_bit_flip_there_is_no_fault_table(tmp_path: Path) -> None:
    """faults.csv is written only where bits were flipped."""
    folder = perturb(spec(), ranking(), tmp_path).folder
    names = {path.name for path in folder.iterdir()}
    assert {"cases.jsonl", "damage.csv", "manifest.json", "spec.toml", "windows.csv"} <= names
    assert not {"faults.csv", "bits.csv"} & names


def test_nothing_is_evaluated_twice(tmp_path: Path, evaluations: dict[str, int]) -> None:
    """The intact model is evaluated once, each rewrite of the noise floor once, each distinct case once."""
    table = ranking(
        rows("act_mag", 0, "top_k", TOP), rows("wanda", 0, "top_k", TOP), rows(None, 0, "random_k", RANDOM, 0)
    )
    result = perturb(spec({"method": "zero"}, {"method": "zero", "k": [3]}), table, tmp_path)
    found = frame(result)
    assert found.height == 9
    assert found["case"].n_unique() == 4
    assert evaluations == {"remember": 1, "compare": NUM_REWRITES + 4}
    assert read_manifest(result.folder)["num_cases"] == 4
    assert set(found.group_by("case").agg(pl.col("nll").n_unique())["nll"]) == {1}


def test_the_model_is_as_before(finished: Any, tmp_path: Path) -> None:
    """A whole campaign leaves every bit of the model, and the manifest holds the checksum of the touched tensors."""
    loaded = load("llama")
    before = fingerprint(loaded.weights)
    checksum = read_manifest(perturb(FULL, ranking(), tmp_path, loaded=loaded).folder)["checksum"]
    assert fingerprint(loaded.weights) == before
    assert checksum["restored"] is True
    assert checksum["before"] == checksum["after"]
    assert checksum["num_tensors"] >= 3  # those of the noise floor are checked too


def test_same_spec_gives_the_same_bytes(finished: Any, tmp_path: Path) -> None:
    """Run twice, a campaign writes the same tables bit for bit."""
    assert_same_tables(perturb(FULL, ranking(), tmp_path).folder, finished.folder)


def test_a_named_folder_takes_nothing_from_another_killed_campaign(tmp_path: Path) -> None:
    """Cases that a killed campaign left in a folder given by name are not taken for those of other windows."""
    other = spec({"method": "zero"}, eval={"windows": 3, "length": 20})
    folder = perturb(other, ranking(), tmp_path, out=tmp_path / "here").folder
    (folder / "manifest.json").unlink()
    again = perturb(spec({"method": "zero"}), ranking(), tmp_path, out=folder)
    whole = perturb(spec({"method": "zero"}), ranking(), tmp_path)
    assert frame(again).equals(frame(whole))


def test_a_finished_campaign_is_reused(finished: Any, evaluations: dict[str, int]) -> None:
    """The same spec and ranking again evaluate nothing; force evaluates everything again, to the same bytes."""
    root = finished.folder.parents[1]
    before = [(finished.folder / name).read_bytes() for name in FILES]
    again = perturb(FULL, ranking(), root)
    assert (again.reused, again.folder) == (True, finished.folder)
    assert again.damage.frame.equals(frame(finished))
    assert evaluations == {"remember": 0, "compare": 0}
    assert not perturb(FULL, ranking(), root, force=True).reused
    assert evaluations["compare"] == NUM_REWRITES + frame(finished)["case"].n_unique()
    assert [(finished.folder / name).read_bytes() for name in FILES] == before


def test_nonfinite_rows_are_null(tmp_path: Path) -> None:
    """A flip to infinity gives the outcome nonfinite, every metric null, and windows without numbers; the base stays."""
    table = ranking(rows("act_mag", 0, "top_k", [(DOWN, 127)]))
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()[DOWN].view(-1)[127] = 1.0  # bit 30 of a float32 1.0 makes it infinite
    result = perturb(spec({"method": "bit_flip", "bit": 30}), table, tmp_path, loaded=loaded)
    (row,) = frame(result).iter_rows(named=True)
    null = ["nll", "delta_nll", "delta_low", "delta_high", "below_floor", "ppl", "accuracy", "agreement", "kl"]
    assert row["outcome"] == "nonfinite"
    assert {name: row[name] for name in null} == dict.fromkeys(null)
    assert row["nll_base"] > 0
    assert row["noise_floor"] is not None
    part = frame(result, "windows/1").filter(pl.col("case") == row["case"])
    assert part["nll"].null_count() == part["num_correct"].null_count() == 4
    (fault,) = frame(result, "faults/1").iter_rows(named=True)
    assert (fault["old"], fault["new"], fault["bit"], fault["field"]) == (1.0, None, 30, "exponent")
    assert (fault["old_bits"], fault["new_bits"]) == ("0x3f800000", "0x7f800000")


def test_damage_beyond_exp_keeps_its_nll(tmp_path: Path) -> None:
    """Where exp overflows ppl is null and the NLL a number: a huge head still is a measured collapse."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()[HEAD].view(-1)[40] = 0.5  # bit 30: times 2^128
    result = perturb(
        spec({"method": "bit_flip", "bit": 30}), ranking(rows("act_mag", 0, "top_k", TOP[2:])), tmp_path, loaded=loaded
    )
    (row,) = frame(result).iter_rows(named=True)
    assert row["outcome"] == "collapsed"
    assert row["nll"] > 1e30
    assert row["ppl"] is None
    assert row["delta_nll"] == row["nll"] - row["nll_base"]


def test_checksum_mismatch_is_reported_after_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perturbation that is not restored ends with exit code 4, all tables and the manifest written."""
    original = campaign.applied

    class Forgetful:
        def __init__(self, loaded: LoadedModel, changes: Any) -> None:
            self.loaded, self.changes, self.inner = loaded, changes, original(loaded, changes)

        def __enter__(self) -> None:
            self.inner.__enter__()

        def __exit__(self, *raised: Any) -> None:
            self.inner.__exit__(*raised)
            with torch.no_grad():
                self.loaded.parameters()[self.changes[0].name].view(-1)[self.changes[0].index[0]] += 1

    monkeypatch.setattr(campaign, "applied", Forgetful)
    with pytest.raises(CheckError, match="the model's checksum changed: a perturbation was not restored") as raised:
        perturb(spec(), ranking(), tmp_path)
    assert raised.value.exit_code == 4
    (folder,) = (tmp_path / "tiny").iterdir()
    assert {"damage.csv", "windows.csv", "manifest.json"} <= {path.name for path in folder.iterdir()}
    assert read_manifest(folder)["checksum"]["restored"] is False


def test_targets_by_address(tmp_path: Path) -> None:
    """Addresses are one group named targets without metric or seed, all of them at once."""
    found = frame(perturb(spec(), [f"{DOWN}:5,7", f"{UP}:0,5"], tmp_path))
    assert found.select("metric", "seed", "group", "draw", "k").rows() == [(None, None, "targets", None, 2)]


def test_one_address_equals_the_ranking_of_it(tmp_path: Path) -> None:
    """The same weight by address or by ranking is the same case with the same damage."""
    by_address = frame(perturb(spec(), [f"{DOWN}:5,7"], tmp_path))
    by_ranking = frame(perturb(spec(), ranking(rows("act_mag", 0, "top_k", TOP[:1])), tmp_path))
    measured = ["case", "nll", "delta_nll", "delta_low", "delta_high", "kl", "agreement", "target"]
    assert by_address.select(measured).equals(by_ranking.select(measured))


def test_older_lists_and_their_addresses_agree(tmp_path: Path) -> None:
    """An older list gives the damage of the addresses that it holds."""
    path = tmp_path / "top_weights.csv"
    path.write_text(f'layer,indices,sensitivity\n{UP},"(0, 5)",3.0\n{DOWN},"(5, 7)",9.0\n')
    older = frame(perturb(spec(rank={"k": [1, 2]}), path, tmp_path))
    both = frame(perturb(spec(), [f"{UP}:0,5", f"{DOWN}:5,7"], tmp_path))
    assert older["k"].to_list() == [1, 2]
    assert older["target"].to_list() == [f"{DOWN}:5,7", None]
    assert older["nll"][1] == both["nll"][0]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([f"{DOWN}:99,0"], f"--target: (99, 0) is outside {DOWN}, of shape (16, 24)"),
        ([], "--target: no target is given"),
        (Path("no_such.csv"), "no_such.csv: no such file"),
    ],
)
def test_bad_targets_leave_nothing(tmp_path: Path, targets: Any, message: str) -> None:
    """Targets that name no weight are refused with exit code 3 before any folder appears."""
    with pytest.raises(EsaError) as raised:
        perturb(spec(), targets, tmp_path)
    assert str(raised.value).startswith(message)
    assert raised.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_a_spec_without_methods_is_refused(tmp_path: Path) -> None:
    """A spec that names no method says what to add."""
    with pytest.raises(SpecError, match=r"perturb: names no method\nhint: add \[\[perturb\]\]"):
        perturb(spec().model_copy(update={"perturb": ()}), ranking(), tmp_path)


def test_the_text_that_was_scored_is_a_warning(tmp_path: Path) -> None:
    """Evaluation windows equal to the calibration's are a warning in the manifest, others are not."""
    sha256 = eval_windows(FULL.eval, load("llama").tokenizer).sha256
    what = "the calibration windows are the evaluation windows: damage is measured on the text that was scored"
    for place, calibration, warnings in [("a", ["other", sha256], [what]), ("b", ["other"], [])]:
        result = perturb(spec(), ranking(), tmp_path / place, calibration=calibration)
        assert read_manifest(result.folder)["warnings"] == warnings


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2", "gpt_neox", "phi3", "mixtral"])
def test_campaigns_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    """Zeroing a weight anywhere, outside the blocks too, measures what a plain loop does, and every bit comes back."""
    loaded = load(architecture)
    names = [name for name, info in loaded.table.items() if len(info.shape) > 1]
    addresses = [f"{name}:{index}" for name in (names[0], names[3], names[-1]) for index in (1, 30)]
    before = fingerprint(loaded.weights)
    result = perturb(spec({"method": "zero", "unit": "single"}), addresses, tmp_path, loaded=loaded)
    assert fingerprint(loaded.weights) == before
    windows = eval_windows(FULL.eval, loaded.tokenizer)
    for row, address in zip(frame(result).iter_rows(named=True), addresses, strict=True):
        name, _, index = address.rpartition(":")
        changed = load(architecture)
        with torch.no_grad():
            changed.parameters()[name].view(-1)[int(index)] = 0
        assert row["nll"] == pytest.approx(float(torch.cat(token_nlls(changed, windows)).mean()), rel=1e-6)
