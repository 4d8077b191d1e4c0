"""Second-order Taylor prediction of what zeroing a weight does to the loss."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def taylor2(weight: Tensor, mean_gradient: Tensor, diagonal: Tensor) -> Tensor:
    """Return each weight's predicted change of L when it is zeroed, ``-g w + h w^2 / 2``, nats; the score is its size.

    Args: weight, any shape; mean_gradient g and diagonal h the same shape, float32: gradient of L and signed diagonal of its
    Hessian (Hutchinson's estimate). Returns: float32, same shape, signed: positive where the loss is predicted to rise.
    The standard error is that of the second term, ``w^2 / 2`` times the diagonal's; the gradient is exact on its windows.
    Cost: that of the diagonal, whose first backward pass gives the gradient.
    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1990, its expansion before the first-order term is dropped;
    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019.
    """
    exact = weight.float()
    return exact.square() * diagonal / 2 - mean_gradient * exact


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    assert statistics.hessian_diagonal is not None
    signed = taylor2(weight, statistics.gradient("mean_gradient"), statistics.hessian_diagonal)
    error = statistics.hessian_stderr
    return Scores(signed.abs(), signed=signed, stderr=None if error is None else weight.float().square() * error / 2)


METRIC = Metric("taylor2", Needs.DOUBLE_BACKWARD, _score, gradients=("mean_gradient",))
