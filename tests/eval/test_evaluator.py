"""Evaluation from the first block that changed gives what whole forward passes give, bit for bit."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esa.data import TokenWindows
from esa.eval import Edit, Evaluator
from esa.eval.intact import IntactStates
from esa.model.block_stack import BlockStack
from tests.conftest import VOCABULARY, load
from tests.eval.edits import (
    WINDOWS,
    assert_same_measurement,
    compare_standing,
    edit_of,
    evaluator_of,
    places,
    whole_logits,
    whole_pass,
)
from tests.score.naive import unequal_windows

DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def block_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the number of every block that runs, batch by batch."""
    numbers: list[int] = []
    original = BlockStack.run_block

    def run_block(self: BlockStack, number: int, *rest: Any) -> Tensor:
        numbers.append(number)
        return original(self, number, *rest)

    monkeypatch.setattr(BlockStack, "run_block", run_block)
    return numbers


def test_the_comparison_can_fail() -> None:
    """A starting point behind the changed block misses the change, and the comparison says so."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded)
    edit = edit_of(loaded, DOWN.format(1))
    late = Edit(frozenset({DOWN.format(2)}), lambda _: edit.make(edit.names))
    with pytest.raises(AssertionError, match="nll"):
        assert_same_measurement(evaluator.compare([late])[0], whole_pass(loaded, edit, evaluator))


def test_remembering_measures_the_intact_model(architecture: str) -> None:
    """The chain of blocks measures what the model's own forward does, in one wave or batch by batch."""
    loaded = load(architecture)
    evaluator = Evaluator(loaded, WINDOWS, 24)
    whole = whole_pass(loaded, edit_of(loaded), evaluator)
    for measured in (evaluator.remember(), evaluator.measure(), Evaluator(loaded, WINDOWS, 24, room=1).measure()):
        assert measured.nll == whole.nll
        assert measured.num_correct == whole.num_correct


def test_every_edit_equals_whole_forward_passes(architecture: str) -> None:
    """Edits of each block, embedding, head, norm and several at once, compared together, equal whole passes bit for bit."""
    loaded = load(architecture)
    evaluator = evaluator_of(loaded)
    edits = {place: edit_of(loaded, *names) for place, names in places(loaded).items()}
    for found, edit in zip(evaluator.compare(list(edits.values())), edits.values(), strict=True):
        expected = whole_pass(loaded, edit, evaluator)
        assert expected.kl is not None
        assert expected.kl > 1e-6
        assert_same_measurement(found, expected)


@pytest.mark.parametrize(("num_states", "together"), [(0, 1), (3, 1), (4, 2), (8, 6), (40, 8)])
def test_nothing_depends_on_the_room(architecture: str, num_states: int, together: int) -> None:
    """Whatever fits the room, and in whatever portions edits are compared, the bits are those of unlimited room."""
    loaded = load(architecture)
    unlimited = evaluator_of(loaded)
    edits = [edit_of(loaded, *names) for names in places(loaded).values()]
    edits.sort(key=lambda edit: unlimited.first_block(edit.names))
    expected = unlimited.compare(edits)
    states = IntactStates(loaded.stack, unlimited.batches)
    evaluator = evaluator_of(loaded, room=states.prologue_bytes + num_states * states.state_bytes)
    assert evaluator.together == together
    found = []
    for start in range(0, len(edits), together):
        evaluator.forget_below(evaluator.first_block(edits[start].names))
        found += evaluator.compare(edits[start : start + together])
    for one, other in zip(found, expected, strict=True):
        assert_same_measurement(one, other)


def test_edits_may_come_in_any_order() -> None:
    """An edit of a lower block than what is still held is measured alike: the intact states are computed anew."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded, room=0)
    evaluator.forget_below(3)
    for block in (2, 1, 2, 0):
        edit = edit_of(loaded, DOWN.format(block))
        assert_same_measurement(evaluator.compare([edit])[0], whole_pass(loaded, edit, evaluator))


def test_blocks_run_one_after_the_other(block_runs: list[int]) -> None:
    """All batches and edits pass a block before the next; nothing below an edit runs where its input is kept."""
    loaded = load("llama")
    evaluator = Evaluator(loaded, WINDOWS, 24)
    assert len(evaluator.batches) == 4
    block_runs.clear()
    evaluator.remember([1, 2])
    assert block_runs == [0] * 4 + [1] * 4 + [2] * 4
    block_runs.clear()
    evaluator.compare([edit_of(loaded, DOWN.format(block)) for block in (1, 1, 2)])
    assert block_runs == [1] * 2 * 4 + [2] * 3 * 4


def test_the_sweep_runs_along_with_the_edits(block_runs: list[int]) -> None:
    """Without room for intact inputs each block still runs in one stretch, the intact model's pass among the edits'."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded, room=0)
    block_runs.clear()
    evaluator.compare([edit_of(loaded, DOWN.format(block)) for block in (0, 2)])
    assert block_runs == [0] * 2 * 4 + [1] * 2 * 4 + [2] * 2 * 4
    block_runs.clear()
    evaluator.compare([edit_of(loaded, DOWN.format(2))])
    assert block_runs == [2] * 4, "the sweep stands there"


def test_a_head_of_its_own_runs_no_block(block_runs: list[int]) -> None:
    """A change behind the blocks starts at the final states."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded)
    block_runs.clear()
    (measured,) = evaluator.compare([edit_of(loaded, "lm_head.weight")])
    assert block_runs == []
    assert measured.kl is not None
    assert measured.kl > 1e-6


def test_a_single_batch_keeps_its_reference() -> None:
    """Where all windows are one batch its intact logits are computed once, and again for another intact model."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded, windows=unequal_windows(lengths=(12, 12)))
    heads = []
    hook = loaded.model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    edits = [edit_of(loaded, DOWN.format(block)) for block in range(3)]
    evaluator.compare(edits)
    assert len(heads) == 3
    for edit in edits:
        assert_same_measurement(evaluator.compare([edit])[0], whole_pass(loaded, edit, evaluator))
    with edits[0].make(edits[0].names):
        evaluator.remember()
        assert_same_measurement(evaluator.compare(edits[1:2])[0], whole_pass(loaded, edits[1], evaluator))
    hook.remove()


def test_broken_logits_end_the_case_alone() -> None:
    """NaN in one edit's logits makes it nonfinite; its further heads are not run, and the edits beside it keep their bits."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded)
    broken, whole = edit_of(loaded, DOWN.format(1), factor=float("nan")), edit_of(loaded, DOWN.format(1))
    heads = []
    hook = loaded.model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    first, second = evaluator.compare([broken, whole])
    hook.remove()
    assert (first.nonfinite, second.nonfinite) == (True, False)
    assert len(heads) == 4 + 1 + 4
    assert_same_measurement(first, whole_pass(loaded, broken, evaluator))
    assert_same_measurement(second, whole_pass(loaded, whole, evaluator))


class Widest(TorchDispatchMode):
    """Note how many numbers the largest tensor of vocabulary width has, and how many batches of them are alive at once."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.largest, self.alive, self.peak = batch, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim and result.shape[-1] == VOCABULARY:
            self.largest = max(self.largest, result.numel())
            if result.numel() == self.batch and result.data_ptr() not in {
                a.data_ptr() for a in args if torch.is_tensor(a)
            }:
                self.alive += 1
                self.peak = max(self.peak, self.alive)
                weakref.finalize(result.untyped_storage(), self.release)
        return result

    def release(self) -> None:
        """Count one less."""
        self.alive -= 1


def test_logits_are_never_held_for_all_windows() -> None:
    """While edits are compared, no tensor of logits is larger than a batch's, and two batches' are alive at most."""
    loaded = load("llama")
    windows = unequal_windows(lengths=(12,) * 16)
    evaluator = Evaluator(loaded, windows, 24)
    with Widest(24 * VOCABULARY) as found:
        evaluator.remember()
        evaluator.compare([edit_of(loaded, DOWN.format(block)) for block in (0, 1, 1, 2)])
    assert found.largest == 24 * VOCABULARY
    assert (found.peak, found.alive) == (2, 0)


def test_held_logits_would_be_seen() -> None:
    """The count of living logits rises with those that are held, and one batch of all windows is seen as such."""
    loaded = load("llama")
    evaluator = Evaluator(loaded, unequal_windows(lengths=(12,) * 16), 24)
    with Widest(24 * VOCABULARY) as found:
        held = whole_logits(loaded, evaluator.batches)
    assert (len(held), found.peak, found.alive) == (8, 8, 8)
    with Widest(0) as whole:
        Evaluator(loaded, unequal_windows(lengths=(12,) * 16), 12 * 16).measure()
    assert whole.largest == 12 * 16 * VOCABULARY


@pytest.mark.parametrize("component", ["lm_head", "embed", "norm"])
def test_changes_outside_the_blocks_start_where_they_must(architecture: str, component: str) -> None:
    """A head of its own starts behind the blocks; embedding, last norm and tied head at the embedding."""
    loaded = load(architecture)
    outside = [n for n, info in loaded.table.items() if info.block is None and info.component == component]
    if component == "lm_head" and not outside:
        outside = [n for n, info in loaded.table.items() if "lm_head.weight" in info.uses]
    untied_head = component == "lm_head" and not loaded.table[outside[-1]].tied
    assert Evaluator(loaded, WINDOWS, 24).first_block(outside[-1:]) == (3 if untied_head else 0)


def test_several_changes_start_at_the_first() -> None:
    """Changes in several places are measured from the first of them; no change at all from the start."""
    evaluator = Evaluator(load("llama"), WINDOWS, 24)
    assert evaluator.first_block({DOWN.format(2), DOWN.format(1), "lm_head.weight"}) == 1
    assert evaluator.first_block({DOWN.format(2), "model.embed_tokens.weight"}) == 0
    assert evaluator.first_block(()) == 0


def test_repeated_calls_are_identical(architecture: str) -> None:
    """Compared again, the same edits give the same bits, and what the changed model measures by itself."""
    loaded = load(architecture)
    evaluator = evaluator_of(loaded)
    for names in places(loaded).values():
        edit = edit_of(loaded, *names)
        (found,) = evaluator.compare([edit])
        assert_same_measurement(evaluator.compare([edit])[0], found)
        with edit.make(edit.names):
            assert evaluator.measure().nll == found.nll


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
    windows = TokenWindows(((1, 2),), "drawn", "lines", 2, False, 1, 1)
    measured = Evaluator(loaded, windows, 2048).remember()
    assert (measured.num_tokens, len(measured.nll)) == ([1], 1)
    same = compare_standing(evaluator_of(loaded, windows=windows), DOWN.format(0))
    assert (same.nll, same.kl) == (measured.nll, 0.0)
