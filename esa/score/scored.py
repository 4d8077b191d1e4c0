"""One tensor's scores by one metric, computed piece by piece: the whole need never exist."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from esa.model import ParameterInfo
from esa.model.precision import wide_device
from esa.score.metric import Metric, Needs, Scores, Statistics
from esa.score.pieces import Piece, pieces


@dataclass(frozen=True)
class ScoredPiece:
    """A run of neighbouring weights in row-major order with their scores; ``piece`` says which, all tensors keep their axes."""

    piece: Piece
    weight: Tensor
    scores: Scores


class ScoredTensor:
    """The scores of one tensor: as pieces in row-major order, computed when they are asked for, or as a whole."""

    def __init__(self, metric: Metric, info: ParameterInfo, weight: Tensor, statistics: Statistics) -> None:
        self.metric, self.info, self.usage = metric, info, statistics.usage
        self._weight, self._statistics = weight, statistics

    @classmethod
    def of(cls, name: str, info: ParameterInfo, weight: Tensor, scores: Scores, usage: Tensor | None) -> "ScoredTensor":
        """Return a tensor whose scores are known as a whole."""
        metric = Metric(name, Needs.WEIGHTS, lambda _, __: scores, whole=True)
        return cls(metric, info, weight, Statistics(usage=usage))

    @cached_property
    def whole(self) -> Scores:
        """Return the scores of the whole tensor. Memory: float32 in its shape for each of score, signed and stderr."""
        return self.metric.score(self._weight, self._statistics)

    @property
    def score(self) -> Tensor:
        """Return the scores, float32, in the tensor's shape."""
        return self.whole.score

    @property
    def signed(self) -> Tensor | None:
        """Return the signed scores, where the metric has them."""
        return self.whole.signed

    @property
    def stderr(self) -> Tensor | None:
        """Return the standard errors, where the metric has them."""
        return self.whole.stderr

    @property
    def facts(self) -> dict[str, float | int | None]:
        """Return the columns of ``tensors/1`` that only this metric knows."""
        return self.whole.facts if self.metric.whole else {}

    def pieces(self) -> Iterator[ScoredPiece]:
        """Yield every weight once, in row-major order; a piece holds weights of one expert at most."""
        weight, device = self._weight, wide_device(self._weight.device)
        for piece in pieces(self.info.shape, weight.device, experts=self.info.expert_axis == 0):
            part = weight[piece.at]
            scores = (
                _cut_scores(self.whole, piece.at)
                if self.metric.whole
                else self.metric.score(part, _cut(self._statistics, piece.at, weight.device))
            )
            yield ScoredPiece(piece, part.to(device), scores.to(device))


def _cut(statistics: Statistics, at: tuple[slice, ...], device: torch.device) -> Statistics:
    """Return the statistics of a piece, where its weights are: what has no extent along an axis serves every piece."""
    found: dict[str, Any] = {}
    for field in fields(statistics):
        value = getattr(statistics, field.name)
        if isinstance(value, Tensor) and field.name != "usage":
            found[field.name] = _part(value, at).to(device)
    for name, tensors in (("gradients", statistics.gradients), ("members", statistics.members)):
        found[name] = {key: _part(tensor, at).to(device) for key, tensor in tensors.items()}
    return replace(statistics, **found)


def _part(tensor: Tensor, at: tuple[slice, ...]) -> Tensor:
    return tensor[tuple(one if size > 1 else slice(None) for one, size in zip(at, tensor.shape))]


def _cut_scores(scores: Scores, at: tuple[slice, ...]) -> Scores:
    return Scores(
        scores.score[at],
        None if scores.signed is None else scores.signed[at],
        None if scores.stderr is None else scores.stderr[at],
    )
