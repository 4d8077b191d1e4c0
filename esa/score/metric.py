"""What a metric is: what it needs from the model, and the pure function that turns it into scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Needs(IntEnum):
    """The dearest thing a metric asks of the model, cheapest first."""

    WEIGHTS = 0
    FORWARD = 1
    BACKWARD = 2
    DOUBLE_BACKWARD = 3


@dataclass(frozen=True)
class Peak:
    """Where the output y of an MLP's projection peaks in abs(y): channel ``row`` at position ``token`` of its window.

    ``value``: y there. ``inputs``: what the projection read there, ``(d_in,)`` float32, under None, or per expert times its
    routing weight. ``axes``: output and input axis of the stored tensor. ``hidden``: the residual stream behind the block at
    the same place; ``median`` of its abs over all tokens and channels. ``ratio``: largest over median channel maximum of
    abs(y), None where that is zero. ``candidate``: whether the peak stands out. ``window``: which window. ``response``: what
    the residual stream becomes when the projection's output loses some amounts (ascending), where that is not the plain
    difference: a norm, a factor or a gate stands between; both ``(points,)`` float64 on the CPU.
    """

    inputs: dict[int | None, Tensor]
    axes: tuple[int, int]
    row: int
    window: int
    token: int
    value: float
    hidden: float
    median: float
    ratio: float | None
    candidate: bool
    response: tuple[Tensor, Tensor] | None = None

    def without(self, contribution: Tensor) -> Tensor:
        """Return the residual stream at the peak without each of some contributions to y, float64, ``(d_in,)``."""
        if self.response is None:
            return self.hidden - contribution
        lost, hidden = (part.numpy() for part in self.response)
        return torch.from_numpy(np.interp(contribution.cpu().numpy(), lost, hidden)).to(contribution.device)

    def facts(self) -> dict[str, float | int | None]:
        """Return the columns of ``tensors/1`` that tell of the peak."""
        return {"peak": self.value, "peak_ratio": self.ratio, "peak_token": self.token, "peak_row": self.row}


@dataclass
class Statistics:
    """What a pass over the windows knows of one parameter; every tensor is float32 and broadcasts to the weight's shape.

    ``mean_abs_input``, ``rms_input``: per input, summed over the uses of a tied tensor. ``gradients``, with g_n the gradient
    of window n's mean NLL (nats) and mean_n weighted by its T_n predicted tokens: ``mean_gradient``: mean_n g_n;
    ``mean_abs_gradient``: mean_n abs(g_n); ``mean_squared_gradient``: mean_n g_n^2; ``mean_token_squared_gradient``:
    mean_n T_n g_n^2; ``sampled_squared_gradient``: the last, averaged over draws of the labels from the model, with
    ``sampled_squared_stderr``. ``hessian_diagonal``, ``hessian_stderr``: of L, signed. ``usage``: share of the tokens that
    reach the tensor, or each of its experts. ``peaks``: of an MLP's output projection, one per round. ``members``: the scores
    of other metrics by name, which an ensemble combines.
    """

    mean_abs_input: Tensor | None = None
    rms_input: Tensor | None = None
    peaks: list[Peak] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    hessian_diagonal: Tensor | None = None
    hessian_stderr: Tensor | None = None
    usage: Tensor | None = None
    members: dict[str, Tensor] = field(default_factory=dict)

    def gradient(self, name: str) -> Tensor:
        """Return an accumulated gradient statistic by name."""
        return self.gradients[name]


@dataclass(frozen=True)
class Scores:
    """Scores of one tensor, float32 in the weight's shape; ``signed`` and ``stderr`` where the metric has them.

    ``facts``: columns of ``tensors/1`` that only this metric knows.
    """

    score: Tensor
    signed: Tensor | None = None
    stderr: Tensor | None = None
    facts: dict[str, float | int | None] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Scores":
        """Return the scores on another device."""
        signed, stderr = self.signed, self.stderr
        return Scores(
            self.score.to(device),
            None if signed is None else signed.to(device),
            None if stderr is None else stderr.to(device),
            self.facts,
        )


@dataclass(frozen=True)
class Metric:
    """A metric by name: what it needs, which gradient statistics it reads, and how its scores follow.

    ``applies``: whether it has a meaning for a tensor with these statistics; ``partial``: by its definition it has one for
    some tensors alone. ``whole``: a score depends on more than its own weight's statistics, so that a tensor cannot be scored in
    pieces. ``reductions``: the same metric under other values of ``score.reduction``.
    """

    name: str
    needs: Needs
    score: Callable[[Tensor, Statistics], Scores]
    gradients: tuple[str, ...] = ()
    applies: Callable[[Statistics], bool] = lambda statistics: True
    partial: bool = False
    whole: bool = False
    reductions: Mapping[str, "Metric"] = field(default_factory=dict)
