"""Super activation: what a weight alone adds to the massive activation that its block writes."""

import torch
from torch import Tensor

from esa.model.precision import wide
from esa.score.metric import Metric, Needs, Peak, Scores, Statistics


def growth(weight: Tensor, inputs: Tensor, peak: Peak) -> Tensor:
    """Return the signed growth of one output's weights: ``(|h| - |h - w_j x_j|) / median``.

    Args: weight ``(d_in,)``, the weights that feed the output i* where the projection's output peaks; inputs ``(d_in,)``, x at
    the peak's token t*, an expert's times its routing weight. h is the residual stream behind the block at (t*, i*), the
    median that of abs(h) over all tokens and channels there. Where a norm, a factor or a gate stands between the projection
    and the residual stream, h without a contribution is measured (``Peak.response``) and not h - w_j x_j. Positive where the
    weight alone adds to the massive activation, negative where it erases one. Returns: float32 ``(d_in,)``, in medians.
    """
    without = peak.without(wide(weight) * wide(inputs))
    return ((abs(peak.hidden) - without.abs()) / peak.median).float().to(weight.device)


def super_activation(weight: Tensor, peak: Peak, output_axis: int, input_axis: int) -> tuple[Tensor, Tensor]:
    """Score each weight of an MLP's output projection by the massive activation that it alone writes.

    In each block's projection y, (t*, i*) is where abs(y) peaks over the calibration tokens. The weights of output i* have
    the signed growth of :func:`growth`, all others 0; the score is its positive part, and 0 in a block that is no candidate:
    whose largest channel maximum of abs(y) is less than ``score.peak_ratio`` (20) times the median one.
    Args: weight ``(d_out, d_in)`` in any storage order, or ``(experts, ...)``. Returns: score and signed growth, float32, the
    shape of ``weight``, in medians of abs(h). Other tensors have no score. Cost: one forward pass per round of ``score.rounds``:
    each zeroes the weight found and looks again, until no block stands out; a weight's score is its highest of all rounds.
    Source: after Yu et al., The Super Weight in Large Language Models, 2024, who read row and column off the maxima of the
    projection's output and input. Here the residual stream decides: a late block that erases a massive activation has the
    same spikes, and a negative growth.
    Raises ModelError where activations are not finite, or an expert's tokens cannot be told.
    """
    signed = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for expert, inputs in peak.inputs.items():
        matrix, into = (weight, signed) if expert is None else (weight[expert], signed[expert])
        drop = 0 if expert is None else 1
        axis = output_axis - drop
        values = growth(matrix.select(axis, peak.row), inputs.to(weight.device), peak)
        into.select(axis, peak.row).copy_(values)
        assert matrix.shape[input_axis - drop] == len(inputs)
    return (signed.clamp(min=0) if peak.candidate else torch.zeros_like(signed)), signed


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    first = statistics.peaks[0]
    score, signed = super_activation(weight, first, *first.axes)
    for peak in statistics.peaks[1:]:
        later, again = super_activation(weight, peak, *peak.axes)
        signed = torch.where(later > score, again, signed)
        score = torch.maximum(score, later)
    return Scores(score, signed=signed, facts=first.facts())


METRIC = Metric(
    "super_activation",
    Needs.FORWARD,
    _score,
    applies=lambda statistics: bool(statistics.peaks),
    partial=True,
    whole=True,
)
