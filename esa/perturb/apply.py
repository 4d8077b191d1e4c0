"""Change a handful of weights for a while, and bring the exact stored bits back afterwards."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esa.artifact import finite
from esa.errors import CheckError
from esa.model import LoadedModel
from esa.perturb.methods import INTEGERS, Place, bit_field, int_view
from esa.registry import load

Target = tuple[str, int]  # parameter, row-major index


@dataclass
class Change:
    """The touched weights of one tensor: where, their stored values before and after."""

    name: str
    index: Tensor
    before: Tensor
    after: Tensor


def by_tensor(loaded: LoadedModel, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return the distinct indices per tensor, in address order: ``named_parameters()`` order, then ascending index."""
    found: dict[str, set[int]] = {}
    for name, index in targets:
        found.setdefault(name, set()).add(index)
    return {
        name: torch.tensor(sorted(found[name]), dtype=torch.int64, device=loaded.device)
        for name in loaded.table
        if name in found
    }


def plan_changes(
    loaded: LoadedModel, targets: Sequence[Target], method: str, options: Mapping[str, Any], draw: np.random.Generator
) -> list[Change]:
    """Return what a method does to the targets, tensor by tensor; the model is only read.

    Methods compute on the storage dtype: with a wider compute dtype the values are cast down (exactly) before.
    """
    function = load("method", method)
    changes = []
    for name, index in by_tensor(loaded, targets).items():
        weight = loaded.weights[name]
        before = weight.stored(index)
        after = function(before.clone(), options, Place(weight.values(), weight.info, index, draw))
        changes.append(Change(name, index, before, after))
    return changes


@contextmanager
def applied(loaded: LoadedModel, changes: Sequence[Change]) -> Iterator[None]:
    """Write the changes into the model, and bring the old bits back whatever happens meanwhile.

    Only the touched values are saved. Raises CheckError if a restored value differs from the saved one in any bit.
    """
    saved: list[tuple[Change, Tensor]] = []
    try:
        for change in changes:
            saved.append((change, loaded.weights[change.name].held(change.index)))
            loaded.weights[change.name].write(change.index, change.after)
        yield
    finally:
        for change, held in reversed(saved):
            loaded.weights[change.name].write(change.index, held)
        for change, held in saved:
            if not same_bits(loaded.weights[change.name].held(change.index), held):
                raise CheckError(f"{change.name} was not restored bit for bit")


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Tell whether two tensors hold the same bits: NaN equals itself, and zero differs from minus zero."""
    if left.dtype not in INTEGERS:
        return torch.equal(left, right)
    return torch.equal(int_view(left), int_view(right))


def fault_rows(run: str, case: str, changes: Sequence[Change]) -> list[dict[str, object]]:
    """Return the rows of ``faults/1``: one per flipped bit, in address order, least significant first."""
    rows: list[dict[str, object]] = []
    for change in changes:
        dtype = change.before.dtype
        width = dtype.itemsize * 8
        unsigned = (1 << width) - 1
        olds, news = int_view(change.before).tolist(), int_view(change.after).tolist()
        values = zip(change.index.tolist(), olds, news, change.before.tolist(), change.after.tolist(), strict=True)
        for index, old_bits, new_bits, old, new in values:
            flipped = (old_bits ^ new_bits) & unsigned
            for bit in range(width):
                if flipped >> bit & 1:
                    rows.append(
                        {
                            "run": run,
                            "case": case,
                            "parameter": change.name,
                            "index": index,
                            "bit": bit,
                            "field": bit_field(bit, dtype),
                            "old_bits": f"0x{old_bits & unsigned:0{width // 4}x}",
                            "new_bits": f"0x{new_bits & unsigned:0{width // 4}x}",
                            "old": finite(old),
                            "new": finite(new),
                        }
                    )
    return rows


def neighbours(loaded: LoadedModel, target: Target) -> list[Change]:
    """Return the change of one weight to the adjacent representable number away from zero."""
    name, index = target
    place = torch.tensor([index], device=loaded.device)
    before = loaded.weights[name].stored(place)
    return [Change(name, place, before, (int_view(before) + 1).view(before.dtype))]
