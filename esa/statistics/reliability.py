"""Test-retest reliability: spread over repeats, and the intraclass correlation of cases measured several times."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Table = Sequence[Sequence[float]] | Array


class Spread(NamedTuple):
    """Mean, standard deviation and coefficient of variation of repeated measurements."""

    mean: float
    sd: float | None
    cv: float | None


class Icc(NamedTuple):
    """An intraclass correlation and its interval; an end is None where the approximation has none."""

    value: float
    low: float | None
    high: float | None


def spread(values: Sequence[float] | Array) -> Spread | None:
    """Return mean, ``sd`` (R - 1 below the line) and coefficient of variation ``cv = sd / |mean|`` of repeats.

    Returns: Spread; None without values; sd None for a single one, cv None with it or where the mean is zero.
    """
    sample = np.asarray(values, dtype=float)
    if not len(sample):
        return None
    mean = float(sample.mean())
    if len(sample) < 2:
        return Spread(mean, None, None)
    sd = float(sample.std(ddof=1))
    return Spread(mean, sd, sd / abs(mean) if mean else None)


def split_means(differences: Table, num_tokens: Sequence[int], num_splits: int = 2) -> Array:
    """Return every case's mean difference on disjoint splits of the evaluation windows, as if measured anew on each.

    Split s holds windows s, s + num_splits, s + 2 num_splits, ...: neighbouring windows, often of one document, are
    dealt to different splits. Value: ``sum d / sum T`` over the split, nats per token.
    Args: differences: NLL sums, changed minus intact ``(cases, N)``; num_tokens ``(N,)``.
    Returns: ``(cases, num_splits)``, ready for ``icc_2_1``. Raises: ValueError where windows are fewer than splits.
    """
    table, sizes = np.asarray(differences, dtype=float), np.asarray(num_tokens, dtype=float)
    if not 1 <= num_splits <= len(sizes):
        raise ValueError(f"{len(sizes)} windows cannot be dealt to {num_splits} splits")
    parts = [slice(start, None, num_splits) for start in range(num_splits)]
    return np.stack([table[:, part].sum(axis=1) / sizes[part].sum() for part in parts], axis=1)


def icc_2_1(table: Table, level: float = 0.95) -> Icc | None:
    """Return ICC(2,1): how much of the variance of one measurement is the cases' own, measurements drawn at random.

    Two-way random effects, absolute agreement, single measurement. With n cases, k measurements, and the mean squares
    of cases, measurements and residual MSR, MSC, MSE::

        ICC = (MSR - MSE) / (MSR + (k - 1) MSE + k (MSC - MSE) / n)

    The interval takes Satterthwaite's degrees of freedom v of the denominator: with ``a = k ICC / (n (1 - ICC))``,
    ``b = 1 + k ICC (n - 1) / (n (1 - ICC))``, ``v = (a MSC + b MSE)^2 / ((a MSC)^2 / (k - 1) + (b MSE)^2 /
    ((n - 1) (k - 1)))``, F* the upper quantile of F(n - 1, v), F_* that of F(v, n - 1)::

        low  = n (MSR - F* MSE) / (F* (k MSC + (k n - k - n) MSE) + n MSR)
        high = n (F_* MSR - MSE) / (k MSC + (k n - k - n) MSE + n F_* MSR)

    Args: table: ``(cases, measurements)``: repeats, or disjoint window splits (``split_means``).
    Returns: Icc, without ends where these do not enclose it (a correlation below zero, with too few degrees of freedom) and
    where the cases are all alike, whose correlation is zero;
    None under two cases or two measurements, where nothing varies, or where anything is not finite.
    Source: McGraw and Wong, "Forming inferences about some intraclass correlation coefficients", Psychological Methods
    1, 1996; Shrout and Fleiss, "Intraclass correlations", Psychological Bulletin 86, 1979.
    """
    from scipy.special import fdtri

    x = np.asarray(table, dtype=float)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        return None
    n, k = x.shape
    rows, columns = x.mean(axis=1, keepdims=True), x.mean(axis=0, keepdims=True)
    msr = float(k * ((rows - x.mean()) ** 2).sum() / (n - 1))
    msc = float(n * ((columns - x.mean()) ** 2).sum() / (k - 1))
    mse = float(((x - rows - columns + x.mean()) ** 2).sum() / ((n - 1) * (k - 1)))
    total = msr + (k - 1) * mse + k * (msc - mse) / n
    rounding = (1e-12 * float(np.abs(x).max())) ** 2
    if total <= rounding:
        return None
    value = (msr - mse) / total
    if mse + msc <= rounding:  # the measurements agree to the last digit
        return Icc(1.0, 1.0, 1.0)
    if msr + mse <= rounding:  # the cases are all alike, as where each of them left uniform logits
        return Icc(0.0, None, None)
    freedom = _freedom(value, n, k, msc, mse)
    upper, lower = (float(f) for f in (fdtri(n - 1, freedom, (1 + level) / 2), fdtri(freedom, n - 1, (1 + level) / 2)))
    rest = k * msc + (k * n - k - n) * mse
    low, high = n * (msr - upper * mse) / (upper * rest + n * msr), n * (lower * msr - mse) / (rest + n * lower * msr)
    # Below zero the degrees of freedom can be so few that F has no such quantile, or the ends cross the value.
    return Icc(value, low, high) if low <= value <= high else Icc(value, None, None)


def _freedom(value: float, n: int, k: int, msc: float, mse: float) -> float:
    """Return Satterthwaite's degrees of freedom of ``a MSC + b MSE``, both scaled by ``n (1 - ICC)``."""
    a, b = k * value * msc, (n * (1 - value) + k * value * (n - 1)) * mse
    return (a + b) ** 2 / (a**2 / (k - 1) + b**2 / ((n - 1) * (k - 1)))
