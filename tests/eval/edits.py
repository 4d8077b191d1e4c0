"""Changes of tiny models as the evaluator makes them, and the same changes evaluated by whole forward passes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.eval import Edit, Evaluator, Measured
from esa.eval.language_modeling import Reference, add_batch
from esa.model import LoadedModel
from tests.score.naive import unequal_windows

WINDOWS = unequal_windows(lengths=(9, 12, 12, 12, 5))


def standing(*names: str) -> Edit:
    """Return the edit of a change that is in the model already."""
    return Edit(frozenset(names), lambda _: nullcontext())


def compare_standing(evaluator: Evaluator, *names: str) -> Measured:
    """Return what the model measures as it stands, from the first block of the named parameters on."""
    (measured,) = evaluator.compare([standing(*names)])
    return measured


def evaluator_of(
    loaded: LoadedModel, batch_tokens: int = 24, room: int | None = None, windows: TokenWindows = WINDOWS
) -> Evaluator:
    """Return an evaluator that knows the intact model."""
    found = Evaluator(loaded, windows, batch_tokens, room)
    found.remember()
    return found


def edit_of(loaded: LoadedModel, *names: str, factor: float = 1.5) -> Edit:
    """Return the edit that changes every weight of some parameters, and brings the old bits back."""

    @contextmanager
    def make(part: frozenset[str]) -> Iterator[None]:
        before = {name: loaded.parameters()[name].detach().clone() for name in part}
        with torch.no_grad():
            for name in part:
                loaded.parameters()[name].mul_(factor).add_(0.01)
            yield
            for name, values in before.items():
                loaded.parameters()[name].copy_(values)

    return Edit(frozenset(names), make)


def whole_logits(loaded: LoadedModel, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits of the model's own forward, batch by batch."""
    with torch.no_grad():
        return [loaded.model(input_ids=ids, use_cache=False).logits for ids in batches]


def whole_pass(loaded: LoadedModel, edit: Edit, evaluator: Evaluator) -> Measured:
    """Evaluate an edit by whole forward passes, on the batches of an evaluator."""
    intact = whole_logits(loaded, evaluator.batches)
    with edit.make(edit.names):
        changed = whole_logits(loaded, evaluator.batches)
    measured = Measured()
    for logits, ids, reference in zip(changed, evaluator.batches, intact, strict=True):
        add_batch(measured, logits, ids, Reference(reference))
    return measured


def places(loaded: LoadedModel) -> Mapping[str, list[str]]:
    """Return parameters to change, by where they lie: each block, the embedding, the head, a norm, several blocks at once."""
    matrices = {name: info for name, info in loaded.table.items() if len(info.shape) > 1}
    found = {f"block {b}": [n for n, info in matrices.items() if info.block == b][-1:] for b in range(3)}
    found |= {f"input of block {b}": [n for n, info in matrices.items() if info.block == b][:1] for b in range(3)}
    found["embedding"] = [next(iter(matrices))]
    found["head"] = [n for n, info in matrices.items() if info.component == "lm_head" or "lm_head.weight" in info.uses]
    found["norm"] = [n for n, info in loaded.table.items() if info.block is None and info.component == "norm"]
    found["blocks 1 and 2"] = [*found["block 2"], *found["block 1"]]
    found["everywhere"] = [*found["block 0"], *found["block 2"], *found["embedding"], *found["head"]]
    return {place: list(dict.fromkeys(names)) for place, names in found.items()}


def assert_same_measurement(found: Measured, expected: Measured) -> None:
    """Raise AssertionError, naming the quantity, unless two measurements are equal bit for bit."""
    for key, value in expected.record().items():
        assert found.record()[key] == value, key
