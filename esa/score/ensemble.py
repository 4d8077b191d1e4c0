"""Combine scored metrics into one of the same kind, by every weight's rank under each of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from esa.errors import EsaError
from esa.model import ParameterInfo
from esa.score.metric import Metric, Needs, Scores, Statistics
from esa.spec.sections import Ensemble

NAME = "ensemble"
_SHIFT = 9  # bits of a float32 that a bin does not tell apart: 2^14 bins per octave, a relative width of 6.1e-5
_SIGN = 0x7FFFFFFF
_NUM_BINS = 1 << (31 - _SHIFT)
_PIECE = 1 << 23  # numbers

Floats = npt.NDArray[np.float64]


def bins(scores: Tensor) -> npt.NDArray[np.int32]:
    """Return the bin of each score, ascending with it: the leading 22 bits of its number as float32, sign apart.

    Args: scores float32, none negative or NaN, any shape. Zero is in bin 0. Returns: flat.
    """
    numbers = scores.detach().float().contiguous().cpu().view(-1).numpy().view(np.int32)
    found: npt.NDArray[np.int32] = (numbers & _SIGN) >> _SHIFT
    return found


def midranks(counts: npt.NDArray[np.int64]) -> Floats:
    """Return the rank of every bin, 1 for the highest score: weights in the bins above, plus half of (its own + 1).

    Scores that share a bin are taken for equal, and equal scores share the mean of their ranks.
    Args: counts ``(num_bins,)``, weights per bin, ascending. Returns: float64, the same shape.
    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945.
    """
    above = np.cumsum(counts[::-1])[::-1] - counts
    ranks: Floats = above + (counts + 1) / 2
    return ranks


def mean_rank(ranks: Sequence[Floats]) -> Floats:
    """Return ``M / sum_m r_m``: the reciprocal of the mean rank, in (0, 1]; 1 where every metric puts the weight first.

    ``N + 1`` minus the mean rank has the same order; as float32 it would tie neighbours at the top of more than 2^24 weights.
    Args: ranks, one array per metric, 1 the best. Source: Dwork et al., Rank Aggregation Methods for the Web, WWW 2001.
    """
    found: Floats = len(ranks) / np.sum(ranks, axis=0)
    return found


def borda(ranks: Sequence[Floats], depth: int) -> Floats:
    """Return ``sum_m max(0, depth + 1 - r_m)``: points for a place among each metric's first ``depth``, none beyond.

    Args: ranks, one array per metric, 1 the best. Source: de Borda, Memoire sur les elections au scrutin, 1781, truncated.
    """
    found: Floats = np.sum([np.maximum(0, depth + 1 - one) for one in ranks], axis=0)
    return found


def quantile_product(ranks: Sequence[Floats], number: int) -> Floats:
    """Return the odds ``P / (1 - P)`` of ``P = prod_m (1 - r_m / (N + 1))``, the product of the quantiles.

    The odds ascend with P; as float32 P itself would tie neighbours close to 1. A weight that one metric puts last is last
    whatever the others say. Args: ranks, one array per metric, 1 the best; number N of weights. Source of the quantile:
    Weibull, A statistical theory of the strength of materials, 1939 (plotting positions).
    """
    found: Floats = 1 / np.expm1(-np.sum([np.log1p(-one / (number + 1)) for one in ranks], axis=0))
    return found


@dataclass(frozen=True)
class Ranked:
    """The universe of an ensemble: the parameters that all members score, and the rank of every bin of each member."""

    names: tuple[str, ...]
    number: int
    tables: Mapping[str, Floats]

    def metric(self, ensemble: Ensemble) -> Metric:
        """Return the ensemble as a metric; it reads ``Statistics.members``."""

        def score(weight: Tensor, statistics: Statistics) -> Scores:
            ranks = [table[bins(statistics.members[name])] for name, table in self.tables.items()]
            if ensemble.rule == "mean_rank":
                found = mean_rank(ranks)
            elif ensemble.rule == "borda":
                found = borda(ranks, ensemble.depth)
            else:
                found = quantile_product(ranks, self.number)
            return Scores(torch.from_numpy(found.astype(np.float32)).view(weight.shape).to(weight.device))

        return Metric(NAME, Needs.FORWARD, score, partial=True)


class MemberMaps:
    """The dense scores of an ensemble's members by one seed, in their files; what is asked for is mapped, not read."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._stack = ExitStack()
        self._files: dict[str, Any] = {
            metric: self._stack.enter_context(safe_open(path, framework="pt")) for metric, path in paths.items()
        }

    def __enter__(self) -> "MemberMaps":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def names(self) -> set[str]:
        """Return the parameters that every member scores."""
        return set.intersection(*(set(file.keys()) for file in self._files.values()))

    def of(self, parameter: str) -> dict[str, Tensor]:
        """Return each member's scores of a parameter, float32 in its shape."""
        return {metric: file.get_tensor(parameter) for metric, file in self._files.items()}

    def ranked(self, chosen: Mapping[str, ParameterInfo]) -> Ranked:
        """Count every member's scores into bins and rank the bins, over the parameters that all members score.

        Memory: 32 MB per member, and a piece. Cost: one read of the maps. Raises EsaError where no parameter is scored by all.
        """
        shared = self.names()
        names = tuple(name for name in chosen if name in shared)
        if not names:
            raise EsaError(
                f"no parameter is scored by all of {', '.join(self._files)}",
                where="score.ensemble.metrics",
                hint="leave out the metric that scores other parameters, or widen score.include",
            )
        tables = {
            metric: midranks(_counts(_flat(file.get_tensor(name) for name in names)))
            for metric, file in self._files.items()
        }
        return Ranked(names, sum(chosen[name].numel for name in names), tables)


def table_bytes(num_members: int) -> int:
    """Return what the ranks of all bins hold, and the counts that the last of them come from."""
    return (num_members + 2) * 8 * _NUM_BINS


def left_out(ranked: Ranked, chosen: Mapping[str, ParameterInfo]) -> str | None:
    """Return what is to be said of parameters that some member does not score; None where there is none."""
    missing = [info for name, info in chosen.items() if name not in set(ranked.names)]
    if not missing:
        return None
    count = sum(info.numel for info in missing)
    return (
        f"{NAME} scores {len(ranked.names)} of {len(chosen)} tensors: {count:,} weights are left out, which not every"
        f" member scores, such as those of {missing[0].name}"
    )


def _flat(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield tensors in flat pieces, larger than those of scoring: every count goes over all bins."""
    for tensor in tensors:
        yield from torch.split(tensor.view(-1), _PIECE)


def _counts(parts: Iterable[Tensor]) -> npt.NDArray[np.int64]:
    counts = np.zeros(_NUM_BINS, dtype=np.int64)
    for part in parts:
        counts += np.bincount(bins(part), minlength=_NUM_BINS)
    return counts
