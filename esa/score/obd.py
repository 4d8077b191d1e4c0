"""Optimal brain damage: the second-order change of the loss when a weight is zeroed."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def obd(weight: Tensor, diagonal: Tensor) -> Tensor:
    """Return each weight's signed saliency ``w^2 h / 2``, nats; the score is its absolute value.

    Args: weight, any shape; diagonal the same shape, float32: the signed diagonal of the Hessian of L (Hutchinson's
    estimate). Returns: float32, same shape. Cost: that of the diagonal.
    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1990. The paper assumes a minimum, where the first-order term
    vanishes and h is positive; a trained model's windows are none, so the sign is kept.
    """
    return weight.float().square() * diagonal / 2


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    assert statistics.hessian_diagonal is not None
    signed = obd(weight, statistics.hessian_diagonal)
    stderr = None if statistics.hessian_stderr is None else obd(weight, statistics.hessian_stderr)
    return Scores(signed.abs(), signed=signed, stderr=stderr)


METRIC = Metric("obd", Needs.DOUBLE_BACKWARD, _score)
