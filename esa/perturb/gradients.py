"""The gradient of the calibration loss at the weights that a campaign touches, and at no others."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from esa.data import TokenWindows
from esa.errors import ModelError
from esa.model import LoadedModel
from esa.model.block_stack import tensors_in
from esa.model.differentiable import differentiable
from esa.progress import Progress


def touched_gradients(
    loaded: LoadedModel,
    windows: TokenWindows,
    touched: Mapping[str, Tensor],
    batch_tokens: int,
    progress: Progress,
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return, per parameter, the touched indices and the gradient of L there, float32.

    L: mean NLL (nats) over all predicted tokens of the windows, that is the windows' mean NLLs weighted by T_n; its gradient is
    that of ``loss.backward()``, a tied parameter's added over its uses. ``touched``: distinct row-major indices ``(n,)``,
    ascending. Windows of equal length share a batch of at most ``batch_tokens`` tokens; those of an int8 model, whose inputs
    are rounded batch by batch, go one by one. Summed over batches in float64.
    Cost: one pass forward; forward again and backward from the top down to the lowest touched block. Memory: the hidden states
    of one batch, the graph of one block, the whole gradients of its touched tensors. Raises ModelError where no gradient
    reaches a touched tensor, where one is not finite, or where the arguments of a block depend on a touched embedding.
    """
    together = 1 if loaded.facts.get("quantization") == "int8" else batch_tokens
    batches = [torch.tensor(batch, device=loaded.device) for batch in _batches(windows.ids, together)]
    with differentiable(loaded, touched):
        walk = _Walk(loaded, touched, windows.num_predicted, batches[0])
        progress.start("gradients", len(batches))
        for ids in batches:
            walk.one_batch(ids)
            progress.advance()
        progress.finish()
    _require_gradients(walk.sums, touched)
    still = sum(int((total == 0).sum()) for total in walk.sums.values())
    if still:
        number = sum(map(len, touched.values()))
        progress.warn(
            f"the calibration loss has gradient zero at {still} of {number} touched weights: gradient leaves them alone"
        )
    return {name: (touched[name], walk.sums[name].float()) for name in touched}


class _Walk:
    """The way down through the blocks, batch by batch, and the sums it leaves behind."""

    def __init__(self, loaded: LoadedModel, touched: Mapping[str, Tensor], predicted: int, ids: Tensor) -> None:
        self.loaded, self.stack, self.touched, self.predicted = loaded, loaded.stack, touched, predicted
        self.blocks: dict[int | None, list[str]] = {}
        for name in touched:
            self.blocks.setdefault(loaded.table[name].block, []).append(name)
        self.sums: dict[str, Tensor] = {}
        self.embeds = self.stack.embed(ids[:, :2]).hidden.requires_grad if None in self.blocks else False
        inside = [number for number in self.blocks if number is not None]
        self.lowest = 0 if self.embeds else min(inside, default=len(self.stack))

    def one_batch(self, ids: Tensor) -> None:
        """Add a batch's share of the gradient: its summed NLL over all predicted tokens."""
        with torch.no_grad():
            prologue = self.stack.embed(ids)
            states = [prologue.hidden]
            for number in range(len(self.stack)):
                states.append(self.stack.run_block(number, states[-1], prologue))
        hidden = states.pop().requires_grad_()
        logits = self.stack.head(hidden, ids)[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / self.predicted
        upstream = self._back(loss, None, hidden, None)
        del logits, loss
        for number in reversed(range(self.lowest, len(self.stack))):
            hidden = states.pop().requires_grad_()  # of the block's input
            upstream = self._back(self.stack.run_block(number, hidden, prologue), upstream, hidden, number)
        if self.embeds:
            again = self.stack.embed(ids)
            if any(tensor.requires_grad for tensor in tensors_in(again.arguments)):
                raise ModelError(
                    "a block's arguments depend on a touched parameter outside the blocks: its gradient would be incomplete",
                    hint="leave the parameters outside the blocks out with score.exclude",
                )
            self._back(again.hidden, upstream, None, None)

    def _back(self, output: Tensor, upstream: Tensor | None, hidden: Tensor | None, block: int | None) -> Tensor | None:
        """Add the gradients of a part's touched tensors; return that in the part's input."""
        names = self.blocks.get(block, [])
        sources = [*([] if hidden is None else [hidden]), *(self.loaded.weights[name].source() for name in names)]
        found = list(torch.autograd.grad(output, sources, upstream, allow_unused=True))
        below = None if hidden is None else found.pop(0)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                picked = gradient.reshape(-1)[self.touched[name].to(gradient.device)].double()
                self.sums[name] = picked if name not in self.sums else self.sums[name] + picked
        return below


def _batches(ids: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield neighbouring windows of equal length, at most ``batch_tokens`` tokens of them, at least one."""
    for length, group in groupby(ids, key=len):
        rows = list(group)
        step = max(1, batch_tokens // length)
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


def _require_gradients(sums: Mapping[str, Tensor], touched: Mapping[str, Tensor]) -> None:
    missing = [name for name in touched if name not in sums]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"no gradient reaches {len(missing)} of the touched parameters: {shown}",
            hint="leave them out with score.exclude, or perturb them with a method that needs no gradient",
        )
    broken = [name for name, total in sums.items() if not bool(total.isfinite().all())]
    if broken:
        raise ModelError(
            f"the gradient of the calibration loss in {broken[0]} is not finite",
            hint="try dtype = 'float32'",
        )
