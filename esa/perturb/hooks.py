"""Perturbations that need a hook on the forward pass beside a change of the stored weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from esa.errors import TargetError
from esa.model import LoadedModel
from esa.model.quantized import QuantizedWeight
from esa.perturb.apply import Change

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


_DENSE = 16  # a matrix of the touched outputs is made where at least one in so many of its numbers is not zero
_PARTS = 1 << 24  # contributions that exist at once where they are taken one by one


def keep_peak(change: Change, shape: Sequence[int], module: nn.Module) -> Hook:
    """Return a forward hook that gives zeroed weights' contributions back at the peak token of every window.

    For each touched output i, with y_i ``(windows, tokens)`` the module's output that includes what the zeroed weights
    contributed, ``sum_j w_ij x_j`` (an embedding's x is the one-hot token), the peak token of a window is where abs(y_i) is
    largest: there y_i is handed on, elsewhere the output of the zeroed weights.
    Memory: ``(windows, tokens, outputs)`` numbers, and the touched outputs' matrix where most of it is touched, else at most
    16 M contributions at a time.
    """
    first, second = torch.unravel_index(change.index, tuple(shape))  # (touched,)
    reads, writes = (second, first) if isinstance(module, nn.Linear) else (first, second)
    rows, slot = torch.unique(writes, return_inverse=True)
    num_inputs = shape[1] if isinstance(module, nn.Linear) else shape[0]
    matrix = None
    if len(change.index) * _DENSE >= len(rows) * num_inputs:
        matrix = change.before.new_zeros((len(rows), num_inputs))
        matrix[slot, reads] = change.before

    def give_back(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if matrix is not None and isinstance(module, nn.Embedding):
            contributed = matrix.T[args[0]].to(output.dtype)  # (windows, tokens, rows)
        elif matrix is not None:
            contributed = nn.functional.linear(args[0].to(output.dtype), matrix.to(output.dtype))
        else:
            contributed = _one_by_one(module, args[0], reads, slot, change.before.to(output.dtype), len(rows))
        whole = output[..., rows] + contributed
        peak = whole.abs().argmax(dim=-2, keepdim=True)  # (windows, 1, rows)
        result = output.clone()
        result[..., rows] = output[..., rows].scatter(-2, peak, whole.gather(-2, peak))
        return result

    return give_back


def _one_by_one(
    module: nn.Module, inputs: Tensor, reads: Tensor, slot: Tensor, weights: Tensor, num_rows: int
) -> Tensor:
    """Return what single weights contribute to their outputs ``(windows, tokens, num_rows)``, added up in address order."""
    tokens = inputs if isinstance(module, nn.Embedding) else inputs[..., 0]
    total = torch.zeros((*tokens.shape, num_rows), dtype=weights.dtype, device=weights.device)
    step = max(1, _PARTS // tokens.numel())
    for start in range(0, len(reads), step):
        part = slice(start, start + step)
        read = tokens[..., None] == reads[part] if isinstance(module, nn.Embedding) else inputs[..., reads[part]]
        total.index_add_(-1, slot[part], (read * weights[part]).to(total.dtype))
    return total


# method -> what it puts on every module that uses a changed tensor
HOOKS: dict[str, Callable[[Change, Sequence[int], nn.Module], Hook]] = {"zero_keep_peak": keep_peak}
_SEEN_THROUGH = (nn.Linear, nn.Embedding, Conv1D)  # not what is derived from them: it may do more


def check_hooked(method: str, names: Sequence[str], loaded: LoadedModel, where: str) -> None:
    """Raise TargetError for a tensor whose product a hook cannot see window by window: a vector, a fused expert."""
    if method not in HOOKS:
        return
    for name in names:
        for module in _users(loaded, name):
            linear = type(module) in _SEEN_THROUGH or isinstance(loaded.weights[name], QuantizedWeight)
            if not linear or len(loaded.table[name].shape) != 2:
                raise TargetError(
                    f"{name} belongs to {type(module).__name__}; {method} gives contributions back to the outputs of"
                    " linear maps and embeddings",
                    where=where,
                    hint="give the method groups without such weights, or leave them out with score.exclude",
                )


def _users(loaded: LoadedModel, name: str) -> list[nn.Module]:
    """Return the modules that use a parameter: several where it is tied."""
    return [loaded.model.get_submodule(use.rpartition(".")[0]) for use in loaded.table[name].uses]


@contextmanager
def hooked(loaded: LoadedModel, method: str, changes: Sequence[Change]) -> Iterator[None]:
    """Run with the method's hooks on the modules that use the changed tensors; they are gone afterwards."""
    with ExitStack() as hooks:
        for change in changes if method in HOOKS else ():
            for module in _users(loaded, change.name):
                hook = HOOKS[method](change, loaded.table[change.name].shape, module)
                hooks.callback(module.register_forward_hook(hook).remove)
        yield
