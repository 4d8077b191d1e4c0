"""Wanda: weight times the root mean square of its input."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def wanda(weight: Tensor, rms_input: Tensor) -> Tensor:
    """Score each weight by ``|w_ij| * sqrt(E_t x_j^2)``.

    Args: weight ``(d_out, d_in)`` in any storage order, or ``(experts, ...)``; rms_input float32, broadcast along the input
    axis: the root of the mean over all tokens of ``x_j^2``. For an expert the sum runs over the tokens routed to it and is
    divided by all tokens; a tied tensor adds up over its uses (as embedding and as
    head; uses along one axis are one use on more tokens). Returns: float32 scores, the shape of ``weight``.
    Cost: one forward pass over the windows.
    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024. The paper takes the
    norm, not the mean: a constant factor within a run.
    """
    return weight.float().abs() * rms_input


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    assert statistics.rms_input is not None
    return Scores(wanda(weight, statistics.rms_input))


METRIC = Metric("wanda", Needs.FORWARD, _score, applies=lambda statistics: statistics.rms_input is not None)
