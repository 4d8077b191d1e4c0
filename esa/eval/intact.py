"""The intact model's states between its blocks: kept where there is room, recomputed by one sweep where there is not."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from esa.model.block_stack import BlockStack, Prologue, tensors_in


class IntactStates:
    """The intact model's prologues, its final states, and the inputs of some of its blocks, over all batches.

    Each block runs over all batches before the next one does: a model whose blocks lie on disk reads each of them once.
    Memory: tokens x d_model numbers per kept boundary, as many for the final states and for the boundary swept last.
    """

    def __init__(self, stack: BlockStack, batches: Sequence[Tensor]) -> None:
        self.stack, self.batches = stack, batches
        prologues = embedded(stack, batches)
        self._kept: dict[int, list[Tensor]] = {}
        self._swept: tuple[int, list[Tensor]] = (0, [prologue.hidden for prologue in prologues])
        self.prologues = [replace(one, hidden=one.hidden.new_empty(0)) for one in prologues]  # the sweep holds it
        self.final: list[Tensor] = []
        self.state_bytes = sum(prologue.hidden.nbytes for prologue in prologues)  # of all batches at one boundary
        self.prologue_bytes = _bytes_of(self.prologues)

    def run(self, keep: Collection[int]) -> None:
        """Run every block, keep the inputs of those in ``keep`` and the final states."""
        hidden = list(self._swept[1])
        self._swept = (-1, [])  # not held while its successors are made
        for number in range(len(self.stack)):
            if number in keep:
                self._kept[number] = list(hidden)
            advance(self.stack, number, hidden, self.prologues)
        self.final = hidden
        self._swept = (len(self.stack), hidden)

    def holds(self, number: int) -> bool:
        """Tell whether the input of block ``number`` is at hand."""
        return number in self._kept or number in (self._swept[0], len(self.stack))

    def at(self, number: int) -> list[Tensor]:
        """Return the input of block ``number``, batch by batch; the final states for the number of blocks.

        What is not kept is computed from the nearest boundary below that is; the model must be intact then.
        """
        if number in self._kept:
            return self._kept[number]
        if number == len(self.stack):
            return self.final
        if self._swept[0] != number:
            below = [known for known in self._kept if known < number]
            start = max(below, default=-1)
            if start < self._swept[0] < number:
                start, hidden = self._swept
            elif below:
                hidden = self._kept[start]
            else:
                start, hidden = 0, [prologue.hidden for prologue in embedded(self.stack, self.batches)]
            self._swept = (-1, [])  # not held while its successor is made
            hidden = list(hidden)
            for between in range(start, number):
                advance(self.stack, between, hidden, self.prologues)
            self._swept = (number, hidden)
        return self._swept[1]

    def forget_below(self, number: int) -> None:
        """Drop the kept inputs of the blocks below ``number``."""
        self._kept = {known: hidden for known, hidden in self._kept.items() if known >= number}


def embedded(stack: BlockStack, batches: Sequence[Tensor]) -> list[Prologue]:
    """Return what the model computes before its blocks, batch by batch."""
    return [stack.embed(ids) for ids in batches]


def advance(stack: BlockStack, number: int, hidden: list[Tensor], prologues: Sequence[Prologue]) -> None:
    """Replace the input of block ``number`` by its output, batch by batch, in the given list."""
    for position, prologue in enumerate(prologues):
        hidden[position] = stack.run_block(number, hidden[position], prologue)


def _bytes_of(prologues: Sequence[Prologue]) -> int:
    """Return the bytes of what blocks are called with beside the hidden state: masks, positions, rotary tables."""
    tensors = [tensor for prologue in prologues for tensor in tensors_in(prologue.arguments)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
