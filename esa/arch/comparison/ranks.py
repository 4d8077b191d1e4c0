"""Spearman's correlation over a few models with a permutation p: all orders where they can be counted."""

import math
from itertools import permutations as all_orders

import numpy as np
import numpy.typing as npt

from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

Array = npt.NDArray[np.float64]
_TIE = 1e-12


def spearman_test(x: Array, y: Array, permutations: int, draw: np.random.Generator) -> dict[str, float | str | None]:
    """Return Spearman's rho of two samples with its two-sided permutation p: value, null, p_value and smallest_p.

    rho: Pearson's correlation of the ranks, ties averaged. Where ``n! <= permutations`` all orders of y are counted, ``p =
    #{abs(rho*) >= abs(rho)} / n!``; else ``(1 + #) / (1 + permutations)`` over random ones. Without spread in x or y the value
    is None and ``why`` says so. Infinite values rank as numbers. Shapes: x, y ``(n,)``.
    Source: Spearman, "The proof and measurement of association between two things", Am. J. Psychology 15, 1904.
    """
    from scipy.stats import rankdata

    one, two = (rankdata(sample) for sample in (x, y))
    one, two = one - one.mean(), two - two.mean()
    size = float(np.sqrt((one**2).sum() * (two**2).sum()))
    if size == 0:
        return {"why": "all values of a side are equal"}
    rho = float(one @ two) / size
    if math.factorial(len(one)) <= permutations:
        orders = np.array(list(all_orders(range(len(two)))))
        null = np.abs(two[orders] @ one) / size
        reached = null >= abs(rho) - _TIE
        best = null >= null.max() - _TIE
        return {
            "value": rho, "null": "all orders of the models", "p_value": float(reached.mean()),
            "smallest_p": float(best.mean()),
        }  # fmt: skip
    null = np.abs(np.array([draw.permutation(two) @ one for _ in range(permutations)])) / size
    return {
        "value": rho, "null": "orders of the models shuffled", "p_value": monte_carlo_p(abs(rho), null),
        "smallest_p": smallest_monte_carlo_p(permutations),
    }  # fmt: skip
