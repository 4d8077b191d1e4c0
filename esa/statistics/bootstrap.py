"""Bootstrap intervals: of a paired difference over windows (studentized and BCa), and percentile ones of any statistic."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from esa.spec import generator

RESAMPLES = 1999
BCA_WINDOWS = 100  # the acceleration is a skewness: under so many windows its own error is as large as the correction

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BLOCK = 4_000_000  # indices drawn at once: 32 MB
_CACHED = 400_000  # the same where several arrays are made of them: 3 MB each, which a processor's cache holds


class Interval(NamedTuple):
    """The two ends of an interval; an end is None where the data do not say."""

    low: float | None
    high: float | None


UNKNOWN = Interval(None, None)


def paired_interval(
    changed: Sequence[float],
    base: Sequence[float],
    num_tokens: Sequence[int],
    seed: int,
    name: str,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the studentized bootstrap interval of the difference in mean NLL per token, windows as the units.

    With d_n the difference of window n's NLL sums (nats) and T_n its predicted tokens: estimate ``r = sum d / sum T``,
    its linearised standard error ``s = sqrt(N / (N - 1) * sum (d_n - r T_n)^2) / sum T``, and the quantiles t of
    ``(r* - r) / s*`` over resamples of the windows: ``[r - t_high s, r - t_low s]``, nats per token. Resamples that
    have no spread are left out. Both ends are r where all windows differ by the same per token.

    Args: changed, base: NLL sums per window ``(N,)``; seed, name: of the stream ``("bootstrap", name)``; level of
    the interval; resamples drawn. Returns: Interval; both ends None under three windows.
    Cost: resamples * N numbers, a few megabytes at a time: 2 ms at N = 64, 0.2 s at N = 10,000.
    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
    """
    d, sizes = np.subtract(changed, base), np.asarray(num_tokens, dtype=float)
    number = len(d)
    if number < 3:
        return UNKNOWN
    estimate, error = ratios(d[None], sizes[None])
    rounding = rounding_of(d, sizes)
    if error[0] <= rounding:
        return Interval(float(estimate[0]), float(estimate[0]))
    parts = [ratios(d[picks], sizes[picks]) for picks in _picks(seed, name, resamples, number)]
    means, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    usable = errors > rounding
    studentized = (means[usable] - estimate[0]) / errors[usable]
    low, high = np.quantile(studentized, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate[0] - high * error[0]), float(estimate[0] - low * error[0]))


def paired_bca_interval(
    changed: Sequence[float],
    base: Sequence[float],
    num_tokens: Sequence[int],
    seed: int,
    name: str,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the bias-corrected and accelerated interval of the same difference, from the very same resamples.

    With r* the resampled ratios, r_(i) the ratio without window i, Phi the normal distribution function::

        z0 = Phi^-1(share of r* below r, ties half)
        a  = sum (m - r_(i))^3 / (6 (sum (m - r_(i))^2)^1.5),  m the mean of the r_(i)
        an end is the quantile of r* at Phi(z0 + (z0 + z) / (1 - a (z0 + z))),  z = Phi^-1((1 -+ level) / 2)

    Args and units: those of ``paired_interval``; all windows equal up to their size give r for both ends.
    Returns: Interval; both ends None under three windows, or where every r* lies on one side of r.
    Worth reading from ``BCA_WINDOWS`` = 100 windows on: with fewer it covers less than it says.
    Source: Efron, "Better bootstrap confidence intervals", JASA 82, 1987; scipy.stats.bootstrap agrees on equal
    windows and, given the pairs, on unequal ones.
    """
    d, sizes = np.subtract(changed, base), np.asarray(num_tokens, dtype=float)
    number = len(d)
    if number < 3:
        return UNKNOWN
    estimate, error = ratios(d[None], sizes[None])
    if error[0] <= rounding_of(d, sizes):
        return Interval(float(estimate[0]), float(estimate[0]))
    drawn = _picks(seed, name, resamples, number)
    means: Array = np.concatenate([d[picks].sum(axis=1) / sizes[picks].sum(axis=1) for picks in drawn])
    return bca_interval(means, float(estimate[0]), (d.sum() - d) / (sizes.sum() - sizes), level)


def bca_interval(draws: Array, estimate: float, left_out: Array, level: float) -> Interval:
    """Return the BCa interval from resampled values, the estimate, and the values with one unit left out each.

    The formula is ``paired_bca_interval``'s: ``Phi(z0 + (z0 + z) / (1 - a (z0 + z)))``. Shapes: draws ``(R,)``,
    left_out ``(N,)``. Returns: Interval; both ends None where all draws lie on one side of the estimate.
    """
    from scipy.special import ndtr, ndtri

    below = (np.count_nonzero(draws < estimate) + np.count_nonzero(draws <= estimate)) / (2 * len(draws))
    if not 0 < below < 1:
        return UNKNOWN
    bias = ndtri(below)
    away = left_out.mean() - left_out
    squares = float((away**2).sum())
    acceleration = float((away**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = bias + ndtri(np.asarray([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Interval(float(low), float(high))


def percentile_interval(
    statistic: Callable[[Ints], Array],
    size: int,
    level: float,
    resamples: int,
    draw: np.random.Generator,
    strata: Ints | None = None,
) -> Interval:
    """Return the percentile bootstrap interval of any statistic of ``size`` units: quantiles ``(1 -+ level) / 2``.

    Args: statistic: takes indices ``(R, size)`` into the sample, one resample per row, and returns ``(R,)``; a
    weighted sample carries its weights along by the same indices. draw: a generator, such as
    ``generator(seed, "bootstrap", name)``. strata ``(size,)``: units are drawn within their own stratum, in place, as
    a stratified sample asks for; None: all from all.
    Returns: Interval. Resamples on which the statistic is not a number (a correlation without spread) are left out;
    both ends are None where they are more than half, or size is under two.
    Cost: resamples * size indices, in blocks of 32 MB.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if size < 2:
        return UNKNOWN
    rows = max(1, _BLOCK // size)
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    values = np.concatenate([statistic(_within(draw, count, size, strata)) for count in blocks])
    usable = values[~np.isnan(values)]
    if 2 * len(usable) < resamples:
        return UNKNOWN
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def ratios(d: Array, sizes: Array) -> tuple[Array, Array]:
    """Return per row ``r = sum d / sum T`` and its linearised standard error (see ``paired_interval``).

    Shapes: d, sizes ``(R, N)``; returns two of ``(R,)``.
    """
    total, number = sizes.sum(axis=1), d.shape[1]
    ratio = d.sum(axis=1) / total
    spread = ((d - ratio[:, None] * sizes) ** 2).sum(axis=1)
    return ratio, np.sqrt(number / (number - 1) * spread) / total


def rounding_of(d: Array, sizes: Array) -> float:
    """Return the standard error up to which a spread is rounding: ``1e-12 sum |d| / sum T``.

    Equal windows, and resamples of one window over and over, have no spread but that.
    """
    return 1e-12 * float(np.abs(d).sum() / sizes.sum())


def _picks(seed: int, name: str, resamples: int, number: int) -> Iterator[Ints]:
    """Yield the windows of every resample, a few resamples ``(R, number)`` at a time: the stream is the same in any blocks."""
    draw, rows = generator(seed, "bootstrap", name), max(1, _CACHED // number)
    for start in range(0, resamples, rows):
        yield draw.integers(0, number, (min(rows, resamples - start), number))


def _within(draw: np.random.Generator, count: int, size: int, strata: Ints | None) -> Ints:
    """Return indices ``(count, size)`` drawn with replacement, every column from its own stratum."""
    if strata is None:
        return draw.integers(0, size, (count, size))
    picks = np.empty((count, size), dtype=np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        picks[:, members] = members[draw.integers(0, len(members), (count, len(members)))]
    return picks
