"""Gauss-Newton saliency: optimal brain damage with the Gauss-Newton diagonal in place of the Hessian's."""

from torch import Tensor

from esa.score.gradients import SAMPLED, SAMPLED_STDERR
from esa.score.metric import Metric, Needs, Scores, Statistics


def ggn_obd(weight: Tensor, diagonal: Tensor) -> Tensor:
    """Score each weight by ``w^2 d / 2``, nats; d the Gauss-Newton diagonal of :func:`esa.score.ggn_diag.ggn_diag`.

    Args: weight, any shape; diagonal the same shape, float32, not negative. Returns: float32, same shape.
    Cost: that of the diagonal.
    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1990, whose own diagonal drops the second derivatives of the network
    in the same way.
    """
    return weight.float().square() * diagonal / 2


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    error = statistics.gradients.get(SAMPLED_STDERR)
    score = ggn_obd(weight, statistics.gradient(SAMPLED))
    return Scores(score, stderr=None if error is None else ggn_obd(weight, error))


METRIC = Metric("ggn_obd", Needs.BACKWARD, _score, gradients=(SAMPLED,))
