"""Change a handful of weights for a while, and bring the exact stored bits back afterwards."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esa.artifact import finite
from esa.errors import CheckError, EsaError
from esa.model import LoadedModel
from esa.model.quantized import QuantizedWeight, Scales
from esa.model.weights import Weight
from esa.perturb.methods import INTEGERS, REACH, bit_field, flip_codes, int_view
from esa.perturb.place import Given, Place
from esa.perturb.targets import AnyTarget, Target, by_tensor
from esa.registry import load


@dataclass
class Codes:
    """What touched weights are stored as where they are quantised: integers of ``bits`` bits, before and after."""

    before: Tensor
    after: Tensor
    bits: int


@dataclass
class Change:
    """The touched weights of one tensor: where, their stored values before and after.

    ``codes``: of quantised weights; the values are what these stand for. ``scales``: the touched numbers are the scales of
    quantised weights, each addressed by the first touched weight of its group.
    """

    name: str
    index: Tensor
    before: Tensor
    after: Tensor
    codes: Codes | None = None
    scales: bool = False


def plan_changes(
    loaded: LoadedModel,
    targets: Sequence[AnyTarget],
    method: str,
    options: Mapping[str, Any],
    draw: np.random.Generator,
    given: Given | None = None,
) -> list[Change]:
    """Return what a method does to the targets, tensor by tensor; the model is only read.

    Methods compute on the storage dtype: with a wider compute dtype the values are cast down (exactly) before. Of quantised
    weights they compute on what the codes stand for, and the nearest codes are taken; ``bit_flip`` takes the codes themselves,
    or with ``of = "scale"`` the scales, each once however many of its weights are targets. ``swap`` changes as many others of
    the tensor as it has targets. ``given``: what ``gradient``, ``adaptive`` and ``correlated`` ask for.
    """
    function, given = load("method", method), given or Given()
    changes = []
    for name, index in by_tensor(loaded, targets).items():
        weight = loaded.weights[name]
        place = Place(weight.values, weight.info, index, draw, loaded.weights, given)
        if method in REACH:
            place.index, place.exchange = REACH[method](index, weight.info, draw)
        if options.get("of") == "scale":
            scales = scales_of(weight)
            place.index = scales.first(index)
            before = scales.stored(place.index)
            changes.append(Change(name, place.index, before, function(before.clone(), options, place), scales=True))
        elif isinstance(weight, QuantizedWeight) and method == "bit_flip":
            codes = flip_codes(weight.held(index), weight.code_bits, weight.signed, options, draw)
            changes.append(_code_change(weight, index, codes))
        else:
            before = weight.stored(place.index)
            after = function(before.clone(), options, place)
            if isinstance(weight, QuantizedWeight):
                changes.append(_code_change(weight, place.index, weight.encode(place.index, after)))
            else:
                changes.append(Change(name, place.index, before, after))
    return changes


def scales_of(weight: Weight) -> Scales:
    """Return a weight's scales. Raises EsaError where it has none, or none that are stored as numbers."""
    if not isinstance(weight, QuantizedWeight):
        raise EsaError(
            f"{weight.info.name} is stored as {weight.dtype}, without scales; scales of int8 and nf4 weights can be flipped",
            where="perturb.of",
            hint="score.exclude = ['component=embed', 'component=lm_head'] leaves such weights out; without of, own bits flip",
        )
    weight.scales  # noqa: B018  raises where they are codes themselves
    return Scales(weight)


def _code_change(weight: QuantizedWeight, index: Tensor, codes: Tensor) -> Change:
    held = weight.held(index)
    found = Codes(held, codes, weight.code_bits)
    return Change(weight.info.name, index, weight.decode(index, held), weight.decode(index, codes), found)


@contextmanager
def applied(loaded: LoadedModel, changes: Sequence[Change]) -> Iterator[None]:
    """Write the changes into the model, and bring the old bits back whatever happens meanwhile.

    Only the touched values are saved. Raises CheckError if a restored value differs from the saved one in any bit.
    """
    saved: list[tuple[Change, Tensor]] = []
    try:
        for change in changes:
            stored = _touched(loaded, change)
            saved.append((change, stored.held(change.index)))
            if change.codes is None:
                stored.write(change.index, change.after)
            else:
                stored.restore(change.index, change.codes.after)
        yield
    finally:
        with _unhurried():
            for change, held in reversed(saved):
                _touched(loaded, change).restore(change.index, held)
        for change, held in saved:
            if not same_bits(_touched(loaded, change).held(change.index), held):
                raise CheckError(f"{change.name} was not restored bit for bit")


@contextmanager
def _unhurried() -> Iterator[None]:
    """Let a Ctrl-C wait until the end: half a restoration would leave a broken model to whoever catches it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
        if waiting:
            raise KeyboardInterrupt


def _touched(loaded: LoadedModel, change: Change) -> Weight | Scales:
    weight = loaded.weights[change.name]
    return scales_of(weight) if change.scales else weight


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Tell whether two tensors hold the same bits: NaN equals itself, and zero differs from minus zero."""
    if left.dtype not in INTEGERS:
        return torch.equal(left, right)
    return torch.equal(int_view(left), int_view(right))


def fault_rows(run: str, case: str, changes: Sequence[Change]) -> list[dict[str, object]]:
    """Return the rows of ``faults/1``: one per flipped bit, in address order, least significant first.

    ``field``: of a code ``code``, of a scale ``scale.exponent`` and the like; a scale's index is that of the first touched
    weight that shares it, and old and new are the scale's own values.
    """
    rows: list[dict[str, object]] = []
    for change in changes:
        dtype, codes = change.before.dtype, change.codes
        width = dtype.itemsize * 8 if codes is None else codes.bits
        digits = -(-width // 4)
        unsigned = (1 << width) - 1
        olds, news = (
            (int_view(change.before).tolist(), int_view(change.after).tolist())
            if codes is None
            else (codes.before.tolist(), codes.after.tolist())
        )
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
                            "field": _field(change, bit),
                            "old_bits": f"0x{old_bits & unsigned:0{digits}x}",
                            "new_bits": f"0x{new_bits & unsigned:0{digits}x}",
                            "old": finite(old),
                            "new": finite(new),
                        }
                    )
    return rows


def _field(change: Change, bit: int) -> str:
    """Return which part of the stored number or code a bit belongs to."""
    if change.codes is not None:
        return "code"
    return f"{'scale.' if change.scales else ''}{bit_field(bit, change.before.dtype)}"


def neighbours(loaded: LoadedModel, target: Target) -> list[Change]:
    """Return the change of one weight to the adjacent representable number away from zero.

    Of a quantised weight that is the adjacent code; the outermost one moves towards zero.
    """
    name, index = target
    place = torch.tensor([index], device=loaded.device)
    weight = loaded.weights[name]
    if isinstance(weight, QuantizedWeight):
        return [_code_change(weight, place, weight.adjacent(place))]
    before = weight.stored(place)
    return [Change(name, place, before, (int_view(before) + 1).view(before.dtype))]
