"""Several variants of one model on one batch: the blocks below a change run once for all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from esa.model import LoadedModel


@dataclass(frozen=True)
class Variant:
    """The model with something changed for as long as ``make()`` lasts.

    ``start``: the first block whose input or output differs from the intact model's, 0 also for what is read before the
    blocks, the number of blocks for a head of its own. ``hooked``: the change looks at whole windows, and must see them.
    """

    start: int
    make: Callable[[], AbstractContextManager[object]] = nullcontext
    hooked: bool = False


def unchanged(loaded: LoadedModel) -> Variant:
    """Return the model as it is."""
    return Variant(len(loaded.stack))


def variant_logits(loaded: LoadedModel, ids: Tensor, variants: Sequence[Variant], last: int) -> Iterator[Tensor]:
    """Yield each variant's logits at the last positions, ``(batch, last, V)``; ids ``(batch, T)``, equally long, unpadded.

    The same numbers as a whole forward pass, but for the head's rounding: final norm and head work position by position, and
    run on the last ones alone. Cost: the blocks up to the last start once, and per variant those from its start on.
    Memory: a hidden state per distinct start, and one variant's logits, which the caller lets go before the next.
    """
    stack = loaded.stack
    prologue = stack.embed(ids)
    starts = {variant.start for variant in variants}
    inputs: dict[int, Tensor] = {}  # what the intact model hands to the blocks that variants start at
    hidden = prologue.hidden
    for number in range(max(starts, default=0) + 1):
        if number in starts:
            inputs[number] = hidden
        if number < max(starts, default=0):
            hidden = stack.run_block(number, hidden, prologue)
    del hidden
    for variant in variants:
        with variant.make():
            own = stack.embed(ids) if variant.start == 0 else prologue
            state = own.hidden if variant.start == 0 else inputs[variant.start]
            for number in range(variant.start, len(stack)):
                state = stack.run_block(number, state, own)
            seen = ids.shape[1] if variant.hooked else last
            logits = stack.head(state[:, -seen:], ids[:, -seen:])
        yield logits[:, -last:]
        del logits, state
