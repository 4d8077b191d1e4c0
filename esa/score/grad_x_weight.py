"""Gradient times weight: the first-order change of the loss when a weight is zeroed."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores, Statistics


def grad_x_weight(weight: Tensor, mean_abs_gradient: Tensor) -> Tensor:
    """Score each weight by ``mean_n |w g_n|``, nats (``reduction = "mean"``: by ``|w g|`` of the mean gradient).

    Args: weight, any shape; mean_abs_gradient the same shape, float32: the mean over windows, weighted by their predicted
    tokens, of ``|g_n|``, g_n the gradient of the window's mean NLL. Returns: float32, same shape.
    Cost: one forward and backward pass per window.
    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017 (Taylor
    criterion). Implementations that take the absolute value of the mean gradient let windows cancel each other.
    """
    return weight.float().abs() * mean_abs_gradient


def first_order_change(weight: Tensor, mean_gradient: Tensor) -> Tensor:
    """Return ``-w g``, nats: the first-order change of L when w is zeroed; its absolute value is ``reduction = "mean"``.

    Args: weight, any shape; mean_gradient the same shape, float32: g, the gradient of L. Windows of opposite sign cancel.
    Returns: float32, same shape, signed.
    """
    return -weight.float() * mean_gradient


def _score(weight: Tensor, statistics: Statistics) -> Scores:
    return Scores(grad_x_weight(weight, statistics.gradient("mean_abs_gradient")))


def _score_mean(weight: Tensor, statistics: Statistics) -> Scores:
    signed = first_order_change(weight, statistics.gradient("mean_gradient"))
    return Scores(signed.abs(), signed=signed)


_MEAN = Metric("grad_x_weight", Needs.BACKWARD, _score_mean, gradients=("mean_gradient",))
METRIC = Metric("grad_x_weight", Needs.BACKWARD, _score, ("mean_abs_gradient",), reductions={"mean": _MEAN})
