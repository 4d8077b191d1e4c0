"""Which labels a window's loss takes: the text's own next tokens, or draws from the model's own predictions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from esa.spec import generator

_CHUNK = 32  # positions whose probabilities are held in float64 at once


@dataclass(frozen=True)
class Labels:
    """The losses of one pass, in order: draw 0 is the text's own if ``text``, then ``resamples`` draws from the model."""

    text: bool = True
    resamples: int = 0
    seed: int = 0

    @property
    def num_draws(self) -> int:
        """Return how many losses every window has."""
        return int(self.text) + self.resamples

    def resample_of(self, draw: int) -> int | None:
        """Return the number of a draw among the sampled ones, None for the text's own labels."""
        number = draw - int(self.text)
        return None if number < 0 else number

    def of(self, logits: Tensor, ids: Tensor, window: int, draw: int) -> Tensor:
        """Return the labels ``(T,)`` of one window and draw; logits ``(1, T + 1, V)``, ids ``(1, T + 1)``."""
        resample = self.resample_of(draw)
        if resample is None:
            return ids[0, 1:]
        return sampled_labels(logits, self.seed, window, resample).to(ids.device)


TEXT = Labels()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean NLL (nats) of labels ``(T,)`` under one window's logits ``(1, T + 1, V)``."""
    return F.cross_entropy(logits[0, :-1].float(), labels)


def window_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean NLL (nats) of one window's predicted tokens; logits ``(1, T + 1, V)``, ids ``(1, T + 1)``."""
    return label_loss(logits, ids[0, 1:])


def sampled_labels(logits: Tensor, seed: int, window: int, resample: int) -> Tensor:
    """Return labels ``(T,)`` drawn from the model's predictions, each position on its own.

    The inverse of the cumulative probability in float64 at one uniform number per position, from the stream of this seed,
    window and resample. Summed on the CPU: the order of a GPU's cumulative sum is not fixed.
    """
    uniform = torch.from_numpy(generator(seed, "labels", window, resample).random(logits.shape[1] - 1))
    positions = logits.detach()[0, :-1]
    drawn = []
    for start in range(0, len(positions), _CHUNK):
        part = positions[start : start + _CHUNK].cpu().double()
        below = part.softmax(-1).cumsum(-1)
        at = uniform[start : start + _CHUNK] * below[:, -1]
        drawn.append(torch.searchsorted(below, at[:, None], right=True).squeeze(1).clamp_(max=part.shape[-1] - 1))
    return torch.cat(drawn)
