"""The streamed backward pass equals ``loss.backward()`` bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esa.model import LoadedModel, eligible
from esa.progress import Silent
from esa.score.labels import window_loss
from esa.score.strategy import Strategy
from esa.score.streaming import Window, backward_pass
from tests.conftest import load
from tests.score.naive import dense, engine_scores, unequal_windows

WAYS: dict[str, dict[str, Any]] = {
    "one wave": {}, "two waves": {"waves": 2}, "a window at a time": {"waves": 3}, "graphs kept": {"keep_graphs": True},
}  # fmt: skip


def streamed_gradients(loaded: LoadedModel, windows: list[Tensor], **way: Any) -> list[dict[str, Tensor]]:
    """Return each window's dense gradients as the streamed pass hands them out."""
    chosen = eligible(loaded.table)
    found = [{name: torch.zeros(info.shape) for name, info in chosen.items()} for _ in windows]

    def keep(name: str, window: int, draw: int, gradient: Tensor, rows: Tensor | None) -> None:
        if rows is None:
            found[window][name] += gradient
        else:
            found[window][name][rows] += gradient

    done: list[str] = []
    cut = [Window(number, ids) for number, ids in enumerate(windows)]
    backward_pass(loaded, cut, chosen, None, keep, done.extend, Silent(), **way)
    assert sorted(done) == sorted(chosen), "each parameter is done once"
    return found


def plain_gradients(loaded: LoadedModel, ids: Tensor) -> dict[str, Tensor]:
    """Return the gradients of ``loss.backward()``."""
    loaded.model.zero_grad()
    window_loss(loaded.model(input_ids=ids, use_cache=False).logits, ids).backward()
    return {
        name: parameter.grad.clone() for name, parameter in loaded.parameters().items() if parameter.grad is not None
    }


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise AssertionError, naming the tensor, unless every gradient is equal bit for bit."""
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), f"{name}: {(gradient - expected[name]).abs().max():.3g} apart"


@pytest.mark.parametrize("way", WAYS)
def test_streamed_gradients_equal_backward(architecture: str, windows: list[Tensor], way: str) -> None:
    """Every gradient of every window is that of loss.backward(), bit for bit, on every architecture, in waves or not."""
    loaded = load(architecture)
    for ids, found in zip(windows, streamed_gradients(loaded, windows, **WAYS[way]), strict=True):
        assert_same_bits(found, plain_gradients(loaded, ids))


def test_the_comparison_can_fail(windows: list[Tensor]) -> None:
    """A gradient that is one bit off fails the comparison."""
    loaded = load("llama")
    expected = plain_gradients(loaded, windows[0])
    name = next(iter(expected))
    wrong = {name: torch.nextafter(expected[name], torch.tensor(torch.inf))}
    with pytest.raises(AssertionError, match="apart"):
        assert_same_bits(wrong, expected)


def test_frozen_parameters_get_gradients_and_stay_frozen(windows: list[Tensor]) -> None:
    """Frozen parameters are scored like others, and their requires_grad is as it was."""
    loaded = load("llama")
    expected = [plain_gradients(loaded, ids) for ids in windows]
    loaded.model.requires_grad_(False)
    for found, plain in zip(streamed_gradients(loaded, windows), expected, strict=True):
        assert_same_bits(found, plain)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("way", [{"waves": 2}, {"keep_graphs": True}, {"in_files": 1}])
def test_no_score_depends_on_the_way(architecture: str, way: dict[str, Any], tmp_path: Path) -> None:
    """Waves, kept graphs and accumulators in files give every score of every metric bit for bit."""
    metrics = ["act_mag", "wanda", "super_activation", "grad_x_weight", "grad_squared", "fisher_obd", "ggn_diag"]
    expected = engine_scores(load(architecture), unequal_windows(), metrics, resamples=2)
    strategy = Strategy(**way, folder=tmp_path)
    found = engine_scores(load(architecture), unequal_windows(), metrics, strategy=strategy, resamples=2)
    assert found.keys() == expected.keys()
    for metric, tensors in expected.items():
        assert_same_bits(dense(found[metric]), dense(tensors))
    assert list(tmp_path.iterdir()) == []
