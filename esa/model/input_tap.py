"""Watch what reaches every weight: sums over tokens of the absolute and squared inputs of each linear map."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from esa.model.precision import wide, wide_device


@dataclass
class InputStatistics:
    """What one use of a parameter saw along the storage axis that it contracts.

    ``axis``: the input axis in storage. ``sum_abs``, ``sum_square``: float64, ``(d_in,)``, or ``(parts, d_in)`` where the
    tensor is multiplied in equal parts along its first axis: fused experts, and matrices that lie on top of each other in
    one of two dimensions. ``rows``: tokens seen, ``()`` or ``(parts,)``. An embedding's input is the one-hot token: both
    sums count it.
    """

    axis: int
    sum_abs: Tensor
    sum_square: Tensor
    rows: Tensor

    def along(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Return per-input ``values``, of the shape of the sums, ready to broadcast over the stored tensor of ``shape``."""
        view = [1] * len(shape)
        view[self.axis] = shape[self.axis]
        if values.ndim == 1:
            return values.view(view)
        if len(shape) == 3:
            view[0] = shape[0]
            return values.view(view)
        if self.axis == 0:  # stacked matrices that contract their rows
            return values.reshape(-1, 1)
        return values.repeat_interleave(shape[0] // len(values), dim=0)


class InputTap(TorchFunctionMode):
    """Record the inputs of every product with a watched parameter while ``active``.

    It sees ``linear``, ``addmm`` (Conv1D), ``matmul``, ``bmm`` and ``embedding`` calls, so that it needs no knowledge of
    modules: a router that is no nn.Linear and a slice of fused experts are recognised by the storage they read; what
    multiplies no input (a convolution, a state-space matrix) is not seen. The contracted axis follows from the operand's
    strides. A layer that multiplies by codes announces its input (``announce``). Cost: two reductions over each input.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._names = set(parameters)
        self._staying = {name: parameter for name, parameter in parameters.items() if not parameter.is_meta}
        self._by_storage: dict[int, list[tuple[str, nn.Parameter]]] = {}
        self.look_at({})
        self.statistics: dict[
            str, dict[tuple[int, int], InputStatistics]
        ] = {}  # name -> contracted axis, parts -> statistics
        self.num_tokens = 0
        self.active = False

    def look_at(self, arrived: Mapping[str, nn.Parameter]) -> None:
        """Look for the watched ones of a block that came into memory, in place of the one before: its storage may be theirs."""
        self._by_storage = {}
        here = {name: parameter for name, parameter in arrived.items() if name in self._names}
        for name, parameter in (self._staying | here).items():
            self._by_storage.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is announce:
            return self._announced(*args) if self.active else None
        if self.active and (found := operands(func, args, kwargs)) is not None:
            inputs, weight, contracted = found
            for name, parameter in self._by_storage.get(weight.untyped_storage().data_ptr(), ()):
                if 0 <= weight.storage_offset() - parameter.storage_offset() < parameter.numel():
                    with torch.no_grad(), torch._C.DisableTorchFunction():
                        self._record(name, parameter, inputs.detach(), weight.detach(), contracted)
        return func(*args, **kwargs)

    def _announced(self, inputs: Tensor, parameter: Tensor) -> None:
        for name, _ in self._by_storage.get(parameter.untyped_storage().data_ptr(), ()):
            with torch.no_grad(), torch._C.DisableTorchFunction():
                statistics = self._statistics(name, 1, 1, (inputs.shape[-1],), inputs.device)
                _add(statistics, ..., inputs.detach())

    def _record(self, name: str, parameter: nn.Parameter, inputs: Tensor, weight: Tensor, contracted: int) -> None:
        if weight.ndim == 3:  # a product per part: an input that is zero throughout is a token not routed to it
            for part, values in zip(weight, inputs):
                self._record(name, parameter, values[values.ne(0).any(-1)], part, contracted - 1)
            return
        parts, rest = divmod(parameter.numel(), max(weight.numel(), 1))
        if rest or parameter.shape[0] % parts or (parameter.ndim == 3 and parts != parameter.shape[0]):
            return  # some other slice: not a whole linear map
        stride, length = weight.stride(contracted), weight.shape[contracted]
        first = 1 if parameter.ndim == 3 else 0
        sizes = {a: parameter.shape[a] // (parts if a == 0 else 1) for a in range(first, parameter.ndim)}
        axis = next((a for a, size in sizes.items() if parameter.stride(a) == stride and size == length), None)
        place, off = divmod(int(weight.storage_offset()) - int(parameter.storage_offset()), weight.numel())
        if axis is None or off:
            return
        several = parts > 1 or parameter.ndim == 3
        shape = (parts, length) if several else (length,)
        _add(self._statistics(name, axis, parts, shape, parameter.device), place if several else ..., inputs)

    def _statistics(
        self, name: str, axis: int, parts: int, shape: tuple[int, ...], device: torch.device
    ) -> InputStatistics:
        """Return the statistics of one use of a parameter, zero at first."""
        statistics = self.statistics.setdefault(name, {}).get((axis, parts))
        if statistics is None:
            zeros = torch.zeros(shape, dtype=torch.float64, device=wide_device(device))
            rows = torch.zeros(shape[:-1], dtype=torch.int64, device=wide_device(device))
            statistics = self.statistics[name][axis, parts] = InputStatistics(axis, zeros, zeros.clone(), rows)
        return statistics


def _add(statistics: InputStatistics, into: Any, inputs: Tensor) -> None:
    """Add inputs ``(..., d_in)``, or token numbers that are looked up, to the sums of one part or of all."""
    if inputs.dtype in (torch.int64, torch.int32):
        counts = wide(torch.bincount(inputs.reshape(-1), minlength=statistics.sum_abs.shape[-1]))
        statistics.sum_abs[into] += counts
        statistics.sum_square[into] += counts
        statistics.rows[into] += inputs.numel()
        return
    flat = inputs.reshape(-1, inputs.shape[-1]).to(statistics.rows.device).float()
    statistics.sum_abs[into] += flat.abs().sum(0, dtype=torch.float64)
    statistics.sum_square[into] += flat.square().sum(0, dtype=torch.float64)
    statistics.rows[into] += flat.shape[0]


def announce(inputs: Tensor, parameter: Tensor) -> None:
    """Tell a tap, if one looks on, what a parameter that is stored as codes is about to multiply."""
    if has_torch_function_unary(inputs):
        handle_torch_function(announce, (inputs,), inputs, parameter)


_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)


def operands(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, int] | None:
    """Return input, weight and the weight's contracted dimension of a product with a weight, or None for any other call.

    A weight of three dimensions multiplies an input of three, part by part. A matrix before a batch of matrices is the
    weight, its inputs their columns.
    """
    if func is F.linear:
        return args[0], args[1] if len(args) > 1 else kwargs["weight"], 1
    if func is torch.addmm:
        return args[1], args[2], 0
    if func is torch.baddbmm:
        return args[1], args[2], 1
    if func is F.embedding:
        return args[0], args[1] if len(args) > 1 else kwargs["weight"], 0
    if func not in _MATMULS or len(args) < 2:
        return None
    left, right = args[0], args[1]
    if right.ndim == 2:
        return left, right, 0
    if left.ndim == 2 and right.ndim == 3:
        return right.transpose(-1, -2), left, 1
    if left.ndim == right.ndim == 3 and len(left) == len(right):
        return left, right, 1
    return None
