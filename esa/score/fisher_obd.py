"""Fisher saliency: optimal brain damage with the empirical Fisher in place of the Hessian."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def fisher_obd(weight: Tensor, mean_token_squared_gradient: Tensor) -> Tensor:
    """Score each weight by ``w^2 mean_n(T_n g_n^2) / 2``, nats.

    Args: weight, any shape; mean_token_squared_gradient the same shape, float32: the mean over windows, weighted by their
    predicted tokens T_n, of ``T_n g_n^2``. The factor T_n turns the square of a window's mean gradient into an estimate of
    the sum of its tokens' squares per token. Returns: float32, same shape. Cost: one forward and backward pass per window.
    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1990, with the Fisher approximation of Theis et al., Faster gaze
    prediction with dense networks and Fisher pruning, 2018.
    """
    return weight.float().square() * mean_token_squared_gradient / 2


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    return Scores(fisher_obd(weight, statistics.gradient("mean_token_squared_gradient")))


METRIC = Metric("fisher_obd", Needs.BACKWARD, _score, gradients=("mean_token_squared_gradient",))
