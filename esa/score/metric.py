"""What a metric is: what it needs from the model, and the pure function that turns it into scores."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor


class Needs(IntEnum):
    """The dearest thing a metric asks of the model, cheapest first."""

    WEIGHTS = 0
    FORWARD = 1
    BACKWARD = 2
    DOUBLE_BACKWARD = 3


@dataclass
class Statistics:
    """What a pass over the windows knows of one parameter; every tensor is float32 and broadcasts to the weight's shape.

    ``mean_abs_input``, ``rms_input``: per input, summed over the uses of a tied tensor. ``mean_abs_gradient``:
    mean_n abs(g_n); ``mean_squared_gradient``: mean_n g_n^2; ``mean_token_squared_gradient``: mean_n T_n g_n^2, g_n the
    gradient of window n's mean NLL (nats) and mean_n weighted by its T_n predicted tokens. ``hessian_diagonal``,
    ``hessian_stderr``: of L, signed. ``usage``: share of the tokens that reach the tensor, or each of its experts.
    """

    mean_abs_input: Tensor | None = None
    rms_input: Tensor | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    hessian_diagonal: Tensor | None = None
    hessian_stderr: Tensor | None = None
    usage: Tensor | None = None

    def gradient(self, name: str) -> Tensor:
        """Return an accumulated gradient statistic by name."""
        return self.gradients[name]


@dataclass(frozen=True)
class Scores:
    """Scores of one tensor, float32 in the weight's shape; ``signed`` and ``stderr`` where the metric has them."""

    score: Tensor
    signed: Tensor | None = None
    stderr: Tensor | None = None

    def to(self, device: torch.device) -> "Scores":
        """Return the scores on another device."""
        signed, stderr = self.signed, self.stderr
        return Scores(
            self.score.to(device),
            None if signed is None else signed.to(device),
            None if stderr is None else stderr.to(device),
        )


@dataclass(frozen=True)
class Metric:
    """A metric by name: what it needs, which gradient statistics it reads, and how its scores follow."""

    name: str
    needs: Needs
    score: Callable[[Tensor, Statistics], Scores]
    gradients: tuple[str, ...] = ()
