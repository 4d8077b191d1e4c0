"""Expected calibration error: planted, by hand, and against a naive one."""

import numpy as np
import pytest
import torch

from esa.eval import calibration
from esa.eval.calibration import Bins, evaluate, measure
from esa.eval.variants import Variant, unchanged
from tests.conftest import load
from tests.eval.edits import WINDOWS, edit_of
from tests.eval.naive import window_logits


def bins_of(windows: list[tuple[list[float], list[bool]]]) -> Bins:
    """Return windows of confidences and hits in bins."""
    found = Bins()
    for confidence, correct in windows:
        found.add(torch.tensor(confidence), torch.tensor(correct))
    return found


def naive(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the error by the definition: a loop over the bins (b / 15, (b + 1) / 15]."""
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(total)


def test_by_hand() -> None:
    """Two predictions at .9 of which one is right, two at .5 that are right: (2 |.5 - .9| + 2 |1 - .5|) / 4."""
    result = evaluate(bins_of([([0.9, 0.5], [True, True]), ([0.9, 0.5], [False, True])]))
    assert result.figure("calibration_error") == pytest.approx(0.45)
    assert result.figure("confidence") == pytest.approx(0.7)
    assert result.figure("overconfidence") == pytest.approx(0.7 - 0.75)
    assert (result.num_items, result.num_tokens) == (2, 4)


def test_a_planted_miscalibration_is_found() -> None:
    """Hits drawn with the stated confidence have an error near zero; with .2 less it is near .2, and so is the sign."""
    draw = np.random.default_rng(1)
    sure = draw.uniform(0.3, 1.0, (40, 500))
    for shift, expected in ((0.0, 0.0), (0.2, 0.2)):
        hits = draw.uniform(size=sure.shape) < sure - shift
        result = evaluate(bins_of([(row.tolist(), hit.tolist()) for row, hit in zip(sure, hits, strict=True)]))
        assert result.figure("calibration_error") == pytest.approx(expected, abs=0.015)
        assert result.figure("overconfidence") == pytest.approx(expected, abs=0.015)


def test_the_jackknife_s_error_is_the_spread_of_new_samples() -> None:
    """The standard error agrees with the spread of the figure over two hundred samples of the same kind."""
    draw = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(200):
        sure = draw.uniform(0.3, 1.0, (20, 60))
        hits = draw.uniform(size=sure.shape) < sure - 0.2
        result = evaluate(bins_of([(row.tolist(), hit.tolist()) for row, hit in zip(sure, hits, strict=True)]))
        (_, value, error), *_ = result.figures
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_confidences_beside_a_border_lie_apart() -> None:
    """The third bin ends at 3 / 15; certainty lies in the last one."""
    found = bins_of([([0.1999, 0.2001, 1.0], [True, True, True])])
    assert [b for b, count in enumerate(found.count[0]) if count] == [2, 3, 14]


def test_a_model_s_error_equals_a_naive_one(architecture: str) -> None:
    """Windows of unequal lengths through every architecture give the definition's value."""
    loaded = load(architecture)
    (result,) = measure(loaded, WINDOWS, [unchanged(loaded)], 24)
    logits = window_logits(loaded, WINDOWS)
    best = [one.softmax(-1).max(-1) for one in logits]
    sure = torch.cat([one.values for one in best]).numpy()
    hits = torch.cat([one.indices == torch.tensor(ids[1:]) for one, ids in zip(best, WINDOWS.ids, strict=True)]).numpy()
    assert result.figure("calibration_error") == pytest.approx(naive(sure, hits), abs=1e-6)
    assert result.figure("confidence") == pytest.approx(sure.mean(), abs=1e-6)
    assert result.num_tokens == len(sure)
    assert len(result.per_item("calibration_error")) == len(WINDOWS.ids)


def test_a_sharpened_model_is_more_confident() -> None:
    """A head of ten times the size is surer and, untrained, further off; a broken one is null and not zero."""
    loaded = load("llama")
    edit = edit_of(loaded, "lm_head.weight", factor=10.0)
    intact, sharp = measure(loaded, WINDOWS, [unchanged(loaded), Variant(3, lambda: edit.make(edit.names))], 24)
    assert sharp.figure("confidence") > intact.figure("confidence")
    assert sharp.figure("calibration_error") > intact.figure("calibration_error")
    broken = edit_of(loaded, "lm_head.weight", factor=float("nan"))
    (nothing,) = measure(loaded, WINDOWS, [Variant(3, lambda: broken.make(broken.names))], 24)
    assert nothing.nonfinite
    assert {value for _, value, _ in nothing.figures} == {None}
    assert calibration.NUM_BINS == 15
