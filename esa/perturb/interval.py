"""The interval of a paired difference between two evaluations of the same windows."""

import numpy as np
import numpy.typing as npt

from esa.spec import generator

RESAMPLES = 1999
Array = npt.NDArray[np.float64]


def paired_interval(
    changed: list[float], base: list[float], num_tokens: list[int], seed: int, name: str, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Return the studentized bootstrap interval of the difference in mean NLL per token, windows as the units.

    With d_n the difference of window n's NLL sums and T_n its predicted tokens: estimate r = sum d / sum T, its linearised
    standard error s, and the quantiles of (r* - r) / s* over 1,999 resamples of windows: [r - t_high s, r - t_low s].
    None under three windows. Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
    """
    d, sizes = np.subtract(changed, base), np.asarray(num_tokens, dtype=float)
    number = len(d)
    if number < 3:
        return None, None
    estimate, error = _ratio(d[None], sizes[None])
    # Equal windows, and resamples of one window over and over, have no spread but rounding.
    rounding = 1e-12 * float(np.abs(d).sum() / sizes.sum())
    if error[0] <= rounding:
        return float(estimate[0]), float(estimate[0])
    picks = generator(seed, "bootstrap", name).integers(0, number, (RESAMPLES, number))
    means, errors = _ratio(d[picks], sizes[picks])
    usable = errors > rounding
    studentized = (means[usable] - estimate[0]) / errors[usable]
    low, high = np.quantile(studentized, [(1 - level) / 2, (1 + level) / 2])
    return float(estimate[0] - high * error[0]), float(estimate[0] - low * error[0])


def _ratio(d: Array, sizes: Array) -> tuple[Array, Array]:
    total, number = sizes.sum(axis=1), d.shape[1]
    ratio = d.sum(axis=1) / total
    spread = ((d - ratio[:, None] * sizes) ** 2).sum(axis=1)
    return ratio, np.sqrt(number / (number - 1) * spread) / total
