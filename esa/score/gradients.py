"""Accumulate what the backward metrics read: sums over windows of functions of each window's gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from esa.score.labels import Labels

Update = Callable[[Tensor, Tensor, int], Tensor]  # accumulator, gradient, T_n -> accumulator

# mean_n f(g_n) = sum_n T_n f(g_n) / sum_n T_n, of the gradients on the text's own labels
UPDATES: dict[str, Update] = {
    "mean_gradient": lambda total, g, tokens: total.add_(g, alpha=tokens),
    "mean_abs_gradient": lambda total, g, tokens: total.add_(g.abs(), alpha=tokens),
    "mean_squared_gradient": lambda total, g, tokens: total.addcmul_(g, g, value=tokens),
    "mean_token_squared_gradient": lambda total, g, tokens: total.addcmul_(g, g, value=tokens**2),
}
SAMPLED = "sampled_squared_gradient"  # mean_n mean_r T_n g_nr^2, on labels drawn from the model
SAMPLED_STDERR = "sampled_squared_stderr"  # of it, over the draws; from two draws on


class GradientSums:
    """Hold the accumulators of the parameters that are being reached, float32, until they are taken."""

    def __init__(self, names: Sequence[str], predicted: Sequence[int], labels: Labels) -> None:
        self.text = [name for name in dict.fromkeys(names) if name in UPDATES]
        self.sampled = [SAMPLED, SAMPLED_STDERR][: min(labels.resamples, 2)] if SAMPLED in names else []
        self.predicted = list(predicted)
        self.labels = labels
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._draws: dict[str, tuple[Tensor, Tensor]] = {}  # of one window: sum and sum of squares over its draws

    def add(
        self, parameter: str, window: int, draw: int, gradient: Tensor, rows: Tensor | None, shape: Sequence[int]
    ) -> None:
        """Add one gradient of window ``window``'s mean NLL: of the whole tensor, or of some distinct rows."""
        sums = self._sums.get(parameter)
        if sums is None:
            names = [*self.text, *self.sampled]
            zeros = {name: torch.zeros(tuple(shape), dtype=torch.float32, device=gradient.device) for name in names}
            sums = self._sums[parameter] = zeros
        values, tokens = gradient.float(), self.predicted[window]
        resample = self.labels.resample_of(draw)
        if resample is None:
            for name in self.text:
                _update(sums[name], rows, lambda total, name=name: UPDATES[name](total, values, tokens))  # type: ignore[misc]
        elif self.labels.resamples == 1:
            _update(sums[SAMPLED], rows, lambda total: total.addcmul_(values, values, value=tokens**2))
        elif self.sampled:
            self._add_draw(parameter, resample, values.square_().mul_(tokens), tokens, rows)

    def _add_draw(self, parameter: str, resample: int, sample: Tensor, tokens: int, rows: Tensor | None) -> None:
        """Add a window's sample T_n g^2; with its last draw, its mean and the variance of that go into the sums."""
        number, sums = self.labels.resamples, self._sums[parameter]
        if resample == 0:
            self._draws[parameter] = torch.zeros_like(sample), torch.zeros_like(sample)
        first, second = self._draws[parameter]
        first.add_(sample)
        second.addcmul_(sample, sample)
        if resample < number - 1:
            return
        del self._draws[parameter]
        spread = second.sub_(first.square().div_(number)).clamp_(min=0)  # (m - 1) times the variance of one draw
        _update(sums[SAMPLED], rows, lambda total: total.add_(first, alpha=tokens / number))
        _update(sums[SAMPLED_STDERR], rows, lambda total: total.add_(spread, alpha=tokens**2 / (number * (number - 1))))

    def take(self, parameter: str) -> dict[str, Tensor]:
        """Return the parameter's means over windows, and the standard error where there is one; forget them."""
        total = sum(self.predicted)
        found = {}
        for name, tensor in self._sums.pop(parameter).items():
            found[name] = tensor.sqrt_().div_(total) if name == SAMPLED_STDERR else tensor.div_(total)
        return found


def _update(total: Tensor, rows: Tensor | None, change: Callable[[Tensor], Tensor]) -> None:
    """Change the accumulator in place: the whole, or some distinct rows."""
    if rows is None:
        change(total)
    else:
        total[rows] = change(total[rows])
