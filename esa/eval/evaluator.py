"""Evaluate a model on fixed windows, again and again, from the first block that changed."""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.eval.language_modeling import Measured, Reference, add_batch
from esa.model import LoadedModel
from esa.model.anatomy import text_config


class Evaluator:
    """Hold the windows in batches, and after ``remember`` the intact model's states, so that later runs start where it pays.

    Windows of equal length share a batch of at most ``batch_tokens`` tokens; nothing is padded. The batches never change,
    so that two runs differ only by the weights.
    """

    def __init__(self, loaded: LoadedModel, windows: TokenWindows, batch_tokens: int) -> None:
        self.loaded = loaded
        self.vocabulary = int(text_config(loaded.model).vocab_size)
        self.batches = [torch.tensor(batch, device=loaded.device) for batch in _batches(windows.ids, batch_tokens)]
        self._states: list[list[Tensor]] = []  # per batch, the input of every block and the output of the last
        self._intact: list[Reference] = []

    def measure(self) -> Measured:
        """Evaluate the model as it is, from the embedding on."""
        measured = Measured()
        with torch.no_grad():
            for ids in self.batches:
                add_batch(measured, self.loaded.model(input_ids=ids, use_cache=False).logits, ids, None)
        return measured

    def remember(self) -> Measured:
        """Evaluate the intact model and keep its boundary activations and logits.

        Memory: tokens x d_model x (blocks + 1) and tokens x vocabulary numbers of the compute dtype.
        """
        stack, measured = self.loaded.stack, Measured()
        self._states, self._intact = [], []
        with torch.no_grad():
            for ids in self.batches:
                prologue = stack.embed(ids)
                states = [prologue.hidden]
                for number in range(len(stack)):
                    states.append(stack.run_block(number, states[-1], prologue))
                logits = stack.head(states[-1], ids)
                self._states.append(states)
                self._intact.append(Reference(logits))
                add_batch(measured, logits, ids, None)
        return measured

    def compare(self, first_block: int) -> Measured:
        """Evaluate the changed model against the remembered one, from the first block that changed.

        ``first_block``: 0 also stands for a change in the embedding; the number of blocks for one behind them.
        """
        measured = Measured()
        with torch.no_grad():
            for ids, states, intact in zip(self.batches, self._states, self._intact, strict=True):
                if first_block == 0:
                    logits = self.loaded.model(input_ids=ids, use_cache=False).logits
                else:
                    logits = self.loaded.stack.logits_from(first_block, states[first_block], ids)
                add_batch(measured, logits, ids, intact)
        return measured

    def first_block(self, names: set[str]) -> int:
        """Return where an evaluation has to start when the named parameters changed."""
        firsts = []
        head = self.loaded.model.get_output_embeddings()
        after = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        embedding = {id(parameter) for parameter in self.loaded.model.get_input_embeddings().parameters()}
        for name in names:
            info, parameter = self.loaded.table[name], self.loaded.parameters()[name]
            if info.block is not None:
                firsts.append(info.block)
            else:
                behind = id(parameter) in after and id(parameter) not in embedding
                firsts.append(len(self.loaded.stack) if behind else 0)
        return min(firsts, default=0)


def _batches(ids: tuple[tuple[int, ...], ...], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield runs of neighbouring windows of equal length, at most ``batch_tokens`` tokens together."""
    for length, group in groupby(ids, key=len):
        windows = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(windows), size):
            yield windows[start : start + size]
