"""Watch what reaches every weight: sums over tokens of the absolute and squared inputs of each linear map."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from esa.model.precision import wide, wide_device


@dataclass
class InputStatistics:
    """What one use of a parameter saw along the storage axis that it contracts.

    ``axis``: the input axis in storage. ``sum_abs``, ``sum_square``: float64, ``(d_in,)`` or ``(experts, d_in)``.
    ``rows``: tokens seen, ``()`` or ``(experts,)``. An embedding's input is the one-hot token: both sums count it.
    """

    axis: int
    sum_abs: Tensor
    sum_square: Tensor
    rows: Tensor


class InputTap(TorchFunctionMode):
    """Record the inputs of every product with a watched parameter while ``active``.

    It sees ``linear``, ``addmm`` (Conv1D), ``matmul`` and ``embedding`` calls, so that it needs no knowledge of modules:
    a router that is no nn.Linear and a slice of fused experts are recognised by the storage they read. The contracted axis
    follows from the operand's strides. Cost: two reductions over each input.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._by_storage: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in parameters.items():
            self._by_storage.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter))
        self.statistics: dict[str, dict[int, InputStatistics]] = {}  # name -> contracted axis -> statistics
        self.num_tokens = 0
        self.active = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.active and (found := operands(func, args, kwargs)) is not None:
            inputs, weight, contracted = found
            for name, parameter in self._by_storage.get(weight.untyped_storage().data_ptr(), ()):
                if 0 <= weight.storage_offset() - parameter.storage_offset() < parameter.numel():
                    with torch.no_grad(), torch._C.DisableTorchFunction():
                        self._record(name, parameter, inputs.detach(), weight.detach(), contracted)
        return func(*args, **kwargs)

    def _record(self, name: str, parameter: nn.Parameter, inputs: Tensor, weight: Tensor, contracted: int) -> None:
        experts = parameter.shape[0] if parameter.ndim == 3 else 0
        if weight.numel() * max(experts, 1) != parameter.numel():
            return  # some other slice: not a whole linear map
        stride, length = weight.stride(contracted), weight.shape[contracted]
        axes = range(1 if experts else 0, parameter.ndim)
        axis = next((a for a in axes if parameter.stride(a) == stride and parameter.shape[a] == length), None)
        if axis is None:
            return
        size = parameter.shape[axis]
        statistics = self.statistics.setdefault(name, {}).get(axis)
        if statistics is None:
            shape = (experts, size) if experts else (size,)
            zeros = torch.zeros(shape, dtype=torch.float64, device=wide_device(parameter.device))
            rows = torch.zeros(shape[:-1], dtype=torch.int64, device=wide_device(parameter.device))
            statistics = self.statistics[name][axis] = InputStatistics(axis, zeros, zeros.clone(), rows)
        into: Any = (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0) if experts else ...
        if inputs.dtype in (torch.int64, torch.int32):  # token numbers looked up
            counts = wide(torch.bincount(inputs.reshape(-1), minlength=size))
            statistics.sum_abs[into] += counts
            statistics.sum_square[into] += counts
            statistics.rows[into] += inputs.numel()
            return
        flat = inputs.reshape(-1, inputs.shape[-1]).to(statistics.rows.device).float()
        statistics.sum_abs[into] += flat.abs().sum(0, dtype=torch.float64)
        statistics.sum_square[into] += flat.square().sum(0, dtype=torch.float64)
        statistics.rows[into] += flat.shape[0]


_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)


def operands(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, int] | None:
    """Return input, weight and the weight's contracted dimension of a product with a weight, or None for any other call."""
    if func is F.linear:
        return args[0], args[1] if len(args) > 1 else kwargs["weight"], 1
    if func is torch.addmm:
        return args[1], args[2], 0
    if func is F.embedding:
        return args[0], args[1] if len(args) > 1 else kwargs["weight"], 0
    if func in _MATMULS and args[1].ndim == 2:
        return args[0], args[1], 0
    return None
