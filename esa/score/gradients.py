"""Accumulate what the backward metrics read: sums over windows of functions of each window's gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, int], Tensor]  # accumulator, gradient, T_n -> accumulator

# mean_n f(g_n) = sum_n T_n f(g_n) / sum_n T_n
UPDATES: dict[str, Update] = {
    "mean_abs_gradient": lambda total, g, tokens: total.add_(g.abs(), alpha=tokens),
    "mean_squared_gradient": lambda total, g, tokens: total.addcmul_(g, g, value=tokens),
    "mean_token_squared_gradient": lambda total, g, tokens: total.addcmul_(g, g, value=tokens**2),
}


class GradientSums:
    """Hold the accumulators of the parameters that are being reached, float32, until they are taken."""

    def __init__(self, names: Sequence[str], predicted: Sequence[int]) -> None:
        self.names = list(dict.fromkeys(names))
        self.predicted = list(predicted)
        self._sums: dict[str, dict[str, Tensor]] = {}

    def add(self, parameter: str, window: int, gradient: Tensor, rows: Tensor | None, shape: Sequence[int]) -> None:
        """Add window ``window``'s gradient of its mean NLL: of the whole tensor, or of some distinct rows."""
        sums = self._sums.get(parameter)
        if sums is None:
            zeros = {
                name: torch.zeros(tuple(shape), dtype=torch.float32, device=gradient.device) for name in self.names
            }
            sums = self._sums[parameter] = zeros
        values = gradient.float()
        for name, total in sums.items():
            if rows is None:
                UPDATES[name](total, values, self.predicted[window])
            else:
                total[rows] = UPDATES[name](total[rows], values, self.predicted[window])

    def take(self, parameter: str) -> dict[str, Tensor]:
        """Return the parameter's means over windows and forget them."""
        total = sum(self.predicted)
        return {name: tensor.div_(total) for name, tensor in self._sums.pop(parameter).items()}
