"""What is measured on logits: NLL, perplexity, accuracy, bits per byte, agreement, KL, outcomes."""

import math
from typing import Any

import pytest
import torch

from esa.data import eval_windows
from esa.eval import Evaluator, Measured
from esa.eval.language_modeling import Reference, add_batch, evaluate, perplexity, ratio_error
from tests.conftest import VOCABULARY, load, tiny_spec
from tests.eval.edits import compare_standing
from tests.eval.naive import LINES, pick, token_nlls, window_logits, write_lines
from tests.score.naive import unequal_windows

PACKINGS: dict[str, dict[str, Any]] = {
    "stream": {"source": "builtin:sentences", "windows": 7, "length": 15, "batch_tokens": 40},
    "lines": {"windows": 6, "length": 20, "packing": "lines", "batch_tokens": 64},
    "lines_with_bos": {"windows": 6, "length": 20, "packing": "lines", "bos": True, "batch_tokens": 64},
}


@pytest.fixture(params=list(PACKINGS))
def section(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """Return the eval section of each packing in turn."""
    chosen = PACKINGS[request.param]
    return tiny_spec(eval=chosen if "source" in chosen else {**chosen, "source": write_lines(tmp_path)}).eval


def test_perplexity_equals_a_plain_loop(architecture: str, section: Any) -> None:
    """Perplexity, per-window NLL and accuracy agree with a plain loop over the model to 1e-6, on every architecture."""
    loaded = load(architecture)
    windows = eval_windows(section, loaded.tokenizer)
    measured = Evaluator(loaded, windows, section.batch_tokens).measure()
    nlls, logits = token_nlls(loaded, windows), window_logits(loaded, windows)
    assert measured.num_tokens == [len(ids) - 1 for ids in windows.ids]
    assert measured.nll == pytest.approx([float(nll.sum()) for nll in nlls], rel=1e-6)
    assert measured.perplexity == pytest.approx(float(torch.cat(nlls).mean().exp()), rel=1e-6)
    targets = [torch.tensor(ids[1:]) for ids in windows.ids]
    hits = [int((each.argmax(-1) == target).sum()) for each, target in zip(logits, targets, strict=True)]
    assert measured.num_correct == hits
    assert measured.accuracy == sum(hits) / windows.num_predicted


def test_lines_have_unequal_windows(tmp_path: Any) -> None:
    """The windows of the lines packing really differ in length: the mean is per token and not per window."""
    section = tiny_spec(eval={**PACKINGS["lines"], "source": write_lines(tmp_path)}).eval
    loaded = load("llama")
    windows = eval_windows(section, loaded.tokenizer)
    assert [len(ids) for ids in windows.ids] == [min(20, len(line)) for line in LINES if line]
    measured = Evaluator(loaded, windows, 64).measure()
    per_window = sum(nll / t for nll, t in zip(measured.nll, measured.num_tokens, strict=True)) / 6
    assert measured.mean_nll != pytest.approx(per_window, rel=1e-3)


def test_bits_per_byte_by_hand(tmp_path: Any) -> None:
    """Bits per byte is the summed NLL in bits over the UTF-8 bytes that the predicted tokens stand for, one per letter here."""
    section = tiny_spec(eval={**PACKINGS["lines"], "source": write_lines(tmp_path)}).eval
    loaded = load("llama")
    windows = eval_windows(section, loaded.tokenizer)
    measured = Evaluator(loaded, windows, 64).measure()
    num_bytes = windows.num_bytes
    bits = sum(float(nll.sum()) for nll in token_nlls(loaded, windows)) / math.log(2)
    assert num_bytes == sum(len(ids) - 1 for ids in windows.ids)
    assert measured.bits_per_byte(num_bytes) == pytest.approx(bits / num_bytes, rel=1e-6)
    assert Measured([math.log(2) * 6, math.log(2) * 2], [3, 1], [0, 0]).bits_per_byte(4) == pytest.approx(2)
    assert measured.bits_per_byte(0) is None


def test_standard_errors_by_hand() -> None:
    """Standard errors treat windows as the units of a ratio of sums; perplexity's and bits per byte's follow from it."""
    measured = Measured(nll=[4.0, 9.0, 5.0], num_tokens=[2, 3, 1], num_correct=[1, 3, 0])
    found = {name: (value, error) for name, value, error in evaluate(measured, 12)}
    # r = 18 / 6 = 3; residuals 4 - 6, 9 - 9, 5 - 3; sqrt(3 / 2 * 8) / 6
    error = math.sqrt(12) / 6
    assert found["nll"] == pytest.approx((3.0, error))
    assert found["perplexity"] == pytest.approx((math.exp(3), math.exp(3) * error))
    assert found["bits_per_byte"] == pytest.approx((18 / math.log(2) / 12, 6 * error / math.log(2) / 12))
    # r = 4 / 6; residuals 1 - 4/3, 3 - 2, 0 - 2/3
    assert found["accuracy"] == pytest.approx((4 / 6, math.sqrt(1.5 * (1 / 9 + 1 + 4 / 9)) / 6))


def test_standard_error_of_equal_windows_is_that_of_the_mean() -> None:
    """With windows of one length the error is the textbook s / sqrt(N); a single window has none."""
    values = [3.0, 5.0, 4.0, 8.0]
    assert ratio_error(values, [1] * 4) == pytest.approx(float(torch.tensor(values).std()) / 2)
    assert ratio_error([3.0], [4]) is None


@pytest.mark.parametrize(
    ("nll", "outcome"),
    [
        (2.0, "ok"),
        (math.log(50) - 1e-6, "ok"),
        (math.log(50) + 1e-6, "collapsed"),
        (math.log(100) - 0.051, "collapsed"),
        (math.log(100) - 0.049, "uniform"),
        (math.log(100) + 0.049, "uniform"),
        (math.log(100) + 0.051, "collapsed"),
        (900.0, "collapsed"),
    ],
)
def test_outcomes(nll: float, outcome: str) -> None:
    """Over half a vocabulary of 100 a perplexity is collapsed, within .05 nats of ln 100 uniform, else ok."""
    assert Measured([nll * 3], [3], [0]).outcome(100) == outcome


def logits_for(ids: torch.Tensor, scale: float) -> torch.Tensor:
    """Return logits that prefer each next token by ``scale``."""
    logits = torch.zeros(*ids.shape, VOCABULARY)
    logits[:, :-1] += scale * torch.nn.functional.one_hot(ids[:, 1:], VOCABULARY)
    return logits


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_logits_null_every_metric(bad: float) -> None:
    """NaN or infinity in a single logit makes the outcome nonfinite and every metric null, never zero."""
    measured, intact = Measured(), logits_for(IDS, 2)
    add_batch(measured, intact, IDS, Reference(intact))
    broken = intact.clone()
    broken[1, 2, 3] = bad
    add_batch(measured, broken, IDS, Reference(intact))
    add_batch(measured, intact, IDS, Reference(intact))
    values = [measured.mean_nll, measured.perplexity, measured.accuracy, measured.agreement, measured.kl]
    assert values == [None] * 5
    assert measured.outcome(VOCABULARY) == "nonfinite"
    assert [value for _, value, _ in evaluate(measured, 10)] == [None] * 4
    assert [error for _, _, error in evaluate(measured, 10)] == [None] * 4
    assert measured.num_tokens == [3] * 6
    assert Measured(**measured.record()).outcome(VOCABULARY) == "nonfinite"


def test_overflowing_perplexity_is_null() -> None:
    """Where exp overflows the perplexity is null; the NLL stays a number."""
    measured = Measured([7200.0], [10], [0])
    assert (measured.mean_nll, measured.perplexity) == (720.0, None)
    assert perplexity(709.0) == math.exp(709.0)
    assert perplexity(None) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logits_too_far_apart_for_float32_are_nonfinite(sign: float) -> None:
    """Finite logits whose difference float32 cannot hold give null metrics that a journal can hold, not infinity."""
    logits = torch.full((1, 4, VOCABULARY), -3e38 * sign)
    logits[..., 9] = 3e38 * sign
    measured = Measured()
    add_batch(measured, logits, IDS[:1], Reference(logits_for(IDS[:1], 1)))
    assert measured.outcome(VOCABULARY) == "nonfinite"
    assert (measured.mean_nll, measured.kl) == (None, None)
    assert measured.record()["kl_sum"] is None or math.isfinite(measured.record()["kl_sum"])


def test_agreement_and_kl_equal_a_plain_loop(architecture: str) -> None:
    """Agreement and KL(intact || perturbed) equal a plain loop in float64; an intact model agrees wholly at KL zero."""
    loaded = load(architecture)
    windows = unequal_windows(lengths=(9, 20, 20, 5))
    evaluator = Evaluator(loaded, windows, 2048)
    evaluator.remember()
    same = compare_standing(evaluator)
    assert (same.agreement, same.kl) == (1.0, pytest.approx(0, abs=1e-7))
    before = window_logits(loaded, windows)
    with torch.no_grad():
        next(p for name, p in loaded.parameters().items() if p.ndim > 1 and ".1." in name).mul_(-1)
    after, measured = window_logits(loaded, windows), compare_standing(evaluator)
    logp, logq = (torch.cat(each).log_softmax(-1) for each in (before, after))
    assert measured.kl == pytest.approx(float((logp.exp() * (logp - logq)).sum(-1).mean()), rel=1e-5, abs=1e-6)
    assert measured.agreement == float((pick(before) == pick(after)).double().mean())
    assert measured.kl > 0
    assert 0 < measured.agreement < 1


def test_long_windows_are_measured_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning positions into probabilities a few at a time changes nothing."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (3, 20), generator=draw)
    logits, intact = (torch.randn(3, 20, VOCABULARY, generator=draw) for _ in range(2))
    records = []
    for positions in (256, 7):
        monkeypatch.setattr("esa.eval.language_modeling._NUMBERS", positions * VOCABULARY)
        measured = Measured()
        add_batch(measured, logits, ids, Reference(intact))
        records.append(measured.record())
    assert records[0]["nll"] == records[1]["nll"]
    assert records[0]["num_correct"] == records[1]["num_correct"]
    assert records[0]["num_agreeing"] == records[1]["num_agreeing"]
    assert records[0]["kl_sum"] == pytest.approx(records[1]["kl_sum"], rel=1e-12)


def test_equal_logits_choose_the_lowest_index() -> None:
    """Where several words share the highest logit the first of them is chosen, as torch does; bfloat16 has many."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (2, 20, VOCABULARY), generator=draw).bfloat16()
    ids = torch.randint(0, VOCABULARY, (2, 20), generator=draw)
    measured = Measured()
    add_batch(measured, logits, ids, Reference(logits))
    choice = logits[:, :-1].float().argmax(-1)
    assert measured.num_correct == (choice == ids[:, 1:]).sum(1).tolist()
    assert torch.equal(Reference(logits).choice, choice)
    assert torch.equal(choice, (logits[:, :-1] == 2).int().argmax(-1))
    assert measured.num_agreeing == 38
