"""Keep scores small and exact at once: the extreme rows, statistics, a histogram and margins of one tensor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.model import ParameterInfo, experts_of
from esa.score.metric import Scores
from esa.spec import generator

BINS_PER_DECADE = 64
_LOWEST, _HIGHEST = -46, 39  # decades of the positive float32 numbers, subnormal ones included
_OFFSET = -_LOWEST * BINS_PER_DECADE
_NUM_BINS = (_HIGHEST - _LOWEST) * BINS_PER_DECADE
_QUANTILES = {"q50": 0.5, "q90": 0.9, "q95": 0.95, "q99": 0.99, "q999": 0.999}

Indices = npt.NDArray[np.int64]


@dataclass
class Reduced:
    """What is kept of one tensor's scores: kept indices by stratum, with columns; statistics rows; histogram; margins."""

    strata: dict[str, Indices]
    columns: dict[str, npt.NDArray[np.float32] | None]  # over the concatenated strata
    statistics: list[dict[str, Any]]
    histogram: tuple[Indices, Indices]  # bin numbers (-1: zero) and counts
    margins: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]  # axis -> sums, maxima


def reduce_scores(
    metric: str,
    info: ParameterInfo,
    scores: Scores,
    weight: Tensor,
    keep: int,
    seed: int,
    usage: Tensor | None = None,
    large: Indices | None = None,
) -> Reduced:
    """Reduce one tensor's scores.

    Strata: ``top`` (score descending, equal ones by index), ``bottom`` (ascending, equal ones in a random order drawn
    once per tensor and seed), ``sample`` (uniform, without replacement), ``large`` (largest abs(w)), ``keep`` rows each; or
    ``all`` for a tensor of at most 4 keep weights. ``large``, if given, is that stratum, known from before.
    Raises EsaError for NaN or infinite scores or weights.
    """
    flat = scores.score.reshape(-1)
    low, high = (float(value) for value in flat.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~torch.isfinite(flat)).sum())
        raise EsaError(
            f"{metric} of {info.name}: {count} of {info.numel} scores are NaN or infinite",
            where="score.metrics",
            hint="the model itself may give NaN on this text, or its dtype overflow: try dtype = 'float32'",
        )
    for column in (scores.signed, scores.stderr):
        if column is not None and not all(torch.isfinite(bound) for bound in column.aminmax()):
            count = int((~torch.isfinite(column)).sum())
            raise EsaError(
                f"{metric} of {info.name}: {count} of {info.numel} signed scores or standard errors are NaN or infinite",
                where="score.metrics",
            )
    if large is None and not all(torch.isfinite(bound) for bound in weight.aminmax()):
        count = int((~torch.isfinite(weight)).sum())
        raise EsaError(f"{info.name}: {count} of {info.numel} weights are NaN or infinite", where="score.metrics")
    counts, num_zero = _bin_counts(flat)
    if info.numel <= 4 * keep:
        strata = {"all": np.arange(info.numel, dtype=np.int64)}
    else:
        strata = {
            "top": _highest(flat, counts, keep),
            "bottom": _lowest(flat, counts, num_zero, keep, seed, info.name),
            "sample": np.sort(generator(seed, "sample", info.name).choice(info.numel, keep, replace=False)),
            "large": largest_weights(weight, keep) if large is None else large,
        }
    chosen = torch.from_numpy(np.concatenate(list(strata.values()))).to(flat.device)
    columns: dict[str, npt.NDArray[np.float32] | None] = {
        "score": _pick(flat, chosen),
        "signed": None if scores.signed is None else _pick(scores.signed.reshape(-1), chosen),
        "stderr": None if scores.stderr is None else _pick(scores.stderr.reshape(-1), chosen),
        "weight": _pick(weight.detach().reshape(-1), chosen),
    }
    statistics = [
        _statistics(flat, counts, num_zero, None, None if usage is None or usage.ndim else usage) | scores.facts
    ]
    for expert in experts_of(info):
        part = scores.score[expert].reshape(-1)
        statistics.append(_statistics(part, *_bin_counts(part), expert, None if usage is None else usage[expert]))
    bins = np.flatnonzero(counts)
    zeros = np.array([-1] if num_zero else [], dtype=np.int64)
    histogram = np.concatenate([zeros, bins]), np.concatenate([zeros * -num_zero, counts[bins]])
    return Reduced(strata, columns, statistics, histogram, _margins(info, scores.score))


def bin_edges(bins: Indices) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return lower and upper edges of histogram bins: 64 per decade; bin -1 holds the zeros and has both edges 0."""
    zero = bins < 0
    lower = 10.0 ** ((bins - _OFFSET) / BINS_PER_DECADE)
    upper = 10.0 ** ((bins + 1 - _OFFSET) / BINS_PER_DECADE)
    return np.where(zero, 0.0, lower), np.where(zero, 0.0, upper)


def largest_weights(weight: Tensor, keep: int) -> Indices:
    """Return the indices of the ``keep`` largest abs(w), descending, equal ones by index."""
    flat = weight.detach().reshape(-1).float().abs()
    return _highest(flat, _bin_counts(flat)[0], keep)


def _bin_counts(flat: Tensor) -> tuple[Indices, int]:
    """Return the count of every bin and the number of zeros. Negative scores do not occur."""
    numbers = torch.log10(flat).mul_(BINS_PER_DECADE).floor_().clamp_(-_OFFSET, _NUM_BINS - _OFFSET - 1)
    counts = np.bincount(numbers.to(torch.int32).add_(_OFFSET).cpu().numpy(), minlength=_NUM_BINS)
    num_zero, counts[0] = int(counts[0]), 0  # no positive float32 number falls into the lowest bin
    return counts, num_zero


def _pick(flat: Tensor, chosen: Tensor) -> npt.NDArray[np.float32]:
    return flat[chosen].float().cpu().numpy()


def _highest(flat: Tensor, counts: Indices, keep: int) -> Indices:
    """Return the ``keep`` highest by score descending, then index: candidates by the histogram, then an exact sort."""
    above = np.cumsum(counts[::-1])[::-1]  # weights in this bin and the ones above
    enough = np.flatnonzero(above >= keep)
    # A score may lie a rounding of log10 outside its bin: 1e-4 is far more than that.
    threshold = 0.0 if not len(enough) else float(bin_edges(enough[-1:])[0][0]) * (1 - 1e-4)
    candidates = (flat >= threshold).nonzero().squeeze(1)
    order = torch.sort(flat[candidates], descending=True, stable=True).indices[:keep]
    return candidates[order].cpu().numpy()


def _lowest(flat: Tensor, counts: Indices, num_zero: int, keep: int, seed: int, name: str) -> Indices:
    """Return the ``keep`` lowest by score, equal ones in random order: a uniform reservoir where more tie than fit."""
    draw = generator(seed, "ties", name)
    if num_zero >= keep:
        zeros = (flat == 0).nonzero().squeeze(1).cpu().numpy()
        return zeros[draw.choice(len(zeros), keep, replace=False)]
    below = np.cumsum(counts) + num_zero
    last = int(np.flatnonzero(below >= keep)[0])
    threshold = float(bin_edges(np.array([last]))[1][0]) * (1 + 1e-4)
    candidates = (flat <= threshold).nonzero().squeeze(1).cpu().numpy()
    values = _pick(flat, torch.from_numpy(candidates).to(flat.device))
    order = np.lexsort((draw.permutation(len(candidates)), values))[:keep]
    return candidates[order]


def _statistics(
    flat: Tensor, counts: Indices, num_zero: int, expert: int | None, usage: Tensor | None
) -> dict[str, Any]:
    number = flat.numel()
    total = float(flat.sum(dtype=torch.float64))
    mean = total / number
    square = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2 / number
    low, high = (float(value) for value in flat.aminmax())
    return {
        "expert": expert, "numel": number, "usage": None if usage is None else float(usage), "num_zero": num_zero,
        "mean": mean, "std": max(0.0, square - mean**2) ** 0.5, "min": low, "max": high, "sum": total,
        **{name: _quantile(counts, num_zero, share, low, high) for name, share in _QUANTILES.items()},
    }  # fmt: skip


def _quantile(counts: Indices, num_zero: int, share: float, low: float, high: float) -> float:
    """Return a quantile by log-linear interpolation in its bin: exact to a bin's width, 3.7 %."""
    target = share * (counts.sum() + num_zero)
    if target <= num_zero:
        return 0.0
    below = np.cumsum(counts) + num_zero
    number = int(np.searchsorted(below, target))
    inside = (target - (below[number] - counts[number])) / counts[number]
    value = float(10.0 ** ((number + inside - _OFFSET) / BINS_PER_DECADE))
    return min(max(value, low), high)


def _margins(info: ParameterInfo, score: Tensor) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Return sums and maxima of a matrix's scores over each output and each input."""
    if score.ndim != 2 or info.output_axis is None or info.input_axis is None:
        return {}
    margins = {}
    for axis, others in (("output", info.input_axis), ("input", info.output_axis)):
        sums = score.sum(others, dtype=torch.float64).cpu().numpy()
        margins[axis] = sums, score.amax(others).double().cpu().numpy()
    return margins
