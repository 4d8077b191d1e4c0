"""Randomisation tests: sign flips of paired differences, ranks among random draws, and the smallest p they can give."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from esa.spec import generator

PERMUTATIONS = 9999
Alternative = Literal["greater", "less", "two-sided"]
Array = npt.NDArray[np.float64]
_BLOCK = 4_000_000  # signs held at once
_TIE = 1e-12  # values this close, relatively, are equal: a sum in another order must not decide


def sign_flip_p(
    differences: Sequence[float],
    seed: int,
    name: str,
    permutations: int = PERMUTATIONS,
    alternative: Alternative = "two-sided",
) -> float | None:
    """Return the p value of a paired difference under flips of the sign of every window's difference.

    With d_n the difference of window n's NLL sums, the statistic is ``S = sum d_n``; divided by all tokens it is the
    token-weighted mean difference, and no flip changes that divisor. Under the null d_n and -d_n are equally likely.
    Where ``2^N <= permutations`` all flips are counted: ``p = #{S* >= S} / 2^N``, the identity among them. Else
    ``p = (1 + #{S* >= S}) / (1 + permutations)`` over random flips. ``less`` counts ``S* <= S``, ``two-sided``
    ``|S*| >= |S|``. Sums equal but for rounding count as reached.

    Args: differences ``(N,)``, nats; seed, name: of the stream ``("sign_flip", name)``. Returns: p in (0, 1]; 1 where
    nothing differs, None without windows. Raises: ValueError where one is not finite.
    Cost: permutations * N signs, 4 ms at N = 64.
    Source: Fisher, The Design of Experiments, 1935, section 21; Phipson and Smyth, "Permutation P-values should never
    be zero", SAGMB 9, 2010.
    """
    d = np.asarray(differences, dtype=float)
    number = len(d)
    if not number:
        return None
    if not np.isfinite(d).all():
        raise ValueError("a sign-flip test of differences that are not finite is not defined")
    observed, slack = float(d.sum()), _TIE * float(np.abs(d).sum())
    if is_exact(number, permutations):
        return _reached(all_flips(d), observed, alternative, slack) / float(2**number)
    rng = generator(seed, "sign_flip", name)
    rows, count = max(1, _BLOCK // number), 0
    for start in range(0, permutations, rows):
        here = min(rows, permutations - start)
        bits = np.frombuffer(rng.bytes((here * number + 7) // 8), dtype=np.uint8)
        flips = np.unpackbits(bits, count=here * number).reshape(here, number)
        count += _reached(observed - 2 * (flips @ d), observed, alternative, slack)
    return (1 + count) / (1 + permutations)


def all_flips(d: Array) -> Array:
    """Return the sums ``sum s_n d_n`` for all ``2^N`` choices of signs, the identity first."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def monte_carlo_p(observed: float, draws: Sequence[float] | Array, alternative: Alternative = "greater") -> float:
    """Return the p value of a value among random draws: ``(1 + #{draws >= observed}) / (R + 1)``.

    ``less`` counts ``draws <= observed``; ``two-sided`` is twice the smaller of both, at most 1. Infinite values
    compare as numbers (a draw that broke the model is ``inf``: as bad as can be); NaN is the caller's mistake.
    Returns: p in [1 / (R + 1), 1]; 1 without draws. Raises: ValueError for NaN.
    Source: Barnard's test; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2.
    """
    values = np.asarray(draws, dtype=float)
    if np.isnan(values).any() or np.isnan(observed):
        raise ValueError("a Monte-Carlo p value of NaN is not defined")
    finite = np.abs(values[np.isfinite(values)])
    slack = _TIE * max(float(finite.max()) if len(finite) else 0.0, abs(observed) if np.isfinite(observed) else 0.0)
    if alternative == "two-sided":
        return min(1.0, 2 * min(monte_carlo_p(observed, values, "greater"), monte_carlo_p(observed, values, "less")))
    return (1 + _reached(values, observed, alternative, slack)) / (1 + len(values))


def is_exact(num_windows: int, permutations: int) -> bool:
    """Tell whether all sign flips are counted: ``2^N <= permutations``."""
    return num_windows < 63 and 2**num_windows <= permutations


def smallest_sign_flip_p(
    num_windows: int, permutations: int = PERMUTATIONS, alternative: Alternative = "two-sided"
) -> float:
    """Return the smallest p that ``sign_flip_p`` can give: ``1 / 2^N`` (two-sided ``2 / 2^N``), or ``1 / (1 + R)``.

    The last is reached where no random flip is the identity, which from 20 windows on is all but certain.
    """
    if not is_exact(num_windows, permutations):
        return 1 / (1 + permutations)
    return min(1.0, (2 if alternative == "two-sided" else 1) / float(2**num_windows))


def smallest_monte_carlo_p(num_draws: int) -> float:
    """Return the smallest p that ``monte_carlo_p`` can give, one-sided: ``1 / (R + 1)``."""
    return 1 / (num_draws + 1)


def smallest_adjusted_p(smallest: float, num_tests: int, rank: int = 1, rule: Literal["bh", "holm"] = "bh") -> float:
    """Return the smallest adjusted p where ``rank`` of m tests reach the smallest p and the others do not.

    Benjamini-Hochberg: ``min(1, p m / rank)``. Holm: ``min(1, p m)`` whatever the rank, for its smallest one is
    multiplied by m and none may be less. ``smallest`` is the rule's own, such as ``smallest_monte_carlo_p(19)``.
    """
    return min(1.0, smallest * num_tests / (rank if rule == "bh" else 1))


def _reached(values: Array, observed: float, alternative: Alternative, slack: float) -> int:
    """Count the values at least as extreme as the observed one."""
    if alternative == "greater":
        return int(np.count_nonzero(values >= observed - slack))
    if alternative == "less":
        return int(np.count_nonzero(values <= observed + slack))
    return int(np.count_nonzero(np.abs(values) >= abs(observed) - slack))
