"""Hutchinson's estimate of the Hessian's diagonal."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def hutchinson_diag(diagonal: Tensor) -> Tensor:
    """Score each weight by ``|h_i|``, h_i the mean over probes of ``z_i (H z)_i``, z Rademacher; nats per squared unit.

    Args: diagonal, the weight's shape, float32, signed: E[z (Hz)] is the diagonal of the Hessian H of L, and the variance of
    one probe's entry i is the sum over j != i of H_ij^2. Each window draws its own probes: the estimate of mean_n H_n is
    unbiased, and its standard error is that of the probes, given the windows. Returns: float32, same shape.
    Cost: per window one forward, one backward with a graph, and one more backward per probe; eager attention.
    Source: Bekas et al., An estimator for the diagonal of a matrix, Applied Numerical Mathematics 2007; Yao et al.,
    AdaHessian, AAAI 2021.
    """
    return diagonal.abs()


def _score(_: Tensor, statistics: Statistics) -> Scores:
    assert statistics.hessian_diagonal is not None
    diagonal = statistics.hessian_diagonal
    return Scores(hutchinson_diag(diagonal), signed=diagonal, stderr=statistics.hessian_stderr)


METRIC = Metric("hutchinson_diag", Needs.DOUBLE_BACKWARD, _score)
