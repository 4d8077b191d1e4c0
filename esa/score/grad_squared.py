"""Squared gradient: the diagonal of the empirical Fisher information."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def grad_squared(mean_squared_gradient: Tensor) -> Tensor:
    """Score each weight by ``mean_n g_n^2``, nats^2 per squared unit of weight (``reduction = "mean"``: by ``g^2``).

    Args: mean_squared_gradient, the weight's shape, float32: the mean over windows, weighted by their predicted tokens, of
    the squared gradient of the window's mean NLL. Squared per window, never on a batch mean. Returns: the same, float32.
    Cost: one forward and backward pass per window.
    Source: the empirical Fisher of Kunstner et al., Limitations of the Empirical Fisher Approximation, NeurIPS 2019, with
    the window as the sample.
    """
    return mean_squared_gradient


def _score(_: Tensor, statistics: Statistics) -> Scores:
    return Scores(grad_squared(statistics.gradient("mean_squared_gradient")))


def _score_mean(_: Tensor, statistics: Statistics) -> Scores:
    return Scores(statistics.gradient("mean_gradient").square())


_MEAN = Metric("grad_squared", Needs.BACKWARD, _score_mean, gradients=("mean_gradient",))
METRIC = Metric("grad_squared", Needs.BACKWARD, _score, ("mean_squared_gradient",), reductions={"mean": _MEAN})
