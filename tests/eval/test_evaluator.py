"""Evaluation from the first block that changed gives what a full evaluation gives, bit for bit."""

import pytest
import torch

from esa.data import TokenWindows
from esa.eval import Evaluator, Measured
from esa.model import LoadedModel
from tests.conftest import load
from tests.score.naive import unequal_windows

WINDOWS = unequal_windows(lengths=(9, 12, 12, 12, 5))


def evaluator(loaded: LoadedModel, batch_tokens: int = 24) -> Evaluator:
    """Return an evaluator that knows the intact model."""
    found = Evaluator(loaded, WINDOWS, batch_tokens)
    found.remember()
    return found


def change(loaded: LoadedModel, name: str) -> None:
    """Change every weight of a parameter."""
    with torch.no_grad():
        loaded.parameters()[name].mul_(1.5).add_(0.01)


def assert_same_measurement(found: Measured, expected: Measured) -> None:
    """Raise AssertionError, naming the quantity, unless two measurements are equal bit for bit."""
    for key, value in expected.record().items():
        assert found.record()[key] == value, key


def test_the_comparison_can_fail() -> None:
    """A starting point behind the changed block misses the change, and the comparison says so."""
    loaded = load("llama")
    evaluation = evaluator(loaded)
    change(loaded, "model.layers.1.mlp.down_proj.weight")
    with pytest.raises(AssertionError, match="nll"):
        assert_same_measurement(evaluation.compare(2), evaluation.compare(0))


def test_remembering_measures_the_intact_model(architecture: str) -> None:
    """The chain of blocks that is remembered measures what the model's own forward does."""
    loaded = load(architecture)
    found = Evaluator(loaded, WINDOWS, 24)
    assert_same_measurement(found.remember(), found.measure())


def test_suffix_equals_full_evaluation_in_every_block(architecture: str) -> None:
    """A change in block b is measured from b on, or from any block before it, as by a full evaluation, bit for bit."""
    for block in range(3):
        loaded = load(architecture)
        evaluation = evaluator(loaded)
        name = [n for n, info in loaded.table.items() if info.block == block and len(info.shape) > 1][-1]
        change(loaded, name)
        assert evaluation.first_block({name}) == block
        full = evaluation.compare(0)
        assert full.kl > 1e-6
        for start in range(1, block + 1):
            assert_same_measurement(evaluation.compare(start), full)


@pytest.mark.parametrize("component", ["lm_head", "embed", "norm"])
def test_changes_outside_the_blocks(architecture: str, component: str) -> None:
    """A change in head, embedding or last norm starts where it must, and equals a full evaluation bit for bit."""
    loaded = load(architecture)
    outside = [n for n, info in loaded.table.items() if info.block is None and info.component == component]
    if component == "lm_head" and not outside:
        outside = [n for n, info in loaded.table.items() if "lm_head.weight" in info.uses]
    name = outside[-1]
    untied_head = component == "lm_head" and not loaded.table[name].tied
    evaluation = evaluator(loaded)
    change(loaded, name)
    start = evaluation.first_block({name})
    assert start == (3 if untied_head else 0)
    assert_same_measurement(evaluation.compare(start), evaluation.compare(0))
    assert evaluation.compare(start).kl > 1e-6


def test_several_changes_start_at_the_first() -> None:
    """Changes in several places are measured from the first of them; no change at all from the start."""
    evaluation = evaluator(load("llama"))
    down = "model.layers.{}.mlp.down_proj.weight"
    assert evaluation.first_block({down.format(2), down.format(1), "lm_head.weight"}) == 1
    assert evaluation.first_block({down.format(2), "model.embed_tokens.weight"}) == 0
    assert evaluation.first_block(set()) == 0


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_repeated_calls_are_identical(architecture: str, start: int) -> None:
    """Measured again, the same model gives the same bits, whichever block the evaluation starts at."""
    loaded = load(architecture)
    evaluation = evaluator(loaded)
    assert_same_measurement(evaluation.compare(start), evaluation.compare(start))
    assert evaluation.compare(start).nll == evaluation.measure().nll


@pytest.mark.parametrize(("batch_tokens", "sizes"), [(2, [1, 1, 1, 1, 1]), (24, [1, 2, 1, 1]), (2048, [1, 3, 1])])
def test_batches_hold_neighbours_of_equal_length(batch_tokens: int, sizes: list[int]) -> None:
    """Windows of equal length share a batch up to the limit, in their order, unpadded; the numbers agree but for rounding."""
    loaded = load("llama")
    found = Evaluator(loaded, WINDOWS, batch_tokens)
    assert [len(batch) for batch in found.batches] == sizes
    assert [tuple(row) for batch in found.batches for row in batch.tolist()] == list(WINDOWS.ids)
    one_by_one = Evaluator(loaded, WINDOWS, 2).measure()
    assert found.measure().nll == pytest.approx(one_by_one.nll, rel=1e-6)
    assert found.measure().num_correct == one_by_one.num_correct


def test_a_single_window_and_nothing_else() -> None:
    """One window of two tokens is one predicted token."""
    loaded = load("llama")
    measured = Evaluator(loaded, TokenWindows(((1, 2),), "drawn", "lines", 2, False, 1, 1), 2048).remember()
    assert (measured.num_tokens, len(measured.nll)) == ([1], 1)
