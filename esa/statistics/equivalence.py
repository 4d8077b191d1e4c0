"""Two one-sided tests (TOST): showing that a change is too small to matter."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from esa.statistics.bootstrap import ratios, rounding_of

Verdict = Literal["equivalent", "beyond", "undecided"]


class Equivalence(NamedTuple):
    """The p value of TOST, the ``1 - 2 alpha`` interval of the difference, and the verdict at alpha."""

    p_value: float
    low: float
    high: float
    verdict: Verdict


def tost(
    differences: Sequence[float],
    num_tokens: Sequence[int],
    margin: float,
    alpha: float = 0.05,
) -> Equivalence | None:
    """Return whether the difference in mean NLL per token is shown to lie within ``-margin .. margin`` (nats).

    With r the token-weighted mean difference, s its linearised standard error (see ``paired_interval``) and F the t
    distribution with N - 1 degrees of freedom: ``p = max(F(-(r + margin) / s), F((r - margin) / s))``, the larger p of
    two one-sided t tests. ``equivalent`` where p <= alpha, that is where the ``1 - 2 alpha`` interval
    ``r -+ t s`` lies within the margin; ``beyond`` where that interval lies wholly outside; else ``undecided``, which
    is not evidence of harm. With equal windows p is that of statsmodels' ``ttost_paired``.

    Args: differences: NLL sums per window, changed minus intact ``(N,)``. Returns: Equivalence; None
    under two windows. Without spread p is 0 inside the margin and 1 elsewhere.
    Raises: ValueError for a margin that is not above zero.
    Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", J.
    Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    from scipy.special import stdtr, stdtrit

    if not margin > 0:
        raise ValueError(f"the margin is {margin}; allowed: above 0")
    d, sizes = np.asarray(differences, dtype=float), np.asarray(num_tokens, dtype=float)
    if len(d) < 2:
        return None
    value, error = (float(one[0]) for one in ratios(d[None], sizes[None]))
    if error <= rounding_of(d, sizes):
        error, p_value = 0.0, 0.0 if abs(value) < margin else 1.0
    else:
        p_value = float(max(stdtr(len(d) - 1, -(value + margin) / error), stdtr(len(d) - 1, (value - margin) / error)))
    reach = float(stdtrit(len(d) - 1, 1 - alpha)) * error
    low, high = value - reach, value + reach
    if p_value <= alpha:
        return Equivalence(p_value, low, high, "equivalent")
    return Equivalence(p_value, low, high, "beyond" if low >= margin or high <= -margin else "undecided")
