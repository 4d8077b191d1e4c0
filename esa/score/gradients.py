"""Accumulate what the backward metrics read: sums over windows of functions of each window's gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esa.score.labels import Labels
from esa.score.pieces import num_rows
from esa.score.ranks import ALONE, Ranks

Update = Callable[[Tensor, Tensor, int], Tensor]  # accumulator, gradient, T_n -> accumulator
Zeros = Callable[[Sequence[int], torch.device], Tensor]  # shape, device -> float32 zeros

# mean_n f(g_n) = sum_n T_n f(g_n) / sum_n T_n, of the gradients on the text's own labels
UPDATES: dict[str, Update] = {
    "mean_gradient": lambda total, g, tokens: total.add_(g, alpha=tokens),
    "mean_abs_gradient": lambda total, g, tokens: total.add_(g.abs(), alpha=tokens),
    "mean_squared_gradient": lambda total, g, tokens: total.addcmul_(g, g, value=tokens),
    "mean_token_squared_gradient": lambda total, g, tokens: total.addcmul_(g, g, value=tokens**2),
}
SAMPLED = "sampled_squared_gradient"  # mean_n mean_r T_n g_nr^2, on labels drawn from the model
SAMPLED_STDERR = "sampled_squared_stderr"  # of it, over the draws; from two draws on
_FIRST, _SECOND = "sum over draws", "sum of squares over draws"  # of one window


def in_memory(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return float32 zeros in memory."""
    return torch.zeros(tuple(shape), dtype=torch.float32, device=device)


class GradientSums:
    """Hold the accumulators of the parameters that are being reached, float32, until they are taken.

    ``predicted``: the predicted tokens of every window of the seed, by its number. ``zeros``: where accumulators live.
    A gradient is added a few rows at a time: a piece that stays in the processor's cache costs no trip to memory and no fresh
    pages, which take ten times as long as the sum itself.
    """

    def __init__(
        self, names: Sequence[str], predicted: Sequence[int], labels: Labels, zeros: Zeros = in_memory
    ) -> None:
        self.text = [name for name in dict.fromkeys(names) if name in UPDATES]
        self.sampled = [SAMPLED, SAMPLED_STDERR][: min(labels.resamples, 2)] if SAMPLED in names else []
        self.predicted = list(predicted)
        self.labels = labels
        self._zeros = zeros
        self._sums: dict[str, _Sums] = {}

    def add(
        self, parameter: str, window: int, draw: int, gradient: Tensor, rows: Tensor | None, shape: Sequence[int]
    ) -> None:
        """Add one gradient of window ``window``'s mean NLL: of the whole tensor, or of some distinct rows."""
        sums = self.open(parameter, shape, gradient.device)
        tokens, resample = self.predicted[window], self.labels.resample_of(draw)
        step = num_rows(shape, gradient.device)
        for start in range(0, len(gradient), step):
            part = slice(start, start + step)
            place: slice | Tensor = part if rows is None else rows[part]
            values = gradient[part].to(dtype=torch.float32, device=sums.device)
            if resample is None:
                for name in self.text:
                    sums.change(name, place, UPDATES[name], values, tokens)
            elif self.labels.resamples == 1:
                sums.change(SAMPLED, place, UPDATES["mean_token_squared_gradient"], values, tokens)
            elif self.sampled:
                self._add_draw(sums, resample, values.square().mul_(tokens), tokens, place)

    def _add_draw(self, sums: "_Sums", resample: int, sample: Tensor, tokens: int, place: slice | Tensor) -> None:
        """Add a window's sample T_n g^2; with its last draw, its mean and the variance of that go into the sums."""
        number = self.labels.resamples
        if resample == 0:
            sums.change(_FIRST, place, Tensor.zero_)
            sums.change(_SECOND, place, Tensor.zero_)
        sums.change(_FIRST, place, Tensor.add_, sample)
        sums.change(_SECOND, place, Tensor.addcmul_, sample, sample)
        if resample < number - 1:
            return
        first, second = sums.tensors[_FIRST][place], sums.tensors[_SECOND][place]
        spread = second.sub(first.square().div_(number)).clamp_(min=0)  # (m - 1) times the variance of one draw
        sums.change(SAMPLED, place, Tensor.add_, first * (tokens / number))
        sums.change(SAMPLED_STDERR, place, Tensor.add_, spread * (tokens**2 / (number * (number - 1))))

    def open(self, parameter: str, shape: Sequence[int], device: torch.device) -> "_Sums":
        """Return a parameter's accumulators, zeros where nothing was added yet."""
        sums = self._sums.get(parameter)
        if sums is None:
            draws = [_FIRST, _SECOND] if len(self.sampled) == 2 else []
            names = [*self.text, *self.sampled, *draws]
            sums = self._sums[parameter] = _Sums({name: self._zeros(shape, device) for name in names})
        return sums

    def take(
        self, parameter: str, shape: Sequence[int], device: torch.device, ranks: Ranks = ALONE, owner: int = 0
    ) -> dict[str, Tensor]:
        """Return the parameter's means over windows, and the standard error where there is one; forget them.

        They are over the windows of all processes in that of rank ``owner``; the others have none.
        """
        total = sum(self.predicted)
        self.open(parameter, shape, device)  # no window of this process may have reached it
        found = {
            name: tensor for name, tensor in self._sums.pop(parameter).tensors.items() if name not in (_FIRST, _SECOND)
        }
        for tensor in found.values():
            ranks.add(tensor, owner)
        if ranks.rank != owner:
            return {}
        for name, tensor in found.items():
            step = num_rows(tensor.shape, tensor.device)
            for start in range(0, len(tensor), step):
                part = tensor[start : start + step]
                part.sqrt_().div_(total) if name == SAMPLED_STDERR else part.div_(total)
        return found


@dataclass
class _Sums:
    """One parameter's accumulators by name, on one device."""

    tensors: dict[str, Tensor]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def change(self, name: str, place: slice | Tensor, change: Callable[..., Tensor], *values: Any) -> None:
        """Let ``change(total, *values)`` change an accumulator in place: a range of its rows, or some distinct ones."""
        total = self.tensors[name]
        if isinstance(place, slice):
            change(total[place], *values)
        else:
            place = place.to(self.device)
            total[place] = change(total[place], *values)
