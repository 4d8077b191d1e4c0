"""Magnitude: the size of a weight."""

from torch import Tensor

from esa.score.metric import Metric, Needs, Scores


def magnitude(weight: Tensor) -> Tensor:
    """Score each weight by its absolute value: ``|w|``.

    Args: weight, any shape. Returns: float32, same shape. Cost: one read of the weights, no data; its rows have no seed.
    Source: Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015.
    """
    return weight.float().abs()


METRIC = Metric("magnitude", Needs.WEIGHTS, lambda weight, _: Scores(magnitude(weight)))
