"""Keep scores small and exact at once: the extreme rows, statistics, a histogram and margins of one tensor."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.model import ParameterInfo
from esa.score.scored import ScoredPiece, ScoredTensor
from esa.spec import generator

BINS_PER_DECADE = 64
_LOWEST, _HIGHEST = -46, 39  # decades of the positive float32 numbers, subnormal ones included
_OFFSET = -_LOWEST * BINS_PER_DECADE
_NUM_BINS = (_HIGHEST - _LOWEST) * BINS_PER_DECADE
_QUANTILES = {"q50": 0.5, "q90": 0.9, "q95": 0.95, "q99": 0.99, "q999": 0.999}
# A score may lie a rounding of log10 outside its bin: 1e-4 is far more than that.
_ROUNDING = 1e-4
_TRIMMED = 1 << 16
_COLUMNS = ("score", "signed", "stderr", "weight")

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass
class Reduced:
    """What is kept of one tensor's scores: kept indices by stratum, with columns; statistics rows; histogram; margins."""

    strata: dict[str, Indices]
    columns: dict[str, Floats | None]  # over the concatenated strata
    statistics: list[dict[str, Any]]
    histogram: tuple[Indices, Indices]  # bin numbers (-1: zero) and counts
    margins: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]  # axis -> sums, maxima


@dataclass
class _Tally:
    """Counts and moments of scores that came piece by piece."""

    counts: Indices = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))
    num_zero: int = 0
    number: int = 0
    total: float = 0.0
    square: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, flat: Tensor, low: float, high: float) -> None:
        """Add scores, none of them negative, whose range is known."""
        counts, num_zero = _bin_counts(flat)
        self.counts += counts
        self.num_zero += num_zero
        self.number += len(flat)
        self.total += float(flat.sum(dtype=torch.float64))
        self.square += float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2
        self.low, self.high = min(self.low, low), max(self.high, high)

    def join(self, other: "_Tally") -> None:
        """Add what another one counted."""
        self.counts += other.counts
        self.num_zero += other.num_zero
        self.number += other.number
        self.total += other.total
        self.square += other.square
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def statistics(self, expert: int | None, usage: Tensor | None) -> dict[str, Any]:
        """Return the columns of ``tensors/1``."""
        mean = self.total / self.number
        return {
            "expert": expert, "numel": self.number, "usage": None if usage is None else float(usage),
            "num_zero": self.num_zero, "mean": mean, "std": max(0.0, self.square / self.number - mean**2) ** 0.5,
            "min": self.low, "max": self.high, "sum": self.total,
            **{name: _quantile(self.counts, self.num_zero, q, self.low, self.high) for name, q in _QUANTILES.items()},
        }  # fmt: skip


def reduce_scores(tensor: ScoredTensor, keep: int, seed: int, large: Indices | None = None) -> Reduced:
    """Reduce one tensor's scores, in two rounds over its pieces: the first counts, the second picks.

    Strata: ``top`` (score descending, equal ones by index), ``bottom`` (ascending, equal ones in a random order drawn
    once per tensor and seed), ``sample`` (uniform, without replacement), ``large`` (largest abs(w)), ``keep`` rows each; or
    ``all`` for a tensor of at most 4 keep weights. ``large``, if given, is that stratum, known from before.
    Memory: a piece, and the rows that are picked. Raises EsaError for NaN or infinite scores or weights.
    """
    info, usage = tensor.info, tensor.usage
    tallies: dict[int | None, _Tally] = {}
    weights = _Tally()
    margins = _Margins(info)
    for part in tensor.pieces():
        flat, low, high = _checked(tensor, part)
        tallies.setdefault(part.piece.expert, _Tally()).add(flat, low, high)
        if large is None:
            _count_weights(weights, tensor, part)
        margins.add(part)
    every = _Tally()
    for tally in tallies.values():
        every.join(tally)
    whole = None if usage is None or usage.ndim else usage
    statistics = [every.statistics(None, whole) | tensor.facts]
    for expert, tally in tallies.items():
        if expert is not None:
            statistics.append(tally.statistics(expert, None if usage is None else usage[expert]))
    strata, columns = _pick_rows(tensor, every, weights, keep, seed, large)
    bins = np.flatnonzero(every.counts)
    zeros = np.array([-1] if every.num_zero else [], dtype=np.int64)
    histogram = np.concatenate([zeros, bins]), np.concatenate([zeros * -every.num_zero, every.counts[bins]])
    return Reduced(strata, columns, statistics, histogram, margins.found())


def _checked(tensor: ScoredTensor, part: ScoredPiece) -> tuple[Tensor, float, float]:
    """Return a piece's scores, flat, and their range. Raises EsaError for numbers that are not finite."""
    flat = part.scores.score.reshape(-1)
    low, high = (float(bound) for bound in flat.aminmax())
    broken = not (np.isfinite(low) and np.isfinite(high))
    for column in (part.scores.signed, part.scores.stderr):
        broken = broken or (column is not None and not all(torch.isfinite(bound) for bound in column.aminmax()))
    if broken:
        raise _not_finite(tensor)
    return flat, low, high


def _not_finite(tensor: ScoredTensor) -> EsaError:
    """Return the error for scores that are not finite, with their number."""
    count, others = 0, 0
    for part in tensor.pieces():
        count += int((~torch.isfinite(part.scores.score)).sum())
        more = [column for column in (part.scores.signed, part.scores.stderr) if column is not None]
        others = max([others, *(int((~torch.isfinite(column)).sum()) for column in more)])
    what = "scores" if count else "signed scores or standard errors"
    return EsaError(
        f"{tensor.metric.name} of {tensor.info.name}: {count or others} of {tensor.info.numel} {what} are NaN or infinite",
        where="score.metrics",
        hint="the model itself may give NaN on this text, or its dtype overflow: try dtype = 'float32'",
    )


def _count_weights(weights: _Tally, tensor: ScoredTensor, part: ScoredPiece) -> None:
    """Count the sizes of a piece's weights. Raises EsaError for weights that are not finite."""
    flat = part.weight.detach().reshape(-1).float().abs()
    low, high = (float(bound) for bound in flat.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = sum(int((~torch.isfinite(one.weight)).sum()) for one in tensor.pieces())
        raise EsaError(
            f"{tensor.info.name}: {count} of {tensor.info.numel} weights are NaN or infinite", where="score.metrics"
        )
    weights.counts += _bin_counts(flat)[0]


def _pick_rows(
    tensor: ScoredTensor, every: _Tally, weights: _Tally, keep: int, seed: int, large: Indices | None
) -> tuple[dict[str, Indices], dict[str, Floats | None]]:
    """Return the kept indices by stratum, and their columns over the strata in turn."""
    info = tensor.info
    if info.numel <= 4 * keep:
        picked = _Picked()
        for part in tensor.pieces():
            picked.add(part, np.arange(part.piece.stop - part.piece.start))
        strata = {"all": picked.index()}
        return strata, picked.columns(strata)
    draw = generator(seed, "ties", info.name)
    sample = np.sort(generator(seed, "sample", info.name).choice(info.numel, keep, replace=False))
    floor = _floor(every.counts, keep)
    size = 0.0 if large is not None else _floor(weights.counts, keep)
    # Where more zeros tie at the bottom than are kept, a reservoir of them by their number among the zeros.
    zeros = draw.choice(every.num_zero, keep, replace=False) if every.num_zero >= keep else None
    ceiling = 0.0 if zeros is not None else _ceiling(every.counts, every.num_zero, keep)
    kept = {"top": _Picked(), "bottom": _Picked(), "sample": _Picked(), "large": _Picked()}
    passed = 0
    ordinals = None if zeros is None else np.sort(zeros)
    known = None if large is None else np.sort(large)
    for part in tensor.pieces():
        flat, weight = part.scores.score.reshape(-1), part.weight.detach().reshape(-1)
        kept["top"].add(part, _where(flat >= floor))
        kept["top"].trim("score", keep)
        low = _where(flat == 0) if ordinals is not None else _where(flat <= ceiling)
        if ordinals is not None:
            here = ordinals[slice(*np.searchsorted(ordinals, [passed, passed + len(low)]))]
            passed, low = passed + len(low), low[here - passed]
        kept["bottom"].add(part, low)
        kept["sample"].add(part, _within(sample, part))
        if known is None:
            kept["large"].add(part, _where(weight.float().abs() >= size))
            kept["large"].trim("weight", keep)
        else:
            kept["large"].add(part, _within(known, part))
    lowest = kept["bottom"]
    if zeros is not None:
        assert ordinals is not None
        bottom = lowest.index()[np.searchsorted(ordinals, zeros)]
    else:
        order = np.lexsort((draw.permutation(len(lowest.index())), _required(lowest.column("score"))))[:keep]
        bottom = lowest.index()[order]
    strata = {
        "top": kept["top"].index()[kept["top"].largest("score", keep)],
        "bottom": bottom,
        "sample": sample,
        "large": kept["large"].index()[kept["large"].largest("weight", keep)] if large is None else large,
    }
    columns: dict[str, Floats | None] = {}
    parts = [kept[name].columns({name: index}) for name, index in strata.items()]
    for name in _COLUMNS:
        values = [part[name] for part in parts]
        columns[name] = None if values[0] is None else np.concatenate([_required(value) for value in values])
    return strata, columns


class _Picked:
    """Rows picked piece by piece, ascending, with their columns."""

    def __init__(self) -> None:
        self._index: list[Indices] = []
        self._columns: dict[str, list[Floats]] = {name: [] for name in _COLUMNS}
        self._number = 0

    def add(self, part: ScoredPiece, here: Indices) -> None:
        """Pick rows of a piece, by their place in it."""
        if not len(here):
            return
        self._number += len(here)
        self._index.append(here + part.piece.start)
        place = torch.from_numpy(here).to(part.weight.device)
        scores = part.scores
        for name, values in zip(_COLUMNS, (scores.score, scores.signed, scores.stderr, part.weight), strict=True):
            if values is not None:
                self._columns[name].append(values.detach().reshape(-1)[place].float().cpu().numpy())

    def trim(self, name: str, keep: int) -> None:
        """Let all but the ``keep`` largest go where many more were picked: equal numbers, or nothing but zeros."""
        if self._number <= 16 * keep + _TRIMMED:
            return
        order = np.sort(self.largest(name, keep))
        index, columns = self.index()[order], {column: self.column(column) for column in _COLUMNS}
        self._index, self._number = [index], len(index)
        self._columns = {column: [] if values is None else [values[order]] for column, values in columns.items()}

    def largest(self, name: str, keep: int) -> Indices:
        """Return the places of the ``keep`` largest in size, descending, equal ones by index."""
        return np.argsort(-np.abs(_required(self.column(name))), kind="stable")[:keep]

    def index(self) -> Indices:
        """Return the picked indices."""
        return np.concatenate(self._index) if self._index else np.zeros(0, dtype=np.int64)

    def column(self, name: str) -> Floats | None:
        """Return a column of the picked rows, None where the metric has none."""
        parts = self._columns[name]
        return np.concatenate(parts) if parts else None

    def columns(self, strata: dict[str, Indices]) -> dict[str, Floats | None]:
        """Return every column in the order of the strata, whose rows are among the picked."""
        place = np.searchsorted(self.index(), np.concatenate(list(strata.values())))
        found = {name: self.column(name) for name in _COLUMNS}
        return {name: None if column is None else column[place] for name, column in found.items()}


class _Margins:
    """Sums and maxima of a matrix's scores over each output and each input."""

    def __init__(self, info: ParameterInfo) -> None:
        self._axes: dict[str, int] = {}
        if len(info.shape) == 2 and info.output_axis is not None and info.input_axis is not None:
            self._axes = {"output": info.output_axis, "input": info.input_axis}
        self._sums = {axis: np.zeros(info.shape[number]) for axis, number in self._axes.items()}
        self._maxima = {axis: np.zeros(info.shape[number]) for axis, number in self._axes.items()}

    def add(self, part: ScoredPiece) -> None:
        """Add a piece: some rows of the stored matrix, whole."""
        rows, score = part.piece.at[0], part.scores.score
        for axis, number in self._axes.items():
            into = rows if number == 0 else slice(None)
            self._sums[axis][into] += score.sum(1 - number, dtype=torch.float64).cpu().numpy()
            maxima = self._maxima[axis][into]
            np.maximum(maxima, score.amax(1 - number).double().cpu().numpy(), out=maxima)

    def found(self) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Return sums and maxima by axis."""
        return {axis: (self._sums[axis], self._maxima[axis]) for axis in self._axes}


def bin_edges(bins: Indices) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return lower and upper edges of histogram bins: 64 per decade; bin -1 holds the zeros and has both edges 0."""
    zero = bins < 0
    lower = 10.0 ** ((bins - _OFFSET) / BINS_PER_DECADE)
    upper = 10.0 ** ((bins + 1 - _OFFSET) / BINS_PER_DECADE)
    return np.where(zero, 0.0, lower), np.where(zero, 0.0, upper)


def _bin_counts(flat: Tensor) -> tuple[Indices, int]:
    """Return the count of every bin and the number of zeros. Negative scores do not occur."""
    numbers = torch.log10(flat).mul_(BINS_PER_DECADE).floor_().clamp_(-_OFFSET, _NUM_BINS - _OFFSET - 1)
    counts = np.bincount(numbers.to(torch.int32).add_(_OFFSET).cpu().numpy(), minlength=_NUM_BINS)
    num_zero, counts[0] = int(counts[0]), 0  # no positive float32 number falls into the lowest bin
    return counts, num_zero


def _floor(counts: Indices, keep: int) -> float:
    """Return a score that at least ``keep`` reach and few more: the lower edge of a bin; 0 where fewer are above zero."""
    above = np.cumsum(counts[::-1])[::-1]  # weights in this bin and the ones above
    enough = np.flatnonzero(above >= keep)
    return 0.0 if not len(enough) else float(bin_edges(enough[-1:])[0][0]) * (1 - _ROUNDING)


def _ceiling(counts: Indices, num_zero: int, keep: int) -> float:
    """Return a score that at least ``keep`` do not exceed and few more: the upper edge of a bin."""
    below = np.cumsum(counts) + num_zero
    return float(bin_edges(np.flatnonzero(below >= keep)[:1])[1][0]) * (1 + _ROUNDING)


def _where(chosen: Tensor) -> Indices:
    return chosen.nonzero().squeeze(1).cpu().numpy()


def _within(index: Indices, part: ScoredPiece) -> Indices:
    """Return which of ascending indices lie in a piece, by their place in it."""
    first, last = np.searchsorted(index, [part.piece.start, part.piece.stop])
    return index[first:last] - part.piece.start


def _required(values: Floats | None) -> Floats:
    assert values is not None
    return values


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
