"""A campaign of random faults: listed first, struck bit by bit, decoded by the code, resumed, replayed, restored."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from esa.artifact import make_table, read_manifest, read_table
from esa.errors import ArtifactError, CheckError, EsaError, ModelError, SpecError
from esa.eval import Edit, Evaluator, Measured
from esa.model import LoadedModel
from esa.perturb import faults
from esa.perturb.apply import Change, applied
from esa.perturb.faults import TABLES, FaultsResult
from esa.perturb.faults.changes import Counts, strike
from esa.perturb.faults.rates import FATAL, OUTCOMES, Trial, outcome_of, rate_rows
from esa.perturb.methods import int_view
from esa.spec import Spec
from esa.spec.sections import Faults
from tests.conftest import load, model_fingerprint, tiny_spec
from tests.quantized import UP, load_quantized, weight_of

DOWN = "model.layers.1.mlp.down_proj.weight"  # (16, 24), 384 weights
NORM = "model.layers.0.input_layernorm.weight"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"  # (96, 16)
Fault = tuple[int, str | None, int | None, int | None]  # trial, parameter, index, bit


def spec(**section: Any) -> Spec:
    """Return a spec of a small campaign."""
    return tiny_spec(faults={"rates": [1e-4], "trials": 6, "harm": 0.01, **section})


def run(
    chosen: Spec, root: Path, fault_list: Any = None, loaded: LoadedModel | None = None, **more: Any
) -> FaultsResult:
    """Run a campaign on the tiny Llama."""
    return faults.run(chosen, fault_list, loaded=loaded or load("llama"), root=root, **more)


def listed(*rows: Fault, width: int = 32) -> Any:
    """Return a list of faults in stored bits, of one rate."""
    return make_table(
        "fault_list/1",
        [
            {"run": "r", "rate": 0.5, "trial": trial, "parameter": name, "index": index, "bit": bit,
             "width": None if name is None else width}
            for trial, name, index, bit in rows
        ],
    )  # fmt: skip


def coded(*places: tuple[int, int], name: str = DOWN, width: int = 32) -> pl.DataFrame:
    """Return one trial's faults in codewords: (word, codeword bit)."""
    rows = [
        {"rate": 0.5, "trial": 0, "parameter": name, "index": word * 64 // width + place // width if place < 64 else None,
         "bit": place % width if place < 64 else None, "width": width, "word": word, "codeword_bit": place}
        for word, place in places
    ]  # fmt: skip
    return make_table("fault_list/1", rows).frame


def rules(ecc: str = "secded", on_detect: str = "keep") -> Faults:
    """Return the section ``[faults]`` with a code."""
    return Faults(rates=(0.5,), ecc=ecc, on_detect=on_detect)


def test_a_trial_is_what_flipping_by_hand_measures(tmp_path: Path) -> None:
    """Every trial's NLL is that of a fresh model whose listed bits were flipped one by one."""
    done = run(spec(), tmp_path)
    frame = read_table(done.folder / "fault_list.parquet", "fault_list/1").frame
    assert frame["parameter"].drop_nulls().n_unique() > 5
    windows = faults.eval_windows(spec().eval, load("llama").tokenizer)
    for row in done.trials.frame.iter_rows(named=True):
        mine = frame.filter(pl.col("trial") == row["trial"]).drop_nulls("parameter")
        assert mine.height == row["num_faults"] == row["num_flips"]
        loaded = load("llama")
        for name, index, bit in mine.select("parameter", "index", "bit").iter_rows():
            with torch.no_grad():
                bits = loaded.parameters()[name].view(-1).numpy().view(np.uint32)
                bits[index] ^= np.uint32(1 << bit)
        expected = Evaluator(loaded, windows, 2048).measure()
        if expected.mean_nll is None:
            assert (row["nll"], row["outcome"]) == (None, "nonfinite")
        else:
            assert row["nll"] == pytest.approx(expected.mean_nll, rel=1e-9)


def test_the_list_is_there_before_anything_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign that cannot evaluate has written its list."""
    monkeypatch.setattr(Evaluator, "remember", lambda *_: (_ for _ in ()).throw(ModelError("no")))
    with pytest.raises(ModelError):
        run(spec(), tmp_path)
    (found,) = tmp_path.rglob("fault_list.parquet")
    assert read_table(found, "fault_list/1").frame["trial"].n_unique() == 6


def test_the_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """After a campaign with NaN among its weights the model has its fingerprint again."""
    loaded = load("llama")
    before = model_fingerprint(loaded.model)
    done = run(spec(rates=[1e-2]), tmp_path, loaded=loaded)
    assert model_fingerprint(loaded.model) == before
    assert read_manifest(done.folder)["checksum"]["restored"]
    assert "nonfinite" in done.trials.frame["outcome"].to_list()


@pytest.mark.parametrize("kill", [1, 4])
def test_a_killed_campaign_goes_on_at_the_next_trial(
    kill: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is not evaluated again, and the tables are those of an undisturbed campaign, byte for byte."""
    whole = run(spec(), tmp_path / "whole")
    compare, counts = Evaluator.compare, {"edits": 0}

    def dying(self: Evaluator, edits: list[Edit]) -> list[Measured]:
        if counts["edits"] >= kill:
            raise KeyboardInterrupt
        counts["edits"] += len(edits)
        return compare(self, edits)

    monkeypatch.setattr("esa.eval.memory.TOGETHER", 1)
    monkeypatch.setattr(Evaluator, "compare", dying)
    with pytest.raises(KeyboardInterrupt):
        run(spec(), tmp_path / "killed")
    counts["edits"] = -100
    done = run(spec(), tmp_path / "killed")
    assert counts["edits"] + 100 == 6 - kill
    assert read_manifest(done.folder)["num_reused"] == kill
    for name in TABLES:
        assert (done.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert run(spec(), tmp_path / "killed").reused


def test_a_list_replayed_elsewhere_gives_the_same_trials(tmp_path: Path) -> None:
    """From a folder, a Parquet file and a CSV file, with rates and trials that the spec does not name."""
    done = run(spec(include=[DOWN, HEAD], rates=[1e-4, 1e-3]), tmp_path / "first")
    copy = tmp_path / "list.csv"
    read_table(done.folder / "fault_list.parquet", "fault_list/1").frame.write_csv(copy)
    found = []
    for number, source in enumerate((done.folder, done.folder / "fault_list.parquet", copy)):
        again = run(tiny_spec(faults={"harm": 0.01}), tmp_path / str(number), source)
        assert again.trials.frame.drop("run").equals(done.trials.frame.drop("run"))
        found.append(again.id)
        faults_keys = read_manifest(again.folder)["spec"]["faults"]
        assert (faults_keys["rates"], faults_keys["trials"], faults_keys["include"]) == ([1e-4, 1e-3], 6, [])
    assert len(set(found)) == 1  # known by its rows
    assert found[0] != done.id


def test_a_single_flip_is_told_by_its_bit_block_and_component(tmp_path: Path) -> None:
    """Flips of the highest exponent bit are fatal, those of a token that no text has are not; pairs tell nothing."""
    high = [(trial, DOWN, 7 * trial, 30) for trial in range(4)]
    low = [(4 + trial, EMBEDDING, 95 * 16 + trial, 22) for trial in range(3)]
    pair = [(7, DOWN, 5, 30), (7, NORM, 5, 30)]
    done = run(tiny_spec(), tmp_path, listed(*high, *low, *pair, (8, None, None, None)))
    assert done.trials.frame["num_flips"].to_list() == [1] * 7 + [2, 0]
    by = {
        (row["by"], row["value"]): (row["rate"], row["width"], row["count"], row["trials"])
        for row in done.rates.frame.filter(pl.col("by") != "all").iter_rows(named=True)
    }
    assert by == {
        ("bit", "22"): (None, 32, 0, 3),
        ("bit", "30"): (None, 32, 4, 4),
        ("block", "1"): (None, None, 4, 4),
        ("block", "outside"): (None, None, 0, 3),
        ("component", "mlp.down"): (None, None, 4, 4),
        ("component", "embed"): (None, None, 0, 3),
    }
    whole = done.rates.frame.filter(pl.col("by") == "all")
    assert whole["outcome"].to_list() == [*OUTCOMES, "fatal"]
    assert whole.filter(pl.col("outcome") != "fatal")["count"].sum() == 9
    assert whole.filter(pl.col("outcome") == "fatal")["count"].item() == 5
    assert done.trials.frame["outcome"].to_list()[-1] == "masked"


def test_a_stopped_trial_does_not_say_whether_its_flip_is_fatal() -> None:
    """A detected error that leaves one stored flip ends the trial unmeasured: it counts for its rate, for no bit or block."""
    one = Counts(num_flips=1, flip=(DOWN, 3, 30, 32))
    ended = [Trial(0.1, 0, one, "detected"), Trial(0.1, 1, one, "uniform")]
    rows = rate_rows("r", ended, load("llama").table, 0.95)
    assert {(row["by"], row["count"], row["trials"]) for row in rows if row["outcome"] == "fatal"} == {
        ("all", 1, 2), ("bit", 1, 1), ("block", 1, 1), ("component", 1, 1),
    }  # fmt: skip


def test_shares_have_wilson_intervals() -> None:
    """3 fatal ones of 20 trials: the interval of the formula, as Wilson wrote it; none of 20 still leaves room."""
    ended = [Trial(0.1, number, Counts(), "uniform" if number < 3 else "ok") for number in range(20)]
    rows = {row["outcome"]: row for row in rate_rows("r", ended, {}, 0.95)}
    p, n, z = 3 / 20, 20, 1.959963984540054
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert rows["fatal"]["share"] == p
    assert rows["fatal"]["low"] == pytest.approx((middle - half) / (1 + z**2 / n), rel=1e-12)
    assert rows["fatal"]["high"] == pytest.approx((middle + half) / (1 + z**2 / n), rel=1e-12)
    assert rows["nonfinite"]["low"] == pytest.approx(0, abs=1e-12)
    assert rows["nonfinite"]["high"] == pytest.approx(z**2 / (n + z**2), rel=1e-9)


def measured(*nll: float, agreeing: int = 20, nonfinite: bool = False) -> Measured:
    """Return a measurement of two windows of ten tokens."""
    return Measured(list(nll), [10, 10], [1, 1], agreeing, 0.0, nonfinite)


INTACT = measured(20.0, 20.0)
ENDS = [
    ("detected", 2, None),
    ("masked", 0, INTACT),
    ("masked", 1, INTACT),
    ("ok", 1, measured(20.0, 20.0, agreeing=19)),
    ("ok", 1, measured(20.5, 20.0)),
    ("ok", 1, measured(10.0, 20.0)),
    ("degraded", 1, measured(21.5, 21.5)),
    ("collapsed", 1, measured(70.0, 70.0)),
    ("uniform", 1, measured(math.log(1000) * 10, math.log(1000) * 10)),
    ("nonfinite", 1, measured(nonfinite=True)),
]


@pytest.mark.parametrize(("outcome", "flips", "found"), ENDS)
def test_every_outcome_has_its_rule(outcome: str, flips: int, found: Measured | None) -> None:
    """With 1,000 tokens and harm from 0.1 nats on."""
    assert outcome_of(Counts(num_flips=flips), found, INTACT, 1000, 0.1) == outcome
    assert {end for end, _, _ in ENDS} == set(OUTCOMES)
    assert set(FATAL) < set(OUTCOMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 31, 63, 64, 71])
def test_the_code_corrects_a_fault_wherever_it_falls(dtype: torch.dtype, place: int) -> None:
    """A single fault of a codeword changes no stored number."""
    found = strike(load("llama", dtype), coded((3, place), width=dtype.itemsize * 8), rules())
    assert (found.changes, found.stopped) == ([], False)
    assert found.counts == Counts(1, 1, 1, 0, 0, 0)


def bits(loaded: LoadedModel, name: str = DOWN) -> np.ndarray:
    """Return a float32 tensor's bits."""
    return int_view(loaded.weights[name].values()).view(-1).numpy().view(np.uint32).copy()


def test_two_faults_of_a_word_are_detected_and_kept() -> None:
    """By default the word is taken as it was read: both flips are there, in the numbers they fell on."""
    loaded = load("llama")
    before = bits(loaded)
    found = strike(loaded, coded((5, 30), (5, 40), (9, 7)), rules())
    assert found.counts == Counts(3, 2, 1, 1, 0, 2)
    with applied(loaded, found.changes):
        changed = bits(loaded) ^ before
    assert {int(i): int(changed[i]) for i in np.flatnonzero(changed)} == {10: 1 << 30, 11: 1 << 8}


def test_two_faults_of_a_word_zero_its_numbers() -> None:
    """``on_detect = "zero"``: both numbers of the word are zero, its neighbours as they were."""
    loaded = load("llama")
    before = bits(loaded)
    found = strike(loaded, coded((5, 30), (5, 66)), rules(on_detect="zero"))
    with applied(loaded, found.changes):
        after = bits(loaded)
    assert after[10:12].tolist() == [0, 0]
    assert np.flatnonzero(after != before).tolist() == [10, 11]
    assert found.counts.num_flips == sum(int(number).bit_count() for number in before[10:12])


def test_two_faults_of_a_word_stop_the_trial(tmp_path: Path) -> None:
    """``on_detect = "stop"``: nothing is evaluated, and the trial's outcome is ``detected``."""
    table = make_table(
        "fault_list/1", pl.concat([coded((5, 30), (5, 40)), coded((5, 30)).with_columns(trial=pl.lit(1, pl.Int64))])
    )
    chosen = tiny_spec(faults={"ecc": "secded", "on_detect": "stop"})
    rows = run(chosen, tmp_path, table).trials.frame.to_dicts()
    assert [row["outcome"] for row in rows] == ["detected", "masked"]
    assert [row["nll"] is None for row in rows] == [True, False]
    assert [row["num_detected"] for row in rows] == [1, 0]


def test_three_faults_of_a_word_can_pass_for_one() -> None:
    """Of three faults the decoder makes a fourth, or says so: counted as silent or detected, never as corrected."""
    loaded, kinds = load("llama"), {"silent": 0, "detected": 0}
    for third in range(2, 64):
        counts = strike(loaded, coded((0, 0), (0, 1), (0, third)), rules()).counts
        assert counts.num_corrected == 0
        assert (counts.num_silent, counts.num_detected) in ((1, 0), (0, 1))
        assert counts.num_flips == (3 if counts.num_detected else counts.num_flips)
        kinds["silent" if counts.num_silent else "detected"] += 1
    assert min(kinds.values()) > 0


def test_the_last_word_is_filled_up_with_zeros() -> None:
    """A norm of 16 bfloat16 weights but for one: faults behind the last number are corrected, or change it not."""
    loaded = load("llama", torch.bfloat16)
    name = EMBEDDING
    loaded.table[name] = loaded.weights[name].info = type(loaded.table[name])(
        **{**vars(loaded.table[name]), "numel": 1534}
    )
    frame = coded((383, 40), (383, 50), name=name, width=16).with_columns(
        pl.lit(None, pl.Int64).alias("index"), pl.lit(None, pl.Int64).alias("bit")
    )
    found = strike(loaded, frame, rules())
    assert found.counts == Counts(2, 1, 0, 1, 0, 0)
    assert found.changes == []


@pytest.mark.parametrize(("kind", "width"), [("int8", 8), ("nf4", 4)])
@pytest.mark.parametrize("ecc", ["none", "secded"])
def test_quantised_weights_are_hit_in_their_codes(kind: str, width: int, ecc: str) -> None:
    """Both faults of a word flip the bits of codes, and the codes come back."""
    loaded = load_quantized(kind)
    weight, per_word = weight_of(loaded, UP), 64 // width
    places = torch.tensor([2 * per_word, 2 * per_word + 1])
    before = weight.held(places)
    frame = coded((2, 1), (2, width + 2), name=UP, width=width)
    found = strike(loaded, frame, rules(ecc))
    with applied(loaded, found.changes):
        flipped = (weight.held(places) ^ before) & (1 << width) - 1
    assert flipped.tolist() == [2, 4]
    assert torch.equal(weight.held(places), before)
    zeroed = strike(loaded, frame, rules("secded", "zero"))
    with applied(loaded, zeroed.changes):
        numbers = weight.stored(torch.arange(2 * per_word, 3 * per_word))
    assert not numbers.any()


def test_a_campaign_without_a_rate_is_refused(tmp_path: Path) -> None:
    """The refusal names the key and the flag."""
    with pytest.raises(SpecError, match=r"faults\.rates: names no bit error rate") as info:
        run(tiny_spec(), tmp_path)
    assert "--fault-rate" in str(info.value.hint)


def test_a_fault_that_stays_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a flipped bit is not brought back, everything is written and the checksum says so."""

    @contextmanager
    def forgetting(loaded: LoadedModel, changes: list[Change]) -> Iterator[None]:
        for change in changes:
            loaded.weights[change.name].write(change.index, change.after)
        yield

    monkeypatch.setattr("esa.perturb.faults.campaign.applied", forgetting)
    with pytest.raises(CheckError, match="checksum changed"):
        run(tiny_spec(), tmp_path, listed((0, DOWN, 3, 5)))
    assert len(list(tmp_path.rglob("manifest.json"))) == 1


def test_a_journal_of_another_list_or_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign does not go on with other faults, or on other weights, than it was begun with."""
    monkeypatch.setattr(Evaluator, "remember", lambda *_: (_ for _ in ()).throw(ModelError("no")))
    with pytest.raises(ModelError):
        run(spec(), tmp_path)
    (journal,) = tmp_path.rglob("cases.jsonl")
    begun = json.loads(journal.read_text())
    for key, words in (("list", "begun with another list of faults"), ("fingerprint", "begun on a model with other")):
        journal.write_text(json.dumps({**begun, key: "other"}) + "\n")
        with pytest.raises(ArtifactError, match=words):
            run(spec(), tmp_path)


def test_a_list_of_another_model_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    """A list of 16-bit numbers is none of a float32 model."""
    with pytest.raises(EsaError, match="this model stores them in 32 bits"):
        run(tiny_spec(), tmp_path, listed((0, DOWN, 3, 5), width=16))
    assert list(tmp_path.iterdir()) == []
