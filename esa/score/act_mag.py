"""Activation magnitude: the size of what a weight passes on."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def act_mag(weight: Tensor, mean_abs_input: Tensor) -> Tensor:
    """Score each weight by the size of what it passes on: ``E_t |x_j| * |w_ij|``.

    Args: weight ``(d_out, d_in)`` in any storage order, or ``(experts, ...)``; mean_abs_input float32, broadcast along the
    input axis: the mean over all tokens of ``|x_j|``. As an embedding, ``x`` is the one-hot token, so that it is the
    token's frequency; for an expert the sum runs over the tokens routed to it and is divided by all tokens; a tied tensor
    adds up over its uses. Returns: float32 scores, the shape of ``weight``. Cost: one forward pass over the windows.
    Source: the salience of AWQ (Lin et al., AWQ: Activation-aware Weight Quantization, MLSys 2024) per weight. Wanda takes
    the root mean square instead.
    """
    return weight.float().abs() * mean_abs_input


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    assert statistics.mean_abs_input is not None
    return Scores(act_mag(weight, statistics.mean_abs_input))


METRIC = Metric("act_mag", Needs.FORWARD, _score, applies=lambda statistics: statistics.mean_abs_input is not None)
